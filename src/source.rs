//! The sources of records (files, objects of a bucket, Kinesis streams), and the types that they deliver.
//!
//! A source delivers *chunks*: consecutive records of one shard, with the position that the shard reaches once all of
//! them are committed. The lake stores that position and returns it to the source. Only the source understands it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::budget::{Budget, Reservation};
use crate::ids::{SequenceNumber, ShardKey};
use crate::record::Record;

pub mod files;
pub mod kinesis;
pub mod leases;
pub mod objects;
mod shard;

/// Consecutive records of one shard that travel together.
#[derive(Debug)]
pub struct Chunk {
    /// Shard of the records.
    pub shard: ShardKey,
    /// Records, in the order of their sequence numbers.
    pub records: Vec<Record>,
    /// Checkpoint of the shard once all the records are committed.
    pub position: SequenceNumber,
}

impl Chunk {
    /// Returns the bytes of the records, without the payloads behind their URLs.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|r| r.bytes.len()).sum()
    }
}

/// A period in which this worker owns a shard: the shard, and the epoch (fencing token) under which the worker took it.
///
/// Every delivery of a reader carries its assignment. The worker may lose a shard and take it again while deliveries of the
/// first period are still in flight. Those deliveries must not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Shard that the worker holds.
    pub shard: ShardKey,
    /// Epoch (fencing token) of this period.
    pub epoch: u64,
}

/// Progress of a reader in its shard.
#[derive(Debug, Clone)]
pub struct Reached {
    /// Time at which the stream answered, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Lag behind the newest record, in milliseconds.
    pub behind_ms: i64,
    /// Whether nothing was left to read.
    pub caught_up: bool,
    /// Sequence number after which this read began.
    pub after: Option<SequenceNumber>,
}

/// A message from a source to the ingest loop.
#[derive(Debug)]
pub enum Delivery {
    /// Records, with their reservations in the read budget and in the payload budget.
    Chunk(Assignment, Chunk, [Reservation; 2]),
    /// Progress of the reader, with its lag behind the stream.
    Reached(Assignment, Reached),
    /// All records of the shard are delivered. A Kinesis shard never has more; a file may still grow.
    End(Assignment),
    /// The reader of the shard has stopped and delivers nothing more.
    Stopped(Assignment),
}

/// The error of a [`Sink`] whose receiver is gone: the run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverGone;

/// A sender through which a source delivers.
#[derive(Debug, Clone)]
pub struct Sink {
    /// Memory budget of reading; a source reserves before it reads.
    pub budget: Budget,
    deliveries: mpsc::Sender<Delivery>,
}

impl Sink {
    /// Creates a sink, and the receiver of its deliveries.
    pub fn new(budget: Budget) -> (Self, mpsc::Receiver<Delivery>) {
        let (deliveries, receiver) = mpsc::channel(8);
        (Self { budget, deliveries }, receiver)
    }

    /// Sends a delivery; waits while the channel is full.
    ///
    /// # Errors
    /// The receiver is gone.
    pub async fn send(&self, delivery: Delivery) -> Result<(), ReceiverGone> {
        self.deliveries.send(delivery).await.map_err(|_| ReceiverGone)
    }

    /// Sends a delivery like [`Sink::send`], for a thread that may block.
    ///
    /// # Errors
    /// The receiver is gone.
    pub fn blocking_send(&self, delivery: Delivery) -> Result<(), ReceiverGone> {
        self.deliveries.blocking_send(delivery).map_err(|_| ReceiverGone)
    }
}

/// Counts of retried calls, by call and by error, for monitoring.
#[derive(Debug, Clone, Default)]
pub struct Retries(Arc<std::sync::Mutex<std::collections::BTreeMap<(&'static str, String), u64>>>);

impl Retries {
    /// Counts one retry.
    pub fn count(&self, call: &'static str, error: &str) {
        if let Ok(mut counts) = self.0.lock() {
            *counts.entry((call, error.to_owned())).or_default() += 1;
        }
    }

    /// Returns all counts.
    pub fn counts(&self) -> Vec<(&'static str, String, u64)> {
        let counts = self.0.lock().map(|counts| counts.clone()).unwrap_or_default();
        counts.into_iter().map(|((call, error), n)| (call, error, n)).collect()
    }
}

/// A reason why a source cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file that cannot be read.
    #[error("read {path}")]
    File {
        /// File as the user named it.
        path: String,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A damaged packed file; the data unpacked before the damage may be wrong, too.
    #[error("{path} is damaged ({reason}); replace the file and run again")]
    Damaged {
        /// File as the user named it.
        path: String,
        /// Error of the library.
        reason: String,
    },
    /// A packed file that ends too early: its writer has not finished, or the copy is incomplete.
    #[error("{path} is cut off: its packed data has no end; replace the file and run again")]
    CutOff {
        /// File as the user named it.
        path: String,
    },
    /// A file that does not hold one event per line.
    #[error("{path} {what}; run `{remedy}`")]
    Refused {
        /// File as the user named it.
        path: String,
        /// Actual content.
        what: String,
        /// Command that reads the file.
        remedy: String,
    },
    /// A source that is not what the option says, or that gives invalid answers.
    #[error("{0}")]
    Invalid(String),
    /// A prefix of a bucket that cannot be listed.
    #[error("list {url}")]
    Store {
        /// Prefix as the user named it.
        url: String,
        /// Error of the store.
        #[source]
        source: object_store::Error,
    },
    /// A failed call of the lease table.
    #[error("{action} of lease table {table}: {reason}; {remedy}")]
    Leases {
        /// Call, as the API names it.
        action: &'static str,
        /// DynamoDB table.
        table: String,
        /// Error of the service, in its own words.
        reason: String,
        /// Advice to the user.
        remedy: &'static str,
    },
    /// A Kinesis call that failed for good, so that a retry does not help.
    #[error("{action} of stream {stream}: {reason}; {remedy}")]
    Kinesis {
        /// Call, as the API names it.
        action: &'static str,
        /// Name of the stream.
        stream: String,
        /// Error of the service, in its own words.
        reason: String,
        /// Advice to the user.
        remedy: &'static str,
    },
}
