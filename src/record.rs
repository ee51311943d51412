//! A record as a source delivers it, with what was found behind the URLs of its events.

use bytes::Bytes;

use crate::decode::Reject;
use crate::ids::SequenceNumber;

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

/// What was found behind the URL of one event.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The event's number inside an aggregate.
    pub sub_sequence: Option<i64>,
    /// Its contents, unpacked; or why there are none.
    pub contents: Result<Bytes, Reject>,
}
