//! Reads files, one after the other.
//!
//! A dedicated thread opens and reads each file, because a pipe may block either call forever. The runtime's blocking
//! threads decode and write. A reader must not take one of them: with too few of them, it would wait for its own rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Counters, IngestError, LoopEvent, Opened, ReadOptions, Reading, Run};
use crate::budget::Reservation;
use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::payload::Payloads;
use crate::record::Record;
use crate::source::files::{FileReader, shown};
use crate::source::{Assignment, Delivery, Sink, SourceError, files};

/// How the files ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Ends {
    /// Files whose incomplete last line is left for the next run, and its length in bytes.
    pub torn: BTreeMap<String, usize>,
    /// Files that could not be read to their end, and the errors.
    pub unreadable: BTreeMap<String, String>,
    /// Bytes by input that were read, are not in the lake, and cannot be read again.
    pub lost: BTreeMap<String, u64>,
}

/// Positions of all file shards: those of the lake, updated by what this run has received.
type Positions = Arc<Mutex<BTreeMap<ShardKey, SequenceNumber>>>;

pub(super) fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work on a dedicated thread.
pub(super) fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, IngestError> {
    let (sender, result) = oneshot::channel();
    // In a run that was abandoned, the receiver is gone.
    let work = move || drop(sender.send(work()));
    std::thread::Builder::new().name("reader".to_owned()).spawn(work).map_err(IngestError::Thread)?;
    Ok(result)
}

impl Run {
    pub(super) async fn files(mut self, paths: Vec<PathBuf>) -> Result<(), IngestError> {
        let is_alone = paths.len() == 1;
        let known = self.writer.shards(files::STREAM).into_iter();
        let known = known.filter_map(|(shard, state)| Some((shard, state.position?)));
        let positions: Positions = Arc::new(Mutex::new(known.collect()));
        for path in paths {
            if self.stop.is_cancelled() {
                break;
            }
            match self.file(&path, &positions).await {
                Err(IngestError::Source(error)) => {
                    let (file, error) = (shown(&path), crate::terminal::chain(&error));
                    if !is_alone {
                        tracing::warn!(file, error, "cannot read a file to its end; the others are read");
                    }
                    lock(&self.ends).unreadable.insert(file, error);
                }
                done => done?,
            }
        }
        self.finish().await?;
        self.taken_over()
    }

    /// Fails if another ingest has taken over a file: a file has only one reader.
    fn taken_over(&mut self) -> Result<(), IngestError> {
        self.foreign.pop_first().map_or(Ok(()), |shard| Err(IngestError::TakenOver(shard)))
    }

