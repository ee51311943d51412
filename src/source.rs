//! Where records come from: the two sources, and what they hand over.
//!
//! A source hands over *chunks*: consecutive records of one shard together with the position that is reached once all
//! of them are committed. The lake stores that position and gives it back; only the source understands it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::budget::{Budget, Reservation};
use crate::ids::{SequenceNumber, ShardKey};
use crate::payload::Payloads;
use crate::record::Record;

pub mod files;
pub mod kinesis;
pub mod leases;
mod shard;

/// Consecutive records of one shard.
#[derive(Debug)]
pub struct Chunk {
    /// The shard they come from.
    pub shard: ShardKey,
    /// The records, in the order of their sequence numbers.
    pub records: Vec<Record>,
    /// What the shard's checkpoint becomes once all of them are committed.
    pub position: SequenceNumber,
}

impl Chunk {
    /// Bytes of the records, without what lies behind their URLs.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|r| r.bytes.len()).sum()
    }
}

/// One taking of a shard by this worker: the shard, and the number of the fence that took it.
///
/// Everything that a reader delivers carries it, because a shard may be lost and taken again while deliveries of the
/// first time are still on their way; those must not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The shard.
    pub shard: ShardKey,
    /// Number of the fence.
    pub fence: u64,
}

/// How far a shard was read.
#[derive(Debug, Clone)]
pub struct Reached {
    /// When the stream answered, in milliseconds since the epoch.
    pub at_ms: i64,
    /// Milliseconds behind the newest record.
    pub behind_ms: i64,
    /// Whether there was nothing left to read.
    pub caught_up: bool,
    /// Where this read began: after this record.
    pub after: Option<SequenceNumber>,
}

/// What a source hands over.
#[derive(Debug)]
pub enum Delivery {
    /// Records, with what they take of the budget, and of the one for payloads.
    Chunk(Hold, Chunk, [Reservation; 2]),
    /// How far behind its stream a shard is.
    Reached(Hold, Reached),
    /// Everything of a shard has been delivered; there will never be more.
    End(Hold),
    /// The reader of a shard has stopped: everything that it read has been delivered.
    Stopped(Hold),
}

/// The other side of a [`Sink`] is gone: the run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NobodyListens;

/// Where a source delivers to.
#[derive(Debug, Clone)]
pub struct Sink {
    /// What reading may take; a source reserves before it reads.
    pub budget: Budget,
    /// What fetches the payloads that records point at.
    pub payloads: Payloads,
    deliveries: mpsc::Sender<Delivery>,
}

impl Sink {
    /// A sink, and the end where deliveries come out.
    pub fn new(budget: Budget, payloads: Payloads) -> (Self, mpsc::Receiver<Delivery>) {
        let (deliveries, receiver) = mpsc::channel(8);
        (Self { budget, payloads, deliveries }, receiver)
    }

    /// Delivers, waiting while the other side is busy.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub async fn send(&self, delivery: Delivery) -> Result<(), NobodyListens> {
        self.deliveries.send(delivery).await.map_err(|_| NobodyListens)
    }

    /// As [`Sink::send`], for a thread that may block.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn blocking_send(&self, delivery: Delivery) -> Result<(), NobodyListens> {
        self.deliveries.blocking_send(delivery).map_err(|_| NobodyListens)
    }
}

/// How often calls were tried again, by call and by error: for whoever watches a run.
#[derive(Debug, Clone, Default)]
pub struct Retries(Arc<std::sync::Mutex<std::collections::BTreeMap<(&'static str, String), u64>>>);

impl Retries {
    /// Counts one.
    pub fn count(&self, call: &'static str, error: &str) {
        if let Ok(mut counts) = self.0.lock() {
            *counts.entry((call, error.to_owned())).or_default() += 1;
        }
    }

    /// All of them.
    pub fn counts(&self) -> Vec<(&'static str, String, u64)> {
        let counts = self.0.lock().map(|counts| counts.clone()).unwrap_or_default();
        counts.into_iter().map(|((call, error), n)| (call, error, n)).collect()
    }
}

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("read {path}")]
    File {
        /// The file as the user named it.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A packed file is damaged: what came out of it before may be wrong, too.
    #[error("{path} is damaged ({reason}); replace the file and run again")]
    Damaged {
        /// The file as the user named it.
        path: String,
        /// What the library said.
        reason: String,
    },
    /// A packed file ends too early: its writer has not finished, or it was not copied whole.
    #[error("{path} is cut off: its packed data has no end; replace the file and run again")]
    CutOff {
        /// The file as the user named it.
        path: String,
    },
    /// A file does not hold one event a line.
    #[error("{path} {what}; run `{remedy}`")]
    Refused {
        /// The file as the user named it.
        path: String,
        /// What it holds.
        what: String,
        /// The command that reads it.
        remedy: String,
    },
    /// The source is not what the option says.
    #[error("{0}")]
    Invalid(String),
    /// The lease table refused.
    #[error("{action} of lease table {table}: {reason}; {remedy}")]
    Leases {
        /// The call, as the API names it.
        action: &'static str,
        /// The DynamoDB table.
        table: String,
        /// The service's own words.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Kinesis refused, and trying again would not help.
    #[error("{action} of stream {stream}: {reason}; {remedy}")]
    Kinesis {
        /// The call, as the API names it.
        action: &'static str,
        /// The stream.
        stream: String,
        /// The service's own words.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
}
