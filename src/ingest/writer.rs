//! From decoded chunks to commits: the buffers, the files written for them, and the two ledgers.
//!
//! # Order of a flush
//! 1. every buffered partition becomes a file, put-if-absent, named for the commit that will list it;
//! 2. rejects are committed to the quarantine, with its own position;
//! 3. gaps in what the stream still held are committed to `gaps`;
//! 4. files and positions are committed to `sync_records`.
//!
//! # Crash consistency
//! A crash before 4 leaves files that nobody lists (swept after the next fence) and perhaps rejects that are ahead of
//! the main position. Their records come again; **invariant: a record that the quarantine holds is skipped**, whatever
//! a second decoding would make of it, so it is never in both places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use deltalake::kernel::Add;
use tokio::task::JoinSet;

use super::counters::Work;
use super::decoding::{Decoded, Skip, rejected_bytes};
use super::{Counters, IngestError};
use crate::batch::{Batches, Limits, Rejected};
use crate::budget::Reservation;
use crate::failpoint;
use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::lake::ledger::{Beginning, Ledger, ShardState, new_token};
use crate::lake::{Store, snapshot};
use crate::schema::Table;
use crate::source::{Hold, Reached};

use sweeping::Sweeper;

mod commits;
pub(super) mod files;
mod gaps;
mod rejects;
mod sweeping;

/// An aggregate has no more parts than this.
const PARTS_MAX: i64 = 200_000;

/// Shards without records are committed this often all the same, so that the ledger tells up to when there were none.
const QUIET_COMMIT_MS: i64 = 3_600_000;

type States = BTreeMap<ShardKey, ShardState>;

/// What this worker holds of a shard.
#[derive(Debug)]
struct Held {
    /// Number of the fence that took it; what was delivered for an earlier one does not count.
    fence: u64,
    state: ShardState,
    quarantine: ShardState,
    /// The position once everything received so far is committed.
    reached: Option<SequenceNumber>,
    /// Written and not committed.
    files: Vec<Add>,
    next_file: u64,
    rejected: Vec<Rejected>,
    skip: Arc<Skip>,
    /// Everything that arrived before this was received.
    read_to_ms: i64,
    taken_at_ms: i64,
    /// The next commit tells up to when the shard was read, records or not: there may be no other one.
    ends_run: bool,
    gaps: Vec<gaps::Gap>,
    /// What the next commit of the shard holds.
    work: Work,
}

impl Held {
    fn is_quiet_for_long(&self) -> bool {
        self.read_to_ms - self.state.read_to_ms.max(self.taken_at_ms) > QUIET_COMMIT_MS
    }
}

/// How a flush ended.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Shards that are committed to their end now.
    pub ended: Vec<ShardKey>,
    /// Shards that belong to another worker now.
    pub fenced: Vec<ShardKey>,
    /// What the log holds now.
    pub reached: Vec<(ShardKey, SequenceNumber)>,
}

/// The writing half of ingest.
#[derive(Debug)]
pub struct Writer {
    lake: Store,
    ledger: Ledger,
    quarantine: Ledger,
    limits: Limits,
    token: u64,
    held: BTreeMap<ShardKey, Held>,
    batches: Batches,
    reserved: Reservation,
    rejected_bytes: usize,
    /// Whether some shard has something to commit; and whether that is that there was nothing, for a long time.
    is_dirty: bool,
    is_quiet_for_long: bool,
    counters: Arc<Counters>,
    encoders: usize,
    /// Of `sync_records` and `quarantine`.
    sweepers: (Sweeper, Sweeper),
    /// Shards that ended and whose leftovers this run has swept, or is about to.
    swept: BTreeSet<ShardKey>,
    /// Checkpoints of the log, beside the work.
    chores: JoinSet<()>,
}

