//! Counters of a running ingest, readable from any thread.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde::Serialize;

use super::from_files::Ends;
use crate::decode::Reason;
use crate::ids::ShardKey;

/// Counters of one run.
#[derive(Debug)]
pub struct Counters {
    began: Instant,
    last_arrival_ms: AtomicU64,
    last_turn_ms: AtomicU64,
    ready: AtomicBool,
    /// Whether the last run failed, and the next one has not begun.
    failed: AtomicBool,
    records: AtomicU64,
    record_bytes: AtomicU64,
    rows: AtomicU64,
    skipped_bytes: AtomicU64,
    files: AtomicU64,
    file_bytes: AtomicU64,
    commits: AtomicU64,
    conflicts: AtomicU64,
    version: AtomicU64,
    buffered_bytes: AtomicU64,
    budget_bytes: AtomicU64,
    gaps: AtomicU64,
    leases: AtomicU64,
    unread: AtomicU64,
    /// Records that file readers have handed over: received by the loop, or still on their way.
    handed: AtomicU64,
    /// Records that were received and dropped: of a lost shard, or of a damaged file.
    dropped: AtomicU64,
    quarantined: Mutex<BTreeMap<Reason, u64>>,
    shards: Mutex<BTreeMap<ShardKey, ShardCounts>>,
    /// Sum of all commits of this run.
    committed: Mutex<Work>,
    pub(super) commit_seconds: Histogram,
}

/// Counts of one commit.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Work {
    /// Records.
    pub records: u64,
    /// Bytes of the records.
    pub record_bytes: u64,
    /// Rows decoded from the records.
    pub rows: u64,
    /// Data files.
    pub files: u64,
    /// Bytes of the data files.
    pub file_bytes: u64,
}

/// Counts of one shard while this worker reads it.
#[derive(Debug, Clone)]
pub struct ShardCounts {
    /// Milliseconds behind the newest record of the shard, at the last read.
    pub behind_ms: i64,
    /// Records received since the shard's last commit.
    pub uncommitted_records: u64,
    /// When the shard was last committed, or started.
    pub last_commit: Instant,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// Records received.
    pub records: u64,
    /// Bytes of the records.
    pub record_bytes: u64,
    /// Rows decoded from the records.
    pub rows: u64,
    /// Data files written.
    pub files: u64,
    /// Bytes of the data files.
    pub file_bytes: u64,
    /// Commits to `sync_records`.
    pub commits: u64,
    /// Log versions lost to other writers before a commit succeeded.
    pub conflicts: u64,
    /// Newest version that this run wrote.
    pub version: u64,
    /// Bytes in buffers.
    pub buffered_bytes: u64,
    /// Most bytes that may be buffered.
    pub budget_bytes: u64,
    /// Gaps recorded.
    pub gaps: u64,
    /// Leases held.
    pub leases: u64,
    /// Shards without a reader.
    pub unread: u64,
}

/// Final summary of a run: what it committed.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Bytes of the records.
    pub record_bytes: u64,
    /// Rows decoded from the records.
    pub rows: u64,
    /// Quarantined records, by reason.
    pub quarantined: BTreeMap<&'static str, u64>,
    /// Data files written.
    pub files: u64,
    /// Bytes of the data files.
    pub file_bytes: u64,
    /// Commits to `sync_records`.
    pub commits: u64,
    /// Bytes of files that earlier runs had committed.
    pub skipped_bytes: u64,
    /// Files whose incomplete last line is left for the next run, and its length in bytes.
    pub torn: BTreeMap<String, usize>,
    /// Files that could not be read to their end, and the errors. Records read before the error are committed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unreadable: BTreeMap<String, String>,
    /// Bytes that were read, are not in the lake, and cannot be read again, by input.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_bytes: BTreeMap<String, u64>,
    /// Wall time, in milliseconds.
    pub elapsed_ms: u64,
}

