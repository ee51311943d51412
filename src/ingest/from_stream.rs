//! Streams: decides which shards of a stream this worker reads, alone or as one worker of a fleet.
//!
//! A single worker reads every shard that the lineage allows. A worker of a fleet *offers* those shards to the lease
//! keeper and reads the shards whose leases it holds. In both cases a worker starts a shard only by a new epoch in the
//! lake's log.
//!
//! # Cancellation
//! A signal ends the readers. What they delivered is committed, or dropped after twenty seconds. Then the worker gives
//! every lease back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::{IngestError, Listed, LoopEvent, Reading, Run, Stream};
use crate::ids::{SequenceNumber, ShardKey, StartAt, incarnation_of};
use crate::lake::ledger::Beginning;
use crate::source::kinesis::{self, Begin, Incarnation, Job, ListedShard, Listing, Progress};
use crate::source::leases::{self, Keeper, Offer, Standing};
use crate::source::{Assignment, Delivery, SourceError};
use crate::timeouts::{RELIST_INTERVAL, RELIST_SOON};

/// Most shards that one commit takes over.
const ACQUIRE_MAX: usize = 10_000;

/// Result of the last listing, and what this worker learned since.
#[derive(Default)]
struct StreamView {
    /// Shards that may be read, and where to start the shards that the ledger does not know.
    ready: BTreeMap<ShardKey, StartAt>,
    listed: bool,
    list_at: Option<Instant>,
    /// Shards that the lease table marks as ended, although they had not ended in the ledger at its last refresh.
    ended: BTreeSet<ShardKey>,
    /// Shards that the stream no longer lists, and whose readers have not stopped yet.
    gone: BTreeSet<ShardKey>,
    /// Shards that the ledger held when the current listing started. Of these, the shards that are not listed are gone.
    /// (The listing may be too old to include shards that the ledger got later.)
    before: BTreeSet<ShardKey>,
}

impl Run {
    pub(super) async fn stream(self, stream: &Stream, signal: CancellationToken) -> Result<(), IngestError> {
        let start = async |run: &mut Self| {
            if let Some(options) = &stream.leases {
                Keeper::check(&stream.aws, stream.kinesis.stream(), options).await?;
            }
            run.recognize(stream).await?;
            match &stream.leases {
                Some(options) => run.keep(&stream.aws, stream.kinesis.name(), options).await,
                None => Ok(()),
            }
        };
        self.in_fleet(signal, start, async |run: &mut Self| run.follow(stream).await).await
    }

    /// Finds out which incarnation of the stream with this name Kinesis serves now.
    ///
    /// | the lake knows for this name | this stream | is read as |
    /// |---|---|---|
    /// | nothing; or only positions (from before creation times were kept) that this stream may have | | `name` |
    /// | only positions, which this stream cannot have | | `name.created` |
    /// | the same creation time | | `name` |
    /// | an earlier creation time | was deleted and created again | `name.created` |
    /// | a later creation time | is a different stream | refused |
    async fn recognize(&mut self, stream: &Stream) -> Result<(), IngestError> {
        let (kinesis, name) = (&stream.kinesis, stream.kinesis.stream());
        let (created_ms, _) = kinesis.describe().await?;
        let held = self.progress(stream);
        let is_another = !self.writer.knows(name) && !held.is_empty() && kinesis.is_another_than(&held).await?;
        // A creation time earlier than that of any stream stands for an unknown one.
        let known_ms = self.writer.created_ms(name, if is_another { 1 } else { created_ms }).await?;
        let made = self.writer.incarnations(name).into_iter().filter_map(|is| incarnation_of(name, &is));
        let latest_ms = made.fold(known_ms, i64::max);
        if latest_ms > created_ms {
            let shown = |ms| chrono::DateTime::from_timestamp_millis(ms).unwrap_or_default().to_rfc3339();
            let (this, known) = (shown(created_ms), shown(latest_ms));
            return Err(SourceError::Invalid(format!(
                "stream {name} was created at {this}, but this lake has read a stream of that name that was created \
                 at {known}: this is another stream; check --endpoint-url, the region and the account, or use a \
                 separate lake for each stream"
            ))
            .into());
        }
        if known_ms == created_ms {
            kinesis.reads(Incarnation { name: name.to_owned(), created_ms });
            return Ok(());
        }
        let again = format!("{name}.{created_ms:013}");
        let fits = ShardKey::new(&again, "shard").is_some();
        if !fits {
            let what =
                format!("stream {name} was deleted and created again, and its name is too long to distinguish the two");
            return Err(SourceError::Invalid(format!("{what}; read it into a new lake")).into());
        }
        if self.writer.shards(&again).is_empty() {
            tracing::warn!(
                stream = name,
                name = again,
                "the stream was deleted and created again since the lake first read it; the new stream is read under \
                 this name, and unread records of the old stream are lost"
            );
        }
        kinesis.reads(Incarnation { name: again, created_ms });
        self.close_deleted(name, created_ms).await
    }

