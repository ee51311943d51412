//! The partition buffers: which are held, how large they are, and which to write next.
//!
//! Buffers are written for two reasons. At the byte mark the largest buffers become files early, which frees memory and
//! commits nothing. On age, bytes or the end, all buffers become files, and one commit lists all of them. A position is
//! committed only when no row at or before it is left in a buffer.
//!
//! A bulk publish touches every date of every pool at once: thousands of partitions, each with a few rows a minute. A
//! commit of those would consist of tiny files, so it is delayed. **More than [`FILES_MAX`] files of fewer than
//! [`ROWS_FLOOR`] rows on average are written only after ten times the age.** The byte limit, the mark, an idle stream
//! and the end do not wait for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::columns::{Partition, PartitionKey};
use crate::ids::ShardKey;

/// A commit of up to this many files is harmless, however small they are.
pub(crate) const FILES_MAX: usize = 256;
/// Average rows per file that a commit of more files should reach.
pub(crate) const ROWS_FLOOR: usize = 1_000;
/// Factor of the age limit for commits of many small files.
const STRETCH: u32 = 10;

/// Limits that decide when to write.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Buffered bytes at which the largest partition buffers are written early.
    pub mark_bytes: usize,
    /// Bytes of records since the last commit after which everything is written and committed.
    pub flush_bytes: u64,
    /// Time since the first uncommitted record after which everything is written and committed.
    pub flush_interval: Duration,
}

/// Maximum bytes of the texts of a file. A partition is written long before it gets there.
const TEXT_MAX: usize = i32::MAX as usize;

/// The buffers of one partition, in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    parts: Vec<Partition>,
    text_bytes: usize,
    bytes: usize,
    rows: usize,
}

impl Buffers {
    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the buffers.
    pub(crate) fn parts(&self) -> &[Partition] {
        &self.parts
    }

    fn push(&mut self, rows: Partition) {
        self.text_bytes += rows.text_bytes();
        self.bytes += rows.bytes();
        self.rows += rows.len();
        self.parts.push(rows);
    }
}

impl From<Partition> for Buffers {
    fn from(rows: Partition) -> Self {
        let mut buffers = Self::default();
        buffers.push(rows);
        buffers
    }
}

/// All partition buffers that hold rows.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    partitions: BTreeMap<PartitionKey, Buffers>,
    bytes: usize,
    rows: usize,
    received_bytes: u64,
    since: Option<Instant>,
}

impl Batches {
    /// Notes that records of `bytes` arrived at `now`. This includes records that became no rows, because their
    /// position waits for a commit too.
    pub(crate) fn note(&mut self, bytes: usize, now: Instant) {
        self.received_bytes += bytes as u64;
        self.since.get_or_insert(now);
    }

    /// Adds rows to a partition. If one file could not hold the texts of all its rows, returns the rows that it held
    /// before.
    pub(crate) fn add(&mut self, key: PartitionKey, rows: Partition) -> Option<(PartitionKey, Buffers)> {
        self.bytes += rows.bytes();
        self.rows += rows.len();
        let full = match self.partitions.get_mut(&key) {
            Some(held) if held.text_bytes + rows.text_bytes() <= TEXT_MAX => {
                held.push(rows);
                return None;
            }
            held => held.map(std::mem::take).map(|full| (key.clone(), full)),
        };
        if let Some((_, full)) = &full {
            self.bytes -= full.bytes;
            self.rows -= full.rows;
        }
        self.partitions.entry(key).or_default().push(rows);
        full
    }

    /// Returns the bytes held in all.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether nothing is held.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Takes out the largest partition buffers until at most `bytes` are held.
    pub(crate) fn take_largest(&mut self, bytes: usize) -> Vec<(PartitionKey, Buffers)> {
        let mut by_size: Vec<(usize, PartitionKey)> =
            self.partitions.iter().map(|(key, held)| (held.bytes, key.clone())).collect();
        by_size.sort_unstable();
        let mut taken = Vec::new();
        while self.bytes > bytes
            && let Some((size, key)) = by_size.pop()
        {
            if let Some(held) = self.partitions.remove(&key) {
                self.bytes -= size;
                self.rows -= held.rows;
                taken.push((key, held));
            }
        }
        taken
    }

    /// Takes everything out, and resets the age and the byte count.
    pub(crate) fn take_all(&mut self) -> Vec<(PartitionKey, Buffers)> {
        self.bytes = 0;
        self.rows = 0;
        self.received_bytes = 0;
        self.since = None;
        std::mem::take(&mut self.partitions).into_iter().collect()
    }

