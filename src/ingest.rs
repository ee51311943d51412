//! The loop: the only room that knows source, decode, batch and lake.
//!
//! ```text
//! readers ──Delivery──▶ decode tasks (as many as cores, in order) ──Decoded──▶ Writer ──▶ lake
//!    ▲                                                                           │
//!    └────────────── Budget: no read begins without room for what it brings ◀────┘
//! ```
//!
//! # Cancellation
//! `stop` ends the readers; what they have delivered is decoded, written and committed, and then the run ends well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::batch::Limits;
use crate::budget::{Budget, Reservation};
use crate::lake::{LakeError, Store};
use crate::source::kinesis::{self, Kinesis, Progress};
use crate::source::{Delivery, ShardKey, Sink, SourceError, StartAt, files};

mod counters;
mod decoding;
mod writer;

pub use counters::{Counters, Summary};
use decoding::{Decoded, decode_chunk};
use writer::{Flushed, Writer};

/// With nothing new for this long, what waits is committed.
const IDLE_FLUSH: Duration = Duration::from_secs(5);

/// Why an ingest ended early. Everything that was committed stays committed.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Another worker reads the same source into the same lake.
    #[error("shard {0} was taken over by another ingest; only one may read a source without a lease table")]
    TakenOver(ShardKey),
    /// A task of ours ended in a way that it never should.
    #[error("internal task failed: {0}; please report it, and run the same command again: nothing was lost")]
    Task(String),
}

impl IngestError {
    fn task(error: tokio::task::JoinError) -> Self {
        Self::Task(error.to_string())
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files, one after the other.
    Files(Vec<PathBuf>),
    /// All shards of a stream.
    Kinesis {
        /// The stream.
        kinesis: Kinesis,
        /// Where to begin if the lake does not know it.
        from: kinesis::From,
        /// Stop once every shard has had nothing to read for this long.
        until_idle: Option<Duration>,
    },
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes that may be buffered in all.
    pub memory_bytes: usize,
    /// Commit after this many bytes of records.
    pub flush_bytes: u64,
    /// Commit after this long.
    pub flush_age: Duration,
}

impl Options {
    /// The least that the largest possible record leaves room to work in.
    pub const MEMORY_BYTES_MIN: usize = 64 << 20;