    /// Ends the shards of earlier incarnations of the stream. They deliver nothing more, and as long as they are open
    /// no day of the lake is complete.
    async fn close_deleted(&mut self, stream: &str, created_ms: i64) -> Result<(), IngestError> {
        let earlier = self.writer.incarnations(stream).into_iter();
        // An unrelated stream that merely has such a name has a creation time of its own.
        let earlier = earlier.filter(|name| name == stream || !self.writer.knows(name));
        let earlier = earlier.filter(|name| incarnation_of(stream, name).is_some_and(|made_ms| made_ms < created_ms));
        let shards: Vec<_> = earlier.flat_map(|name| self.writer.shards(&name)).collect();
        let open = shards.into_iter().filter(|(_, state)| !state.is_ended());
        let open: Vec<_> = open.map(|(shard, state)| (shard, state.from)).collect();
        if open.is_empty() {
            return Ok(());
        }
        for (shard, state) in self.acquire(&open).await? {
            match state.is_ended() {
                true => self.writer.drop_shard(&shard),
                false => self.writer.deleted(&Assignment { shard, epoch: state.epoch }, created_ms, Instant::now()),
            }
        }
        self.flush().await?;
        // Another worker that starts now ends these shards as well.
        for (shard, _) in &open {
            self.foreign.remove(shard);
        }
        Ok(())
    }

    async fn follow(&mut self, stream: &Stream) -> Result<(), IngestError> {
        let mut known = StreamView { list_at: Some(Instant::now()), ..StreamView::default() };
        loop {
            if self.reading.is_empty()
                && let Some(shard) = self.foreign.pop_first()
            {
                return Err(IngestError::TakenOver(shard));
            }
            if !self.stopping && self.listing.is_none() && known.list_at.is_some_and(|at| Instant::now() >= at) {
                let kinesis = stream.kinesis.clone();
                known.before = self.progress(stream).into_keys().collect();
                self.listing = Some(tokio::spawn(async move { kinesis.list().await.map(Listed::Shards) }));
                known.list_at = None;
            }
            let idle_at = stream.until_idle.and_then(|idle| self.idle_since(&known).map(|since| since + idle));
            if idle_at.is_some_and(|at| Instant::now() >= at) {
                break;
            }
            match self.turn([idle_at, known.list_at].into_iter().flatten().min()).await? {
                LoopEvent::Listed(Listed::Shards(listing)) => {
                    // A shard may have ended during this listing. Then the next listing is due at once.
                    let is_old = known.list_at.is_some();
                    known.list_at.get_or_insert_with(|| Instant::now() + RELIST_INTERVAL);
                    self.listed(stream, &listing, &mut known).await?;
                    if known.ready.is_empty() && self.reading.is_empty() && !listing.shards.is_empty() && !is_old {
                        tracing::info!("every shard of the stream has ended");
                        break;
                    }
                }
                LoopEvent::Leases => self.leases_changed(stream, &mut known).await?,
                LoopEvent::Ended(assignment) => {
                    self.writer.end(&assignment, Instant::now());
                    // The child shards wait for this commit.
                    self.flush().await?;
                    known.list_at = Some(Instant::now());
                }
                LoopEvent::Stopped(assignment) if known.gone.remove(&assignment.shard) => {
                    self.trimmed(assignment.shard, &known).await?;
                }
                LoopEvent::Stopped(assignment) => {
                    // The reader stopped without reaching the end of the shard: the stream does not list the shard, as
                    // the next listing confirms.
                    if self.reading.get(&assignment.shard).is_some_and(|reading| reading.assignment == assignment) {
                        self.leave(&assignment.shard);
                        known.list_at = Some(Instant::now() + RELIST_SOON);
                    }
                }
                LoopEvent::Opened(_) | LoopEvent::Listed(_) | LoopEvent::Went => {}
                LoopEvent::Over => break,
            }
        }
        self.stop.cancel();
        Ok(())
    }

