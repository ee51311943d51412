//! Where records come from: `Record`, the shards that hold them, and the two sources.
//!
//! A source hands over *chunks*: consecutive records of one shard together with the position that is reached once all
//! of them are committed. The lake stores that position and gives it back; only the source understands it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::budget::{Budget, Reservation};
use crate::payload::{Payload, Payloads};

pub mod files;
pub mod kinesis;
pub mod leases;
mod shard;

/// A non-negative decimal integer of at most 72 digits: a Kinesis sequence number, or a position of a file.
///
/// Sequence numbers outgrow every machine integer (56 digits today), so they stay text and compare as integers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(Arc<str>);

impl SequenceNumber {
    /// The longest sequence number that a checkpoint can hold, in digits.
    pub const DIGITS_MAX: usize = 72;

    /// Takes digits without leading zeros; `None` for anything else, or for more than [`Self::DIGITS_MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.len() <= Self::DIGITS_MAX && text.bytes().all(|b| b.is_ascii_digit());
        (digits && (text == "0" || !text.starts_with('0'))).then(|| Self(text.into()))
    }

    /// From a machine integer.
    pub fn from_u64(value: u64) -> Self {
        Self(value.to_string().into())
    }

    /// The position past every record of a shard: the shard was read to its end and all of it is committed.
    pub fn shard_end() -> Self {
        Self("9".repeat(Self::DIGITS_MAX).into())
    }

    /// Whether this is [`Self::shard_end`].
    pub fn is_shard_end(&self) -> bool {
        self.0.len() == Self::DIGITS_MAX && self.0.bytes().all(|b| b == b'9')
    }

    /// Whether a shard with this position was read to its end.
    pub fn is_end_of(position: &Option<Self>) -> bool {
        position.as_ref().is_some_and(Self::is_shard_end)
    }

    /// The number before this one; `None` for zero.
    pub fn before(&self) -> Option<Self> {
        let mut digits = self.0.as_bytes().to_vec();
        for digit in digits.iter_mut().rev() {
            if *digit == b'0' {
                *digit = b'9';
            } else {
                *digit -= 1;
                let text = String::from_utf8(digits).ok()?;
                let text = text.trim_start_matches('0');
                return Self::parse(if text.is_empty() { "0" } else { text });
            }
        }
        None
    }

    /// The number after this one; `None` when it would be too long.
    pub fn next(&self) -> Option<Self> {
        let mut digits = self.0.as_bytes().to_vec();
        for digit in digits.iter_mut().rev() {
            if *digit == b'9' {
                *digit = b'0';
            } else {
                *digit += 1;
                return Self::parse(&String::from_utf8(digits).ok()?);
            }
        }
        Self::parse(&format!("1{}", String::from_utf8(digits).ok()?))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shard of a stream, under names that are safe inside a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    stream: Arc<str>,
    shard: Arc<str>,
}

impl ShardKey {
    /// Both names hold only `[a-zA-Z0-9_.-]`, 1 to 128 of them, and the shard no `.`; `None` otherwise.
    pub fn new(stream: &str, shard: &str) -> Option<Self> {
        let plain = |s: &str| {
            (1..=128).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        (plain(stream) && plain(shard) && !shard.contains('.'))
            .then(|| Self { stream: stream.into(), shard: shard.into() })
    }

    /// Name of the stream; `file` for files.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Id of the shard inside its stream.
    pub fn shard(&self) -> &str {
        &self.shard
    }
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stream, self.shard)
    }
}

/// When the incarnation of `stream` was made that has `name` in the lake, in milliseconds since the epoch: 0 for the first
/// one, which has the stream's own name; `None` when it is another stream's name.
pub fn incarnation_of(stream: &str, name: &str) -> Option<i64> {
    match name.strip_prefix(stream)?.strip_prefix('.') {
        // 13 digits until the year 2286, and so after every time that a stream can have been made at.
        Some(ms) if ms.len() == 13 && ms.bytes().all(|b| b.is_ascii_digit()) => ms.parse().ok(),
        Some(_) => None,
        None => (name == stream).then_some(0),
    }
}

/// One record as it was delivered.
#[derive(Debug, Clone)]
pub struct Record {
    /// Unique inside its shard.
    pub sequence_number: SequenceNumber,
    /// When the stream took it, in microseconds since the epoch.
    pub arrived_at: i64,
    /// The payload, untouched.
    pub bytes: Bytes,
    /// Why the payload is not whole (a line too long to hold); such a record goes to the quarantine.
    pub cut: Option<String>,
    /// What was found behind the URLs of its events.
    pub payloads: Vec<Payload>,
}

impl Record {
    /// Bytes that it counts for where records are put together: its own, or more if it may become many small rows.
    pub fn weight(&self) -> usize {
        /// A row of fewer bytes takes more memory than its share of the record.
        const ROW_BYTES: usize = 64;
        self.bytes.len().max(ROW_BYTES * memchr::memchr_iter(b'{', &self.bytes).count())
    }
}

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

/// Where to begin a shard that has no checkpoint yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record that the stream still holds.
    TrimHorizon,
    /// The first record at or after this time, in milliseconds since the epoch.
    Timestamp(i64),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_compare_as_integers() {
        let n = |s| SequenceNumber::parse(s).unwrap();
        assert!(n("9") < n("10"));
        assert!(n("49590338271490256608559692538361571095921575989136588898") > n("4"));
        assert!(n("49590338271490256608559692538361571095921575989136588898") < SequenceNumber::shard_end());
        for bad in ["", "01", "-1", "1.5", "a", &"9".repeat(73)] {
            assert_eq!(SequenceNumber::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_number_before() {
        let before = |s: &str| SequenceNumber::parse(s).unwrap().before().map(|n| n.to_string());
        assert_eq!(before("0"), None);
        assert_eq!(before("1").as_deref(), Some("0"));
        assert_eq!(before("1000").as_deref(), Some("999"));
        assert_eq!(before("4960").as_deref(), Some("4959"));
        let next = |s: &str| SequenceNumber::parse(s).unwrap().next().map(|n| n.to_string());
        assert_eq!(
            (next("0").as_deref(), next("4959").as_deref(), next("999").as_deref()),
            (Some("1"), Some("4960"), Some("1000"))
        );
        assert_eq!(next(&"9".repeat(72)), None);
    }

    #[test]
    fn incarnations_have_names() {
        assert_eq!(incarnation_of("s", "s"), Some(0));
        assert_eq!(incarnation_of("s", "s.1767225600123"), Some(1_767_225_600_123));
        assert_eq!(incarnation_of("s", "s.0000000002000"), Some(2_000));
        for other in ["t", "s.1", "s.x", "st", "s2.1767225600123", "s.1767225600123.1767225600123"] {
            assert_eq!(incarnation_of("s", other), None, "{other}");
        }
    }

    #[test]
    fn shard_keys_are_safe_in_file_names() {
        assert!(ShardKey::new("s", "../x").is_none());
        assert!(ShardKey::new("s/t", "x").is_none());
        assert!(ShardKey::new("s", "a.b").is_none());
        assert!(ShardKey::new("", "a").is_none());
        assert_eq!(ShardKey::new("s.1", "a").unwrap().to_string(), "s.1.a");
    }
}
