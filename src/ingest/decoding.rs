//! Decodes a chunk of records into partitions and decode errors; one task per chunk, in parallel to the loop.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use chrono::NaiveDate;

use crate::batch::{Meta, Partition, PartitionKey, Rejected};
use crate::decode::{Event, Part, Reason, Reject, decode_with, parts};
use crate::failpoint;
use crate::ids::{SequenceNumber, ShardKey};
use crate::record::Record;
use crate::redact::redact_payload;
use crate::source::Chunk;

/// Records that the quarantine already holds: sequence number, and number inside an aggregate.
pub(super) type Skip = HashSet<(SequenceNumber, Option<i64>)>;

/// A decoded chunk.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Position of the shard once the whole chunk is committed.
    pub position: SequenceNumber,
    /// Rows by partition.
    pub partitions: Vec<(PartitionKey, Partition)>,
    /// Records that cannot be decoded.
    pub rejected: Vec<Rejected>,
    /// Number of rows.
    pub rows: u64,
    /// Number of records.
    pub records: u64,
    /// Bytes of the records.
    pub record_bytes: usize,
}

impl Decoded {
    /// Returns the bytes that the chunk holds in memory.
    pub(super) fn bytes(&self) -> usize {
        let rows: usize = self.partitions.iter().map(|(_, p)| p.bytes()).sum();
        rows + self.rejected_bytes()
    }

    /// Returns the bytes that the rejected records hold in memory.
    pub(super) fn rejected_bytes(&self) -> usize {
        self.rejected.iter().map(rejected_bytes).sum()
    }
}

/// Returns the bytes that a rejected record holds in memory.
pub(super) fn rejected_bytes(rejected: &Rejected) -> usize {
    rejected.raw.capacity() + rejected.detail.len() + size_of::<Rejected>()
}

/// Decodes a chunk, except the records in `skip`, which the quarantine already holds.
pub(super) fn decode_chunk(chunk: &Chunk, skip: &Skip) -> Decoded {
    let mut partitions = Partitions::new(chunk.shard.clone());
    let mut rejected = Vec::new();
    let mut rows = 0;
    for record in &chunk.records {
        for part in parts(&record.bytes) {
            if !skip.is_empty() && skip.contains(&(record.sequence_number.clone(), part.sub_sequence)) {
                continue;
            }
            match decode_part(record, &part) {
                Ok(event) => {
                    rows += event.rows.len() as u64;
                    partitions.push(record, part.sub_sequence, &event);
                }
                Err(Reject { reason, detail }) => rejected.push(Rejected {
                    sequence_number: record.sequence_number.clone(),
                    sub_sequence: part.sub_sequence,
                    arrived_at: record.arrived_at,
                    reason,
                    detail,
                    raw: redact_payload(&part.bytes).into_owned(),
                }),
            }
        }
    }
    Decoded {
        position: chunk.position.clone(),
        partitions: partitions.finish(),
        rejected,
        rows,
        records: chunk.records.len() as u64,
        record_bytes: chunk.bytes(),
    }
}

/// Decodes a user record, with its payload.
///
/// # Errors
/// The reason why it is no event.
pub(crate) fn decode_part<'a>(record: &'a Record, part: &'a Part) -> Result<Event<'a>, Reject> {
    if let Some(cut) = &record.cut {
        return Err(Reject::new(Reason::TooLong, cut.clone()));
    }
    if failpoint::poisons(&part.bytes) {
        return Err(Reject::new(Reason::InvalidField, "refused by a test"));
    }
    match record.payloads.iter().find(|payload| payload.sub_sequence == part.sub_sequence) {
        None => decode_with(&part.bytes, None),
        Some(payload) => decode_with(&part.bytes, Some(payload.contents.as_ref().map_err(Clone::clone)?)),
    }
}

/// The rows of a chunk by partition.
pub(crate) struct Partitions {
    shard: ShardKey,
    index: HashMap<Arc<str>, BTreeMap<NaiveDate, usize>>,
    found: Vec<(PartitionKey, Partition)>,
}

impl Partitions {
    /// Creates the partitions of a chunk of this shard.
    pub(crate) fn new(shard: ShardKey) -> Self {
        Self { shard, index: HashMap::new(), found: Vec::new() }
    }

    /// Adds the rows of an event.
    pub(crate) fn push(&mut self, record: &Record, sub_sequence: Option<i64>, event: &Event<'_>) {
        let meta = Meta { sequence_number: &record.sequence_number, sub_sequence, arrived_at: record.arrived_at };
        for rows in event.rows_by_day().chunk_by(|a, b| a.day() == b.day()) {
            let partition = self.partition(&event.identity_pool_id, rows[0].event_date());
            partition.push(&meta, event, rows.iter().copied());
        }
    }

    /// Returns the partitions. These buffers wait for more of their partitions, so they hold no spare memory.
    pub(crate) fn finish(mut self) -> Vec<(PartitionKey, Partition)> {
        self.found.iter_mut().for_each(|(_, partition)| partition.shrink());
        self.found
    }

    fn partition(&mut self, pool: &str, date: NaiveDate) -> &mut Partition {
        let known = self.index.get_key_value(pool);
        let at = match known.and_then(|(_, days)| days.get(&date)) {
            Some(at) => *at,
            None => {
                let name = known.map_or_else(|| Arc::from(pool), |(name, _)| name.clone());
                let key = PartitionKey { shard: self.shard.clone(), identity_pool_id: name.clone(), event_date: date };
                self.found.push((key, Partition::default()));
                let at = self.found.len() - 1;
                self.index.entry(name).or_default().insert(date, at);
                at
            }
        };
        &mut self.found[at].1
    }
}
