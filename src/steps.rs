//! The CPU-bound steps of ingest, one after the other, for measurements only.
//!
//! ```text
//! chunks ──split──▶ Records ──decode──▶ Events ──append──▶ PartitionBuffers ──sort──▶ SortedPartitions ──encode──▶ files
//! ```
//!
//! `ingest` decodes and appends in one pass over a chunk, and sorts and encodes in one task of a partition. A measurement
//! of the whole does not tell which step became slower, and the modules of the steps are private to the crate. So this
//! module is the one place that shows them to `tests/bench`: to the guard of the instruction counts (`make
//! instructions`) and to the benches (`make bench-steps`). It calls the functions that `ingest` calls, and adds almost no
//! work of its own. All types are opaque, so that the modules behind them stay private. No program uses this module.

use bytes::Bytes;
use parquet::errors::ParquetError;

use crate::batch::parquet::{encode_sorted, sort_partition};
use crate::batch::{Batches, Buffers, PartitionKey, Sorted};
use crate::decode::{Event, Part, parts};
use crate::ids::ShardKey;
use crate::ingest::{Partitions, decode_part};
use crate::record::Record;
use crate::source::Chunk;

/// The user records of some chunks. An aggregate of the KPL has several.
#[derive(Debug)]
pub struct Records<'a>(Vec<(&'a ShardKey, Vec<(&'a Record, Part)>)>);

/// Takes the aggregates of chunks apart.
pub fn split(chunks: &[Chunk]) -> Records<'_> {
    let records = chunks.iter().map(|chunk| {
        let mut split = Vec::with_capacity(chunk.records.len());
        for record in &chunk.records {
            split.extend(parts(&record.bytes).map(|part| (record, part)));
        }
        (&chunk.shard, split)
    });
    Records(records.collect())
}

impl Records<'_> {
    /// Decodes the records.
    pub fn decode(&self) -> Events<'_> {
        let mut events = Events { chunks: Vec::with_capacity(self.0.len()), rows: 0, rejected: 0 };
        for (shard, records) in &self.0 {
            let mut decoded = Vec::with_capacity(records.len());
            for (record, part) in records {
                match decode_part(record, part) {
                    Ok(event) => {
                        events.rows += event.rows.len();
                        decoded.push((*record, part.sub_sequence, event));
                    }
                    Err(_) => events.rejected += 1,
                }
            }
            events.chunks.push((*shard, decoded));
        }
        events
    }
}

/// The events of a chunk, each with its record and its number inside an aggregate.
type ChunkEvents<'a> = Vec<(&'a Record, Option<i64>, Event<'a>)>;

/// Decoded events, chunk by chunk.
#[derive(Debug)]
pub struct Events<'a> {
    chunks: Vec<(&'a ShardKey, ChunkEvents<'a>)>,
    rows: usize,
    rejected: usize,
}

impl Events<'_> {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of records that cannot be decoded.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Appends the rows to the buffers of each chunk, and these to the partition buffers.
    pub fn append(&self) -> PartitionBuffers {
        let mut batches = Batches::default();
        let mut filled = Vec::new();
        for (shard, events) in &self.chunks {
            let mut partitions = Partitions::new((*shard).clone());
            for (record, sub_sequence, event) in events {
                partitions.push(record, *sub_sequence, event);
            }
            for (key, rows) in partitions.finish() {
                filled.extend(batches.add(key, rows));
            }
        }
        filled.extend(batches.take_all());
        PartitionBuffers(filled)
    }
}

/// Partition buffers, each of which becomes a file.
#[derive(Debug)]
pub struct PartitionBuffers(Vec<(PartitionKey, Buffers)>);

impl PartitionBuffers {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.0.iter().flat_map(|(_, buffers)| buffers.parts()).map(|part| part.len()).sum()
    }

    /// Returns the bytes held.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(_, buffers)| buffers.bytes()).sum()
    }

    /// Sorts the rows of each partition.
    pub fn sort(&self) -> SortedPartitions<'_> {
        SortedPartitions(self.0.iter().map(|(key, buffers)| (key, sort_partition(buffers.parts()))).collect())
    }
}

/// The rows of partitions, each in their final order.
#[derive(Debug)]
pub struct SortedPartitions<'a>(Vec<(&'a PartitionKey, Sorted<'a>)>);

impl SortedPartitions<'_> {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.0.iter().map(|(_, sorted)| sorted.len()).sum()
    }

    /// Encodes each partition as a data file.
    ///
    /// # Errors
    /// The library rejects the columns (a bug, never the data).
    pub fn encode(&self) -> Result<Vec<Bytes>, ParquetError> {
        self.0.iter().map(|(key, sorted)| encode_sorted(key, sorted).map(|(file, _)| file)).collect()
    }
}
