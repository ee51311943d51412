//! From decoded chunks to commits: the buffers, the files written for them, and the two ledgers.
//!
//! # Order of a flush
//! 1. every buffered partition becomes a file, put-if-absent, named for the commit that will list it;
//! 2. rejects are committed to the quarantine, with its own position;
//! 3. files and positions are committed to `sync_records`.
//!
//! # Crash consistency
//! A crash before 3 leaves files that nobody lists (swept after the next fence) and perhaps rejects that are ahead of
//! the main position. Their records come again; **invariant: a record that the quarantine holds is skipped**, whatever
//! a second decoding would make of it, so it is never in both places.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate};
use deltalake::kernel::Add;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::task::JoinSet;

use super::decoding::{Decoded, rejected_bytes};
use super::{Counters, IngestError};
use crate::batch::columns::Sorted;
use crate::batch::{Batches, Limits, Partition, PartitionKey, Rejected};
use crate::budget::Reservation;
use crate::lake::ledger::{Ledger, Outcome, ShardState, Step, new_token};
use crate::lake::parquet::{add, delta_statistics, encode_batches, encode_sorted, row_count_statistics};
use crate::lake::paths::{PartName, pool_partition, sync_records_partition};
use crate::lake::tables::Table;
use crate::lake::{LakeError, Store, snapshot, sweep};
use crate::source::{SequenceNumber, ShardKey, StartAt};

/// How long one file is tried, beyond the store's own retries.
const PUT_PATIENCE: Duration = Duration::from_secs(600);

/// What this worker holds of a shard.
#[derive(Debug)]
struct Held {
    state: ShardState,
    quarantine: ShardState,
    /// The position once everything received so far is committed.
    reached: Option<SequenceNumber>,
    /// Written and not committed.
    files: Vec<Add>,
    next_file: u64,
    rejected: Vec<Rejected>,
    skip: Arc<HashSet<SequenceNumber>>,
}

/// How a flush ended.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Shards that are committed to their end now.
    pub ended: Vec<ShardKey>,
    /// Shards that belong to another worker now.
    pub fenced: Vec<ShardKey>,
}

/// The writing half of ingest.
#[derive(Debug)]
pub struct Writer {
    lake: Store,
    ledger: Ledger,
    quarantine: Ledger,
    limits: Limits,
    token: u64,
    held: BTreeMap<ShardKey, Held>,
    batches: Batches,
    reserved: Reservation,
    rejected_bytes: usize,
    counters: Arc<Counters>,
    encoders: usize,
    /// Sweeps and checkpoints of the log, beside the work.
    chores: JoinSet<()>,
}

