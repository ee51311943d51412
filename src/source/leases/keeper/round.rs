//! The thread of the keeper. In each round it gives leases back, renews the held leases, and takes those that are due.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, watch};

use super::{KeeperRequests, Standing, View, foreign, is_of_earlier};
use crate::ids::{SequenceNumber, ShardKey};
use crate::source::SourceError;
use crate::source::leases::plan::{self, Lease, Observed};
use crate::source::leases::table::{LeaseTable, Updated};
use crate::source::leases::{LeaseOptions, checkpoint_word};
use crate::timeouts::LEASE_ROUND_MIN;

/// Concurrent calls to the table, at most.
const RENEWALS: usize = 16;

/// The state of the thread.
pub(super) struct KeeperThread {
    options: LeaseOptions,
    refused: Option<String>,
    table: LeaseTable,
    stream: String,
    worker: String,
    failover: Duration,
    observed: Observed,
    held: BTreeMap<ShardKey, Lease>,
    view: watch::Sender<View>,
    /// The last checkpoint that each held lease got from this thread.
    written_checkpoints: BTreeMap<ShardKey, SequenceNumber>,
}

impl KeeperThread {
    pub(super) fn new(table: LeaseTable, stream: String, options: LeaseOptions, view: watch::Sender<View>) -> Self {
        let (worker, failover) = (options.worker.clone(), options.failover);
        let observed = Observed::new(failover);
        let (held, written_checkpoints) = (BTreeMap::new(), BTreeMap::new());
        Self { options, refused: None, table, stream, worker, failover, observed, held, view, written_checkpoints }
    }

    /// Runs rounds until the ingest loop closes the keeper or is gone. At the end it gives every lease back.
    pub(super) async fn keep(mut self, received: watch::Receiver<KeeperRequests>, nudge: Arc<Notify>) {
        loop {
            let began = Instant::now();
            let requests = received.borrow().clone();
            if requests.closing || received.has_changed().is_err() {
                self.give_back_all(&requests).await;
                return;
            }
            self.give_back(&requests).await;
            self.renew(&requests).await;
            match self.take(&requests).await {
                Ok(table) => self.show(table),
                Err(error) => {
                    tracing::warn!(error = %error, "cannot read the lease table; this worker keeps its leases");
                    let before = self.view.borrow().clone();
                    self.show(before);
                }
            }
            tokio::select! {
                () = tokio::time::sleep((self.failover / 3).saturating_sub(began.elapsed())) => {}
                () = nudge.notified() => tokio::time::sleep(LEASE_ROUND_MIN.saturating_sub(began.elapsed())).await,
            }
        }
    }

    /// Publishes the leases that are held now, with what is known of the table.
    fn show(&self, table: View) {
        let standing = |lease: &Lease| {
            if lease.handoff_requested_by.is_some() { Standing::HandoffRequested } else { Standing::Held }
        };
        let standing = self.held.iter().map(|(shard, lease)| (shard.clone(), standing(lease))).collect();
        let view = View { standing, refused: self.refused.clone(), ..table };
        self.view.send_if_modified(|shown| {
            let news = *shown != view;
            *shown = view;
            news
        });
    }

