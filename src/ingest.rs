//! The ingest loop. Only this module knows all of source, decode, batch and lake.
//!
//! ```text
//! readers ──Delivery──▶ decode tasks (as many as cores, in order) ──Decoded──▶ Writer ──▶ lake
//!    ▲                                                                           │
//!    └────────────── Budget: a read begins only once its memory is reserved ◀────┘
//! ```
//!
//! # Cancellation
//! `stop` ends the readers. The loop decodes, writes and commits what the readers delivered; then the run ends with
//! success.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::batch::Limits;
use crate::budget::Reservation;
use crate::ids::{ShardKey, StartAt};
use crate::lake::ledger::ShardState;
use crate::lake::{LakeError, Store};
use crate::payload::{self, Payloads};
use crate::source::files::{self, Opened, ReadOptions};
use crate::source::kinesis::Listing;
use crate::source::leases::Keeper;
use crate::source::{Assignment, Delivery, Reached, Sink, SourceError};
use crate::{cpu, failpoint};

mod counters;
mod decoding;
pub mod emf;
mod fleet;
mod from_files;
mod from_objects;
mod from_stream;
mod memory;
pub mod monitor;
mod sources;
mod writer;

pub(crate) use decoding::{Partitions, decode_part};
pub(crate) use writer::files::write_partition;

use crate::timeouts::{HEARTBEAT_INTERVAL, IDLE_FLUSH, STOP_TIMEOUT};
pub use counters::{Counters, Summary};
use decoding::{Decoded, decode_chunk};
use from_files::Ends;
pub use memory::SharedMemory;
pub use sources::{ObjectSource, Source, Stream};
use writer::{Flushed, Writer};

/// Approximate upper bound of the memory that decoding one chunk takes.
const DECODING_BYTES: usize = 32 << 20;

/// Reason why an ingest ended early. Everything that was committed stays committed.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The lake failed.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Another worker reads the same source into the same lake.
    #[error("shard {0} was taken over by another ingest; without a lease table, run only one ingest for each source")]
    TakenOver(ShardKey),
    /// The checkpoints of the lease table are ahead of the lake.
    #[error(
        "the lease table marks shard {0} as read to its end, but the lake does not; give each lake a lease table of \
         its own, or delete this one if the lake was created again (synclake then creates a new table)"
    )]
    OtherLake(ShardKey),
    /// This machine cannot fetch payloads.
    #[error("{0}; install the system's certificates (the package ca-certificates)")]
    Payloads(String),
    /// A signal arrived, and the records that were read could not be committed in time.
    #[error("stopped {seconds} s after the signal with {records} records read and not committed; {remedy}")]
    Unfinished {
        /// Time that the run waited for the commit.
        seconds: u64,
        /// Records that were read and not committed.
        records: u64,
        /// Advice to the user.
        remedy: &'static str,
    },
    /// The operating system refused a new thread.
    #[error("cannot start a thread; raise the limit of threads (ulimit -u, or pids.max of the container)")]
    Thread(#[source] std::io::Error),
    /// An internal task ended abnormally, because of a bug.
    #[error("internal task failed: {0}; please report it, and run the same command again: nothing was lost")]
    Task(String),
}

impl IngestError {
    fn task(error: tokio::task::JoinError) -> Self {
        Self::Task(error.to_string())
    }
}

/// Options of a run.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Upper bound of all buffers, in bytes.
    pub memory_bytes: usize,
    /// Commit after this many bytes of records.
    pub flush_bytes: u64,
    /// Commit after this time.
    pub flush_interval: Duration,
    /// How to fetch the payloads that events point at.
    pub payloads: payload::PayloadOptions,
}

impl IngestOptions {
    /// Minimum memory: the largest possible record still leaves room to work.
    pub const MEMORY_BYTES_MIN: usize = 64 << 20;

    fn limits(&self, mark_bytes: usize) -> Limits {
        Limits { mark_bytes, flush_bytes: self.flush_bytes, flush_interval: self.flush_interval }
    }
}

/// Output of the decode stage, in the order of the deliveries.
enum StageOutput {
    Decoded(Assignment, Decoded, [Reservation; 2]),
    Reached(Assignment, Reached),
    End(Assignment),
    Stopped(Assignment),
}

