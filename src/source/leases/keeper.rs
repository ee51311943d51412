//! The keeper: renews leases, takes and asks for those that are due, and gives back those that are no longer wanted.
//!
//! The keeper shares two values with the ingest loop: `Wishes` (what the loop wants) and [`View`] (what this worker
//! holds). Both are states and not events, so that nothing queues up and nothing is missed.
//!
//! # Handoff
//! A worker with too few leases writes its name into a lease of the busiest worker. The owner sees the name at its next
//! renewal. The ingest loop then commits its rows of that shard and asks the keeper to give the lease back. The lease
//! goes to the worker that asked.
//!
//! # Cancellation
//! [`Keeper::close`] gives every lease back and ends the thread.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, oneshot, watch};

use super::plan::{self, Lease, Observed};
use super::table::{LeaseTable, Updated};
use super::{LeaseOptions, checkpoint_word};
use crate::aws::AwsSettings;
use crate::ids::{SequenceNumber, ShardKey, incarnation_of};
use crate::source::SourceError;
use crate::timeouts::{LEASE_CALL_TIMEOUT_MIN, LEASE_CLOSE_TIMEOUT, LEASE_ROUND_MIN};

/// Concurrent calls to the table, at most.
const RENEWALS: usize = 16;

/// A shard that may be read now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Ids of the parent shards.
    pub parents: Vec<String>,
}

/// The wishes of the ingest loop.
#[derive(Debug, Clone, Default)]
struct Wishes {
    offered: BTreeMap<ShardKey, Offer>,
    /// Number of changes of `offered`.
    offers: u64,
    reached: BTreeMap<ShardKey, SequenceNumber>,
    give_back: BTreeSet<ShardKey>,
    /// Shards that the stream lists; empty before the first listing.
    listed: BTreeSet<ShardKey>,
    closing: bool,
}

/// The standing of a shard with this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Shard that this worker may read.
    Held,
    /// Shard that this worker still holds, but another worker asks for.
    Asked,
}

/// The leases that this worker holds, and what it knows of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Standing of each held shard.
    pub standing: BTreeMap<ShardKey, Standing>,
    /// Whether the table was read at least once.
    pub seen: bool,
    /// Number of open leases that no worker holds or renews.
    pub unread: usize,
    /// Number of open leases of other workers that are not known to live: no renewal has been seen yet.
    pub doubtful: usize,
    /// Number of the offer ([`Keeper::offer`]) after which the table was last read.
    pub offers: u64,
    /// Shards in the table that were read to their end.
    pub ended: BTreeSet<ShardKey>,
    /// Reason why this worker may not continue.
    pub refused: Option<String>,
}

/// The handle of the ingest loop to the keeper.
#[derive(Debug)]
pub struct Keeper {
    wishes: watch::Sender<Wishes>,
    view: watch::Receiver<View>,
    nudge: Arc<Notify>,
    done: Option<oneshot::Receiver<()>>,
}

