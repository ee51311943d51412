//! Rows, gathered by shard, pool and date until they are worth a file. Pure: no I/O, and the clock is passed in.
//!
//! ```text
//! Event ──push──▶ Partition (one shard, pool, date) ──sorted──▶ Arrow batches ──▶ Parquet
//!                     ▲ text arena, events, rows
//! Decoded chunks ─────┘ merged by Batches, which knows what is biggest and what is oldest
//! ```
//!
//! A partition buffer never mixes shards. When a shard is lost, only its buffers are dropped.

pub(crate) mod columns;
pub(crate) mod file;
pub(crate) mod parquet;
pub(crate) mod roll;
mod sorted;
pub(crate) mod stored;
pub(crate) mod unordered;

pub(crate) use columns::{Meta, Partition, PartitionKey, Rejected};
pub(crate) use roll::{Batches, Buffers, Limits};
pub(crate) use sorted::Sorted;
