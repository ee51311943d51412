//! Objects of a bucket: which of them this worker reads, alone or as one worker of a fleet.
//!
//! A page of the listing is read at a time, a few objects beside each other. An object is read from the position that the
//! lake has of it, and ended in the log once its last row is committed. The objects of a fleet are divided into parts
//! ([`PARTS`]), and a worker reads the parts whose leases it holds. As with shards, leases only spare work: a
//! worker starts an object by a new epoch in the lake's log.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Instant;

use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::from_files::{FileThread, Stop, lock, on_thread};
use super::{IngestError, Listed, LoopEvent, ObjectSource, ReadOptions, Reading, Run};
use crate::ids::{ShardKey, StartAt};
use crate::lake::ledger::ShardState;
use crate::source::files::{self, FileReader};
use crate::source::leases::{Keeper, Offer, Standing};
use crate::source::objects::{Object, PARTS, Page};
use crate::source::{Assignment, Delivery, SourceError};
use crate::timeouts::{RELIST_INTERVAL, RELIST_SOON};

/// Objects of a page.
const PAGE_OBJECTS: usize = 1_000;
/// Objects that one commit takes over.
const ACQUIRE_OBJECTS: usize = 100;
/// Objects that are read at a time.
const READERS: usize = 4;

/// A page of the listing.
pub(super) struct ListedPage {
    page: Page,
    /// Whether the page, or the part of the listing that it stands for, has unread objects of other workers.
    has_others: bool,
}

/// How the reader of an object ended.
enum Read {
    /// Every record was delivered.
    Whole,
    /// A signal, or a lost lease, came first.
    Cut,
    Failed(SourceError),
}

/// An object that this worker has taken over and not begun.
struct Taken {
    object: Object,
    state: ShardState,
}

/// An object that is being read.
struct Begun {
    assignment: Assignment,
    name: String,
    part: usize,
    ended: oneshot::Receiver<Read>,
}

/// State of this worker: objects that it has listed, taken over, begun and read.
#[derive(Default)]
struct View {
    /// Objects of the page that are not taken over.
    listed: VecDeque<Object>,
    taken: VecDeque<Taken>,
    begun: BTreeMap<ShardKey, Begun>,
    /// Objects that were read in this run. The log may not show their ends yet.
    done: HashSet<ShardKey>,
    /// Objects that could not be read; they are left to the next run.
    failed: HashSet<ShardKey>,
    /// Key after which the next page begins.
    after: Option<Path>,
    /// When the next page is due.
    list_at: Option<Instant>,
    /// Whether an unread object was seen since the beginning of the prefix.
    has_work: bool,
    /// Whether the last page was the end of the prefix.
    at_end: bool,
}

impl View {
    fn is_idle(&self) -> bool {
        self.listed.is_empty() && self.taken.is_empty() && self.begun.is_empty()
    }
}

impl Run {
    pub(super) async fn objects(self, source: &ObjectSource, signal: CancellationToken) -> Result<(), IngestError> {
        let start = async |run: &mut Self| {
            let Some(options) = &source.leases else { return Ok(()) };
            let name = lease_stream(source.objects.url());
            Keeper::check(&source.aws, &name, options).await?;
            run.keep(&source.aws, &name, options).await?;
            let parts: Vec<ShardKey> = (0..PARTS).filter_map(|part| part_key(&name, part)).collect();
            if let Some(keeper) = &run.keeper {
                let offered = parts.iter().map(|part| (part.clone(), Offer::default())).collect();
                keeper.offer(offered, parts.into_iter().collect());
            }
            Ok(())
        };
        self.in_fleet(signal, start, async |run: &mut Self| run.follow_objects(source).await).await
    }

    async fn follow_objects(&mut self, source: &ObjectSource) -> Result<(), IngestError> {
        let mut view = View { list_at: Some(Instant::now()), ..View::default() };
        loop {
            if let Some(shard) = self.foreign.pop_first() {
                return Err(IngestError::TakenOver(shard));
            }
            if !self.stopping {
                self.take_objects(&mut view).await?;
                self.begin_objects(source, &mut view)?;
                if view.is_idle() && self.listing.is_none() && view.list_at.is_none() {
                    if view.at_end && !view.has_work && !source.follow {
                        break;
                    }
                    view.list_at = Some(Instant::now());
                }
                self.list_objects(source, &mut view).await?;
            }
            match self.turn(view.list_at).await? {
                LoopEvent::Listed(Listed::Objects(listed)) => self.paged(source, listed, &mut view),
                LoopEvent::Leases => self.parts_changed(source, &mut view).await?,
                LoopEvent::Ended(assignment) => self.object_ended(&assignment, &mut view),
                LoopEvent::Over => break,
                _ => {}
            }
        }
        self.stop.cancel();
        Ok(())
    }