    async fn renew(&mut self, requests: &KeeperRequests) {
        let table = &self.table;
        let written_checkpoints = &self.written_checkpoints;
        let jobs = self.held.values().cloned().filter_map(|lease| {
            let shard = ShardKey::new(&self.stream, &lease.key)?;
            let reached = requests.reached.get(&shard).filter(|r| written_checkpoints.get(&shard) != Some(*r)).cloned();
            Some(async move {
                let checkpoint = reached.as_ref().map(|r| checkpoint_word(Some(r)));
                let mut renewed = table.renew(&lease, checkpoint).await;
                if matches!(renewed, Ok(Updated::Refused)) {
                    // An earlier renewal of this process, whose answer was lost, may be the cause: only the owner
                    // counts its lease up.
                    match table.get(&lease.key).await {
                        Ok(Some(now)) if table.is_doubled(&now) => return (shard, reached, Ok(None)),
                        Ok(Some(now)) if now.owner == lease.owner => renewed = table.renew(&now, checkpoint).await,
                        Ok(_) => {}
                        Err(error) => renewed = Err(error),
                    }
                }
                (shard, reached, renewed.map(Some))
            })
        });
        let done: Vec<_> = futures::stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(RENEWALS).collect().await;
        for (shard, reached, renewed) in done {
            match renewed {
                Ok(None) => {
                    self.refused = Some(format!(
                        "another worker has the same --worker-id {}; give each worker a different one, or none",
                        self.worker
                    ));
                    self.held.remove(&shard);
                }
                Ok(Some(Updated::Done(lease))) => {
                    if let Some(reached) = reached {
                        self.written_checkpoints.insert(shard.clone(), reached);
                    }
                    match lease.is_ended() {
                        true => drop(self.held.remove(&shard)),
                        false => drop(self.held.insert(shard, lease)),
                    }
                }
                Ok(Some(Updated::Refused)) => {
                    tracing::info!(shard = %shard, "the lease belongs to another worker now");
                    self.held.remove(&shard);
                }
                Err(error) => {
                    tracing::warn!(shard = %shard, error = %error, "cannot renew the lease; it stays held here");
                }
            }
        }
    }

    /// Reads the whole table, adds missing leases, and takes due ones. Returns what it saw of other workers' leases.
    async fn take(&mut self, requests: &KeeperRequests) -> Result<View, SourceError> {
        let is_earlier = |lease: &Lease| is_of_earlier(lease, &self.stream, &self.options);
        let (earlier, mut leases): (Vec<_>, Vec<_>) = self.table.scan().await?.into_iter().partition(is_earlier);
        for lease in &earlier {
            self.table.forget(lease).await?;
        }
        self.refused = self.refused.take().or_else(|| foreign(&leases, &self.stream, &self.options));
        if self.refused.is_some() {
            return Ok(self.view.borrow().clone());
        }
        if self.create_missing(&leases, requests).await? {
            leases = self.table.scan().await?;
        }
        let now = Instant::now();
        self.observed.note(&leases, now);
        for lease in &leases {
            let Some(shard) = ShardKey::new(&self.stream, &lease.key) else { continue };
            // Another worker handed the lease over, or this worker took it by an update whose answer was lost.
            if lease.owner.as_deref() == Some(self.worker.as_str()) && !lease.is_ended() {
                self.held.entry(shard.clone()).or_insert_with(|| lease.clone());
            }
            if lease.is_ended() && !requests.listed.is_empty() && !requests.listed.contains(&shard) {
                self.table.delete_lease(&lease.key).await?;
            }
        }
        self.take_due(&leases, requests, now).await?;
        Ok(self.seen(&leases, requests.offers, now))
    }

    /// Creates the leases of offered shards that the table lacks. Returns whether there were any.
    async fn create_missing(&self, leases: &[Lease], requests: &KeeperRequests) -> Result<bool, SourceError> {
        let known: HashSet<&str> = leases.iter().map(|lease| lease.key.as_str()).collect();
        let missing: Vec<_> = requests.offered.iter().filter(|(shard, _)| !known.contains(shard.shard())).collect();
        if missing.is_empty() {
            return Ok(false);
        }
        let (table, stream) = (&self.table, self.stream.as_str());
        let jobs = missing.into_iter().map(|(shard, offer)| async move {
            let word = checkpoint_word(requests.reached.get(shard));
            table.create_lease(stream, shard.shard(), &offer.parents, word).await
        });
        let jobs: Vec<_> = jobs.collect();
        futures::stream::iter(jobs).buffer_unordered(RENEWALS).try_collect::<()>().await?;
        Ok(true)
    }

    /// Takes the leases that are due, and asks for one if this worker has too few.
    async fn take_due(&mut self, leases: &[Lease], requests: &KeeperRequests, now: Instant) -> Result<(), SourceError> {
        let plan = plan::plan(leases, &self.observed, &self.worker, now, &mut rand::rng());
        for lease in plan.take {
            let Some(shard) = ShardKey::new(&self.stream, &lease.key) else { continue };
            if requests.give_back.contains(&shard) {
                continue;
            }
            match self.table.take(&lease).await? {
                Updated::Done(lease) => {
                    tracing::info!(shard = %shard, "took the lease");
                    self.held.insert(shard, lease);
                }
                // Another worker was faster.
                Updated::Refused => {}
            }
        }
        if let Some(lease) = plan.ask
            && let Updated::Done(lease) = self.table.request_handoff(&lease).await?
        {
            tracing::info!(shard = lease.key, owner = lease.owner, "asked for the lease");
        }
        Ok(())
    }