impl Keeper {
    /// Opens the table, creates it if it does not exist, and checks that it belongs to this stream.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn check(aws: &AwsSettings, stream: &str, options: &LeaseOptions) -> Result<(), SourceError> {
        let table =
            LeaseTable::open(aws, &options.table, &options.worker, LEASE_CALL_TIMEOUT_MIN.max(options.failover))
                .await?;
        table.ensure().await?;
        let is_of = |lease: &Lease| {
            lease.stream.as_ref().is_some_and(|of| of == stream || of.starts_with(&format!("{stream}.")))
        };
        let others: Vec<Lease> = table.scan().await?.into_iter().filter(|lease| !is_of(lease)).collect();
        foreign(&others, stream, options).map_or(Ok(()), |what| Err(SourceError::Invalid(what)))
    }

    /// Opens the table, creates it if it does not exist, and starts the thread.
    ///
    /// # Errors
    /// The table cannot be created or read, or belongs to another stream or to another lake.
    pub async fn start(aws: &AwsSettings, stream: &str, options: LeaseOptions) -> Result<Self, SourceError> {
        let patience = (options.failover * 2 / 3).max(LEASE_CALL_TIMEOUT_MIN);
        let table = LeaseTable::open(aws, &options.table, &options.worker, patience).await?;
        table.ensure().await?;
        if let Some(what) = foreign(&table.scan().await?, stream, &options) {
            return Err(SourceError::Invalid(what));
        }
        let (wishes, wished) = watch::channel(Wishes::default());
        let (shown, view) = watch::channel(View::default());
        let (ended, done) = oneshot::channel();
        let nudge = Arc::new(Notify::new());
        let (aws, stream, nudged) = (aws.clone(), stream.to_owned(), nudge.clone());
        // The keeper has its own runtime: its timers, connections and name lookups share nothing with the uploads.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| SourceError::Invalid(format!("start the lease keeper: {e}")))?;
        let thread = std::thread::Builder::new().name("lease-keeper".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match LeaseTable::open(&aws, &options.table, &options.worker, patience).await {
                    Ok(table) => {
                        let table = table.of(&options.lake);
                        Round::new(table, stream, options, shown).keep(wished, nudged).await;
                    }
                    Err(error) => tracing::error!(error = %error, "the lease keeper cannot start"),
                }
            });
            let _ = ended.send(());
        });
        thread.map_err(|e| SourceError::Invalid(format!("start the lease keeper: {e}")))?;
        Ok(Self { wishes, view, nudge, done: Some(done) })
    }

    /// Returns what this worker holds now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until the view changes.
    ///
    /// # Errors
    /// The thread has ended: nothing renews the leases any more.
    pub async fn changed(&mut self) -> Result<(), SourceError> {
        let gone =
            |_| SourceError::Invalid("the thread that keeps the leases has ended; run the same command again".into());
        self.view.changed().await.map_err(gone)
    }

    /// Sets the shards that may be read now, and the shards that the stream lists.
    pub fn offer(&self, offered: BTreeMap<ShardKey, Offer>, listed: BTreeSet<ShardKey>) {
        let mut news = false;
        self.wishes.send_modify(|wishes| {
            news = wishes.offered != offered;
            wishes.offers += u64::from(news);
            wishes.offered = offered;
            wishes.listed = listed;
        });
        if news {
            self.nudge.notify_one();
        }
    }

    /// Returns whether every shard that may be read has a reader. Every offered shard must be in the table and must not
    /// have ended since. Its holder must be a worker that was seen to renew, or this worker, for which `is_read` must
    /// be true.
    pub fn is_settled(&self, is_read: impl Fn(&ShardKey) -> bool) -> bool {
        let (view, wishes) = (self.view.borrow(), self.wishes.borrow());
        let is_known = view.seen && view.offers == wishes.offers && view.unread == 0 && view.doubtful == 0;
        is_known
            && view.standing.keys().all(is_read)
            && view.ended.iter().all(|shard| !wishes.offered.contains_key(shard))
    }

    /// Sets the position that the lake's log holds for a shard. A later position would put the checkpoint ahead of the
    /// lake.
    pub fn reached(&self, shard: &ShardKey, position: &SequenceNumber) {
        self.wishes.send_modify(|wishes| {
            wishes.reached.insert(shard.clone(), position.clone());
        });
    }

    /// Asks the keeper to give a lease back.
    pub fn give_back(&self, shard: &ShardKey) {
        self.wishes.send_modify(|wishes| {
            wishes.give_back.insert(shard.clone());
        });
        self.nudge.notify_one();
    }

    /// Removes the wish to give a lease back, once the lease is gone.
    pub fn given_back(&self, shard: &ShardKey) {
        self.wishes.send_if_modified(|wishes| wishes.give_back.remove(shard));
    }

    /// Returns the shards whose leases are to be given back.
    pub fn giving_back(&self) -> BTreeSet<ShardKey> {
        self.wishes.borrow().give_back.clone()
    }

    /// Gives every lease back and ends the thread.
    pub async fn close(mut self) {
        self.wishes.send_modify(|wishes| wishes.closing = true);
        self.nudge.notify_one();
        if let Some(done) = self.done.take()
            && tokio::time::timeout(LEASE_CLOSE_TIMEOUT, done).await.is_err()
        {
            tracing::warn!("leases could not be given back in time; they expire by themselves");
        }
    }
}

/// Returns why this worker may not use the leases of a table; `None` if it may.
fn foreign(leases: &[Lease], stream: &str, options: &LeaseOptions) -> Option<String> {
    let table = &options.table;
    let of_now = || leases.iter().filter(|lease| !is_of_earlier(lease, stream, options));
    if of_now().any(|lease| lease.stream.is_none()) {
        return Some(format!(
            "lease table {table} belongs to an application of the Kinesis Client Library; to start where that \
             application stopped, give another --lease-table and --import-kcl-checkpoints {table}"
        ));
    }
    if let Some(other) = of_now().filter_map(|lease| lease.stream.as_deref()).find(|other| *other != stream) {
        return Some(format!(
            "lease table {table} belongs to stream {other}, not {stream}; give each stream a table of its own"
        ));
    }
    let others = of_now().filter(|lease| lease.lake.as_ref().is_some_and(|lake| *lake != options.lake));
    others.map(|lease| &lease.key).min().map(|shard| {
        format!(
            "lease table {table} has shard {shard} for another lake; give each lake a lease table of its own, or \
             delete this one if the lake was created again (synclake then creates a new table)"
        )
    })
}

