//! The keeper: renews leases, takes and asks for what is due, and gives back what is no longer wanted.
//!
//! It shares two values with the loop, both of them states and not events, so that nothing queues up and nothing is
//! missed: [`Wishes`] (what the loop wants) and [`View`] (what this worker holds).
//!
//! # Hand-over
//! A worker with too few leases writes its name into one of the busiest worker's. The owner sees it at its next
//! renewal, the loop commits what it has of that shard and wishes the lease given back, and it goes to whoever asked.
//!
//! # Cancellation
//! [`Keeper::close`] gives every lease back and ends the thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::{Notify, oneshot, watch};

use super::plan::{self, Lease, Observed};
use super::table::{LeaseTable, Updated};
use super::{Options, checkpoint_word};
use crate::lake::AwsSettings;
use crate::source::{SequenceNumber, ShardKey, SourceError};

/// Renewals under way at a time.
const RENEWALS: usize = 16;
/// Between two rounds, however often the loop asks for one.
const ROUND_MIN: Duration = Duration::from_millis(100);
/// A call may take this long, however short the failover is.
const CALL_PATIENCE_MIN: Duration = Duration::from_secs(2);
/// How long giving back may take at the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A shard that may be read now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Ids of its parents.
    pub parents: Vec<String>,
}

/// What the loop wants.
#[derive(Debug, Clone, Default)]
struct Wishes {
    offered: BTreeMap<ShardKey, Offer>,
    /// How often that has changed.
    offers: u64,
    reached: BTreeMap<ShardKey, SequenceNumber>,
    give_back: BTreeSet<ShardKey>,
    /// Shards that the stream lists; empty before the first listing.
    listed: BTreeSet<ShardKey>,
    closing: bool,
}

/// How a shard stands with this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is ours to read.
    Held,
    /// Still ours, but another worker asks for it.
    Asked,
}

/// What this worker holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// By shard.
    pub standing: BTreeMap<ShardKey, Standing>,
    /// Whether the table was read at least once.
    pub seen: bool,
    /// Open leases of the table that nobody holds or renews.
    pub unread: usize,
    /// Open leases of other workers that are not known to live: not seen to renew since we began to look.
    pub doubtful: usize,
    /// The change of the offer that the table was last read after.
    pub offers: u64,
    /// Shards of the table that were read to their end.
    pub ended: BTreeSet<ShardKey>,
}

/// The loop's end of the keeper.
#[derive(Debug)]
pub struct Keeper {
    wishes: watch::Sender<Wishes>,
    view: watch::Receiver<View>,
    nudge: Arc<Notify>,
    done: Option<oneshot::Receiver<()>>,
}

impl Keeper {
    /// Opens the table, making it if it is not there, and starts the thread.
    ///
    /// # Errors
    /// The table cannot be made or read, or belongs to another stream.
    pub async fn start(aws: &AwsSettings, stream: &str, options: Options) -> Result<Self, SourceError> {
        let patience = (options.failover * 2 / 3).max(CALL_PATIENCE_MIN);
        let table = LeaseTable::open(aws, &options.table, &options.worker, patience).await?;
        table.ensure().await?;
        for lease in table.scan().await? {
            if let Some(other) = lease.stream.filter(|other| other != stream) {
                let message = format!(
                    "lease table {} belongs to stream {other}, not {stream}; give each stream a table of its own",
                    options.table
                );
                return Err(SourceError::Invalid(message));
            }
        }
        let (wishes, wished) = watch::channel(Wishes::default());
        let (shown, view) = watch::channel(View::default());
        let (ended, done) = oneshot::channel();
        let nudge = Arc::new(Notify::new());
        let (aws, stream, nudged) = (aws.clone(), stream.to_owned(), nudge.clone());
        // A runtime of its own: its timers, its connections and its name lookups share nothing with the uploads.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| SourceError::Invalid(format!("start the lease keeper: {e}")))?;
        let thread = std::thread::Builder::new().name("lease-keeper".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match LeaseTable::open(&aws, &options.table, &options.worker, patience).await {
                    Ok(table) => Round::new(table, stream, options, shown).keep(wished, nudged).await,
                    Err(error) => tracing::error!(error = %error, "the lease keeper cannot start"),
                }
            });
            let _ = ended.send(());
        });
        thread.map_err(|e| SourceError::Invalid(format!("start the lease keeper: {e}")))?;
        Ok(Self { wishes, view, nudge, done: Some(done) })
    }

    /// What this worker holds now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Returns when what this worker holds has changed. For ever if the keeper is gone.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells which shards may be read now, and which ones the stream lists.
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

    /// Whether every shard that may be read has a reader: every one that was offered is in the table, has not ended since,
    /// and is held by a worker that was seen to renew, or by this one, which reads it as `is_read` says.
    pub fn is_settled(&self, is_read: impl Fn(&ShardKey) -> bool) -> bool {
        let (view, wishes) = (self.view.borrow(), self.wishes.borrow());
        let is_known = view.seen && view.offers == wishes.offers && view.unread == 0 && view.doubtful == 0;
        is_known
            && view.standing.keys().all(is_read)
            && view.ended.iter().all(|shard| !wishes.offered.contains_key(shard))
    }

    /// Tells what the lake's log holds of a shard; never more than that, or a checkpoint would run ahead.
    pub fn reached(&self, shard: &ShardKey, position: &SequenceNumber) {
        self.wishes.send_modify(|wishes| {
            wishes.reached.insert(shard.clone(), position.clone());
        });
    }

    /// Gives a lease back.
    pub fn give_back(&self, shard: &ShardKey) {
        self.wishes.send_modify(|wishes| {
            wishes.give_back.insert(shard.clone());
        });
        self.nudge.notify_one();
    }

    /// Forgets a wish to give back, once the lease is gone.
    pub fn given_back(&self, shard: &ShardKey) {
        self.wishes.send_if_modified(|wishes| wishes.give_back.remove(shard));
    }

    /// Shards that are on their way back.
    pub fn giving_back(&self) -> BTreeSet<ShardKey> {
        self.wishes.borrow().give_back.clone()
    }

    /// Gives every lease back and ends the thread.
    pub async fn close(mut self) {
        self.wishes.send_modify(|wishes| wishes.closing = true);
        self.nudge.notify_one();
        if let Some(done) = self.done.take()
            && tokio::time::timeout(CLOSE_PATIENCE, done).await.is_err()
        {
            tracing::warn!("leases could not be given back in time; they expire by themselves");
        }
    }
}