    /// Drops the rows of a lost shard.
    pub(crate) fn drop_shard(&mut self, shard: &ShardKey) {
        self.partitions.retain(|key, _| key.shard != *shard);
        self.bytes = self.partitions.values().map(|held| held.bytes).sum();
        self.rows = self.partitions.values().map(|held| held.rows).sum();
    }

    /// Returns when the age limit is reached; `None` while nothing waits for a commit.
    pub(crate) fn due(&self, limits: &Limits) -> Option<Instant> {
        let thin = self.partitions.len() > FILES_MAX && self.rows < self.partitions.len() * ROWS_FLOOR;
        self.since.map(|since| since + if thin { limits.flush_interval * STRETCH } else { limits.flush_interval })
    }

    /// Returns whether the byte limit is reached.
    pub(crate) fn is_due(&self, limits: &Limits) -> bool {
        self.received_bytes >= limits.flush_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Meta;
    use crate::decode::decode;
    use crate::ids::SequenceNumber;
    use chrono::NaiveDate;

    fn key(day: u32) -> PartitionKey {
        PartitionKey {
            shard: ShardKey::new("s", "a").unwrap(),
            identity_pool_id: "p:0".into(),
            event_date: NaiveDate::from_ymd_opt(2026, 1, day).unwrap(),
        }
    }

    fn rows(value: usize) -> Partition {
        let json = format!(
            r#"{{"identityPoolId":"p:0","identityId":"p:1","dataSetName":"d","kinesisSyncRecords":[{{"key":"k","value":"{}","op":"replace"}}],"lastModifiedDate":5,"syncCount":9}}"#,
            "x".repeat(value)
        );
        let mut partition = Partition::default();
        let sequence_number = SequenceNumber::from_u64(1);
        let meta = Meta { sequence_number: &sequence_number, sub_sequence: None, arrived_at: 0 };
        let event = decode(json.as_bytes()).unwrap();
        partition.push(&meta, &event, &event.rows);
        partition
    }

    #[test]
    fn the_largest_make_room() {
        let mut batches = Batches::default();
        for (day, value) in [(1, 10), (2, 50_000), (3, 100), (4, 20_000)] {
            assert!(batches.add(key(day), rows(value)).is_none());
        }
        let days: Vec<_> = batches.take_largest(60_000).into_iter().map(|(key, _)| key.event_date).collect();
        assert_eq!(days, [key(2).event_date]);
        assert!(batches.bytes() <= 60_000);
        assert_eq!(batches.take_all().len(), 3);
        assert_eq!((batches.bytes(), batches.is_empty()), (0, true));
    }

    #[test]
    fn many_thin_partitions_wait() {
        let limits = Limits { mark_bytes: 1 << 30, flush_bytes: 1 << 30, flush_interval: Duration::from_secs(60) };
        let mut batches = Batches::default();
        let start = Instant::now();
        batches.note(1, start);
        let pool = |n: usize| PartitionKey { identity_pool_id: format!("p:{n:x}").into(), ..key(1) };
        (0..FILES_MAX).for_each(|n| assert!(batches.add(pool(n), rows(1)).is_none()));
        assert_eq!(batches.due(&limits), Some(start + Duration::from_secs(60)), "few enough");
        batches.add(pool(FILES_MAX), rows(1));
        assert_eq!(batches.due(&limits), Some(start + Duration::from_secs(600)), "many and thin");
        (0..ROWS_FLOOR * FILES_MAX + ROWS_FLOOR).for_each(|_| assert!(batches.add(pool(0), rows(1)).is_none()));
        assert_eq!(batches.due(&limits), Some(start + Duration::from_secs(60)), "many and not thin");
        batches.add(pool(FILES_MAX + 1), rows(1));
        batches.take_largest(1_000_000);
        assert_eq!(batches.due(&limits), Some(start + Duration::from_secs(600)), "the thick one has gone");
    }

    #[test]
    fn age_counts_from_the_first_record() {
        let limits = Limits { mark_bytes: 1, flush_bytes: 100, flush_interval: Duration::from_secs(60) };
        let mut batches = Batches::default();
        let start = Instant::now();
        assert_eq!(batches.due(&limits), None);
        batches.note(60, start);
        batches.note(30, start + Duration::from_secs(9));
        assert_eq!(batches.due(&limits), Some(start + Duration::from_secs(60)));
        assert!(!batches.is_due(&limits));
        batches.note(10, start);
        assert!(batches.is_due(&limits));
        batches.take_all();
        assert_eq!((batches.due(&limits), batches.is_due(&limits)), (None, false));
    }
}
