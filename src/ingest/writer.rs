//! Commits decoded chunks: the partition buffers, the files written from them, and the ledgers of the two tables.
//!
//! # Order of a flush
//! 1. Every partition buffer becomes a file, put-if-absent, named for the commit that will list it.
//! 2. Decode errors are committed to the quarantine, whose ledger has its own position.
//! 3. Gaps are committed to `gaps`.
//! 4. Files and positions are committed to `sync_records`.
//!
//! # Crash consistency
//! A crash before step 4 leaves files that no commit lists; they are swept after the next takeover. It may also leave
//! the quarantine ahead of the main position. The records of the quarantine are then read again. **Invariant: a record
//! that the quarantine holds is skipped**, whatever a second decoding would yield, so no record is in both tables.

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
use crate::lake::commit::new_token_value;
use crate::lake::ledger::{Beginning, FIRST_EPOCH, Ledger, ShardState, new_token};
use crate::lake::{Store, snapshot};
use crate::schema::Table;
use crate::source::{Assignment, Reached};

use sweeping::Sweeper;

mod commits;
pub(super) mod files;
mod gaps;
mod rejects;
mod sweeping;

/// Upper bound of the sub-records in an aggregate.
const PARTS_MAX: i64 = 200_000;

/// Shards without records are committed this often, so that the ledger shows up to when there were none.
const QUIET_COMMIT_MS: i64 = 3_600_000;

type States = BTreeMap<ShardKey, ShardState>;

/// State that this worker holds for one shard.
#[derive(Debug)]
struct OwnedShard {
    /// Epoch of this takeover. Deliveries for an earlier epoch do not count.
    assigned_epoch: u64,
    state: ShardState,
    quarantine: ShardState,
    /// Position once everything received so far is committed.
    reached: Option<SequenceNumber>,
    /// Files that are written and not committed.
    files: Vec<Add>,
    next_file: u64,
    rejected: Vec<Rejected>,
    skip: Arc<Skip>,
    /// Watermark: everything that arrived before this time was received.
    read_to_ms: i64,
    taken_at_ms: i64,
    /// The next commit stores the watermark even without records, because it may be the last commit of the shard.
    ends_run: bool,
    gaps: Vec<gaps::Gap>,
    /// Counts of what the next commit of the shard holds.
    work: Work,
}

impl OwnedShard {
    fn is_quiet_for_long(&self) -> bool {
        self.read_to_ms - self.state.read_to_ms.max(self.taken_at_ms) > QUIET_COMMIT_MS
    }
}

/// Result of a flush.
#[derive(Debug, Default)]
pub(super) struct Flushed {
    /// Shards that are now committed to their end.
    pub ended: Vec<ShardKey>,
    /// Shards that other workers have taken over.
    pub fenced: Vec<ShardKey>,
    /// Positions that the log now holds.
    pub reached: Vec<(ShardKey, SequenceNumber)>,
}

/// The writing half of ingest.
#[derive(Debug)]
pub(super) struct Writer {
    lake: Store,
    ledger: Ledger,
    quarantine: Ledger,
    limits: Limits,
    token: u64,
    held: BTreeMap<ShardKey, OwnedShard>,
    batches: Batches,
    reserved: Reservation,
    rejected_bytes: usize,
    /// Whether some shard has something to commit; and whether some shard was quiet for so long that the ledger must
    /// store its watermark.
    is_dirty: bool,
    is_quiet_for_long: bool,
    counters: Arc<Counters>,
    files: files::Files,
    /// Sweepers of `sync_records` and of `quarantine`.
    sweepers: (Sweeper, Sweeper),
    /// Ended shards that this run has swept, or is about to sweep.
    swept: BTreeSet<ShardKey>,
    /// Background tasks that write checkpoints of the log.
    chores: JoinSet<()>,
}