    /// Returns since when this worker has had nothing to do: it has caught up with every shard that it reads, and no
    /// shard is left to take. Returns `None` if there is work.
    ///
    /// **Invariant: no worker is idle before the children of an ended shard have a reader.** The end of a shard makes a
    /// listing due, and the listing leads to an offer. Only a scan of the lease table after that offer shows who reads
    /// the children. The end may be that of another worker, which may die before it offers them.
    fn idle_since(&self, known: &StreamView) -> Option<Instant> {
        // Caught-up shards are a subset of the shards that are read, so equal counts mean that all are caught up.
        let all = self.caught_up.len() == self.reading.len();
        if !known.listed || self.listing.is_some() || !all || !self.decoding.is_empty() {
            return None;
        }
        let is_settled = match &self.keeper {
            Some(keeper) => keeper.is_settled(|shard| self.reading.contains_key(shard)),
            None => !self.reading.is_empty(),
        };
        is_settled.then(|| self.caught_up.values().copied().fold(self.changed_at, Instant::max))
    }

    async fn listed(&mut self, stream: &Stream, listing: &Listing, known: &mut StreamView) -> Result<(), IngestError> {
        self.retention_ms = listing.retention_ms;
        self.writer.refresh().await?;
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut ledger = self.progress(stream);
        if ledger.is_empty() {
            let beginnings = beginnings(stream, &listing.shards, now_ms).await?;
            let kinesis = &stream.kinesis;
            self.writer.begin(&beginnings, kinesis.stream(), kinesis.created_ms()).await?;
            ledger = self.progress(stream);
            // Only a listing that starts after this commit shows which of these shards are gone.
            known.list_at = Some(Instant::now());
        }
        for shard in kinesis::trimmed(&listing.shards, &ledger, &known.before) {
            match self.reading.contains_key(&shard) {
                // Records that the reader has already read still count; their delivery is on its way.
                true => {
                    self.leave(&shard);
                    known.gone.insert(shard);
                }
                false if known.gone.contains(&shard) => {}
                false => self.trimmed(shard, known).await?,
            }
            ledger = self.progress(stream);
        }
        let ready = kinesis::ready(&listing.shards, &ledger, from_of(stream), now_ms);
        known.ready = ready.into_iter().filter(|(shard, _)| !self.foreign.contains(shard)).collect();
        known.listed = true;
        // A lease is marked as ended only after the commit of the end. So the ledger, which is refreshed, would show
        // the end.
        if let Some(shard) = known.ready.keys().find(|shard| known.ended.contains(shard)) {
            return Err(IngestError::OtherLake(shard.clone()));
        }
        let Some(keeper) = &self.keeper else {
            let fresh = known.ready.iter().filter(|(shard, _)| !self.reading.contains_key(shard));
            let fresh: Vec<_> = fresh.map(|(shard, from)| (shard.clone(), *from)).collect();
            self.begin_shards(stream, fresh).await?;
            let unread = known.ready.keys().filter(|shard| !self.reading.contains_key(shard)).count();
            self.counters.unread(unread);
            return Ok(());
        };
        for (shard, progress) in &ledger {
            if let Some(position) = &progress.position {
                keeper.reached(shard, position);
            }
        }
        let parents: BTreeMap<&ShardKey, &ListedShard> = listing.shards.iter().map(|s| (&s.shard, s)).collect();
        let offer = |shard: &ShardKey| {
            let listed = parents.get(shard).map(|l| l.parents.as_slice()).unwrap_or_default();
            Offer { parents: listed.iter().map(|p| p.shard().to_owned()).collect() }
        };
        let offered = known.ready.keys().map(|shard| (shard.clone(), offer(shard))).collect();
        keeper.offer(offered, listing.shards.iter().map(|l| l.shard.clone()).collect());
        self.leases_changed(stream, known).await
    }

