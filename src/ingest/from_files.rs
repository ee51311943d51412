//! Files, one after the other.
//!
//! Each file is opened and read by a thread of its own, because either may wait for a pipe for ever. The runtime's blocking
//! threads decode and write; a reader must not take one of them, or with too few of them it would wait for its own rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{IngestError, Opened, ReadOptions, Reading, Run, Turn};
use crate::budget::Reservation;
use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::payload::Payloads;
use crate::source::files::{FileReader, shown};
use crate::source::{Delivery, Hold, SourceError, files};

/// How the files ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Ends {
    /// Files whose last line was left for the next run, and its bytes.
    pub torn: BTreeMap<String, usize>,
    /// Files that could not be read to their end, and why.
    pub unreadable: BTreeMap<String, String>,
    /// Bytes that were read, are not in the lake, and cannot be read again.
    pub lost: BTreeMap<String, u64>,
}

/// Positions of all shards of files: those of the lake, and those that this run has received.
type Positions = Arc<Mutex<BTreeMap<ShardKey, SequenceNumber>>>;

pub(super) fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work on a thread of its own.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, IngestError> {
    let (sender, result) = oneshot::channel();
    // Nobody waits for it at the end of a run that was given up.
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

    /// A file has one reader; who finds that another ingest has it too stops, and says so.
    fn taken_over(&mut self) -> Result<(), IngestError> {
        self.foreign.pop_first().map_or(Ok(()), |shard| Err(IngestError::TakenOver(shard)))
    }

    /// Reads a file. What was read of it is in the buffers then, or committed.
    ///
    /// # Errors
    /// [`IngestError::Source`] if this file cannot be read to its end; anything else ends the run.
    async fn file(&mut self, path: &Path, positions: &Positions) -> Result<(), IngestError> {
        let (reader, fence) = loop {
            let Some(reader) = self.open(path, positions).await? else { return Ok(()) };
            if self.stopping && !reader.is_gone() {
                return Ok(());
            }
            let shard = reader.shard();
            if self.writer.fence_of(shard).is_some() {
                // Another file of this run was the beginning of this one: should this one be damaged, that one counts.
                self.flush().await?;
                self.taken_over()?;
            }
            if let Some(fence) = self.writer.fence_of(shard) {
                break (reader, fence);
            }
            let taken = self.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await?;
            let Some((_, state)) = taken.into_iter().next() else { return Err(IngestError::TakenOver(shard.clone())) };
            if state.position.as_ref() == reader.resumed_position() {
                break (reader, state.number);
            }
            // Another ingest has committed some of this file since its shard was looked up.
            if reader.is_gone() {
                return Err(IngestError::TakenOver(shard.clone()));
            }
            if let Some(position) = state.position {
                lock(positions).insert(shard.clone(), position);
            }
        };
        let shard = reader.shard().clone();
        self.counters.skipped_bytes(reader.resumed_at());
        let hold = Hold { shard: shard.clone(), fence };
        let reading = Reading { hold: hold.clone(), stop: CancellationToken::new() };
        self.reading.insert(shard.clone(), reading);
        let mut failed = self.read(reader, hold.clone())?;
        loop {
            let turn = self.turn(None).await?;
            self.taken_over()?;
            match turn {
                Turn::Ended(ended) if ended == hold => break,
                Turn::Over => break,
                _ => {}
            }
        }
        self.reading.remove(&shard);
        let failed = failed.try_recv().ok();
        if matches!(failed, Some(SourceError::Damaged { .. })) {
            // What came before the damage may be wrong, too. (What an earlier commit of a large file holds stays.)
            self.writer.drop_shard(&shard);
        }
        match self.writer.reached(&shard) {
            Some(position) => drop(lock(positions).insert(shard, position)),
            None => drop(lock(positions).remove(&shard)),
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Opens a file, while the loop goes on: what earlier files have left in the buffers has its own time.
    async fn open(&mut self, path: &Path, positions: &Positions) -> Result<Option<Box<FileReader>>, IngestError> {
        let (name, path, positions) = (shown(path), path.to_owned(), positions.clone());
        let options = ReadOptions::new(self.memory_bytes, self.stop.clone());
        let open = move || FileReader::open(&path, &options, |shard| lock(&positions).get(shard).cloned());
        self.opening = Some(on_thread(open)?);
        let opened = loop {
            let turn = self.turn(None).await?;
            self.taken_over()?;
            match turn {
                Turn::Opened(opened) => break opened?,
                Turn::Over => break super::opened(&mut self.opening).await??,
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

    /// Starts reading. What is returned tells, by the time that the file has ended, why that was too early.
    fn read(&mut self, mut reader: Box<FileReader>, hold: Hold) -> Result<oneshot::Receiver<SourceError>, IngestError> {
        let (failed, failure) = oneshot::channel();
        // The last reader of a run that was stopped keeps the only end: when it has stopped, the channel closes.
        let sink = if self.stopping { self.sink.take() } else { self.sink.clone() };
        let Some(sink) = sink else { return Ok(failure) };
        let stop = self.stop.clone();
        let (ends, counters) = (self.ends.clone(), self.counters.clone());
        let runtime = tokio::runtime::Handle::current();
        let read = move || {
            // What a pipe has given is gone there: it is read to its last whole line.
            while reader.is_gone() || !stop.is_cancelled() {
                let mut reserved = runtime.block_on(sink.budget.reserve(files::CHUNK_BYTES_MAX));
                let now = chrono::Utc::now().timestamp_micros();
                let mut chunk = match reader.next_chunk(now) {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break,
                    Err(error) => {
                        // The loop learns of it when the end of the file arrives.
                        let _ = failed.send(error);
                        break;
                    }
                };
                counters.handed(chunk.records.len());
                reserved.shrink_to(3 * chunk.bytes());
                let mut room = Reservation::none();
                if let Some(last) = chunk.records.last_mut().filter(|last| Payloads::concern(last)) {
                    let fetched = runtime.block_on(async {
                        let fetch = async {
                            room = sink.payloads.reserve().await;
                            sink.payloads.fetch(last).await;
                        };
                        tokio::select! {
                            biased;
                            () = stop.cancelled(), if !reader.is_gone() => false,
                            () = fetch => true,
                        }
                    });
                    if !fetched {
                        counters.dropped(chunk.records.len() as u64);
                        break;
                    }
                }
                if sink.blocking_send(Delivery::Chunk(hold.clone(), chunk, [reserved, room])).is_err() {
                    return;
                }
            }
            match (reader.lost_bytes(), reader.torn_bytes()) {
                (Some(bytes), _) => drop(lock(&ends).lost.insert(reader.name(), bytes)),
                (None, Some(bytes)) => drop(lock(&ends).torn.insert(reader.name(), bytes)),
                (None, None) => {}
            }
            // For the loop: nothing more comes of this file. It may grow, so its shard is never closed in the ledger.
            let _ = sink.blocking_send(Delivery::End(hold));
        };
        let read = on_thread(read)?;
        self.readers.spawn(async move {
            read.await
                .map_err(|_| SourceError::Invalid("the reader of a file ended in a bug; please report it".to_owned()))
        });
        Ok(failure)
    }
}