/// Reads a source into a lake until the source is exhausted, idle or stopped.
///
/// # Errors
/// See [`IngestError`]. Running again is always safe: the next run continues after the last commit.
pub async fn run(
    source: Source,
    lake: Store,
    options: IngestOptions,
    counters: Arc<Counters>,
    signal: CancellationToken,
) -> Result<Summary, IngestError> {
    let memory = SharedMemory::new(&options, 1)?;
    run_sharing(source, lake, options, memory, counters, signal).await
}

/// As [`run`], beside other ingests of the process.
///
/// # Errors
/// As for [`run`].
pub async fn run_sharing(
    source: Source,
    lake: Store,
    options: IngestOptions,
    memory: SharedMemory,
    counters: Arc<Counters>,
    signal: CancellationToken,
) -> Result<Summary, IngestError> {
    let part_bytes = memory.part();
    // The end of a stream or an idle timeout cancels only `stop`. Only a signal limits how long the last commit may
    // take.
    let stop = signal.child_token();
    let writer = tokio::select! {
        biased;
        writer = Writer::open(lake, options.limits(part_bytes / 2), counters.clone()) => writer?,
        // Nothing has been read yet. The next run continues with whatever part of the lake was created.
        () = signal.cancelled() => return Ok(counters.summary(Ends::default())),
    };
    let SharedMemory { budget, payloads, .. } = memory;
    let budget_bytes = budget.bytes();
    let (sink, deliveries) = Sink::new(budget);
    // Any chunk may hold a worst-case record for its length. With little memory, fewer chunks than processors are
    // decoded at a time.
    let decoding_max = (2 * cpu::processors() + 2).min(part_bytes / DECODING_BYTES).max(2);
    let run = Run {
        writer,
        counters: counters.clone(),
        payloads,
        sink: Some(sink),
        deliveries,
        decoding: FuturesOrdered::new(),
        decoding_max,
        readers: JoinSet::new(),
        reading: BTreeMap::new(),
        caught_up: BTreeMap::new(),
        foreign: BTreeSet::new(),
        changed_at: Instant::now(),
        keeper: None,
        listing: None,
        retention_ms: i64::MAX / 2,
        stop,
        stopping: false,
        ends: Arc::default(),
        opening: None,
        memory_bytes: part_bytes,
    };
    counters.ready(budget_bytes);
    let ends = run.ends.clone();
    match source {
        Source::Files(found) => {
            let is_gone = found.files.iter().any(|file| files::is_gone(file));
            let remedy = if is_gone { FEED_AGAIN } else { RUN_AGAIN };
            from_files::lock(&ends).unreadable.extend(found.failed);
            in_time(signal, &counters, remedy, run.files(found.files)).await?;
        }
        Source::Objects(source) => run.objects(&source, signal).await?,
        Source::Stream(stream) => run.stream(&stream, signal).await?,
    }
    let ends = from_files::lock(&ends).clone();
    Ok(counters.summary(ends))
}

struct Run {
    writer: Writer,
    counters: Arc<Counters>,
    sink: Option<Sink>,
    payloads: Payloads,
    deliveries: tokio::sync::mpsc::Receiver<Delivery>,
    decoding: FuturesOrdered<BoxFuture<'static, Result<StageOutput, IngestError>>>,
    decoding_max: usize,
    readers: JoinSet<Result<(), SourceError>>,
    reading: BTreeMap<ShardKey, Reading>,
    /// Since when each caught-up shard has had nothing to read.
    caught_up: BTreeMap<ShardKey, Instant>,
    /// Shards that another worker took although no leases are used. This worker does not read them again.
    foreign: BTreeSet<ShardKey>,
    /// When this worker last started or left a shard.
    changed_at: Instant,
    keeper: Option<Keeper>,
    listing: Option<JoinHandle<Result<Listed, SourceError>>>,
    retention_ms: i64,
    stop: CancellationToken,
    stopping: bool,
    ends: Arc<Mutex<Ends>>,
    /// The file that is being opened.
    opening: Option<oneshot::Receiver<Result<Opened, SourceError>>>,
    memory_bytes: usize,
}

/// A shard that is being read.
struct Reading {
    assignment: Assignment,
    stop: CancellationToken,
}

/// What a source has to read, all of it or a page.
enum Listed {
    Shards(Listing),
    Objects(from_objects::ListedPage),
}

/// Result of one turn of the loop.
enum LoopEvent {
    Ended(Assignment),
    Stopped(Assignment),
    Opened(Result<Opened, SourceError>),
    Listed(Listed),
    Leases,
    Went,
    Over,
}

