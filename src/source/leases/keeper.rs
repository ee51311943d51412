//! The keeper: renews leases, takes and asks for those that are due, and gives back those that are no longer wanted.
//!
//! The keeper shares two values with the ingest loop: `KeeperRequests` (what the loop asks for) and [`View`] (what this
//! worker holds). Both are states and not events, so that nothing queues up and nothing is missed. The thread of the
//! keeper reads the first and writes the second, in rounds (`round.rs`).
//!
//! # Handoff
//! A worker with too few leases writes its name into a lease of the busiest worker. The owner sees the name at its next
//! renewal. The ingest loop then commits its rows of that shard and asks the keeper to give the lease back. The lease
//! goes to the worker that asked.
//!
//! # Cancellation
//! [`Keeper::close`] gives every lease back and ends the thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Notify, oneshot, watch};

use super::LeaseOptions;
use super::plan::Lease;
use super::table::LeaseTable;
use crate::aws::AwsSettings;
use crate::ids::{SequenceNumber, ShardKey, incarnation_of};
use crate::source::SourceError;
use crate::timeouts::{LEASE_CALL_TIMEOUT_MIN, LEASE_CLOSE_TIMEOUT};

mod round;

use round::KeeperThread;

/// A shard that may be read now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Ids of the parent shards.
    pub parents: Vec<String>,
}

/// The requests of the ingest loop, and what the keeper needs to know for them.
#[derive(Debug, Clone, Default)]
struct KeeperRequests {
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
    HandoffRequested,
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
    requests: watch::Sender<KeeperRequests>,
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
        let (requests, received) = watch::channel(KeeperRequests::default());
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
                        KeeperThread::new(table, stream, options, shown).keep(received, nudged).await;
                    }
                    Err(error) => tracing::error!(error = %error, "the lease keeper cannot start"),
                }
            });
            let _ = ended.send(());
        });
        thread.map_err(|e| SourceError::Invalid(format!("start the lease keeper: {e}")))?;
        Ok(Self { requests, view, nudge, done: Some(done) })
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
        self.requests.send_modify(|requests| {
            news = requests.offered != offered;
            requests.offers += u64::from(news);
            requests.offered = offered;
            requests.listed = listed;
        });
        if news {
            self.nudge.notify_one();
        }
    }

    /// Returns whether every shard that may be read has a reader. Every offered shard must be in the table and must not
    /// have ended since. Its holder must be a worker that was seen to renew, or this worker, for which `is_read` must
    /// be true.
    pub fn is_settled(&self, is_read: impl Fn(&ShardKey) -> bool) -> bool {
        let (view, requests) = (self.view.borrow(), self.requests.borrow());
        let is_known = view.seen && view.offers == requests.offers && view.unread == 0 && view.doubtful == 0;
        is_known
            && view.standing.keys().all(is_read)
            && view.ended.iter().all(|shard| !requests.offered.contains_key(shard))
    }

    /// Sets the position that the lake's log holds for a shard. A later position would put the checkpoint ahead of the
    /// lake.
    pub fn reached(&self, shard: &ShardKey, position: &SequenceNumber) {
        self.requests.send_modify(|requests| {
            requests.reached.insert(shard.clone(), position.clone());
        });
    }

    /// Asks the keeper to give a lease back.
    pub fn give_back(&self, shard: &ShardKey) {
        self.requests.send_modify(|requests| {
            requests.give_back.insert(shard.clone());
        });
        self.nudge.notify_one();
    }

    /// Removes the request to give a lease back, once the lease is gone.
    pub fn given_back(&self, shard: &ShardKey) {
        self.requests.send_if_modified(|requests| requests.give_back.remove(shard));
    }

    /// Returns the shards whose leases are to be given back.
    pub fn giving_back(&self) -> BTreeSet<ShardKey> {
        self.requests.borrow().give_back.clone()
    }

    /// Gives every lease back and ends the thread.
    pub async fn close(mut self) {
        self.requests.send_modify(|requests| requests.closing = true);
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    pub(super) fn options(failover: Duration) -> LeaseOptions {
        LeaseOptions { table: "t".to_owned(), worker: "w".to_owned(), lake: "this".to_owned(), failover }
    }

    pub(super) fn lease(key: &str) -> Lease {
        Lease {
            key: key.to_owned(),
            owner: None,
            counter: 1,
            checkpoint: "1".to_owned(),
            checkpoint_sub_sequence: 0,
            handoff_requested_by: None,
            stream: None,
            lake: None,
            session: None,
        }
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