    fn limits(&self) -> Limits {
        Limits { mark_bytes: self.memory_bytes / 8 * 5, flush_bytes: self.flush_bytes, flush_age: self.flush_age }
    }
}

/// What came out of the decode stage, still in order.
enum Arrived {
    Decoded(Decoded, Reservation),
    Reached { shard: ShardKey, caught_up: bool },
    End(ShardKey),
}

/// Reads a source into a lake until it is exhausted, idle or stopped.
///
/// # Errors
/// See [`IngestError`]. Running again is always right: it goes on after the last commit.
pub async fn run(
    source: Source,
    lake: Store,
    options: Options,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> Result<Summary, IngestError> {
    let writer = Writer::open(lake, options.limits(), counters.clone()).await?;
    let (sink, deliveries) = Sink::new(Budget::new(options.memory_bytes));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let run = Run {
        writer,
        counters: counters.clone(),
        sink: Some(sink),
        deliveries,
        decoding: FuturesOrdered::new(),
        decoding_max: workers + 1,
        readers: JoinSet::new(),
        reading: BTreeSet::new(),
        caught_up: BTreeMap::new(),
        stop,
        stopping: false,
        torn: Arc::default(),
    };
    let torn = run.torn.clone();
    match source {
        Source::Files(files) => run.files(files).await?,
        Source::Kinesis { kinesis, from, until_idle } => run.kinesis(kinesis, from, until_idle).await?,
    }
    let torn = torn.lock().map(|torn| torn.clone()).unwrap_or_default();
    Ok(counters.summary(torn))
}

struct Run {
    writer: Writer,
    counters: Arc<Counters>,
    sink: Option<Sink>,
    deliveries: tokio::sync::mpsc::Receiver<Delivery>,
    decoding: FuturesOrdered<BoxFuture<'static, Result<Arrived, IngestError>>>,
    decoding_max: usize,
    readers: JoinSet<Result<(), SourceError>>,
    reading: BTreeSet<ShardKey>,
    /// Since when a shard has had nothing to read.
    caught_up: BTreeMap<ShardKey, Instant>,
    stop: CancellationToken,
    stopping: bool,
    torn: Arc<Mutex<Vec<(String, usize)>>>,
}

/// What the loop noticed.
enum Turn {
    Ended(ShardKey),
    Went,
    Over,
}

impl Run {
    async fn files(mut self, paths: Vec<PathBuf>) -> Result<(), IngestError> {
        for path in paths {
            if self.stop.is_cancelled() {
                break;
            }
            let positions: BTreeMap<_, _> = self
                .writer
                .shards(files::STREAM)
                .into_iter()
                .filter_map(|(shard, _)| Some((shard.clone(), self.writer.reached(&shard)?)))
                .collect();
            let open = move || files::FileReader::open(&path, |shard| positions.get(shard).cloned());
            let opened = tokio::task::spawn_blocking(open).await.map_err(IngestError::task)??;
            let Some(reader) = opened else { continue };
            let shard = reader.shard().clone();
            self.counters.skipped_bytes(reader.resumed_at());
            if !self.writer.holds(&shard) {
                self.writer.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await?;
            }
            self.read_file(reader);
            self.reading.insert(shard.clone());
            loop {
                match self.turn(None).await? {
                    Turn::Ended(ended) if ended == shard => break,
                    Turn::Over => break,
                    Turn::Ended(_) | Turn::Went => {}
                }
            }
            self.reading.remove(&shard);
        }
        self.finish().await
    }

    fn read_file(&mut self, mut reader: files::FileReader) {
        let Some(sink) = self.sink.clone() else { return };
        let stop = self.stop.clone();
        let torn = self.torn.clone();
        let runtime = tokio::runtime::Handle::current();
        self.readers.spawn_blocking(move || {
            loop {
                if stop.is_cancelled() {
                    break;
                }
                let mut reserved = runtime.block_on(sink.budget.reserve(files::CHUNK_BYTES_MAX));
                let now = chrono::Utc::now().timestamp_micros();
                let Some(chunk) = reader.next_chunk(now)? else { break };
                reserved.shrink_to(3 * chunk.bytes());
                if sink.blocking_send(Delivery::Chunk(chunk, reserved)).is_err() {
                    return Ok(());
                }
            }
            if let (Some(bytes), Ok(mut torn)) = (reader.torn_bytes(), torn.lock()) {
                torn.push((reader.name().to_owned(), bytes));
            }
            // For the loop: nothing more comes of this file. It may grow, so its shard is never closed in the ledger.
            let _ = sink.blocking_send(Delivery::End(reader.shard().clone()));
            Ok(())
        });
    }

    async fn kinesis(
        mut self,
        kinesis: Kinesis,
        from: kinesis::From,
        until_idle: Option<Duration>,
    ) -> Result<(), IngestError> {
        self.start_shards(&kinesis, from).await?;
        while !self.stop.is_cancelled() || !self.reading.is_empty() {
            let deadline = until_idle.and_then(|idle| self.idle_since().map(|since| since + idle));
            match self.turn(deadline).await? {
                Turn::Ended(shard) => {
                    self.writer.end(&shard, Instant::now());
                    // Its children wait for this commit.
                    let flushed = self.flush().await?;
                    for ended in &flushed.ended {
                        self.reading.remove(ended);
                        self.caught_up.remove(ended);
                    }
                    if !self.stop.is_cancelled() {
                        self.start_shards(&kinesis, from).await?;
                    }
                    if self.reading.is_empty() {
                        tracing::info!("every shard of the stream has ended");
                        break;
                    }
                }
                Turn::Went => {}
                Turn::Over => break,
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                break;
            }
        }
        self.stop.cancel();
        self.finish().await
    }

    /// Since when every shard has had nothing to read, and nothing waits for a commit.
    fn idle_since(&self) -> Option<Instant> {
        let all = self.reading.iter().all(|shard| self.caught_up.contains_key(shard));
        (all && self.decoding.is_empty()).then(|| self.caught_up.values().max().copied()).flatten()
    }

    async fn start_shards(&mut self, kinesis: &Kinesis, from: kinesis::From) -> Result<(), IngestError> {
        let listed = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            listed = kinesis.list_shards() => listed?,
        };
        let ledger: BTreeMap<ShardKey, Progress> = self
            .writer
            .shards(kinesis.stream())
            .into_iter()
            .map(|(shard, state)| (shard, Progress { position: state.position, from: state.from }))
            .collect();
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut ready = kinesis::ready(&listed, &ledger, from, now_ms);
        ready.retain(|(shard, _)| !self.reading.contains(shard));
        if ready.is_empty() {
            return Ok(());
        }
        for (shard, state) in self.writer.acquire(&ready).await? {
            let Some(sink) = self.sink.clone() else { break };
            self.reading.insert(shard.clone());
            let (kinesis, stop) = (kinesis.clone(), self.stop.clone());
            self.readers.spawn(kinesis::read(kinesis, shard, state.position, state.from, sink, stop));
        }
        Ok(())
    }

    /// Waits for one thing to happen, and handles it.
    async fn turn(&mut self, deadline: Option<Instant>) -> Result<Turn, IngestError> {
        let idle = self.writer.is_dirty().then(|| self.counters.last_arrival() + IDLE_FLUSH);
        let due = [self.writer.due(), idle].into_iter().flatten().min();
        // Before anything else: under load there is always something else.
        if due.is_some_and(|at| Instant::now() >= at) {
            self.flush().await?;
            return Ok(Turn::Went);
        }
        let wake = [due, deadline].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = self.stop.cancelled(), if !self.stopping => {
                self.stopping = true;
                // The readers hold the other ends; when they have stopped, the channel closes.
                self.sink = None;
            }
            Some(arrived) = self.decoding.next(), if !self.decoding.is_empty() => {
                if let Some(ended) = self.arrived(arrived?).await? {
                    return Ok(Turn::Ended(ended));
                }
            }
            Some(ended) = self.readers.join_next(), if !self.readers.is_empty() => {
                ended.map_err(IngestError::task)??;
            }
            delivery = self.deliveries.recv(), if self.decoding.len() < self.decoding_max => match delivery {
                Some(delivery) => self.decode(delivery),
                None if self.decoding.is_empty() => return Ok(Turn::Over),
                // Nothing more comes; the decoders are still at work.
                None => {
                    if let Some(arrived) = self.decoding.next().await
                        && let Some(ended) = self.arrived(arrived?).await? {
                        return Ok(Turn::Ended(ended));
                    }
                }
            },
            () = sleep_until(wake) => {}
        }
        Ok(Turn::Went)
    }