impl Writer {
    /// Opens the ledgers, making the tables if they are not there.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn open(lake: Store, limits: Limits, counters: Arc<Counters>) -> Result<Self, IngestError> {
        let quarantine = Ledger::open(&lake, Table::Quarantine).await?;
        let ledger = Ledger::open(&lake, Table::SyncRecords).await?;
        Ok(Self {
            lake,
            ledger,
            quarantine,
            limits,
            token: new_token(),
            held: BTreeMap::new(),
            batches: Batches::default(),
            reserved: Reservation::none(),
            rejected_bytes: 0,
            counters,
            encoders: std::thread::available_parallelism().map_or(2, usize::from),
            chores: JoinSet::new(),
        })
    }

    /// All shards of a stream in the ledger, as they were when it was last read.
    pub fn shards(&self, stream: &str) -> Vec<(ShardKey, ShardState)> {
        self.ledger.shards(stream)
    }

    /// The position up to which a shard was received, committed or not.
    pub fn reached(&self, shard: &ShardKey) -> Option<SequenceNumber> {
        let held = self.held.get(shard).and_then(|held| held.reached.clone());
        held.or_else(|| self.ledger.state(shard)?.position)
    }

    /// Whether this worker has taken the shard over.
    pub fn holds(&self, shard: &ShardKey) -> bool {
        self.held.contains_key(shard)
    }

    /// Records of a shard that the quarantine holds already.
    pub fn skip(&self, shard: &ShardKey) -> Arc<HashSet<SequenceNumber>> {
        self.held.get(shard).map(|held| held.skip.clone()).unwrap_or_default()
    }

    /// Takes shards over and returns where to read on. Earlier owners can commit nothing from here on.
    ///
    /// # Errors
    /// The lake cannot be read or written.
    pub async fn acquire(
        &mut self,
        shards: &[(ShardKey, StartAt)],
    ) -> Result<Vec<(ShardKey, ShardState)>, IngestError> {
        let mut quarantine = self.quarantine.fence(shards, self.token).await?;
        let fenced = self.ledger.fence(shards, self.token).await?;
        let fences = fenced.iter().map(|(shard, state)| (shard.clone(), state.number)).collect();
        let quarantine_fences = quarantine.iter().map(|(shard, state)| (shard.clone(), state.number)).collect();
        self.sweep(Table::SyncRecords, fences);
        self.sweep(Table::Quarantine, quarantine_fences);
        for (shard, state) in &fenced {
            let Some(quarantine) = quarantine.remove(shard) else { continue };
            let ahead = quarantine.position.is_some() && quarantine.position > state.position;
            let skip = if ahead { quarantined(&self.lake, shard).await? } else { HashSet::new() };
            let held = Held {
                state: state.clone(),
                quarantine,
                reached: None,
                files: Vec::new(),
                next_file: 0,
                rejected: Vec::new(),
                skip: Arc::new(skip),
            };
            self.held.insert(shard.clone(), held);
        }
        Ok(fenced.into_iter().collect())
    }

    /// Waits for what runs beside the work.
    pub async fn finish(mut self) {
        while self.chores.join_next().await.is_some() {}
    }

    /// Sweeps beside the work: nothing waits for it, and nothing depends on it.
    fn sweep(&mut self, table: Table, fences: BTreeMap<ShardKey, u64>) {
        let store = table.store(&self.lake);
        self.chores.spawn(async move {
            match sweep::sweep(&store, &fences).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(table = table.name(), files, "deleted files that no commit lists"),
                Err(error) => tracing::warn!(table = table.name(), error = %error, "cannot sweep; leftovers stay"),
            }
        });
    }

    /// Takes a decoded chunk. Chunks of a shard come in order.
    ///
    /// # Errors
    /// A file that had to make room cannot be written.
    pub async fn add(&mut self, decoded: Decoded, mut reserved: Reservation, now: Instant) -> Result<(), IngestError> {
        let Some(held) = self.held.get_mut(&decoded.shard) else { return Ok(()) };
        reserved.shrink_to(decoded.bytes());
        self.reserved.merge(reserved);
        held.reached = Some(decoded.position);
        self.rejected_bytes += decoded.rejected.iter().map(rejected_bytes).sum::<usize>();
        held.rejected.extend(decoded.rejected);
        self.batches.note(decoded.record_bytes, now);
        let full: Vec<_> =
            decoded.partitions.into_iter().filter_map(|(key, rows)| self.batches.add(key, rows)).collect();
        self.write(full).await?;
        self.counters.buffered(self.buffered());
        if self.buffered() >= self.limits.mark_bytes {
            let largest = self.batches.take_largest(self.limits.mark_bytes * 3 / 5);
            self.write(largest).await?;
            self.reserved.shrink_to(self.buffered());
        }
        Ok(())
    }

    /// Notes that a shard was received to its end.
    pub fn end(&mut self, shard: &ShardKey, now: Instant) {
        if let Some(held) = self.held.get_mut(shard) {
            held.reached = Some(SequenceNumber::shard_end());
            self.batches.note(0, now);
        }
    }

    /// Whether something waits for a commit.
    pub fn is_dirty(&self) -> bool {
        self.held.values().any(|held| held.reached.is_some())
    }

    /// When the oldest of what waits must be committed.
    pub fn due(&self) -> Option<Instant> {
        self.batches.due(&self.limits)
    }

    /// Whether so much waits that it must be committed now.
    pub fn is_due(&self) -> bool {
        self.batches.is_due(&self.limits) || self.rejected_bytes >= self.limits.mark_bytes / 2
    }

    fn buffered(&self) -> usize {
        self.batches.bytes() + self.rejected_bytes
    }

    /// Writes and commits everything that was received.
    ///
    /// # Errors
    /// The lake cannot be written. What was received is not lost: it is read again from the last commit.
    pub async fn flush(&mut self) -> Result<Flushed, IngestError> {
        let mut flushed = Flushed::default();
        if !self.is_dirty() {
            return Ok(flushed);
        }
        let all = self.batches.take_all();
        self.write(all).await?;
        self.commit_quarantine(&mut flushed).await?;
        self.commit_files(&mut flushed).await?;
        self.reserved.shrink_to(self.buffered());
        self.counters.buffered(self.buffered());
        Ok(flushed)
    }

    async fn write(&mut self, partitions: Vec<(PartitionKey, Partition)>) -> Result<(), IngestError> {
        let mut jobs = Vec::new();
        for (key, partition) in partitions {
            let Some(held) = self.held.get_mut(&key.shard) else { continue };
            if partition.is_empty() {
                continue;
            }
            let name = PartName::new(&key.shard, self.token, held.state.number + 1, held.next_file);
            held.next_file += 1;
            jobs.push((key, partition, name));
        }
        let store = Table::SyncRecords.store(&self.lake);
        let written = futures::stream::iter(jobs)
            .map(|(key, partition, name)| {
                let store = store.clone();
                async move {
                    let shard = key.shard.clone();
                    let pool = pool_partition(&key.identity_pool_id);
                    let path = format!("{}/{name}", sync_records_partition(&pool, key.event_date));
                    let values = [("pool", pool), ("event_date", key.event_date.to_string())];
                    let encode_path = path.clone();
                    let (bytes, statistics) = tokio::task::spawn_blocking(move || {
                        let sorted = Sorted::new(key, partition);
                        let encoded = encode_sorted(&sorted);
                        encoded
                            .map(|bytes| (bytes, delta_statistics(&sorted.statistics())))
                            .map_err(|source| LakeError::Parquet { action: "encode", path: encode_path, source })
                    })
                    .await
                    .map_err(IngestError::task)??;
                    let size = bytes.len();
                    put_file(&store, &path, bytes).await?;
                    let now_ms = chrono::Utc::now().timestamp_millis();
                    Ok::<_, IngestError>((shard, add(path, &values, size, now_ms, statistics)))
                }
            })
            .buffer_unordered(self.encoders)
            .try_collect::<Vec<_>>()
            .await?;
        for (shard, file) in written {
            self.counters.file(u64::try_from(file.size).unwrap_or(0));
            if let Some(held) = self.held.get_mut(&shard) {
                held.files.push(file);
            }
        }
        Ok(())
    }

    async fn commit_quarantine(&mut self, flushed: &mut Flushed) -> Result<(), IngestError> {
        let store = Table::Quarantine.store(&self.lake);
        let mut rejects = 0;
        loop {
            let mut files = Vec::new();
            let mut steps = Vec::new();
            for (shard, held) in self.held.iter().filter(|(_, held)| !held.rejected.is_empty()) {
                let next = ShardState {
                    number: held.quarantine.number + 1,
                    position: held.reached.clone(),
                    ..held.quarantine.clone()
                };
                for (index, (date, rows)) in (0..).zip(by_arrival(&held.rejected)) {
                    let name = PartName::new(shard, self.token, next.number, index);
                    let path = format!("arrived_date={date}/{name}");
                    let bytes = encode_rejected(shard, &rows).map_err(|source| LakeError::Parquet {
                        action: "encode",
                        path: path.clone(),
                        source,
                    })?;
                    let size = bytes.len();
                    put_file(&store, &path, bytes).await?;
                    let now_ms = chrono::Utc::now().timestamp_millis();
                    let values = [("arrived_date", date.to_string())];
                    files.push(add(path, &values, size, now_ms, row_count_statistics(rows.len())));
                }
                rejects += held.rejected.len();
                steps.push(Step { shard: shard.clone(), expected: Some(held.quarantine.clone()), next });
            }
            if steps.is_empty() {
                return Ok(());
            }
            match self.quarantine.commit(files, &steps).await? {
                Outcome::Committed { version, .. } => {
                    tracing::info!(version, rejects, "quarantined records");
                    for step in steps {
                        if let Some(held) = self.held.get_mut(&step.shard) {
                            held.quarantine = step.next;
                            for rejected in std::mem::take(&mut held.rejected) {
                                self.counters.quarantined(rejected.reason);
                            }
                        }
                    }
                    self.rejected_bytes = 0;
                    self.checkpoint(Table::Quarantine, version);
                    return Ok(());
                }
                Outcome::Fenced(shards) => self.drop_shards(shards, flushed),
            }
        }
    }

    async fn commit_files(&mut self, flushed: &mut Flushed) -> Result<(), IngestError> {
        loop {
            let mut files = Vec::new();
            let mut steps = Vec::new();
            for (shard, held) in &self.held {
                let Some(reached) = &held.reached else { continue };
                files.extend(held.files.iter().cloned());
                let next =
                    ShardState { number: held.state.number + 1, position: Some(reached.clone()), ..held.state.clone() };
                steps.push(Step { shard: shard.clone(), expected: Some(held.state.clone()), next });
            }
            if steps.is_empty() {
                return Ok(());
            }
            let count = files.len();
            match self.ledger.commit(files, &steps).await? {
                Outcome::Committed { version, conflicts } => {
                    tracing::info!(version, files = count, shards = steps.len(), conflicts, "committed");
                    self.counters.committed(version);
                    for step in steps {
                        if step.next.position.as_ref().is_some_and(SequenceNumber::is_shard_end) {
                            self.held.remove(&step.shard);
                            flushed.ended.push(step.shard);
                        } else if let Some(held) = self.held.get_mut(&step.shard) {
                            held.state = step.next;
                            held.reached = None;
                            held.files.clear();
                            held.next_file = 0;
                        }
                    }
                    self.checkpoint(Table::SyncRecords, version);
                    return Ok(());
                }
                Outcome::Fenced(shards) => self.drop_shards(shards, flushed),
            }
        }
    }

    /// Forgets shards that another worker took over. Their files stay behind unlisted; the other worker sweeps.
    fn drop_shards(&mut self, shards: Vec<ShardKey>, flushed: &mut Flushed) {
        for shard in shards {
            tracing::warn!(shard = %shard, "another worker took this shard over; what was read of it here is dropped");
            self.batches.drop_shard(&shard);
            if let Some(held) = self.held.remove(&shard) {
                self.rejected_bytes -= held.rejected.iter().map(rejected_bytes).sum::<usize>();
            }
            flushed.fenced.push(shard);
        }
    }

    /// A checkpoint of the log now and then. Without one the table is as whole, and slower to open.
    fn checkpoint(&mut self, table: Table, version: u64) {
        if Ledger::checkpoint_due(version) {
            let store = table.store(&self.lake);
            self.chores.spawn(async move {
                if let Err(error) = snapshot::checkpoint(&store).await {
                    tracing::warn!(table = table.name(), version, error = %error, "cannot write a checkpoint of the log");
                }
            });
        }
    }
}