impl Writer {
    /// Opens the ledgers, making the tables if they are not there.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn open(lake: Store, limits: Limits, counters: Arc<Counters>) -> Result<Self, IngestError> {
        let (quarantine, ledger) =
            tokio::try_join!(Ledger::open(&lake, Table::Quarantine), Ledger::open(&lake, Table::SyncRecords))?;
        // Empty for now, and there for other engines, which refuse a view of a table that is not.
        tokio::try_join!(Table::State.ensure(&lake), Table::DailyState.ensure(&lake), Table::Gaps.ensure(&lake))?;
        Ok(Self {
            sweepers: (Sweeper::new(&lake, Table::SyncRecords), Sweeper::new(&lake, Table::Quarantine)),
            lake,
            ledger,
            quarantine,
            limits,
            token: new_token(),
            held: BTreeMap::new(),
            batches: Batches::default(),
            reserved: Reservation::none(),
            rejected_bytes: 0,
            is_dirty: false,
            is_quiet_for_long: false,
            counters,
            encoders: std::thread::available_parallelism().map_or(2, usize::from),
            swept: BTreeSet::new(),
            chores: JoinSet::new(),
        })
    }

    /// All shards of a stream in the ledger, as they were when it was last read.
    pub fn shards(&self, stream: &str) -> Vec<(ShardKey, ShardState)> {
        self.ledger.shards(stream)
    }

    /// The position up to which a shard was received, committed or not.
    pub fn reached(&self, shard: &ShardKey) -> Option<SequenceNumber> {
        let held = self.held.get(shard).and_then(|held| held.reached.clone());
        held.or_else(|| self.ledger.state(shard)?.position)
    }

    /// Number of the fence by which this worker took the shard over, if it did.
    pub fn fence_of(&self, shard: &ShardKey) -> Option<u64> {
        self.held.get(shard).map(|held| held.fence)
    }

    /// Records of a shard that the quarantine holds already.
    pub fn skip(&self, shard: &ShardKey) -> Arc<Skip> {
        self.held.get(shard).map(|held| held.skip.clone()).unwrap_or_default()
    }

    /// Reads what other workers have committed.
    ///
    /// # Errors
    /// The lake cannot be read.
    pub async fn refresh(&mut self) -> Result<(), IngestError> {
        Ok(self.ledger.refresh().await?)
    }

    /// The number that is this lake's own, made with the first question.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn lake_id(&mut self) -> Result<i64, IngestError> {
        let fresh = i64::try_from(new_token()).unwrap_or(i64::MAX);
        Ok(self.ledger.settle("lake/id", fresh).await?)
    }

    /// When the stream of this name was made that the lake knows. It is `created_ms` if the lake knows none; a lake that has
    /// read the stream before it kept this keeps it from now on.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn created_ms(&mut self, stream: &str, created_ms: i64) -> Result<i64, IngestError> {
        let id = format!("created/{stream}");
        match self.ledger.value(&id) {
            Some(known) => Ok(known),
            None if self.ledger.shards(stream).is_empty() => Ok(created_ms),
            None => Ok(self.ledger.settle(&id, created_ms).await?),
        }
    }

    /// Whether the lake knows when the stream of this name was made.
    pub fn knows(&self, stream: &str) -> bool {
        self.ledger.value(&format!("created/{stream}")).is_some()
    }

    /// The names under which incarnations of a stream have shards here.
    pub fn incarnations(&self, stream: &str) -> BTreeSet<String> {
        self.ledger.incarnations(stream)
    }

    /// Enters the shards of a stream that the lake does not know yet. The first worker's word stands.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn begin(&mut self, beginnings: &[Beginning], stream: &str, created_ms: i64) -> Result<(), IngestError> {
        let also = match self.ledger.value(&format!("created/{stream}")) {
            None => vec![(format!("created/{stream}"), created_ms)],
            Some(_) => Vec::new(),
        };
        Ok(self.ledger.begin(beginnings, self.token, also).await?)
    }

    /// Takes shards over and returns where to read on. Earlier owners can commit nothing from here on.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn acquire(
        &mut self,
        shards: &[(ShardKey, StartAt)],
    ) -> Result<Vec<(ShardKey, ShardState)>, IngestError> {
        let mut quarantine = self.quarantine.fence(shards, self.token).await?;
        let fenced = self.ledger.fence(shards, self.token).await?;
        self.sweep_behind(shards, &fenced, &quarantine);
        for (shard, state) in &fenced {
            let Some(quarantine) = quarantine.remove(shard) else { continue };
            let ahead = quarantine.position.is_some() && quarantine.position > state.position;
            let mut skip = if ahead { rejects::quarantined(&self.lake, shard).await? } else { Skip::new() };
            if let Some(next) = state.position.as_ref().and_then(SequenceNumber::next).filter(|_| state.parts_done > 0)
            {
                let parts = (0..state.parts_done.min(PARTS_MAX)).map(Some).chain([None]);
                skip.extend(parts.map(|part| (next.clone(), part)));
            }
            let held = Held {
                fence: state.number,
                read_to_ms: state.read_to_ms,
                taken_at_ms: chrono::Utc::now().timestamp_millis(),
                ends_run: false,
                gaps: Vec::new(),
                state: state.clone(),
                quarantine,
                reached: None,
                files: Vec::new(),
                next_file: 0,
                work: Work::default(),
                rejected: Vec::new(),
                skip: Arc::new(skip),
            };
            self.held.insert(shard.clone(), held);
        }
        Ok(fenced.into_iter().collect())
    }

    /// Waits for what runs beside the work.
    pub async fn finish(&mut self) {
        tokio::join!(self.sweepers.0.finish(), self.sweepers.1.finish());
        while self.chores.join_next().await.is_some() {}
    }

    /// Sweeps the shards that were taken over; and those of the same streams that ended, because nobody will take them
    /// over any more. Whoever committed the end of a shard had fenced it in both ledgers, so the numbers there are last.
    fn sweep_behind(&mut self, shards: &[(ShardKey, StartAt)], fenced: &States, quarantine: &States) {
        let streams: BTreeSet<&str> = shards.iter().map(|(shard, _)| shard.stream()).collect();
        let known = streams.into_iter().flat_map(|stream| self.ledger.shards(stream));
        // Once each: nobody writes for them any more.
        let ended: Vec<(ShardKey, ShardState)> =
            known.filter(|(shard, state)| state.is_ended() && self.swept.insert(shard.clone())).collect();
        let number = |(shard, state): (&ShardKey, &ShardState)| (shard.clone(), state.number);
        let mut fences: BTreeMap<ShardKey, u64> = fenced.iter().map(number).collect();
        let mut quarantine_fences: BTreeMap<ShardKey, u64> = quarantine.iter().map(number).collect();
        for (shard, state) in ended {
            if let Some(state) = self.quarantine.state(&shard) {
                quarantine_fences.insert(shard.clone(), state.number);
            }
            fences.insert(shard, state.number);
        }
        self.sweepers.0.ask(fences);
        self.sweepers.1.ask(quarantine_fences);
    }

    /// Takes a decoded chunk. Chunks of a shard come in order.
    ///
    /// # Errors
    /// A file that had to make room cannot be written.
    pub async fn add(
        &mut self,
        hold: &Hold,
        decoded: Decoded,
        mut reserved: Reservation,
        now: Instant,
    ) -> Result<(), IngestError> {
        let Some(held) = self.held.get_mut(&hold.shard).filter(|held| held.fence == hold.fence) else {
            self.counters.dropped(decoded.records);
            return Ok(());
        };
        reserved.shrink_to(decoded.bytes());
        self.reserved.merge(reserved);
        held.reached = Some(decoded.position);
        self.is_dirty = true;
        held.work.records += decoded.records;
        held.work.record_bytes += decoded.record_bytes as u64;
        held.work.rows += decoded.rows;
        self.rejected_bytes += decoded.rejected.iter().map(rejected_bytes).sum::<usize>();
        held.rejected.extend(decoded.rejected);
        self.batches.note(decoded.record_bytes, now);
        let full: Vec<_> =
            decoded.partitions.into_iter().filter_map(|(key, rows)| self.batches.add(key, rows)).collect();
        self.write(full).await?;
        self.counters.buffered(self.buffered());
        if self.buffered() >= self.limits.mark_bytes {
            let largest = self.batches.take_largest(self.limits.mark_bytes * 3 / 5);
            self.write(largest).await?;
            self.reserved.shrink_to(self.buffered());
        }
        Ok(())
    }

    /// Notes that a shard was received to its end.
    pub fn end(&mut self, hold: &Hold, now: Instant) {
        if let Some(held) = self.held.get_mut(&hold.shard).filter(|held| held.fence == hold.fence) {
            held.reached = Some(SequenceNumber::shard_end());
            self.is_dirty = true;
            self.batches.note(0, now);
        }
    }

    /// Notes that the rest of a shard is gone: the stream does not list it any more.
    pub fn trimmed(&mut self, hold: &Hold, now: Instant) {
        if let Some(held) = self.held.get_mut(&hold.shard) {
            held.gaps.push(gaps::Gap {
                after: held.state.position.clone(),
                arrived_from_ms: held.state.read_to_ms,
                arrived_until_ms: None,
                whole_rest: true,
                noted_at_ms: chrono::Utc::now().timestamp_millis(),
                why: gaps::Why::Retention,
            });
        }
        self.end(hold, now);
    }

    /// Notes that a shard has gone with its stream: the one that has its name now was created at `created_ms`.
    pub fn deleted(&mut self, hold: &Hold, created_ms: i64, now: Instant) {
        if let Some(held) = self.held.get_mut(&hold.shard) {
            let (after, noted_at_ms) = (held.state.position.clone(), chrono::Utc::now().timestamp_millis());
            held.gaps.extend(gaps::until_deleted(after, held.state.read_to_ms, created_ms, noted_at_ms));
        }
        self.end(hold, now);
    }

    /// Has the next commit tell of every shard up to when it was read: it is the last one of this run.
    pub fn end_run(&mut self) {
        for held in self.held.values_mut() {
            held.ends_run = held.read_to_ms > held.state.read_to_ms;
            self.is_dirty |= held.ends_run;
        }
    }

    /// Notes up to when a shard was read, and whether something was trimmed in between.
    pub fn read_to(&mut self, hold: &Hold, reached: &Reached, retention_ms: i64) {
        let Some(held) = self.held.get_mut(&hold.shard).filter(|held| held.fence == hold.fence) else { return };
        held.gaps.extend(gaps::between(reached.after.clone(), held.read_to_ms, reached.at_ms, retention_ms));
        held.read_to_ms = held.read_to_ms.max(reached.at_ms - reached.behind_ms);
        if held.is_quiet_for_long() {
            (self.is_dirty, self.is_quiet_for_long) = (true, true);
        }
    }

    /// Forgets a shard and what was received of it since its last commit.
    pub fn drop_shard(&mut self, shard: &ShardKey) {
        self.batches.drop_shard(shard);
        if let Some(held) = self.held.remove(shard) {
            self.counters.dropped(held.work.records);
            self.rejected_bytes -= held.rejected.iter().map(rejected_bytes).sum::<usize>();
        }
        self.reserved.shrink_to(self.buffered());
        self.counters.shard_gone(shard);
    }

    /// Whether something waits for a commit.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Whether a shard was quiet for so long that the ledger should say so.
    pub fn is_quiet_for_long(&self) -> bool {
        self.is_quiet_for_long
    }

    /// When the oldest of what waits must be committed.
    pub fn due(&self) -> Option<Instant> {
        self.batches.due(&self.limits)
    }

    /// Whether so much waits that it must be committed now.
    pub fn is_due(&self) -> bool {
        self.batches.is_due(&self.limits) || self.rejected_bytes >= self.limits.mark_bytes / 2
    }

    fn buffered(&self) -> usize {
        self.batches.bytes() + self.rejected_bytes
    }

    /// Writes and commits everything that was received.
    ///
    /// # Errors
    /// The lake cannot be written. What was received is not lost: it is read again from the last commit.
    pub async fn flush(&mut self) -> Result<Flushed, IngestError> {
        let mut flushed = Flushed::default();
        if !self.is_dirty() {
            return Ok(flushed);
        }
        let all = self.batches.take_all();
        self.write(all).await?;
        self.commit_quarantine(&mut flushed).await?;
        self.commit_gaps().await?;
        self.commit_files(&mut flushed).await?;
        (self.is_dirty, self.is_quiet_for_long) = (false, false);
        self.reserved.shrink_to(self.buffered());
        self.counters.buffered(self.buffered());
        Ok(flushed)
    }

    /// A checkpoint of the log now and then. Without one the table is as whole, and slower to open.
    fn checkpoint(&mut self, table: Table) {
        let ledger = if table == Table::Quarantine { &mut self.quarantine } else { &mut self.ledger };
        if ledger.checkpoint_due() {
            let store = table.store(&self.lake);
            // What is done is let go of.
            while self.chores.try_join_next().is_some() {}
            self.chores.spawn(async move {
                failpoint::hit("checkpoint/before");
                if let Err(error) = snapshot::checkpoint(&store).await {
                    tracing::warn!(table = table.name(), error = %error, "cannot write a checkpoint of the log");
                }
                failpoint::hit("checkpoint/after");
            });
        }
    }
}
