//! A stream: which of its shards this worker reads, alone or as one of a fleet.
//!
//! Alone, it reads every shard that lineage lets it read. In a fleet it *offers* those to the keeper of leases, and reads
//! what it holds. Either way a shard is begun by a fence in the lake's log and by nothing else.
//!
//! # Cancellation
//! A signal ends the readers; what they delivered is committed, or dropped after twenty seconds; then every lease is
//! given back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{IngestError, Reading, Run, Stream, Turn, in_time};
use crate::lake::ledger::Beginning;
use crate::source::kinesis::{self, Listed, Listing, Progress};
use crate::source::leases::{self, Keeper, Offer, Standing};
use crate::source::{Hold, SequenceNumber, ShardKey, StartAt};

/// The stream's shards are listed this often, and after every end of a shard.
const RELIST: Duration = Duration::from_secs(30);
/// When a lease came for a shard that the last listing did not allow, it is looked at again this soon.
const RELIST_SOON: Duration = Duration::from_secs(1);

/// What the last listing said.
#[derive(Default)]
struct Known {
    /// Shards that may be read, and where those begin that the ledger does not know.
    ready: BTreeMap<ShardKey, StartAt>,
    listed: bool,
    list_at: Option<Instant>,
    /// Shards that the lease table has as ended, although the last look at the ledger had not.
    ended: BTreeSet<ShardKey>,
    /// Shards that the ledger had when the listing began that is under way: what it does not list of these is gone. (Of
    /// those that came later it may be too old to know.)
    before: BTreeSet<ShardKey>,
}

impl Run {
    pub(super) async fn stream(mut self, stream: &Stream) -> Result<(), IngestError> {
        if let Some(options) = &stream.leases {
            self.keeper = Some(Keeper::start(&stream.aws, stream.kinesis.stream(), options.clone()).await?);
        }
        let stop = self.stop.clone();
        let work = async {
            self.follow(stream).await?;
            self.finish().await
        };
        let done = in_time(stop, work).await;
        if let Some(listing) = self.listing.take() {
            listing.abort();
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.close().await;
        }
        done
    }

    async fn follow(&mut self, stream: &Stream) -> Result<(), IngestError> {
        let mut known = Known { list_at: Some(Instant::now()), ..Known::default() };
        loop {
            if self.reading.is_empty()
                && let Some(shard) = self.foreign.pop_first()
            {
                return Err(IngestError::TakenOver(shard));
            }
            if !self.stopping && self.listing.is_none() && known.list_at.is_some_and(|at| Instant::now() >= at) {
                let kinesis = stream.kinesis.clone();
                known.before = self.progress(stream).into_keys().collect();
                self.listing = Some(tokio::spawn(async move { kinesis.list().await }));
                known.list_at = None;
            }
            let idle_at = stream.until_idle.and_then(|idle| self.idle_since(&known).map(|since| since + idle));
            if idle_at.is_some_and(|at| Instant::now() >= at) {
                break;
            }
            match self.turn([idle_at, known.list_at].into_iter().flatten().min()).await? {
                Turn::Listed(listing) => {
                    // A shard may have ended while it was under way: then the next one is due at once.
                    let is_old = known.list_at.is_some();
                    known.list_at.get_or_insert_with(|| Instant::now() + RELIST);
                    self.listed(stream, &listing, &mut known).await?;
                    if known.ready.is_empty() && self.reading.is_empty() && !listing.shards.is_empty() && !is_old {
                        tracing::info!("every shard of the stream has ended");
                        break;
                    }
                }
                Turn::Leases => self.leases_changed(stream, &mut known).await?,
                Turn::Ended(hold) => {
                    self.writer.end(&hold, Instant::now());
                    // Its children wait for this commit.
                    self.flush().await?;
                    known.list_at = Some(Instant::now());
                }
                Turn::Went => {}
                Turn::Over => break,
            }
        }
        self.stop.cancel();
        Ok(())
    }

    /// Since when this worker has had nothing to do: every shard that it reads is caught up, and there is none to take.
    ///
    /// **Invariant: nobody is idle before the children of a shard that ended have a reader.** Its end makes a listing
    /// due, the listing an offer, and only a look at the table after that offer tells who reads them. The end may be another
    /// worker's, who may not live to offer them.
    fn idle_since(&self, known: &Known) -> Option<Instant> {
        let all = self.reading.keys().all(|shard| self.caught_up.contains_key(shard));
        let is_settled = || match &self.keeper {
            Some(keeper) => keeper.is_settled(|shard| self.reading.contains_key(shard)),
            None => !self.reading.is_empty(),
        };
        let listed = known.listed && self.listing.is_none();
        (listed && all && self.decoding.is_empty() && is_settled())
            .then(|| self.caught_up.values().copied().fold(self.changed_at, Instant::max))
    }