    /// Starts the listing of the next page when it is due.
    async fn list_objects(&mut self, source: &ObjectSource, view: &mut View) -> Result<(), IngestError> {
        if self.listing.is_some() || view.list_at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        if self.keeper.is_some() {
            self.writer.refresh().await?;
        }
        let ended = self.writer.shards(files::STREAM).into_iter().filter(|(_, state)| state.is_ended());
        let mut known: HashSet<ShardKey> = ended.map(|(shard, _)| shard).collect();
        view.done.retain(|shard| !known.contains(shard));
        known.extend(view.done.iter().chain(&view.failed).cloned());
        let mine = self.parts(source);
        let (objects, after) = (source.objects.clone(), view.after.take());
        if after.is_none() {
            view.has_work = false;
        }
        view.list_at = None;
        self.listing = Some(tokio::spawn(async move {
            let others = std::sync::atomic::AtomicBool::new(false);
            let is_left = |object: &Object| {
                if known.contains(object.shard()) {
                    return true;
                }
                let is_other = !mine.contains(&object.part());
                others.fetch_or(is_other, std::sync::atomic::Ordering::Relaxed);
                is_other
            };
            let page = objects.page(after.as_ref(), PAGE_OBJECTS, is_left).await?;
            Ok(Listed::Objects(ListedPage { page, has_others: others.into_inner() }))
        }));
        Ok(())
    }

    fn paged(&mut self, source: &ObjectSource, listed: ListedPage, view: &mut View) {
        let ListedPage { page, has_others } = listed;
        view.has_work |= has_others || !page.objects.is_empty();
        view.at_end = page.next.is_none();
        view.after = page.next;
        // Copies of an object are the same object.
        let mut seen: HashSet<ShardKey> = HashSet::new();
        view.listed.extend(page.objects.into_iter().filter(|object| seen.insert(object.shard().clone())));
        if !view.at_end || !view.listed.is_empty() {
            // The rest of the prefix follows at once, after the objects of this page.
            return;
        }
        // The end. What is left belongs to other workers, or arrives later.
        view.list_at = match (view.has_work, source.follow) {
            (true, _) => Some(Instant::now() + RELIST_SOON),
            (false, true) => Some(Instant::now() + RELIST_INTERVAL),
            (false, false) => None,
        };
    }

    /// Takes over the next listed objects by one commit.
    async fn take_objects(&mut self, view: &mut View) -> Result<(), IngestError> {
        if !view.taken.is_empty() || view.listed.is_empty() {
            return Ok(());
        }
        let some: Vec<Object> = view.listed.drain(..view.listed.len().min(ACQUIRE_OBJECTS)).collect();
        let shards: Vec<(ShardKey, StartAt)> =
            some.iter().map(|object| (object.shard().clone(), StartAt::TrimHorizon)).collect();
        let mut states: BTreeMap<ShardKey, ShardState> = self.acquire(&shards).await?.into_iter().collect();
        for object in some {
            match states.remove(object.shard()) {
                // Another worker has read it meanwhile.
                Some(state) if state.is_ended() => {
                    self.writer.drop_shard(object.shard());
                    view.done.insert(object.shard().clone());
                }
                Some(state) => view.taken.push_back(Taken { object, state }),
                // The next listing shows it again.
                None => {}
            }
        }
        Ok(())
    }

    /// Starts the readers of objects that were taken over.
    fn begin_objects(&mut self, source: &ObjectSource, view: &mut View) -> Result<(), IngestError> {
        while view.begun.len() < READERS {
            let Some(sink) = self.sink.clone() else { return Ok(()) };
            let Some(Taken { object, state }) = view.taken.pop_front() else { return Ok(()) };
            let shard = object.shard().clone();
            let assignment = Assignment { shard: shard.clone(), epoch: state.epoch };
            let (held, stop) = (assignment.clone(), self.stop.child_token());
            self.reading.insert(shard.clone(), Reading { assignment: assignment.clone(), stop: stop.clone() });
            let (name, part) = (source.objects.name_of(&object), object.part());
            let options = ReadOptions::new(self.memory_bytes, stop.clone());
            let (objects, title, runtime) = (source.objects.clone(), name.clone(), tokio::runtime::Handle::current());
            let (payloads, ends, counters) = (self.payloads.clone(), self.ends.clone(), self.counters.clone());
            let (sender, ended) = oneshot::channel();
            let read = on_thread(move || {
                let open = || -> Result<Option<FileReader>, SourceError> {
                    let fail = |source| SourceError::File { path: title.clone(), source };
                    let bytes = objects.open(&object, &runtime, &stop).map_err(fail)?;
                    FileReader::of_object(&title, bytes, assignment.shard.clone(), state.position, &options)
                };
                let end = sink.clone();
                let done = match open() {
                    Ok(Some(reader)) => {
                        counters.skipped_bytes(reader.resumed_at());
                        let (reader, assignment) = (Box::new(reader), assignment.clone());
                        let mut file = FileThread { reader, assignment, sink, stop, payloads, ends, counters, runtime };
                        match file.deliver() {
                            Ok(()) if file.reader.is_complete() => Read::Whole,
                            Ok(()) | Err(Stop::Over) => Read::Cut,
                            Err(Stop::Failed(error)) => Read::Failed(error),
                        }
                    }
                    Ok(None) => Read::Cut,
                    Err(error) => Read::Failed(error),
                };
                // At the end of a run the receivers are gone.
                let _ = sender.send(done);
                let _ = end.blocking_send(Delivery::End(assignment));
            })?;
            self.readers.spawn(async move {
                read.await.map_err(|_| {
                    SourceError::Invalid("the reader of an object ended in a bug; please report it".to_owned())
                })
            });
            view.begun.insert(shard, Begun { assignment: held, name, part, ended });
        }
        Ok(())
    }