    /// Reads a file. On return, its records are buffered or committed.
    ///
    /// # Errors
    /// [`IngestError::Source`] if this file cannot be read to its end; any other error ends the run.
    async fn file(&mut self, path: &Path, positions: &Positions) -> Result<(), IngestError> {
        let (reader, epoch) = loop {
            let Some(reader) = self.open(path, positions).await? else { return Ok(()) };
            if self.stopping && !reader.is_gone() {
                return Ok(());
            }
            let shard = reader.shard();
            if self.writer.epoch_of(shard).is_some() {
                // An earlier file of this run is a prefix of this one. Its records must survive if this file is
                // damaged.
                self.flush().await?;
                self.taken_over()?;
            }
            if let Some(epoch) = self.writer.epoch_of(shard) {
                break (reader, epoch);
            }
            let taken = self.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await?;
            let Some((_, state)) = taken.into_iter().next() else { return Err(IngestError::TakenOver(shard.clone())) };
            if state.position.as_ref() == reader.resumed_position() {
                break (reader, state.epoch);
            }
            // Another ingest has committed part of this file since the position of its shard was looked up.
            if reader.is_gone() {
                return Err(IngestError::TakenOver(shard.clone()));
            }
            if let Some(position) = state.position {
                lock(positions).insert(shard.clone(), position);
            }
        };
        let shard = reader.shard().clone();
        self.counters.skipped_bytes(reader.resumed_at());
        let assignment = Assignment { shard: shard.clone(), epoch };
        let reading = Reading { assignment: assignment.clone(), stop: CancellationToken::new() };
        self.reading.insert(shard.clone(), reading);
        let mut failed = self.read(reader, assignment.clone())?;
        loop {
            let turn = self.turn(None).await?;
            self.taken_over()?;
            match turn {
                LoopEvent::Ended(ended) if ended == assignment => break,
                LoopEvent::Over => break,
                _ => {}
            }
        }
        self.reading.remove(&shard);
        let failed = failed.try_recv().ok();
        if matches!(failed, Some(SourceError::Damaged { .. })) {
            // Records that came before the damage may be wrong, too. (What an earlier commit of a large file holds
            // stays.)
            self.writer.drop_shard(&shard);
        }
        match self.writer.reached(&shard) {
            Some(position) => drop(lock(positions).insert(shard, position)),
            None => drop(lock(positions).remove(&shard)),
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Opens a file while the loop continues, because the buffered records of earlier files have their own flush
    /// deadline.
    async fn open(&mut self, path: &Path, positions: &Positions) -> Result<Option<Box<FileReader>>, IngestError> {
        let (name, path, positions) = (shown(path), path.to_owned(), positions.clone());
        let options = ReadOptions::new(self.memory_bytes, self.stop.clone());
        let open = move || FileReader::open(&path, &options, |shard| lock(&positions).get(shard).cloned());
        self.opening = Some(on_thread(open)?);
        let opened = loop {
            let turn = self.turn(None).await?;
            self.taken_over()?;
            match turn {
                LoopEvent::Opened(opened) => break opened?,
                LoopEvent::Over => break super::opened(&mut self.opening).await??,
                _ => {}
            }
        };
        self.opening = None;
        Ok(match opened {
            Opened::Reader(reader) => Some(reader),
            Opened::Empty | Opened::Stopped { bytes: 0 } => None,
            Opened::Stopped { bytes } => {
                lock(&self.ends).lost.insert(name, bytes);
                None
            }
        })
    }

    /// Starts the reader of a file. When the file has ended, the returned receiver holds the error if the reader
    /// stopped early.
    fn read(
        &mut self,
        reader: Box<FileReader>,
        assignment: Assignment,
    ) -> Result<oneshot::Receiver<SourceError>, IngestError> {
        let (failed, failure) = oneshot::channel();
        // After a stop, the last reader holds the only sender: when it ends, the channel closes.
        let sink = if self.stopping { self.sink.take() } else { self.sink.clone() };
        let Some(sink) = sink else { return Ok(failure) };
        let file = FileThread {
            reader,
            assignment,
            sink,
            stop: self.stop.clone(),
            payloads: self.payloads.clone(),
            ends: self.ends.clone(),
            counters: self.counters.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let read = on_thread(move || file.run(failed))?;
        self.readers.spawn(async move {
            read.await
                .map_err(|_| SourceError::Invalid("the reader of a file ended in a bug; please report it".to_owned()))
        });
        Ok(failure)
    }
}

/// What the thread of a file works with.
pub(super) struct FileThread {
    pub(super) reader: Box<FileReader>,
    pub(super) assignment: Assignment,
    pub(super) sink: Sink,
    pub(super) stop: CancellationToken,
    pub(super) payloads: Payloads,
    pub(super) ends: Arc<Mutex<Ends>>,
    pub(super) counters: Arc<Counters>,
    pub(super) runtime: tokio::runtime::Handle,
}

impl FileThread {
    /// Delivers the file, then its end. The loop gets an error from `failed` when the end arrives.
    fn run(mut self, failed: oneshot::Sender<SourceError>) {
        match self.deliver() {
            Ok(()) => {}
            Err(Stop::Failed(error)) => drop(failed.send(error)),
            Err(Stop::Over) => return,
        }
        match (self.reader.lost_bytes(), self.reader.torn_bytes()) {
            (Some(bytes), _) => drop(lock(&self.ends).lost.insert(self.reader.name(), bytes)),
            (None, Some(bytes)) => drop(lock(&self.ends).torn.insert(self.reader.name(), bytes)),
            (None, None) => {}
        }
        // Tells the loop that this file delivers nothing more. The file may grow, so its shard is never ended in the
        // ledger.
        let _ = self.sink.blocking_send(Delivery::End(self.assignment));
    }

    /// Delivers the file up to its end, or to a signal.
    ///
    /// # Errors
    /// The file cannot be read to its end, or the run is over.
    pub(super) fn deliver(&mut self) -> Result<(), Stop> {
        // Bytes read from a pipe are gone from it, so the pipe is read to its last complete line.
        while self.reader.is_gone() || !self.stop.is_cancelled() {
            let mut reserved = self.runtime.block_on(self.sink.budget.reserve(files::CHUNK_BYTES_MAX));
            // Whole milliseconds, as Kinesis gives them: Athena and Trino read no finer times of a Delta table.
            let now = chrono::Utc::now().timestamp_millis() * 1_000;
            let Some(mut chunk) = self.reader.next_chunk(now).map_err(Stop::Failed)? else { break };
            self.counters.handed(chunk.records.len());
            reserved.shrink_to(3 * chunk.bytes());
            let mut room = Reservation::none();
            if let Some(last) = chunk.records.last_mut().filter(|last| Payloads::concern(last)) {
                match self.fetch(last) {
                    Some(reserved) => room = reserved,
                    None => {
                        self.counters.dropped(chunk.records.len() as u64);
                        break;
                    }
                }
            }
            let chunk = Delivery::Chunk(self.assignment.clone(), chunk, [reserved, room]);
            self.sink.blocking_send(chunk).map_err(|_| Stop::Over)?;
        }
        Ok(())
    }

    /// Fetches the payloads of a record. Returns their reservation, or `None` after a stop.
    fn fetch(&self, record: &mut Record) -> Option<Reservation> {
        self.runtime.block_on(async {
            let fetch = async {
                let room = self.payloads.reserve().await;
                self.payloads.fetch(record).await;
                room
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !self.reader.is_gone() => None,
                room = fetch => Some(room),
            }
        })
    }
}

/// Reason why a file was not delivered to its end.
pub(super) enum Stop {
    Failed(SourceError),
    /// The run is over.
    Over,
}