    fn decode(&mut self, delivery: Delivery) {
        let next: BoxFuture<'static, _> = match delivery {
            Delivery::Chunk(chunk, reserved) => {
                self.counters.received(chunk.records.len(), chunk.bytes());
                self.caught_up.remove(&chunk.shard);
                let skip = self.writer.skip(&chunk.shard);
                let task = tokio::task::spawn_blocking(move || decode_chunk(&chunk, &skip));
                task.map(|decoded| Ok(Arrived::Decoded(decoded.map_err(IngestError::task)?, reserved))).boxed()
            }
            Delivery::Reached { shard, behind_ms, caught_up } => {
                self.counters.behind(&shard, behind_ms);
                std::future::ready(Ok(Arrived::Reached { shard, caught_up })).boxed()
            }
            Delivery::End(shard) => std::future::ready(Ok(Arrived::End(shard))).boxed(),
        };
        self.decoding.push_back(next);
    }

    /// Returns the shard that ended, if that is what arrived.
    async fn arrived(&mut self, arrived: Arrived) -> Result<Option<ShardKey>, IngestError> {
        match arrived {
            Arrived::Decoded(decoded, reserved) => {
                self.counters.decoded(decoded.rows);
                self.writer.add(decoded, reserved, Instant::now()).await?;
                if self.writer.is_due() {
                    self.flush().await?;
                }
            }
            Arrived::Reached { shard, caught_up: true } => {
                self.caught_up.entry(shard).or_insert_with(Instant::now);
            }
            Arrived::Reached { shard, caught_up: false } => {
                self.caught_up.remove(&shard);
            }
            Arrived::End(shard) => return Ok(Some(shard)),
        }
        Ok(None)
    }

    async fn flush(&mut self) -> Result<Flushed, IngestError> {
        let flushed = self.writer.flush().await?;
        match flushed.fenced.first() {
            Some(shard) => Err(IngestError::TakenOver(shard.clone())),
            None => Ok(flushed),
        }
    }

    /// Takes in what was delivered before the readers stopped, and commits it.
    async fn finish(mut self) -> Result<(), IngestError> {
        self.sink = None;
        loop {
            match self.turn(None).await? {
                Turn::Over => break,
                Turn::Ended(_) | Turn::Went => {}
            }
        }
        while let Some(ended) = self.readers.join_next().await {
            ended.map_err(IngestError::task)??;
        }
        self.flush().await?;
        self.writer.finish().await;
        Ok(())
    }
}

/// For ever, when there is nothing to wait for.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