/// Returns whether a lease belongs to a deleted earlier stream of the same name, which this lake has read, too.
fn is_of_earlier(lease: &Lease, stream: &str, options: &LeaseOptions) -> bool {
    let (Some(other), Some((base, _))) = (&lease.stream, stream.rsplit_once('.')) else { return false };
    let (Some(then), Some(now)) = (incarnation_of(base, other), incarnation_of(base, stream)) else { return false };
    then < now && lease.lake.as_ref() == Some(&options.lake)
}

/// The state of the thread.
struct Round {
    options: LeaseOptions,
    refused: Option<String>,
    table: LeaseTable,
    stream: String,
    worker: String,
    failover: Duration,
    observed: Observed,
    held: BTreeMap<ShardKey, Lease>,
    view: watch::Sender<View>,
    told: BTreeMap<ShardKey, SequenceNumber>,
}

impl Round {
    fn new(table: LeaseTable, stream: String, options: LeaseOptions, view: watch::Sender<View>) -> Self {
        let (worker, failover) = (options.worker.clone(), options.failover);
        let observed = Observed::new(failover);
        let (held, told) = (BTreeMap::new(), BTreeMap::new());
        Self { options, refused: None, table, stream, worker, failover, observed, held, view, told }
    }

    async fn keep(mut self, wished: watch::Receiver<Wishes>, nudge: Arc<Notify>) {
        loop {
            let began = Instant::now();
            let wishes = wished.borrow().clone();
            if wishes.closing || wished.has_changed().is_err() {
                self.give_back_all(&wishes).await;
                return;
            }
            self.give_back(&wishes).await;
            self.renew(&wishes).await;
            match self.take(&wishes).await {
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
        let standing = |lease: &Lease| if lease.asked_by.is_some() { Standing::Asked } else { Standing::Held };
        let standing = self.held.iter().map(|(shard, lease)| (shard.clone(), standing(lease))).collect();
        let view = View { standing, refused: self.refused.clone(), ..table };
        self.view.send_if_modified(|shown| {
            let news = *shown != view;
            *shown = view;
            news
        });
    }

    async fn renew(&mut self, wishes: &Wishes) {
        let table = &self.table;
        let told = &self.told;
        let jobs = self.held.values().cloned().filter_map(|lease| {
            let shard = ShardKey::new(&self.stream, &lease.key)?;
            let reached = wishes.reached.get(&shard).filter(|r| told.get(&shard) != Some(*r)).cloned();
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
                        self.told.insert(shard.clone(), reached);
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
    async fn take(&mut self, wishes: &Wishes) -> Result<View, SourceError> {
        let is_earlier = |lease: &Lease| is_of_earlier(lease, &self.stream, &self.options);
        let (earlier, mut leases): (Vec<_>, Vec<_>) = self.table.scan().await?.into_iter().partition(is_earlier);
        for lease in &earlier {
            self.table.forget(lease).await?;
        }
        self.refused = self.refused.take().or_else(|| foreign(&leases, &self.stream, &self.options));
        if self.refused.is_some() {
            return Ok(self.view.borrow().clone());
        }
        let known: HashSet<&str> = leases.iter().map(|lease| lease.key.as_str()).collect();
        let missing: Vec<_> = wishes.offered.iter().filter(|(shard, _)| !known.contains(shard.shard())).collect();
        if !missing.is_empty() {
            let (table, stream) = (&self.table, self.stream.as_str());
            let jobs = missing.into_iter().map(|(shard, offer)| async move {
                let word = checkpoint_word(wishes.reached.get(shard));
                table.create_lease(stream, shard.shard(), &offer.parents, word).await
            });
            let jobs: Vec<_> = jobs.collect();
            futures::stream::iter(jobs).buffer_unordered(RENEWALS).try_collect::<()>().await?;
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
            if lease.is_ended() && !wishes.listed.is_empty() && !wishes.listed.contains(&shard) {
                self.table.delete_lease(&lease.key).await?;
            }
        }
        let plan = plan::plan(&leases, &self.observed, &self.worker, now, &mut rand::rng());
        for lease in plan.take {
            let Some(shard) = ShardKey::new(&self.stream, &lease.key) else { continue };
            if wishes.give_back.contains(&shard) {
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
            && let Updated::Done(lease) = self.table.ask(&lease).await?
        {
            tracing::info!(shard = lease.key, owner = lease.owner, "asked for the lease");
        }
        let held: BTreeSet<&str> = self.held.values().map(|lease| lease.key.as_str()).collect();
        let others = leases.iter().filter(|l| !l.is_ended() && !held.contains(l.key.as_str()));
        let (free, owned): (Vec<_>, Vec<_>) = others.partition(|l| self.observed.is_free(l, now));
        let doubtful = owned.iter().filter(|l| !self.observed.is_kept(l, now)).count();
        let ended =
            leases.iter().filter(|l| l.is_ended()).filter_map(|l| ShardKey::new(&self.stream, &l.key)).collect();
        let (unread, offers) = (free.len(), wishes.offers);
        Ok(View { standing: BTreeMap::new(), seen: true, unread, doubtful, offers, ended, refused: None })
    }

    async fn give_back(&mut self, wishes: &Wishes) {
        for shard in &wishes.give_back {
            let Some(lease) = self.held.get(shard).cloned() else { continue };
            let word = wishes.reached.get(shard).map(|r| checkpoint_word(Some(r)));
            match self.table.give_back(&lease, word).await {
                Ok(updated) => {
                    match updated {
                        Updated::Done(_) => {
                            tracing::info!(shard = %shard, to = lease.asked_by, "gave the lease back");
                        }
                        Updated::Refused => {
                            tracing::info!(shard = %shard, "another worker took the lease before it was given back");
                        }
                    }
                    self.held.remove(shard);
                    self.told.remove(shard);
                }
                Err(error) => {
                    tracing::warn!(shard = %shard, error = %error, "cannot give the lease back, trying again");
                }
            }
        }
    }

    async fn give_back_all(&mut self, wishes: &Wishes) {
        let table = &self.table;
        let jobs = self.held.iter().map(|(shard, lease)| {
            let word = wishes.reached.get(shard).map(|r| checkpoint_word(Some(r)));
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
    use super::*;
    use crate::source::leases::table::tests::table_at;

    fn options(failover: Duration) -> LeaseOptions {
        LeaseOptions { table: "t".to_owned(), worker: "w".to_owned(), lake: "this".to_owned(), failover }
    }

    fn lease(key: &str) -> Lease {
        Lease {
            key: key.to_owned(),
            owner: None,
            counter: 1,
            checkpoint: "1".to_owned(),
            checkpoint_sub_sequence: 0,
            asked_by: None,
            stream: None,
            lake: None,
            session: None,
        }
    }

    /// DynamoDB closes every connection, for several failover times.
    #[tokio::test]
    async fn a_lease_is_kept_while_dynamodb_cannot_be_reached() {
        const CONNECTIONS: usize = 40;
        let dynamodb = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", dynamodb.local_addr().unwrap());
        let shard = ShardKey::new("stream", "shard").unwrap();
        let (wishes, wished) = watch::channel(Wishes::default());
        let (shown, view) = watch::channel(View::default());
        let options = options(Duration::from_millis(30));
        let mut round = Round::new(table_at(&endpoint, &options.worker), "stream".to_owned(), options, shown);
        round.held.insert(shard.clone(), Lease { owner: Some("w".to_owned()), ..lease("shard") });
        round.show(View::default());
        let outage = async {
            // A round renews the lease and scans the table, on at most two connections each. The pause between two
            // rounds is a third of the failover time.
            for _ in 0..CONNECTIONS {
                drop(dynamodb.accept().await.unwrap());
            }
            assert_eq!(view.borrow().standing, BTreeMap::from([(shard, Standing::Held)]));
            drop(dynamodb);
            wishes.send_modify(|wishes| wishes.closing = true);
        };
        let both = async { tokio::join!(round.keep(wished, Arc::default()), outage) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the keeper continues");
    }

    #[test]
    fn leases_of_somebody_else_are_refused() {
        let options = options(Duration::from_secs(10));
        let refused = |now: &str, stream: Option<&str>, lake: Option<&str>| {
            let lease =
                |key: &str| Lease { stream: stream.map(str::to_owned), lake: lake.map(str::to_owned), ..lease(key) };
            foreign(&[lease("b"), lease("a")], now, &options).unwrap_or_default()
        };
        assert_eq!(refused("s", Some("s"), Some("this")), "");
        assert_eq!(refused("s", Some("s"), None), "", "from before lakes were told");
        assert!(refused("s", Some("other"), Some("this")).contains("belongs to stream other"));
        assert!(refused("s", Some("s"), Some("that")).contains("shard a for another lake"));
        assert!(refused("s", None, None).contains("--import-kcl-checkpoints t"));
        // The stream was made again. Its old leases of this lake are dropped; those of another lake are refused.
        let (first, second) = ("s.1767225600000", "s.1767225600001");
        assert_eq!(refused(second, Some("s"), Some("this")), "");
        assert_eq!(refused(second, Some(first), Some("this")), "");
        assert!(refused(second, Some("s"), Some("that")).contains("belongs to stream s"));
        assert!(refused(first, Some(second), Some("this")).contains("belongs to stream"), "the later one");
        assert!(refused("s", Some(first), Some("this")).contains("belongs to stream"));
    }
}
