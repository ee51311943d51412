//! The three commits of a flush, in their order: quarantine, gaps, `sync_records`.

use super::rejects::{by_arrival, rejected_rows};
use super::{Flushed, OwnedShard, Writer, gaps};
use crate::batch::parquet::encode_batch;
use crate::ids::{SequenceNumber, ShardKey};
use crate::ingest::IngestError;
use crate::lake::LakeError;
use crate::lake::data_file;
use crate::lake::ledger::{Ledger, Outcome, ShardState, Step};
use crate::lake::paths::PartName;
use crate::schema::Table;

impl Writer {
    pub(super) async fn commit_quarantine(&mut self, flushed: &mut Flushed) -> Result<(), IngestError> {
        let store = Table::Quarantine.store(&self.lake);
        loop {
            let mut rejects = 0;
            let mut files = Vec::new();
            let mut steps = Vec::new();
            for (shard, held) in self.held.iter().filter(|(_, held)| !held.rejected.is_empty()) {
                let next = ShardState {
                    epoch: held.quarantine.epoch + 1,
                    position: held.reached.clone(),
                    ..held.quarantine.clone()
                };
                for (index, (date, rows)) in (0..).zip(by_arrival(&held.rejected)) {
                    let name = PartName::new(shard, self.token, next.epoch, index);
                    let path = format!("arrived_date={date}/{name}");
                    let rows = rejected_rows(shard, &rows).map_err(|source| LakeError::Parquet {
                        action: "encode",
                        path: path.clone(),
                        source,
                    })?;
                    let values = [("arrived_date", date.to_string())];
                    let encoded = data_file::encode(&store, &path, move || encode_batch(&rows)).await?;
                    files.push(data_file::write(&store, path, &values, encoded).await?);
                }
                rejects += held.rejected.len();
                steps.push(Step { shard: shard.clone(), expected: Some(held.quarantine.clone()), next });
            }
            if steps.is_empty() {
                return Ok(());
            }
            match self.quarantine.commit(files, &steps).await? {
                Outcome::Committed { version, conflicts } => {
                    tracing::info!(version, rejects, conflicts, "quarantined records");
                    self.counters.conflicts(conflicts);
                    for step in steps {
                        if let Some(held) = self.held.get_mut(&step.shard) {
                            held.quarantine = step.next;
                            for rejected in std::mem::take(&mut held.rejected) {
                                self.counters.quarantined(rejected.reason);
                            }
                        }
                    }
                    self.rejected_bytes = 0;
                    self.checkpoint(Table::Quarantine);
                    return Ok(());
                }
                Outcome::Fenced(shards) => self.drop_shards(shards, flushed),
            }
        }
    }