    /// Commits the end of a shard that the stream no longer lists, and the gap before that end.
    async fn trimmed(&mut self, shard: ShardKey, known: &StreamView) -> Result<(), IngestError> {
        let from = known.ready.get(&shard).copied().unwrap_or(StartAt::TrimHorizon);
        for (shard, state) in self.acquire(&[(shard, from)]).await? {
            self.leave(&shard);
            match state.is_ended() {
                // The end of the shard was already being committed: nothing is missing.
                true => self.writer.drop_shard(&shard),
                false => self.writer.trimmed(&Assignment { shard, epoch: state.epoch }, Instant::now()),
            }
        }
        self.flush().await.map(drop)
    }

    /// Starts and stops readers so that this worker reads exactly the shards whose leases it holds.
    async fn leases_changed(&mut self, stream: &Stream, known: &mut StreamView) -> Result<(), IngestError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let view = keeper.view();
        if let Some(what) = view.refused {
            return Err(SourceError::Invalid(what).into());
        }
        self.counters.leases(view.standing.len());
        self.counters.unread(view.unread);
        let giving_back = keeper.giving_back();
        for shard in giving_back.iter().filter(|shard| !view.standing.contains_key(shard)) {
            keeper.given_back(shard);
        }
        self.drop_lost(&view.standing);
        if self.stopping {
            return Ok(());
        }
        // Other workers have ended these shards since the last listing, so their children may be read. Each end
        // requires a new listing.
        let ended = view.ended.iter().filter(|shard| known.ready.contains_key(shard) && !known.ended.contains(shard));
        let ended: Vec<_> = ended.cloned().collect();
        if !ended.is_empty() {
            known.ended.extend(ended);
            known.list_at = Some(Instant::now());
        }
        self.hand_over(&view.standing).await?;
        let gained = view.standing.keys().filter(|s| !self.reading.contains_key(s) && !giving_back.contains(s));
        let gained: Vec<_> = gained.cloned().collect();
        if gained.is_empty() {
            return Ok(());
        }
        self.writer.refresh().await?;
        let ledger = self.progress(stream);
        let mut begin = Vec::new();
        for shard in gained {
            match known.ready.get(&shard) {
                _ if ledger.get(&shard).is_some_and(Progress::is_ended) => {
                    if let Some(keeper) = &self.keeper {
                        keeper.reached(&shard, &SequenceNumber::shard_end());
                    }
                }
                _ if is_handoff_requested(&view.standing, &shard) => self.give_back(&shard),
                Some(from) => begin.push((shard, *from)),
                None => {
                    let soon = Instant::now() + RELIST_SOON;
                    known.list_at = Some(known.list_at.map_or(soon, |at| at.min(soon)));
                }
            }
        }
        self.begin_shards(stream, begin).await
    }

    /// Leaves the shards whose leases this worker has lost.
    fn drop_lost(&mut self, standing: &BTreeMap<ShardKey, Standing>) {
        let lost: Vec<_> = self.reading.keys().filter(|shard| !standing.contains_key(shard)).cloned().collect();
        for shard in lost {
            tracing::warn!(shard = %shard, "lost the lease; the shard's uncommitted records are dropped");
            self.leave(&shard);
            self.writer.drop_shard(&shard);
        }
    }

    /// Commits and gives back the shards that other workers have requested.
    async fn hand_over(&mut self, standing: &BTreeMap<ShardKey, Standing>) -> Result<(), IngestError> {
        let requested: Vec<_> =
            self.reading.keys().filter(|shard| is_handoff_requested(standing, shard)).cloned().collect();
        if !requested.is_empty() {
            // The next owner reads what is still on its way of these shards.
            self.flush().await?;
            for shard in requested {
                self.leave(&shard);
                self.writer.drop_shard(&shard);
                self.give_back(&shard);
            }
        }
        Ok(())
    }

    fn give_back(&self, shard: &ShardKey) {
        if let Some(keeper) = &self.keeper {
            keeper.give_back(shard);
        }
    }

    async fn begin_shards(&mut self, stream: &Stream, shards: Vec<(ShardKey, StartAt)>) -> Result<(), IngestError> {
        if shards.is_empty() || self.stopping {
            return Ok(());
        }
        // The shards are taken over in parts, so that a signal is noticed between two parts.
        for part in shards.chunks(ACQUIRE_MAX) {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            for (shard, state) in self.acquire(part).await? {
                let Some(sink) = self.sink.clone() else { break };
                if SequenceNumber::is_end_of(&state.position) {
                    self.writer.drop_shard(&shard);
                    continue;
                }
                let assignment = Assignment { shard: shard.clone(), epoch: state.epoch };
                let stop = self.stop.child_token();
                let reading = Reading { assignment: assignment.clone(), stop: stop.clone() };
                self.reading.insert(shard.clone(), reading);
                self.changed_at = Instant::now();
                self.counters.shard_begun(&shard);
                let begin = Begin { is_imported: state.parts_done > 0, after: state.position, from: state.from };
                let (kinesis, payloads) = (stream.kinesis.clone(), self.payloads.clone());
                let job = Job { kinesis, assignment: assignment.clone(), begin, payloads };
                self.readers.spawn(async move {
                    let read = kinesis::read(job, sink.clone(), stop).await;
                    // At the end of a run the receiver is gone.
                    let _ = sink.send(Delivery::Stopped(assignment)).await;
                    read
                });
            }
        }
        Ok(())
    }

    fn progress(&self, stream: &Stream) -> BTreeMap<ShardKey, Progress> {
        let shards = self.writer.shards(stream.kinesis.name()).into_iter();
        shards.map(|(shard, state)| (shard, Progress { position: state.position, from: state.from })).collect()
    }
}