/// Writes a data file under a name that only this attempt can have.
async fn put_file(store: &Store, path: &str, bytes: Bytes) -> Result<(), IngestError> {
    let began = tokio::time::Instant::now();
    let mut pause_ms = 200;
    loop {
        let error = match store.put_new(path, bytes.clone()).await {
            // The name holds our token and a number that is never used twice: what exists is what we wrote.
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => return Ok(()),
            Err(error) => error,
        };
        let hopeless =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
        if hopeless || store.is_local() || began.elapsed() > PUT_PATIENCE {
            let path = format!("{}{path}", store.url());
            return Err(LakeError::Storage { action: "write", path, source: error }.into());
        }
        tracing::warn!(path, error = %error, "cannot write a file, trying again");
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (pause_ms * 2).min(10_000);
    }
}

fn by_arrival(rejected: &[Rejected]) -> BTreeMap<NaiveDate, Vec<&Rejected>> {
    let mut found: BTreeMap<NaiveDate, Vec<&Rejected>> = BTreeMap::new();
    for reject in rejected {
        let date = DateTime::from_timestamp_micros(reject.arrived_at).unwrap_or_default().date_naive();
        found.entry(date).or_default().push(reject);
    }
    found
}

fn encode_rejected(shard: &ShardKey, rows: &[&Rejected]) -> Result<Bytes, parquet::errors::ParquetError> {
    let text = |value: fn(&Rejected) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(|r| value(r))));
    let batch = RecordBatch::try_new(
        Table::Quarantine.file_schema(),
        vec![
            Arc::new(StringArray::from(vec![shard.stream(); rows.len()])),
            Arc::new(StringArray::from(vec![shard.shard(); rows.len()])),
            text(|r| r.sequence_number.as_str()),
            Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.sub_sequence))),
            Arc::new(
                TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.arrived_at)).with_timezone("UTC"),
            ),
            text(|r| r.reason.as_str()),
            text(|r| &r.detail),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.raw))),
        ],
    )?;
    encode_batches(batch.schema(), std::slice::from_ref(&batch))
}

/// Sequence numbers of a shard that the quarantine holds.
async fn quarantined(lake: &Store, shard: &ShardKey) -> Result<HashSet<SequenceNumber>, LakeError> {
    let store = Table::Quarantine.store(lake);
    let Some(loaded) = snapshot::load(&store, None).await? else { return Ok(HashSet::new()) };
    let mut found = HashSet::new();
    for path in snapshot::live_files(&store, &loaded).await? {
        let name = path.rsplit('/').next().and_then(PartName::parse);
        if name.is_none_or(|name| name.shard != shard.to_string()) {
            continue;
        }
        let Some(bytes) = store.get(&path).await? else {
            let path = format!("{}{path}", store.url());
            return Err(LakeError::Log { path, reason: "the log lists this file and it is not there".to_owned() });
        };
        let fail = |source| LakeError::Parquet { action: "decode", path: path.clone(), source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(fail)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["sequence_number"]);
        for batch in builder.with_projection(mask).build().map_err(fail)? {
            let batch = batch.map_err(|e| fail(e.into()))?;
            let numbers = batch.column(0).as_string::<i32>();
            found.extend(numbers.iter().flatten().filter_map(SequenceNumber::parse));
        }
    }
    Ok(found)
}
