//! What a running ingest counts, readable from any thread while it runs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde::Serialize;

use super::from_files::Ends;
use crate::decode::Reason;
use crate::ids::ShardKey;

/// Counts of one run.
#[derive(Debug)]
pub struct Counters {
    began: Instant,
    last_arrival_ms: AtomicU64,
    last_turn_ms: AtomicU64,
    ready: AtomicBool,
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
    /// Records that readers of files have handed over: received, or still on their way.
    handed: AtomicU64,
    /// Records that were received and given up: another worker's, or of a damaged file.
    dropped: AtomicU64,
    quarantined: Mutex<BTreeMap<Reason, u64>>,
    shards: Mutex<BTreeMap<ShardKey, ShardCounts>>,
    /// Of all commits of this run.
    committed: Mutex<Work>,
    pub(super) commit_seconds: Histogram,
}

/// What a commit holds.
#[derive(Debug, Default, Clone, Copy)]
pub struct Work {
    /// Records.
    pub records: u64,
    /// Bytes of them.
    pub record_bytes: u64,
    /// Rows that they became.
    pub rows: u64,
    /// Data files.
    pub files: u64,
    /// Bytes of them.
    pub file_bytes: u64,
}

/// What is told of one shard while it is read here.
#[derive(Debug, Clone)]
pub struct ShardCounts {
    /// Milliseconds behind the newest record of the shard, at the last read.
    pub behind_ms: i64,
    /// Records received since the shard's last commit.
    pub uncommitted_records: u64,
    /// When the shard was last committed, or begun.
    pub last_commit: Instant,
}

/// The numbers of one moment.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// Records received.
    pub records: u64,
    /// Bytes of them.
    pub record_bytes: u64,
    /// Rows that they became.
    pub rows: u64,
    /// Data files written.
    pub files: u64,
    /// Bytes of them.
    pub file_bytes: u64,
    /// Commits to `sync_records`.
    pub commits: u64,
    /// Versions lost to other writers on the way to a commit.
    pub conflicts: u64,
    /// Newest version that this run wrote.
    pub version: u64,
    /// Bytes in buffers.
    pub buffered_bytes: u64,
    /// What may be buffered.
    pub budget_bytes: u64,
    /// Gaps noted.
    pub gaps: u64,
    /// Leases held.
    pub leases: u64,
    /// Shards that nobody reads.
    pub unread: u64,
}

/// The closing summary of a run: what it committed.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Summary {
    /// Records.
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
    /// Files that could not be read to their end, and why; what was read of them before is committed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unreadable: BTreeMap<String, String>,
    /// Bytes that were read, are not in the lake, and cannot be read again, by input.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_bytes: BTreeMap<String, u64>,
    /// Wall time.
    pub elapsed_ms: u64,
}

impl Summary {
    /// What of its input the run could not commit, on one line; `None` if it is all there.
    pub fn failure(&self) -> Option<String> {
        const SHOWN: usize = 5;
        let mut failures = Vec::new();
        // An error names its file in most cases.
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
            // Of packed data it is not known how much.
            let bytes = if *bytes == 0 { "the last bytes".to_owned() } else { format!("{bytes} bytes") };
            format!(
                "{name}: {bytes} were read and are not in the lake, because no line break ended them; they cannot be read \
                 again: feed the same input once more, what is committed is skipped"
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
            // From a local folder's milliseconds to the five minutes after which a commit is given up.
            commit_seconds: Histogram::new(exponential_buckets(0.001, 3.0, 12)),
        }
    }
}

impl Counters {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
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

    pub(super) fn received(&self, shard: &ShardKey, records: usize, bytes: usize) {
        self.records.fetch_add(records as u64, Relaxed);
        self.record_bytes.fetch_add(bytes as u64, Relaxed);
        self.last_arrival_ms.store(self.elapsed_ms(), Relaxed);
        self.shard(shard, |counts| counts.uncommitted_records += records as u64);
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
            counts.uncommitted_records = 0;
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

    /// The numbers of this moment.
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

    /// The shards that are read here.
    pub fn shards(&self) -> BTreeMap<ShardKey, ShardCounts> {
        self.shards.lock().map(|shards| shards.clone()).unwrap_or_default()
    }

    /// Records that were read and are neither committed nor given up.
    pub fn uncommitted(&self) -> u64 {
        let committed = self.committed.lock().map(|work| work.records).unwrap_or_default();
        let read = self.records.load(Relaxed).max(self.handed.load(Relaxed));
        read.saturating_sub(committed).saturating_sub(self.dropped.load(Relaxed))
    }

    /// Records in the quarantine, by reason.
    pub fn quarantine(&self) -> BTreeMap<Reason, u64> {
        self.quarantined.lock().map(|counts| counts.clone()).unwrap_or_default()
    }

    /// Whether the lake is open and the work has begun.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// For how long the loop has not come around: while it waits for an upload, that is as long as the upload takes.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.last_turn_ms.load(Relaxed)))
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
            elapsed_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
