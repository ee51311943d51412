//! Files, one after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{IngestError, Reading, Run, Turn};
use crate::budget::Reservation;
use crate::payload::Payloads;
use crate::source::{Delivery, Hold, SourceError, StartAt, files};

/// How the files ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Ends {
    /// Files whose last line was left for the next run, and its bytes.
    pub torn: BTreeMap<String, usize>,
    /// Files that could not be read to their end, and why.
    pub unreadable: BTreeMap<String, String>,
    /// Bytes of a line that a pipe had begun when a signal came.
    pub cut_off: usize,
}

impl Ends {
    /// Notes that a file cannot be read on. What was read before it counts.
    fn fail(ends: &Mutex<Self>, name: &str, error: SourceError) {
        let error = crate::terminal::chain(&error);
        tracing::error!(file = name, error, "cannot read a file to its end; the others are read");
        lock(ends).unreadable.insert(name.to_owned(), error);
    }
}

pub(super) fn lock(ends: &Mutex<Ends>) -> std::sync::MutexGuard<'_, Ends> {
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    pub(super) async fn files(mut self, paths: Vec<PathBuf>) -> Result<(), IngestError> {
        let is_alone = paths.len() == 1;
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
            let name = path.display().to_string();
            let stop = self.stop.clone();
            let open = move || files::FileReader::open(&path, &stop, |shard| positions.get(shard).cloned());
            let opened = tokio::task::spawn_blocking(open).await.map_err(IngestError::task)?;
            let reader = match opened {
                Ok(Some(reader)) => reader,
                Ok(None) => continue,
                Err(error) if is_alone => return Err(error.into()),
                Err(error) => {
                    Ends::fail(&self.ends, &name, error);
                    continue;
                }
            };
            let shard = reader.shard().clone();
            self.counters.skipped_bytes(reader.resumed_at());
            let fence = match self.writer.fence_of(&shard) {
                Some(fence) => fence,
                None => {
                    let taken = self.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await?;
                    taken.first().map_or(0, |(_, state)| state.number)
                }
            };
            let hold = Hold { shard: shard.clone(), fence };
            let reading = Reading { hold: hold.clone(), stop: CancellationToken::new() };
            self.reading.insert(shard.clone(), reading);
            self.read_file(reader, hold.clone());
            loop {
                let turn = self.turn(None).await?;
                // A file has one reader; who finds that another ingest has it too stops, and says so.
                if let Some(shard) = self.foreign.pop_first() {
                    return Err(IngestError::TakenOver(shard));
                }
                match turn {
                    Turn::Ended(ended) if ended == hold => break,
                    Turn::Over => break,
                    _ => {}
                }
            }
            self.reading.remove(&shard);
        }
        self.finish().await?;
        match self.foreign.pop_first() {
            Some(shard) => Err(IngestError::TakenOver(shard)),
            None => Ok(()),
        }
    }

    fn read_file(&mut self, mut reader: files::FileReader, hold: Hold) {
        let Some(sink) = self.sink.clone() else { return };
        let stop = self.stop.clone();
        let ends = self.ends.clone();
        let runtime = tokio::runtime::Handle::current();
        self.readers.spawn_blocking(move || {
            loop {
                // What a pipe has given is gone there: it is read to its last whole line.
                if stop.is_cancelled() && !reader.is_pipe() {
                    break;
                }
                let mut reserved = runtime.block_on(sink.budget.reserve(files::CHUNK_BYTES_MAX));
                let now = chrono::Utc::now().timestamp_micros();
                let mut chunk = match reader.next_chunk(now) {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break,
                    Err(error) => {
                        Ends::fail(&ends, reader.name(), error);
                        break;
                    }
                };
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
                            () = stop.cancelled() => false,
                            () = fetch => true,
                        }
                    });
                    if !fetched {
                        break;
                    }
                }
                if sink.blocking_send(Delivery::Chunk(hold.clone(), chunk, [reserved, room])).is_err() {
                    return Ok(());
                }
            }
            if let Some(bytes) = reader.torn_bytes() {
                let mut ends = lock(&ends);
                match reader.is_pipe() && stop.is_cancelled() {
                    true => ends.cut_off = bytes,
                    false => drop(ends.torn.insert(reader.name().to_owned(), bytes)),
                }
            }
            // For the loop: nothing more comes of this file. It may grow, so its shard is never closed in the ledger.
            let _ = sink.blocking_send(Delivery::End(hold));
            Ok(())
        });
    }
}
