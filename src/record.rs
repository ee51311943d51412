//! A record as a source delivers it, with the payloads of its events.

use bytes::Bytes;

use crate::decode::Reject;
use crate::ids::SequenceNumber;

/// A record as it was delivered.
#[derive(Debug, Clone)]
pub struct Record {
    /// Sequence number, unique inside its shard.
    pub sequence_number: SequenceNumber,
    /// Arrival in the stream, in microseconds since the epoch.
    pub arrived_at: i64,
    /// The record's bytes, unchanged.
    pub bytes: Bytes,
    /// The reason why the bytes are not whole (a line that is too long to hold); such a record goes to the quarantine.
    pub cut: Option<String>,
    /// The payloads of its events.
    pub payloads: Vec<Payload>,
}

impl Record {
    /// Returns the bytes that the record counts for where records are gathered: its own, or more if it may become many
    /// small rows.
    pub fn weight(&self) -> usize {
        /// A row of fewer bytes takes more memory than its share of the record.
        const ROW_BYTES: usize = 64;
        self.bytes.len().max(ROW_BYTES * memchr::memchr_iter(b'{', &self.bytes).count())
    }
}

/// The payload of one event.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The event's number inside a KPL aggregate.
    pub sub_sequence: Option<i64>,
    /// Its contents, unpacked, or the reason why there are none.
    pub contents: Result<Bytes, Reject>,
}