impl Writer {
    /// Opens the ledgers. Creates tables that do not exist.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) async fn open(lake: Store, limits: Limits, counters: Arc<Counters>) -> Result<Self, IngestError> {
        let (quarantine, ledger) =
            tokio::try_join!(Ledger::open(&lake, Table::Quarantine), Ledger::open(&lake, Table::SyncRecords))?;
        // These tables are still empty, but other engines refuse a view over a table that does not exist.
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
            files: files::Files::default(),
            swept: BTreeSet::new(),
            chores: JoinSet::new(),
        })
    }

    /// Returns all shards of a stream in the ledger, as of its last refresh.
    pub(super) fn shards(&self, stream: &str) -> Vec<(ShardKey, ShardState)> {
        self.ledger.shards(stream)
    }

    /// Returns the position up to which a shard was received, committed or not.
    pub(super) fn reached(&self, shard: &ShardKey) -> Option<SequenceNumber> {
        let held = self.held.get(shard).and_then(|held| held.reached.clone());
        held.or_else(|| self.ledger.state(shard)?.position)
    }

    /// Returns the epoch with which this worker took the shard over, if it did.
    pub(super) fn epoch_of(&self, shard: &ShardKey) -> Option<u64> {
        self.held.get(shard).map(|held| held.assigned_epoch)
    }

    /// Returns the state of a shard, if this worker still has the assignment.
    fn owned(&mut self, assignment: &Assignment) -> Option<&mut OwnedShard> {
        self.held.get_mut(&assignment.shard).filter(|held| held.assigned_epoch == assignment.epoch)
    }

    /// Returns the records of a shard that the quarantine already holds.
    pub(super) fn skip(&self, shard: &ShardKey) -> Arc<Skip> {
        self.held.get(shard).map(|held| held.skip.clone()).unwrap_or_default()
    }

    /// Reads what other workers have committed.
    ///
    /// # Errors
    /// The lake cannot be read.
    pub(super) async fn refresh(&mut self) -> Result<(), IngestError> {
        Ok(self.ledger.refresh().await?)
    }

    /// Returns the id of this lake. The first call for a lake creates the id.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) async fn lake_id(&mut self) -> Result<i64, IngestError> {
        Ok(self.ledger.settle("lake/id", new_token_value()).await?)
    }

    /// Returns the creation time of the stream with this name that the lake knows. If the lake knows no such stream,
    /// returns `created_ms`. If the lake read the stream before it kept creation times, stores `created_ms` and returns
    /// it.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) async fn created_ms(&mut self, stream: &str, created_ms: i64) -> Result<i64, IngestError> {
        let id = format!("created/{stream}");
        match self.ledger.value(&id) {
            Some(known) => Ok(known),
            None if self.ledger.shards(stream).is_empty() => Ok(created_ms),
            None => Ok(self.ledger.settle(&id, created_ms).await?),
        }
    }

    /// Returns whether the lake knows the creation time of the stream with this name.
    pub(super) fn knows(&self, stream: &str) -> bool {
        self.ledger.value(&format!("created/{stream}")).is_some()
    }

    /// Returns the names under which incarnations of a stream have shards in this lake.
    pub(super) fn incarnations(&self, stream: &str) -> BTreeSet<String> {
        self.ledger.incarnations(stream)
    }

    /// Enters the shards of a stream that the lake does not know yet. If several workers try, the first one wins.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) async fn begin(
        &mut self,
        beginnings: &[Beginning],
        stream: &str,
        created_ms: i64,
    ) -> Result<(), IngestError> {
        let also = match self.ledger.value(&format!("created/{stream}")) {
            None => vec![(format!("created/{stream}"), created_ms)],
            Some(_) => Vec::new(),
        };
        Ok(self.ledger.begin(beginnings, self.token, also).await?)
    }

    /// Takes shards over and returns where to continue. From then on, earlier owners cannot commit.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub(super) async fn acquire(
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
            let held = OwnedShard {
                assigned_epoch: state.epoch,
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

    /// Waits for the background tasks.
    pub(super) async fn finish(&mut self) {
        tokio::join!(self.sweepers.0.finish(), self.sweepers.1.finish());
        while self.chores.join_next().await.is_some() {}
    }

    /// Requests a sweep of the shards that were taken over, and of the ended shards of the same streams, because nobody
    /// takes those over again. The worker that committed the end of a shard had taken it over in both ledgers, so the
    /// epochs there are final.
    ///
    /// A shard that nobody owned before has no leftovers: every owner fences before it writes. So an ingest of new files
    /// lists no data, however many files the lake has.
    fn sweep_behind(&mut self, shards: &[(ShardKey, StartAt)], fenced: &States, quarantine: &States) {
        if fenced.values().all(|state| state.epoch == FIRST_EPOCH) {
            return;
        }
        let streams: BTreeSet<&str> = shards.iter().map(|(shard, _)| shard.stream()).collect();
        let known = streams.into_iter().flat_map(|stream| self.ledger.shards(stream));
        // Each ended shard is swept once: nobody writes for it any more.
        let ended: Vec<(ShardKey, ShardState)> =
            known.filter(|(shard, state)| state.is_ended() && self.swept.insert(shard.clone())).collect();
        let number = |(shard, state): (&ShardKey, &ShardState)| (shard.clone(), state.epoch);
        let mut fences: BTreeMap<ShardKey, u64> = fenced.iter().map(number).collect();
        let mut quarantine_fences: BTreeMap<ShardKey, u64> = quarantine.iter().map(number).collect();
        for (shard, state) in ended {
            if let Some(state) = self.quarantine.state(&shard) {
                quarantine_fences.insert(shard.clone(), state.epoch);
            }
            fences.insert(shard, state.epoch);
        }
        self.sweepers.0.ask(fences);
        self.sweepers.1.ask(quarantine_fences);
    }

    /// Adds a decoded chunk to the buffers. The chunks of a shard arrive in order.
    ///
    /// # Errors
    /// A file that was started earlier failed.
    pub(super) fn add(
        &mut self,
        assignment: &Assignment,
        decoded: Decoded,
        mut reserved: Reservation,
        now: Instant,
    ) -> Result<(), IngestError> {
        let (bytes, rejected) = (decoded.bytes(), decoded.rejected_bytes());
        let Some(held) = self.owned(assignment) else {
            self.counters.dropped(decoded.records);
            return Ok(());
        };
        held.reached = Some(decoded.position);
        held.work.records += decoded.records;
        held.work.record_bytes += decoded.record_bytes as u64;
        held.work.rows += decoded.rows;
        held.rejected.extend(decoded.rejected);
        self.rejected_bytes += rejected;
        reserved.shrink_to(bytes);
        self.reserved.merge(reserved);
        self.is_dirty = true;
        self.batches.note(decoded.record_bytes, now);
        let full: Vec<_> =
            decoded.partitions.into_iter().filter_map(|(key, rows)| self.batches.add(key, rows)).collect();
        self.start_files(full);
        if self.buffered() >= self.limits.mark_bytes {
            let largest = self.batches.take_largest(self.limits.mark_bytes * 3 / 5);
            self.start_files(largest);
            self.reserved.shrink_to(self.buffered());
        }
        self.counters.buffered(self.buffered());
        self.take_files()
    }

    /// Records that a shard was received to its end.
    pub(super) fn end(&mut self, assignment: &Assignment, now: Instant) {
        if let Some(held) = self.owned(assignment) {
            held.reached = Some(SequenceNumber::shard_end());
            self.is_dirty = true;
            self.batches.note(0, now);
        }
    }

    /// Records that the rest of a shard is gone, because the stream no longer lists the shard.
    pub(super) fn trimmed(&mut self, assignment: &Assignment, now: Instant) {
        if let Some(held) = self.held.get_mut(&assignment.shard) {
            held.gaps.push(gaps::Gap {
                after: held.state.position.clone(),
                arrived_from_ms: held.state.read_to_ms,
                arrived_until_ms: None,
                whole_rest: true,
                noted_at_ms: chrono::Utc::now().timestamp_millis(),
                cause: gaps::GapCause::Retention,
            });
        }
        self.end(assignment, now);
    }

    /// Records that a shard is gone with its stream. `created_ms` is the creation time of the stream that now has the
    /// name.
    pub(super) fn deleted(&mut self, assignment: &Assignment, created_ms: i64, now: Instant) {
        if let Some(held) = self.held.get_mut(&assignment.shard) {
            let (after, noted_at_ms) = (held.state.position.clone(), chrono::Utc::now().timestamp_millis());
            held.gaps.extend(gaps::until_deleted(after, held.state.read_to_ms, created_ms, noted_at_ms));
        }
        self.end(assignment, now);
    }

    /// Makes the next commit, the last one of this run, store the watermark of every shard.
    pub(super) fn end_run(&mut self) {
        for held in self.held.values_mut() {
            held.ends_run = held.read_to_ms > held.state.read_to_ms;
            self.is_dirty |= held.ends_run;
        }
    }

    /// Moves the watermark of a shard, and records a gap if retention trimmed records in between.
    pub(super) fn read_to(&mut self, assignment: &Assignment, reached: &Reached, retention_ms: i64) {
        let Some(held) = self.owned(assignment) else {
            return;
        };
        held.gaps.extend(gaps::between(reached.after.clone(), held.read_to_ms, reached.at_ms, retention_ms));
        held.read_to_ms = held.read_to_ms.max(reached.at_ms - reached.behind_ms);
        if held.is_quiet_for_long() {
            (self.is_dirty, self.is_quiet_for_long) = (true, true);
        }
    }

    /// Forgets a shard and what was received of it since its last commit.
    pub(super) fn drop_shard(&mut self, shard: &ShardKey) {
        self.batches.drop_shard(shard);
        if let Some(held) = self.held.remove(shard) {
            self.counters.dropped(held.work.records);
            self.rejected_bytes -= held.rejected.iter().map(rejected_bytes).sum::<usize>();
        }
        self.reserved.shrink_to(self.buffered());
        self.counters.shard_gone(shard);
    }

    /// Returns whether something waits for a commit.
    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Returns whether a shard was quiet for so long that the ledger should store its watermark.
    pub(super) fn is_quiet_for_long(&self) -> bool {
        self.is_quiet_for_long
    }

    /// Returns when the oldest uncommitted records must be committed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.batches.due(&self.limits)
    }

    /// Returns whether so much is buffered that it must be committed now.
    pub(super) fn is_due(&self) -> bool {
        self.batches.is_due(&self.limits) || self.rejected_bytes >= self.limits.mark_bytes / 2
    }

    fn buffered(&self) -> usize {
        self.batches.bytes() + self.rejected_bytes
    }

    /// Writes and commits everything that was received.
    ///
    /// # Errors
    /// The lake cannot be written. The received records are not lost: they are read again from the last commit.
    pub(super) async fn flush(&mut self) -> Result<Flushed, IngestError> {
        let mut flushed = Flushed::default();
        if !self.is_dirty() {
            return Ok(flushed);
        }
        let all = self.batches.take_all();
        self.start_files(all);
        self.finish_files().await?;
        self.commit_quarantine(&mut flushed).await?;
        self.commit_gaps().await?;
        self.commit_files(&mut flushed).await?;
        (self.is_dirty, self.is_quiet_for_long) = (false, false);
        self.reserved.shrink_to(self.buffered());
        self.counters.buffered(self.buffered());
        Ok(flushed)
    }

    /// Starts a checkpoint of the log when one is due. Without a checkpoint the table is complete, but slower to open.
    fn checkpoint(&mut self, table: Table) {
        let ledger = if table == Table::Quarantine { &mut self.quarantine } else { &mut self.ledger };
        if ledger.checkpoint_due() {
            let store = table.store(&self.lake);
            // This loop drops finished tasks.
            while self.chores.try_join_next().is_some() {}
            self.chores.spawn(async move {
                failpoint::hit("checkpoint/before");
                snapshot::checkpoint_or_warn(&store).await;
                failpoint::hit("checkpoint/after");
            });
        }
    }
}

#[cfg(test)]
mod tests;
