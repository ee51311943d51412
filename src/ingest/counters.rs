//! What a running ingest counts, readable from any thread while it runs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::decode::Reason;
use crate::source::ShardKey;

/// Counts of one run.
#[derive(Debug)]
pub struct Counters {
    began: Instant,
    last_arrival_ms: AtomicU64,
    records: AtomicU64,
    record_bytes: AtomicU64,
    rows: AtomicU64,
    skipped_bytes: AtomicU64,
    files: AtomicU64,
    file_bytes: AtomicU64,
    commits: AtomicU64,
    version: AtomicU64,
    buffered_bytes: AtomicU64,
    quarantined: Mutex<BTreeMap<Reason, u64>>,
    behind_ms: Mutex<BTreeMap<ShardKey, i64>>,
}

/// The closing summary of a run.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Summary {
    /// Records received.
    pub records: u64,
    /// Bytes of them.
    pub record_bytes: u64,
    /// Rows that they became.
    pub rows: u64,
    /// Records in the quarantine, by reason.
    pub quarantined: BTreeMap<&'static str, u64>,
    /// Data files written.
    pub files: u64,
    /// Bytes of them.
    pub file_bytes: u64,
    /// Commits to `sync_records`.
    pub commits: u64,
    /// Bytes of files that earlier runs had committed.
    pub skipped_bytes: u64,
    /// Files whose last line was left for the next run, and its bytes.
    pub torn: BTreeMap<String, usize>,
    /// Wall time.
    pub elapsed_ms: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            last_arrival_ms: AtomicU64::new(0),
            records: AtomicU64::new(0),
            record_bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            version: AtomicU64::new(0),
            buffered_bytes: AtomicU64::new(0),
            quarantined: Mutex::default(),
            behind_ms: Mutex::default(),
        }
    }
}

impl Counters {
    pub(super) fn received(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records as u64, Relaxed);
        self.record_bytes.fetch_add(bytes as u64, Relaxed);
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_arrival_ms.store(elapsed, Relaxed);
    }

    pub(super) fn decoded(&self, rows: u64) {
        self.rows.fetch_add(rows, Relaxed);
    }

    pub(super) fn skipped_bytes(&self, bytes: u64) {
        self.skipped_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn file(&self, bytes: u64) {
        self.files.fetch_add(1, Relaxed);
        self.file_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn committed(&self, version: u64) {
        self.commits.fetch_add(1, Relaxed);
        self.version.store(version, Relaxed);
    }

    pub(super) fn buffered(&self, bytes: usize) {
        self.buffered_bytes.store(bytes as u64, Relaxed);
    }

    pub(super) fn quarantined(&self, reason: Reason) {
        if let Ok(mut counts) = self.quarantined.lock() {
            *counts.entry(reason).or_default() += 1;
        }
    }

    pub(super) fn behind(&self, shard: &ShardKey, ms: i64) {
        if let Ok(mut behind) = self.behind_ms.lock() {
            behind.insert(shard.clone(), ms);
        }
    }

    /// When the last record arrived; the start of the run if none did.
    pub(super) fn last_arrival(&self) -> Instant {
        self.began + Duration::from_millis(self.last_arrival_ms.load(Relaxed))
    }

    /// Records received and bytes of them, so far.
    pub fn progress(&self) -> (u64, u64) {
        (self.records.load(Relaxed), self.record_bytes.load(Relaxed))
    }

    /// Bytes of files that earlier runs had committed, so far.
    pub fn skipped(&self) -> u64 {
        self.skipped_bytes.load(Relaxed)
    }

    pub(super) fn summary(&self, torn: Vec<(String, usize)>) -> Summary {
        let quarantined = self.quarantined.lock().map(|q| q.clone()).unwrap_or_default();
        Summary {
            records: self.records.load(Relaxed),
            record_bytes: self.record_bytes.load(Relaxed),
            rows: self.rows.load(Relaxed),
            quarantined: quarantined.into_iter().map(|(reason, n)| (reason.as_str(), n)).collect(),
            files: self.files.load(Relaxed),
            file_bytes: self.file_bytes.load(Relaxed),
            commits: self.commits.load(Relaxed),
            skipped_bytes: self.skipped_bytes.load(Relaxed),
            torn: torn.into_iter().collect(),
            elapsed_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