impl Summary {
    /// Returns, on one line, what part of its input the run could not commit; `None` if it committed everything.
    pub fn failure(&self) -> Option<String> {
        const SHOWN: usize = 5;
        let mut failures = Vec::new();
        // Most errors already contain the file name.
        let one = |(name, error): (&String, &String)| match error.contains(name.as_str()) {
            true => error.clone(),
            false => format!("{name}: {error}"),
        };
        let errors: Vec<String> = self.unreadable.iter().take(SHOWN).map(one).collect();
        match self.unreadable.len() {
            0 => {}
            1 => failures.push(errors.concat()),
            count => {
                let more = if count > SHOWN { "; …" } else { "" };
                let errors = errors.join("; ");
                failures.push(format!("{count} files could not be read to their end: {errors}{more}"));
            }
        }
        failures.extend(self.lost_bytes.iter().map(|(name, bytes)| {
            // For compressed input the number of lost bytes is unknown.
            let bytes = if *bytes == 0 { "the last bytes".to_owned() } else { format!("{bytes} bytes") };
            format!(
                "{name}: {bytes} were read but not committed, because no line break follows them; a pipe cannot be \
                 read again: send the same input once more, and committed records are skipped"
            )
        }));
        (!failures.is_empty()).then(|| failures.join("; "))
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            last_arrival_ms: AtomicU64::new(0),
            last_turn_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            records: AtomicU64::new(0),
            record_bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            version: AtomicU64::new(0),
            buffered_bytes: AtomicU64::new(0),
            budget_bytes: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            leases: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            handed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            quarantined: Mutex::default(),
            shards: Mutex::default(),
            committed: Mutex::default(),
            // From the milliseconds of a local folder to the five minutes after which a commit is given up.
            commit_seconds: Histogram::new(exponential_buckets(0.001, 3.0, 13)),
        }
    }
}

impl Counters {
    fn elapsed_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn shard(&self, shard: &ShardKey, change: impl FnOnce(&mut ShardCounts)) {
        if let Ok(mut shards) = self.shards.lock() {
            let fresh = || ShardCounts { behind_ms: 0, uncommitted_records: 0, last_commit: Instant::now() };
            change(shards.entry(shard.clone()).or_insert_with(fresh));
        }
    }

    pub(super) fn ready(&self, budget_bytes: usize) {
        self.budget_bytes.store(budget_bytes as u64, Relaxed);
        self.ready.store(true, Relaxed);
    }

    pub(super) fn alive(&self) {
        self.last_turn_ms.store(self.elapsed_ms(), Relaxed);
    }

    pub(super) fn received(&self, shard: Option<&ShardKey>, records: usize, bytes: usize) {
        self.records.fetch_add(records as u64, Relaxed);
        self.record_bytes.fetch_add(bytes as u64, Relaxed);
        self.last_arrival_ms.store(self.elapsed_ms(), Relaxed);
        if let Some(shard) = shard {
            self.shard(shard, |counts| counts.uncommitted_records += records as u64);
        }
    }

    pub(super) fn handed(&self, records: usize) {
        self.handed.fetch_add(records as u64, Relaxed);
    }

    pub(super) fn dropped(&self, records: u64) {
        self.dropped.fetch_add(records, Relaxed);
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

    pub(super) fn committed(&self, version: u64, took: Duration) {
        self.commits.fetch_add(1, Relaxed);
        self.version.store(version, Relaxed);
        self.commit_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn conflicts(&self, conflicts: u32) {
        self.conflicts.fetch_add(u64::from(conflicts), Relaxed);
    }

    pub(super) fn gap(&self) {
        self.gaps.fetch_add(1, Relaxed);
    }

    pub(super) fn leases(&self, held: usize) {
        self.leases.store(held as u64, Relaxed);
    }

    pub(super) fn unread(&self, shards: usize) {
        self.unread.store(shards as u64, Relaxed);
    }

    pub(super) fn shard_begun(&self, shard: &ShardKey) {
        self.shard(shard, |counts| counts.last_commit = Instant::now());
    }

    pub(super) fn shard_committed(&self, shard: &ShardKey, work: Work) {
        if let Ok(mut all) = self.committed.lock() {
            all.records += work.records;
            all.record_bytes += work.record_bytes;
            all.rows += work.rows;
            all.files += work.files;
            all.file_bytes += work.file_bytes;
        }
        self.shard(shard, |counts| {
            counts.last_commit = Instant::now();
            // Chunks that are still being decoded were counted when they were received.
            counts.uncommitted_records = counts.uncommitted_records.saturating_sub(work.records);
        });
    }

    pub(super) fn shard_gone(&self, shard: &ShardKey) {
        if let Ok(mut shards) = self.shards.lock() {
            shards.remove(shard);
        }
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
        self.shard(shard, |counts| counts.behind_ms = ms);
    }

    /// Returns a snapshot of the counters.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            records: self.records.load(Relaxed),
            record_bytes: self.record_bytes.load(Relaxed),
            rows: self.rows.load(Relaxed),
            files: self.files.load(Relaxed),
            file_bytes: self.file_bytes.load(Relaxed),
            commits: self.commits.load(Relaxed),
            conflicts: self.conflicts.load(Relaxed),
            version: self.version.load(Relaxed),
            buffered_bytes: self.buffered_bytes.load(Relaxed),
            budget_bytes: self.budget_bytes.load(Relaxed),
            gaps: self.gaps.load(Relaxed),
            leases: self.leases.load(Relaxed),
            unread: self.unread.load(Relaxed),
        }
    }

