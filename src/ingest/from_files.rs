//! Files, one after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::{IngestError, Reading, Run, Turn};
use crate::budget::Reservation;
use crate::payload::Payloads;
use crate::source::{Delivery, Hold, StartAt, files};

impl Run {
    pub(super) async fn files(mut self, paths: Vec<PathBuf>) -> Result<(), IngestError> {
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
            let fence = match self.writer.fence_of(&shard) {
                Some(fence) => fence,
                None => {
                    let taken = self.writer.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await?;
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
        let torn = self.torn.clone();
        let runtime = tokio::runtime::Handle::current();
        self.readers.spawn_blocking(move || {
            loop {
                if stop.is_cancelled() {
                    break;
                }
                let mut reserved = runtime.block_on(sink.budget.reserve(files::CHUNK_BYTES_MAX));
                let now = chrono::Utc::now().timestamp_micros();
                let Some(mut chunk) = reader.next_chunk(now)? else { break };
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
            if let (Some(bytes), Ok(mut torn)) = (reader.torn_bytes(), torn.lock()) {
                torn.push((reader.name().to_owned(), bytes));
            }
            // For the loop: nothing more comes of this file. It may grow, so its shard is never closed in the ledger.
            let _ = sink.blocking_send(Delivery::End(hold));
            Ok(())
        });
    }
}