    /// Commits the gaps, before the position moves past them. A crash between the two commits repeats no gap: the gap
    /// ledger holds, for each shard, the record before its last gap and the start of that gap. (Two gaps may follow one
    /// record, if nothing was read between them.)
    pub(super) async fn commit_gaps(&mut self) -> Result<(), IngestError> {
        if self.held.values().all(|held| held.gaps.is_empty()) {
            return Ok(());
        }
        let mut ledger = Ledger::open(&self.lake, Table::Gaps).await?;
        let store = Table::Gaps.store(&self.lake);
        for (shard, held) in &mut self.held {
            for gap in std::mem::take(&mut held.gaps) {
                loop {
                    let expected = ledger.state(shard);
                    let told = match gap.whole_rest {
                        false => gap.after.clone().unwrap_or_else(|| SequenceNumber::from_u64(0)),
                        true => SequenceNumber::shard_end(),
                    };
                    // Only the same gap counts, not an earlier one: after a kill, a run may resume at less than the
                    // killed run had read.
                    let is_known = |known: &ShardState| {
                        known.position.as_ref() == Some(&told) && known.read_to_ms == gap.arrived_from_ms
                    };
                    if expected.as_ref().is_some_and(is_known) {
                        break;
                    }
                    let epoch = expected.as_ref().map_or(0, |known| known.epoch) + 1;
                    let path = PartName::new(shard, self.token, epoch, 0).to_string();
                    let row = gaps::row(shard, &gap).map_err(|source| LakeError::Parquet {
                        action: "encode",
                        path: path.clone(),
                        source,
                    })?;
                    let encoded = data_file::encode(&store, &path, move || encode_batch(&row)).await?;
                    let file = data_file::write(&store, path, &[], encoded).await?;
                    let next = ShardState {
                        epoch,
                        position: Some(told),
                        owner: self.token,
                        read_to_ms: gap.arrived_from_ms,
                        ..held.state.clone()
                    };
                    let step = Step { shard: shard.clone(), expected, next };
                    if let Outcome::Committed { version, .. } = ledger.commit(vec![file], &[step]).await? {
                        tracing::error!(
                            shard = %shard, version, after = gap.after.as_ref().map(SequenceNumber::as_str),
                            "{}; see the table gaps, and publish the data again in bulk", gap.cause.description()
                        );
                        self.counters.gap();
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) async fn commit_files(&mut self, flushed: &mut Flushed) -> Result<(), IngestError> {
        loop {
            let mut files = Vec::new();
            let mut steps = Vec::new();
            for (shard, held) in self.held.iter().filter(|(_, held)| held.moves()) {
                files.extend(held.files.iter().cloned());
                steps.push(Step { shard: shard.clone(), expected: Some(held.state.clone()), next: held.next() });
            }
            if steps.is_empty() {
                return Ok(());
            }
            let count = files.len();
            let began = std::time::Instant::now();
            match self.ledger.commit(files, &steps).await? {
                Outcome::Committed { version, conflicts } => {
                    tracing::info!(version, files = count, shards = steps.len(), conflicts, "committed");
                    self.counters.committed(version, began.elapsed());
                    self.counters.conflicts(conflicts);
                    steps.into_iter().for_each(|step| self.committed(step, flushed));
                    self.checkpoint(Table::SyncRecords);
                    return Ok(());
                }
                Outcome::Fenced(shards) => self.drop_shards(shards, flushed),
            }
        }
    }

    fn committed(&mut self, step: Step, flushed: &mut Flushed) {
        let Step { shard, next, .. } = step;
        let work = self.held.get_mut(&shard).map(|held| std::mem::take(&mut held.work)).unwrap_or_default();
        self.counters.shard_committed(&shard, work);
        if let Some(position) = &next.position {
            flushed.reached.push((shard.clone(), position.clone()));
        }
        if SequenceNumber::is_end_of(&next.position) {
            self.held.remove(&shard);
            self.counters.shard_gone(&shard);
            flushed.ended.push(shard);
        } else if let Some(held) = self.held.get_mut(&shard) {
            held.state = next;
            held.reached = None;
            held.ends_run = false;
            held.files.clear();
            held.next_file = 0;
        }
    }

    /// Forgets shards that other workers took over. Their files stay unlisted; the new owner sweeps them.
    fn drop_shards(&mut self, shards: Vec<ShardKey>, flushed: &mut Flushed) {
        for shard in shards {
            tracing::warn!(shard = %shard, "lost the shard to another worker; its uncommitted records are dropped");
            self.drop_shard(&shard);
            flushed.fenced.push(shard);
        }
    }
}

impl OwnedShard {
    /// Returns whether there is something to commit: records, or a watermark without records.
    pub(super) fn moves(&self) -> bool {
        self.reached.is_some() || self.is_quiet_for_long() || self.ends_run
    }

    fn next(&self) -> ShardState {
        ShardState {
            epoch: self.state.epoch + 1,
            position: self.reached.clone().or_else(|| self.state.position.clone()),
            read_to_ms: self.read_to_ms.max(self.state.read_to_ms),
            parts_done: if self.reached.is_some() { 0 } else { self.state.parts_done },
            ..self.state.clone()
        }
    }
}