    /// Returns the shards that this worker reads.
    pub fn shards(&self) -> BTreeMap<ShardKey, ShardCounts> {
        self.shards.lock().map(|shards| shards.clone()).unwrap_or_default()
    }

    /// Returns the number of records that were read and are neither committed nor dropped.
    pub fn uncommitted(&self) -> u64 {
        let committed = self.committed.lock().map(|work| work.records).unwrap_or_default();
        let read = self.records.load(Relaxed).max(self.handed.load(Relaxed));
        read.saturating_sub(committed).saturating_sub(self.dropped.load(Relaxed))
    }

    /// Returns the number of quarantined records, by reason.
    pub fn quarantine(&self) -> BTreeMap<Reason, u64> {
        self.quarantined.lock().map(|counts| counts.clone()).unwrap_or_default()
    }

    /// Returns whether the lake is open and reading has started.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Notes that a run failed, or that the next one begins. What a failed run had read and not committed is read again.
    pub fn set_failed(&self, has_failed: bool) {
        self.alive();
        self.failed.store(has_failed, Relaxed);
        if has_failed {
            self.dropped(self.uncommitted());
            self.buffered_bytes.store(0, Relaxed);
            self.leases.store(0, Relaxed);
            if let Ok(mut shards) = self.shards.lock() {
                shards.clear();
            }
        }
    }

    /// Returns whether a run is at work, as far as is known.
    pub fn is_running(&self) -> bool {
        !self.failed.load(Relaxed)
    }

    /// Returns the time since the loop's last turn. While the loop waits for an upload, it does not turn.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.last_turn_ms.load(Relaxed)))
    }

    /// Returns when the last record arrived, or the start of the run if none did.
    pub(super) fn last_arrival(&self) -> Instant {
        self.began + Duration::from_millis(self.last_arrival_ms.load(Relaxed))
    }

    /// Returns the records received so far, and their bytes.
    pub fn progress(&self) -> (u64, u64) {
        (self.records.load(Relaxed), self.record_bytes.load(Relaxed))
    }

    /// Returns the bytes of files that earlier runs had committed, so far.
    pub fn skipped(&self) -> u64 {
        self.skipped_bytes.load(Relaxed)
    }

    pub(super) fn summary(&self, ends: Ends) -> Summary {
        let quarantined = self.quarantined.lock().map(|q| q.clone()).unwrap_or_default();
        let work = self.committed.lock().map(|work| *work).unwrap_or_default();
        Summary {
            records: work.records,
            record_bytes: work.record_bytes,
            rows: work.rows,
            quarantined: quarantined.into_iter().map(|(reason, n)| (reason.as_str(), n)).collect(),
            files: work.files,
            file_bytes: work.file_bytes,
            commits: self.commits.load(Relaxed),
            skipped_bytes: self.skipped_bytes.load(Relaxed),
            torn: ends.torn,
            unreadable: ends.unreadable,
            lost_bytes: ends.lost,
            elapsed_ms: millis(self.began.elapsed()),
        }
    }
}

/// Returns whole milliseconds. A u64 holds those of 500 million years.
fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}