impl Run {
    /// Waits for one event and handles it.
    async fn turn(&mut self, deadline: Option<Instant>) -> Result<LoopEvent, IngestError> {
        let idle = self.writer.is_dirty().then(|| self.counters.last_arrival() + IDLE_FLUSH);
        let due = [self.writer.due(), idle].into_iter().flatten().min();
        self.counters.alive();
        // A due flush comes first: under load, another event is always ready.
        if self.writer.is_quiet_for_long() || due.is_some_and(|at| Instant::now() >= at) {
            self.flush().await?;
            return Ok(LoopEvent::Went);
        }
        // A quiet pipe may deliver nothing for hours. The heartbeat keeps `/healthz` from reporting the loop as stuck.
        let wake = [due, deadline, Some(Instant::now() + HEARTBEAT_INTERVAL)].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = self.stop.cancelled(), if !self.stopping => {
                self.stopping = true;
                // The readers hold the remaining senders, so the channel closes when the readers have stopped. A pipe
                // that is being opened may already have given bytes, which its reader must still deliver.
                if self.opening.is_none() {
                    self.sink = None;
                }
            }
            Some(arrived) = self.decoding.next(), if !self.decoding.is_empty() => {
                return self.arrived(arrived?).await;
            }
            Some(ended) = self.readers.join_next(), if !self.readers.is_empty() => {
                ended.map_err(IngestError::task)??;
            }
            listed = finished(&mut self.listing) => {
                self.listing = None;
                return Ok(LoopEvent::Listed(listed.map_err(IngestError::task)??));
            }
            opened = opened(&mut self.opening) => {
                self.opening = None;
                return Ok(LoopEvent::Opened(opened?));
            }
            alive = changed(&mut self.keeper) => {
                alive?;
                return Ok(LoopEvent::Leases);
            }
            delivery = self.deliveries.recv(), if self.decoding.len() < self.decoding_max => match delivery {
                Some(delivery) => self.decode(delivery),
                None if self.decoding.is_empty() => return Ok(LoopEvent::Over),
                // No delivery follows, but decode tasks are still running.
                None => {
                    if let Some(arrived) = self.decoding.next().await {
                        return self.arrived(arrived?).await;
                    }
                }
            },
            () = sleep_until(wake) => {}
        }
        Ok(LoopEvent::Went)
    }

    fn decode(&mut self, delivery: Delivery) {
        let next: BoxFuture<'static, _> = match delivery {
            Delivery::Chunk(assignment, chunk, reserved) => {
                // A chunk that arrives after its shard was given up must not create the shard's metrics again.
                let held =
                    Some(&assignment.shard).filter(|shard| self.writer.epoch_of(shard) == Some(assignment.epoch));
                self.counters.received(held, chunk.records.len(), chunk.bytes());
                self.caught_up.remove(&chunk.shard);
                let skip = self.writer.skip(&chunk.shard);
                // The task is spawned so that decoding continues while the loop waits for a file or a commit.
                let task = tokio::spawn(cpu::try_run(move || {
                    let decoded = decode_chunk(&chunk, &skip);
                    failpoint::hit("decode/after");
                    decoded
                }));
                task.map(|decoded| {
                    let decoded = decoded.and_then(|decoded| decoded).map_err(IngestError::task)?;
                    Ok(StageOutput::Decoded(assignment, decoded, reserved))
                })
                .boxed()
            }
            Delivery::Reached(assignment, reached) => {
                if self.writer.epoch_of(&assignment.shard) == Some(assignment.epoch) {
                    self.counters.behind(&assignment.shard, reached.behind_ms);
                }
                std::future::ready(Ok(StageOutput::Reached(assignment, reached))).boxed()
            }
            Delivery::End(assignment) => std::future::ready(Ok(StageOutput::End(assignment))).boxed(),
            Delivery::Stopped(assignment) => std::future::ready(Ok(StageOutput::Stopped(assignment))).boxed(),
        };
        self.decoding.push_back(next);
    }

    async fn arrived(&mut self, arrived: StageOutput) -> Result<LoopEvent, IngestError> {
        match arrived {
            // This arm ends the reservation of the payloads: they are decoded, and their rows are in the partition
            // buffers.
            StageOutput::Decoded(assignment, decoded, [reserved, _payloads]) => {
                self.counters.decoded(decoded.rows);
                self.writer.add(&assignment, decoded, reserved, Instant::now())?;
                if self.writer.is_due() {
                    self.flush().await?;
                }
            }
            StageOutput::Reached(assignment, reached) => {
                self.writer.read_to(&assignment, &reached, self.retention_ms);
                if !self.reading.get(&assignment.shard).is_some_and(|reading| reading.assignment == assignment) {
                    return Ok(LoopEvent::Went);
                }
                match reached.caught_up {
                    true => drop(self.caught_up.entry(assignment.shard).or_insert_with(Instant::now)),
                    false => drop(self.caught_up.remove(&assignment.shard)),
                }
            }
            StageOutput::End(assignment) => return Ok(LoopEvent::Ended(assignment)),
            StageOutput::Stopped(assignment) => return Ok(LoopEvent::Stopped(assignment)),
        }
        Ok(LoopEvent::Went)
    }

    /// Commits all received records. Leaves the shards that other workers took over; the other shards continue.
    async fn flush(&mut self) -> Result<Flushed, IngestError> {
        let flushed = self.writer.flush().await?;
        // A lease of a fleet is that of a shard; objects share the lease of their part.
        let has_lease = |shard: &ShardKey| shard.stream() != files::STREAM;
        for shard in &flushed.fenced {
            self.leave(shard);
            match &self.keeper {
                Some(keeper) if has_lease(shard) => keeper.give_back(shard),
                Some(_) => {}
                None => drop(self.foreign.insert(shard.clone())),
            }
        }
        for shard in &flushed.ended {
            self.leave(shard);
        }
        if let Some(keeper) = &self.keeper {
            let reached = flushed.reached.iter().filter(|(shard, _)| has_lease(shard));
            reached.for_each(|(shard, position)| keeper.reached(shard, position));
        }
        Ok(flushed)
    }

    /// Takes shards over. **Commits the buffered records of these shards first**: a new epoch makes the buffers
    /// worthless.
    async fn acquire(&mut self, shards: &[(ShardKey, StartAt)]) -> Result<Vec<(ShardKey, ShardState)>, IngestError> {
        if shards.iter().any(|(shard, _)| self.writer.epoch_of(shard).is_some()) {
            self.flush().await?;
        }
        self.writer.acquire(shards).await
    }

    /// Stops reading a shard.
    fn leave(&mut self, shard: &ShardKey) {
        if let Some(reading) = self.reading.remove(shard) {
            reading.stop.cancel();
        }
        self.caught_up.remove(shard);
        self.changed_at = Instant::now();
    }

    /// Processes what the readers delivered before they stopped, and commits it.
    async fn finish(&mut self) -> Result<(), IngestError> {
        self.sink = None;
        while !matches!(self.turn(None).await?, LoopEvent::Over) {}
        while let Some(ended) = self.readers.join_next().await {
            ended.map_err(IngestError::task)??;
        }
        self.writer.end_run();
        self.flush().await?;
        self.writer.finish().await;
        Ok(())
    }
}