    /// Returns what the leases of the table show of other workers. `offers` is the number of the offer before the scan.
    fn seen(&self, leases: &[Lease], offers: u64, now: Instant) -> View {
        let held: BTreeSet<&str> = self.held.values().map(|lease| lease.key.as_str()).collect();
        let others = leases.iter().filter(|l| !l.is_ended() && !held.contains(l.key.as_str()));
        let (free, owned): (Vec<_>, Vec<_>) = others.partition(|l| self.observed.is_free(l, now));
        let doubtful = owned.iter().filter(|l| !self.observed.is_kept(l, now)).count();
        let ended =
            leases.iter().filter(|l| l.is_ended()).filter_map(|l| ShardKey::new(&self.stream, &l.key)).collect();
        View { standing: BTreeMap::new(), seen: true, unread: free.len(), doubtful, offers, ended, refused: None }
    }

    async fn give_back(&mut self, requests: &KeeperRequests) {
        for shard in &requests.give_back {
            let Some(lease) = self.held.get(shard).cloned() else { continue };
            let word = requests.reached.get(shard).map(|r| checkpoint_word(Some(r)));
            match self.table.give_back(&lease, word).await {
                Ok(updated) => {
                    match updated {
                        Updated::Done(_) => {
                            tracing::info!(shard = %shard, to = lease.handoff_requested_by, "gave the lease back");
                        }
                        Updated::Refused => {
                            tracing::info!(shard = %shard, "another worker took the lease before it was given back");
                        }
                    }
                    self.held.remove(shard);
                    self.written_checkpoints.remove(shard);
                }
                Err(error) => {
                    tracing::warn!(shard = %shard, error = %error, "cannot give the lease back, trying again");
                }
            }
        }
    }

    async fn give_back_all(&mut self, requests: &KeeperRequests) {
        let table = &self.table;
        let jobs = self.held.iter().map(|(shard, lease)| {
            let word = requests.reached.get(shard).map(|r| checkpoint_word(Some(r)));
            async move {
                if let Err(error) = table.give_back(lease, word).await {
                    tracing::warn!(shard = %shard, error = %error, "cannot give the lease back; it expires by itself");
                }
            }
        });
        futures::stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(RENEWALS).collect::<Vec<()>>().await;
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::source::leases::keeper::tests::{lease, options};
    use crate::source::leases::table::tests::table_at;

    /// DynamoDB closes every connection, for several failover times.
    #[tokio::test]
    async fn a_lease_is_kept_while_dynamodb_cannot_be_reached() {
        const CONNECTIONS: usize = 40;
        let dynamodb = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", dynamodb.local_addr().unwrap());
        let shard = ShardKey::new("stream", "shard").unwrap();
        let (requests, received) = watch::channel(KeeperRequests::default());
        let (shown, view) = watch::channel(View::default());
        let options = options(Duration::from_millis(30));
        let mut thread = KeeperThread::new(table_at(&endpoint, &options.worker), "stream".to_owned(), options, shown);
        thread.held.insert(shard.clone(), Lease { owner: Some("w".to_owned()), ..lease("shard") });
        thread.show(View::default());
        let outage = async {
            // A round renews the lease and scans the table, on at most two connections each. The pause between two
            // rounds is a third of the failover time.
            for _ in 0..CONNECTIONS {
                drop(dynamodb.accept().await.unwrap());
            }
            assert_eq!(view.borrow().standing, BTreeMap::from([(shard, Standing::Held)]));
            drop(dynamodb);
            requests.send_modify(|requests| requests.closing = true);
        };
        let both = async { tokio::join!(thread.keep(received, Arc::default()), outage) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the keeper continues");
    }
}