    /// Handles the end of a reader, after all that it delivered.
    fn object_ended(&mut self, assignment: &Assignment, view: &mut View) {
        let shard = &assignment.shard;
        // The reader of a lost part ends after its object was left, perhaps for another reader.
        if !view.begun.get(shard).is_some_and(|begun| begun.assignment == *assignment) {
            return;
        }
        let Some(mut begun) = view.begun.remove(shard) else { return };
        if self.reading.remove(shard).is_none() {
            return;
        }
        match begun.ended.try_recv() {
            Ok(Read::Whole) => {
                self.writer.end(assignment, Instant::now());
                view.done.insert(shard.clone());
            }
            Ok(Read::Failed(error)) => {
                let text = crate::terminal::chain(&error);
                tracing::warn!(
                    object = begun.name,
                    error = text,
                    "cannot read an object to its end; the others are read"
                );
                if matches!(error, SourceError::Damaged { .. }) {
                    // Records that came before the damage may be wrong, too.
                    self.writer.drop_shard(shard);
                }
                lock(&self.ends).unreadable.insert(begun.name, text);
                view.failed.insert(shard.clone());
            }
            Ok(Read::Cut) | Err(_) => {}
        }
    }

    /// Returns the parts that this worker reads.
    fn parts(&self, source: &ObjectSource) -> BTreeSet<usize> {
        let Some(keeper) = &self.keeper else { return (0..PARTS).collect() };
        let name = lease_stream(source.objects.url());
        let (standing, giving_back) = (keeper.view().standing, keeper.giving_back());
        let is_mine = |part: &usize| {
            part_key(&name, *part)
                .is_some_and(|key| standing.get(&key) == Some(&Standing::Held) && !giving_back.contains(&key))
        };
        (0..PARTS).filter(is_mine).collect()
    }

    /// Leaves the objects of parts that this worker has lost, and hands over those that others have requested.
    async fn parts_changed(&mut self, source: &ObjectSource, view: &mut View) -> Result<(), IngestError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let leases = keeper.view();
        if let Some(what) = leases.refused {
            return Err(SourceError::Invalid(what).into());
        }
        self.counters.leases(leases.standing.len());
        self.counters.unread(leases.unread);
        for key in keeper.giving_back().iter().filter(|key| !leases.standing.contains_key(key)) {
            keeper.given_back(key);
        }
        let name = lease_stream(source.objects.url());
        let keys: Vec<ShardKey> = (0..PARTS).filter_map(|part| part_key(&name, part)).collect();
        let requested: Vec<ShardKey> =
            keys.into_iter().filter(|key| leases.standing.get(key) == Some(&Standing::HandoffRequested)).collect();
        if !requested.is_empty() && !self.stopping {
            // The next owner reads what is still on its way of these objects.
            self.flush().await?;
        }
        let mine = self.parts(source);
        let lost = view.begun.iter().filter(|(_, begun)| !mine.contains(&begun.part)).map(|(shard, _)| shard);
        let lost: Vec<ShardKey> = lost.cloned().collect();
        for shard in lost {
            self.leave(&shard);
            self.writer.drop_shard(&shard);
            view.begun.remove(&shard);
        }
        let (kept, left): (VecDeque<Taken>, VecDeque<Taken>) =
            std::mem::take(&mut view.taken).into_iter().partition(|taken| mine.contains(&taken.object.part()));
        view.taken = kept;
        left.iter().for_each(|taken| self.writer.drop_shard(taken.object.shard()));
        view.listed.retain(|object| mine.contains(&object.part()));
        if let Some(keeper) = &self.keeper {
            requested.iter().for_each(|key| keeper.give_back(key));
        }
        Ok(())
    }
}

/// Returns the name under which the lease table keeps the parts of a prefix.
fn lease_stream(url: &str) -> String {
    let digest = Sha256::digest(url.trim_end_matches('/'));
    digest.iter().take(8).fold(String::from("objects-"), |name, byte| format!("{name}{byte:02x}"))
}

fn part_key(stream: &str, part: usize) -> Option<ShardKey> {
    ShardKey::new(stream, &format!("part-{part:02}"))
}