/// Advice about records that were read and not committed.
const RUN_AGAIN: &str = "nothing is lost: the next run reads them again";
const FEED_AGAIN: &str = "a pipe cannot be read again: send the same input once more; committed records are skipped";

/// Runs `work` to its end; after a signal, for at most `STOP_TIMEOUT`.
async fn in_time(
    signal: CancellationToken,
    counters: &Counters,
    remedy: &'static str,
    work: impl Future<Output = Result<(), IngestError>>,
) -> Result<(), IngestError> {
    let patience = async {
        signal.cancelled().await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        done = work => done,
        () = patience => match counters.uncommitted() {
            0 => Ok(()),
            records => Err(IngestError::Unfinished { seconds: STOP_TIMEOUT.as_secs(), records, remedy }),
        }
    }
}

/// Sleeps until `at`, or forever if `at` is `None`.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

async fn opened(
    opening: &mut Option<oneshot::Receiver<Result<Opened, SourceError>>>,
) -> Result<Result<Opened, SourceError>, IngestError> {
    match opening {
        Some(opening) => opening.await.map_err(|_| IngestError::Task("a file's reader ended in a bug".to_owned())),
        None => pending().await,
    }
}

async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}

async fn changed(keeper: &mut Option<Keeper>) -> Result<(), SourceError> {
    match keeper {
        Some(keeper) => keeper.changed().await,
        None => pending().await,
    }
}