/// Returns where to start shards that the lake does not know. A stream that was created again is read from its
/// beginning, whatever the option for new streams says: the lake has read the stream all along.
fn from_of(stream: &Stream) -> kinesis::From {
    match stream.kinesis.name() == stream.kinesis.stream() {
        true => stream.from,
        false => kinesis::From::TrimHorizon,
    }
}

/// Returns where to start the shards of a stream that the lake does not know.
async fn beginnings(stream: &Stream, listed: &[ListedShard], now_ms: i64) -> Result<Vec<Beginning>, IngestError> {
    let is_first = stream.kinesis.name() == stream.kinesis.stream();
    if let Some(table) = stream.import.as_ref().filter(|_| is_first) {
        let imported = leases::import(&stream.aws, table, stream.kinesis.name()).await?;
        let names: BTreeSet<&ShardKey> = listed.iter().map(|l| &l.shard).collect();
        let mut found = Vec::new();
        for (shard, place) in imported {
            // An ended shard that the stream no longer lists carries no information. An open one that it no longer
            // lists is a gap.
            let ended = SequenceNumber::is_end_of(&place.position);
            if names.contains(&shard) || !ended {
                found.push(Beginning {
                    shard,
                    from: place.from,
                    position: place.position,
                    parts_done: place.parts_done,
                });
            }
        }
        tracing::info!(table, shards = found.len(), "begins where the Kinesis Client Library stopped");
        return Ok(found);
    }
    let ready = kinesis::ready(listed, &BTreeMap::new(), from_of(stream), now_ms);
    Ok(ready.into_iter().map(|(shard, from)| Beginning { shard, from, position: None, parts_done: 0 }).collect())
}

/// Returns whether another worker has requested a shard.
fn is_handoff_requested(standing: &BTreeMap<ShardKey, Standing>, shard: &ShardKey) -> bool {
    standing.get(shard) == Some(&Standing::HandoffRequested)
}