/// The thread's state.
struct Round {
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
    fn new(table: LeaseTable, stream: String, options: Options, view: watch::Sender<View>) -> Self {
        let (worker, failover) = (options.worker, options.failover);
        let observed = Observed::new(failover);
        Self { table, stream, worker, failover, observed, held: BTreeMap::new(), view, told: BTreeMap::new() }
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
                    tracing::warn!(error = %error, "cannot read the lease table; what is held stays held");
                    let before = self.view.borrow().clone();
                    self.show(before);
                }
            }
            tokio::select! {
                () = tokio::time::sleep((self.failover / 3).saturating_sub(began.elapsed())) => {}
                () = nudge.notified() => tokio::time::sleep(ROUND_MIN.saturating_sub(began.elapsed())).await,
            }
        }
    }

    /// Shows what is held now, beside what is known of the table.
    fn show(&self, table: View) {
        let standing = |lease: &Lease| if lease.asked_by.is_some() { Standing::Asked } else { Standing::Held };
        let standing = self.held.iter().map(|(shard, lease)| (shard.clone(), standing(lease))).collect();
        let view = View { standing, ..table };
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
                    // Perhaps by our own earlier renewal, whose answer was lost: only we count our leases up.
                    match table.get(&lease.key).await {
                        Ok(Some(now)) if now.owner == lease.owner => renewed = table.renew(&now, checkpoint).await,
                        Ok(_) => {}
                        Err(error) => renewed = Err(error),
                    }
                }
                (shard, reached, renewed)
            })
        });
        let done: Vec<_> = futures::stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(RENEWALS).collect().await;
        for (shard, reached, renewed) in done {
            match renewed {
                Ok(Updated::Done(lease)) => {
                    if let Some(reached) = reached {
                        self.told.insert(shard.clone(), reached);
                    }
                    match lease.is_ended() {
                        true => drop(self.held.remove(&shard)),
                        false => drop(self.held.insert(shard, lease)),
                    }
                }
                Ok(Updated::Refused) => {
                    tracing::info!(shard = %shard, "the lease belongs to another worker now");
                    self.held.remove(&shard);
                }
                Err(error) => {
                    tracing::warn!(shard = %shard, error = %error, "cannot renew the lease; it stays held here");
                }
            }
        }
    }

    /// Looks at the whole table, adds what is missing, takes what is due. Returns what it saw of the others' leases.
    async fn take(&mut self, wishes: &Wishes) -> Result<View, SourceError> {
        let mut leases = self.table.scan().await?;
        let missing: Vec<_> =
            wishes.offered.iter().filter(|(shard, _)| !leases.iter().any(|l| l.key == shard.shard())).collect();
        for (shard, offer) in &missing {
            let word = checkpoint_word(wishes.reached.get(*shard));
            self.table.create_lease(&self.stream, shard.shard(), &offer.parents, word).await?;
        }
        if !missing.is_empty() {
            leases = self.table.scan().await?;
        }
        let now = Instant::now();
        self.observed.note(&leases, now);
        for lease in &leases {
            let Some(shard) = ShardKey::new(&self.stream, &lease.key) else { continue };
            // Handed over to us; or ours by an update whose answer was lost.
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
        Ok(View { standing: BTreeMap::new(), seen: true, unread, doubtful, offers, ended })
    }

    async fn give_back(&mut self, wishes: &Wishes) {
        for shard in &wishes.give_back {
            let Some(lease) = self.held.get(shard).cloned() else { continue };
            let word = wishes.reached.get(shard).map(|r| checkpoint_word(Some(r)));
            match self.table.give_back(&lease, word).await {
                Ok(_) => {
                    tracing::info!(shard = %shard, to = lease.asked_by, "gave the lease back");
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