    async fn listed(&mut self, stream: &Stream, listing: &Listing, known: &mut Known) -> Result<(), IngestError> {
        self.retention_ms = listing.retention_ms;
        self.writer.refresh().await?;
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut ledger = self.progress(stream);
        if ledger.is_empty() {
            let beginnings = beginnings(stream, &listing.shards, now_ms).await?;
            self.writer.begin(&beginnings).await?;
            ledger = self.progress(stream);
            // Which of them are gone, only a listing tells that begins now.
            known.list_at = Some(Instant::now());
        }
        for shard in kinesis::trimmed(&listing.shards, &ledger, &known.before) {
            let from = ledger.get(&shard).map_or(StartAt::TrimHorizon, |progress| progress.from);
            for (shard, state) in self.writer.acquire(&[(shard, from)]).await? {
                self.leave(&shard);
                self.writer.trimmed(&Hold { shard, fence: state.number }, Instant::now());
            }
            self.flush().await?;
            ledger = self.progress(stream);
        }
        let ready = kinesis::ready(&listing.shards, &ledger, stream.from, now_ms);
        known.ready = ready.into_iter().filter(|(shard, _)| !self.foreign.contains(shard)).collect();
        known.listed = true;
        // A lease ends after the commit that it tells of, so by now the ledger would know.
        if let Some(shard) = known.ready.keys().find(|shard| known.ended.contains(shard)) {
            return Err(IngestError::OtherLake(shard.clone()));
        }
        let Some(keeper) = &self.keeper else {
            let fresh = known.ready.iter().filter(|(shard, _)| !self.reading.contains_key(shard));
            let fresh: Vec<_> = fresh.map(|(shard, from)| (shard.clone(), *from)).collect();
            let unread = fresh.len();
            self.begin_shards(stream, fresh).await?;
            self.counters.unread(unread.saturating_sub(self.reading.len()));
            return Ok(());
        };
        for (shard, progress) in &ledger {
            if let Some(position) = &progress.position {
                keeper.reached(shard, position);
            }
        }
        let parents: BTreeMap<&ShardKey, &Listed> = listing.shards.iter().map(|s| (&s.shard, s)).collect();
        let offer = |shard: &ShardKey| {
            let listed = parents.get(shard).map(|l| l.parents.as_slice()).unwrap_or_default();
            Offer { parents: listed.iter().map(|p| p.shard().to_owned()).collect() }
        };
        let offered = known.ready.keys().map(|shard| (shard.clone(), offer(shard))).collect();
        keeper.offer(offered, listing.shards.iter().map(|l| l.shard.clone()).collect());
        self.leases_changed(stream, known).await
    }

    /// Brings what is read in line with what is held.
    async fn leases_changed(&mut self, stream: &Stream, known: &mut Known) -> Result<(), IngestError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let view = keeper.view();
        self.counters.leases(view.standing.len());
        self.counters.unread(view.unread);
        let giving_back = keeper.giving_back();
        for shard in giving_back.iter().filter(|shard| !view.standing.contains_key(shard)) {
            keeper.given_back(shard);
        }
        let lost: Vec<_> = self.reading.keys().filter(|shard| !view.standing.contains_key(shard)).cloned().collect();
        for shard in lost {
            tracing::warn!(shard = %shard, "the lease is lost; what was read of it since the last commit is dropped");
            self.leave(&shard);
            self.writer.drop_shard(&shard);
        }
        if self.stopping {
            return Ok(());
        }
        // Others have ended these since the last listing: their children may be read. Each is a reason for one more.
        let ended = view.ended.iter().filter(|shard| known.ready.contains_key(shard) && !known.ended.contains(shard));
        let ended: Vec<_> = ended.cloned().collect();
        if !ended.is_empty() {
            known.ended.extend(ended);
            known.list_at = Some(Instant::now());
        }
        let asked = |shard: &ShardKey| view.standing.get(shard) == Some(&Standing::Asked);
        let hand_over: Vec<_> = self.reading.keys().filter(|shard| asked(shard)).cloned().collect();
        if !hand_over.is_empty() {
            // What is still on its way of these shards is the next owner's to read.
            self.flush().await?;
            for shard in hand_over {
                self.leave(&shard);
                self.writer.drop_shard(&shard);
                self.give_back(&shard);
            }
        }
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
                _ if asked(&shard) => self.give_back(&shard),
                Some(from) => begin.push((shard, *from)),
                None => {
                    let soon = Instant::now() + RELIST_SOON;
                    known.list_at = Some(known.list_at.map_or(soon, |at| at.min(soon)));
                }
            }
        }
        self.begin_shards(stream, begin).await
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
        for (shard, state) in self.writer.acquire(&shards).await? {
            let Some(sink) = self.sink.clone() else { break };
            if SequenceNumber::is_end_of(&state.position) {
                self.writer.drop_shard(&shard);
                continue;
            }
            let hold = Hold { shard: shard.clone(), fence: state.number };
            let stop = self.stop.child_token();
            let reading = Reading { hold: hold.clone(), stop: stop.clone() };
            self.reading.insert(shard.clone(), reading);
            self.changed_at = Instant::now();
            self.counters.shard_begun(&shard);
            let kinesis = stream.kinesis.clone();
            self.readers.spawn(kinesis::read(kinesis, hold, state.position, state.from, sink, stop));
        }
        Ok(())
    }

    fn progress(&self, stream: &Stream) -> BTreeMap<ShardKey, Progress> {
        let shards = self.writer.shards(stream.kinesis.stream()).into_iter();
        shards.map(|(shard, state)| (shard, Progress { position: state.position, from: state.from })).collect()
    }
}

/// Where a stream begins that the lake does not know.
async fn beginnings(stream: &Stream, listed: &[Listed], now_ms: i64) -> Result<Vec<Beginning>, IngestError> {
    if let Some(table) = &stream.import {
        let imported = leases::import(&stream.aws, table, stream.kinesis.stream()).await?;
        let names: BTreeSet<&ShardKey> = listed.iter().map(|l| &l.shard).collect();
        let mut found = Vec::new();
        for (shard, place) in imported {
            // An end that the stream has forgotten tells nothing; an open shard that it has forgotten is a gap.
            let ended = SequenceNumber::is_end_of(&place.position);
            if names.contains(&shard) || !ended {
                found.push(Beginning { shard, from: place.from, position: place.position });
            }
        }
        tracing::info!(table, shards = found.len(), "begins where the Kinesis Client Library stopped");
        return Ok(found);
    }
    let ready = kinesis::ready(listed, &BTreeMap::new(), stream.from, now_ms);
    Ok(ready.into_iter().map(|(shard, from)| Beginning { shard, from, position: None }).collect())
}
