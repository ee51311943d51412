//! Refreshes the maintained state up to the newest version of `sync_records`.
//!
//! A refresh reads the files that were added since the covered version. Of the state, it reads the files that hold an
//! identity of those rows; the other files stay unchanged. The result becomes one commit, which records the version it
//! covers.
//!
//! # Invariants
//! - The files and the covered version change in one commit, for the version that follows the one that was read. Of two
//!   concurrent refreshes one succeeds, and the other starts again.
//! - Rows that left by retention stay in the state as long as they are the latest changes of their keys, also if the state
//!   is computed anew (`query/reading.rs`).
//! - A file is named for the commit that would list it, `state-<version>-…`. So files of a killed run are known to be
//!   dead as soon as that version is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::prelude::{SessionContext, col};
use deltalake::kernel::{Add, Remove};
use futures::StreamExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::batch::parquet::{StateWriter, conform};
use crate::failpoint;
use crate::lake::expired::Expired;
use crate::lake::ledger::new_token;
use crate::lake::snapshot::{self, ActiveFile};
use crate::lake::{LakeError, Store, data_file, log, manifest, replace};
use crate::query::reading::{self, COVERS, REFRESHED, Reading};
use crate::query::{Limits, QueryError, session};
use crate::schema::Table;

use super::REBUILD;
use super::ranges::{self, PoolRows, Wanted};

/// Encoded bytes of one file of the state.
const FILE_BYTES: usize = 64 << 20;
/// A file of fewer rows is rewritten along with its pool, so that small files do not accumulate.
const FILE_ROWS_MIN: u64 = 50_000;

/// Checks that a refresh may write the table `state`, if there is one. A command that ends with a refresh asks before it
/// writes anything.
///
/// # Errors
/// The table requires what this version does not support, or its log cannot be read.
pub async fn check(lake: &Store) -> Result<(), LakeError> {
    let store = Table::State.store(lake);
    match log::read_transactions(&store).await? {
        Some(known) => known.admit(Table::State, &store, true),
        None => Ok(()),
    }
}

/// The advice for an unreadable table `state` that alone holds rows.
const DAMAGED: &str = "cannot read the table state, which alone holds rows that left sync_records by retention; restore \
                       its files from a backup, or give up the keys whose last change has left: `synclake refresh \
                       --rebuild --accept-loss`";

/// The reason why a refresh failed. The state is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// An error of the lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// An error of the query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The caller wanted an end.
    #[error("the refresh was stopped; run it again")]
    Stopped,
}

impl From<datafusion::error::DataFusionError> for RefreshError {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::Query(error.into())
    }
}

/// The result of a refresh.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct RefreshReport {
    /// The version of `sync_records` that the state covers now.
    pub covers: u64,
    /// The version that the state covered before, if any.
    pub covered: Option<u64>,
    /// Files of `sync_records` that were read: those added in between.
    pub files_read: usize,
    /// Bytes of those files.
    pub bytes_read: u64,
    /// Files of the state that were rewritten.
    pub files_replaced: usize,
    /// Files that were written for them.
    pub files_written: usize,
    /// Rows of the written files.
    pub rows_written: u64,
    /// Files of the state now.
    pub files: usize,
    /// Version of the table `state`.
    pub version: u64,
}

/// Refreshes the state once. With `rebuild` it is computed from all rows, whatever the state holds. Of the state, only the
/// rows that left `sync_records` by retention are taken over.
///
/// # Errors
/// See [`RefreshError`]. Running again is always safe.
pub async fn run(lake: &Store, limits: &Limits, rebuild: bool) -> Result<RefreshReport, RefreshError> {
    run_until(lake, limits, rebuild, &CancellationToken::new()).await
}

/// Refreshes the state as [`run`] does, and gives up soon after `stop` is cancelled. A caller must not drop a refresh
/// instead: deltalake's threads panic when the loading of a table is dropped.
///
/// # Errors
/// [`RefreshError::Stopped`] if it gave up, and as [`run`].
pub async fn run_until(
    lake: &Store,
    limits: &Limits,
    rebuild: bool,
    stop: &CancellationToken,
) -> Result<RefreshReport, RefreshError> {
    refresh(lake, limits, if rebuild { Source::Rebuild } else { Source::StateAndTail }, stop).await
}

/// Computes the state from the rows of `sync_records` alone, also if rows have left by retention. The keys whose last
/// change has left are lost. This is the way out if the table `state` is lost.
///
/// # Errors
/// As [`run`], and if the state still holds the rows that left.
pub async fn run_and_accept_loss(lake: &Store, limits: &Limits) -> Result<RefreshReport, RefreshError> {
    let has_left = !Expired::read(&Table::SyncRecords.store(lake)).await?.is_empty();
    if has_left && Reading::load(lake).await.is_ok_and(|reading| reading.state.is_some()) {
        return Err(RefreshError::from(LakeError::Invalid(format!(
            "--accept-loss would give up keys of {lake} for nothing: the table state holds the rows that left by \
             retention; run `synclake refresh --rebuild`, which keeps them"
        ))));
    }
    refresh(lake, limits, Source::RowsAlone, &CancellationToken::new()).await
}

/// What a refresh computes the state from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    StateAndTail,
    /// All rows, and those rows of the state that have left `sync_records`.
    Rebuild,
    RowsAlone,
}

async fn refresh(
    lake: &Store,
    limits: &Limits,
    source: Source,
    stop: &CancellationToken,
) -> Result<RefreshReport, RefreshError> {
    loop {
        let mut reading = match source {
            Source::RowsAlone => Reading::of_records(lake, None).await?,
            Source::StateAndTail | Source::Rebuild => Reading::load(lake).await?,
        };
        going_on(stop)?;
        Table::State.ensure(lake).await?;
        let store = Table::State.store(lake);
        log::read_transactions(&store).await?.unwrap_or_default().admit(Table::State, &store, true)?;
        if source == Source::Rebuild {
            reading.rebuild(lake).await?;
        }
        if let Some(report) = (Run { lake, limits, reading, stop }).once().await? {
            // The refresh is committed. Files that cannot be deleted now are left to the next refresh.
            if let Err(error) = sweep(lake, report.version).await {
                tracing::warn!(%error, "left files of the state that no commit lists");
            }
            manifest::follow_commit(lake, Table::State).await;
            return Ok(report);
        }
        tracing::info!("another refresh was faster, looking again");
    }
}

struct Run<'a> {
    lake: &'a Store,
    limits: &'a Limits,
    reading: Reading,
    stop: &'a CancellationToken,
}

/// Fails if an end is wanted.
fn going_on(stop: &CancellationToken) -> Result<(), RefreshError> {
    if stop.is_cancelled() { Err(RefreshError::Stopped) } else { Ok(()) }
}

/// The inputs for rewriting a pool.
#[derive(Default)]
struct Pool {
    tail: BTreeSet<String>,
    tail_files: Vec<ActiveFile>,
    /// Files of the state, sorted by their lowest identity.
    files: Vec<StateFile>,
}

struct StateFile {
    living: ActiveFile,
    low: String,
    high: String,
    rows: u64,
    /// Whether the file may hold rows without an identity.
    has_nulls: bool,
    is_touched: bool,
}

impl Run<'_> {
    async fn once(self) -> Result<Option<RefreshReport>, RefreshError> {
        let covered = self.reading.state.as_ref().map(|state| state.covers);
        let store = Table::State.store(self.lake);
        // Without a covered version, the table may still hold files; they are replaced.
        let table = match &self.reading.state {
            Some(state) => Some(state.table.clone()),
            None => Table::State.load(self.lake, None).await?,
        };
        let table = table.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        let version = table.version().unwrap_or(0);
        let mut report = RefreshReport { covers: self.reading.version, covered, version, ..RefreshReport::default() };
        let old = snapshot::files(&store, &table).await?;
        report.files = old.len();
        let only = self.reading.state.as_ref().and_then(|state| state.only.as_ref());
        if covered == Some(self.reading.version) && only.is_none() {
            return Ok(Some(report));
        }
        let records = Table::SyncRecords.store(self.lake);
        let records = snapshot::files(&records, &self.reading.sync_records).await?;
        let mut pools: BTreeMap<String, Pool> = BTreeMap::new();
        for file in records.into_iter().filter(|f| self.reading.tail.as_ref().is_none_or(|tail| tail.contains(&f.path)))
        {
            report.files_read += 1;
            report.bytes_read = report.bytes_read.saturating_add(file.size);
            let pool = pools.entry(pool_of(&file)).or_default();
            pool.tail.insert(file.path.clone());
            pool.tail_files.push(file);
        }
        let mut removes = self.sort_state_files(old, &mut pools);
        let mut adds = Vec::new();
        for (name, mut pool) in pools {
            self.rewrite(&name, &mut pool, version + 1, &mut adds).await?;
            let touched = pool.files.into_iter().filter(|file| file.is_touched);
            removes.extend(touched.map(|file| file.living.remove));
        }
        report.files_replaced = removes.len();
        report.files_written = adds.len();
        report.files = report.files - removes.len() + adds.len();
        report.rows_written = adds.iter().filter_map(rows_of).sum();
        report.version = version + 1;
        let id = |name: &str, version: u64| Ok::<_, LakeError>((name.to_owned(), log::id_value(version)?));
        let covers = vec![id(COVERS, self.reading.version)?, id(REFRESHED, version + 1)?];
        failpoint::hit("refresh/before");
        let done = replace::commit_version(self.lake, Table::State, version + 1, removes, adds, covers).await?;
        failpoint::hit("refresh/after");
        Ok(done.then_some(report))
    }

    /// Gives the files of the state to their pools. Returns the `remove` actions of those whose rows do not count.
    fn sort_state_files(&self, old: Vec<ActiveFile>, pools: &mut BTreeMap<String, Pool>) -> Vec<Remove> {
        let mut removes = Vec::new();
        let is_known = self.reading.state.is_some();
        let only = self.reading.state.as_ref().and_then(|state| state.only.as_ref());
        for file in old {
            let name = pool_of(&file);
            if let Some(expired) = only {
                // All files are replaced. The rows that count are those of pools from which rows have left.
                match expired.before.contains_key(&name) {
                    true => pools.entry(name).or_default().files.push(StateFile::new(file).touched()),
                    false => removes.push(file.remove),
                }
                continue;
            }
            match pools.get_mut(&name) {
                Some(pool) if is_known => pool.files.push(StateFile::new(file)),
                None if is_known => {}
                // Files without a covered version are replaced.
                _ => removes.push(file.remove),
            }
        }
        removes
    }

    /// Writes the new files of a pool, and marks the old files that they replace.
    async fn rewrite(
        &self,
        name: &str,
        pool: &mut Pool,
        version: u64,
        adds: &mut Vec<Add>,
    ) -> Result<(), RefreshError> {
        let of_state = pool.files.iter().map(|file| file.living.rows_and_bytes());
        let of_tail = pool.tail_files.iter().map(ActiveFile::rows_and_bytes);
        let context = session(&self.limits.for_rows_of(of_tail.chain(of_state)))?;
        let state = context.state();
        let tail = reading::files_of(&self.reading.sync_records, &state, &pool.tail).await?;
        let only = self.reading.state.as_ref().and_then(|state| state.only.as_ref());
        pool.files.sort_by(|a, b| a.low.cmp(&b.low));
        match tail {
            Some(tail) if only.is_none() && !pool.files.is_empty() => {
                mark_touched(&context, tail, &mut pool.files).await?;
            }
            None if only.is_none() => return Ok(()),
            _ => {}
        }
        let touched = pool.files.iter().filter(|file| file.is_touched).map(|file| &file.living);
        let maintained = self.reading.state.as_ref().map(|state| (state.table.clone(), touched.collect()));
        let rows = PoolRows::new(self.reading.sync_records.clone(), pool.tail_files.iter(), maintained);
        let rows = rows.only(only.map(reading::before));
        // The lowest identities of the unchanged files. No new file spans one of them, so that ranges do not overlap.
        let stays: Vec<&str> = pool.files.iter().filter(|f| !f.is_touched).map(|f| f.low.as_str()).collect();
        let remedy = if only.is_some() { DAMAGED } else { REBUILD };
        let wanted = Wanted::new(Table::State.schema(), None, remedy.to_owned(), &state);
        let mut batches = ranges::in_order(rows, wanted, context.task_ctx(), self.limits.threads).await?;
        let schema = Table::State.file_schema();
        let mut files = Files { store: Table::State.store(self.lake), pool: name, version, open: None, adds };
        while let Some(batch) = batches.next().await {
            going_on(self.stop)?;
            // The partition column is dropped, and text becomes plain text.
            let batch = conform(&schema, &batch?).map_err(datafusion::error::DataFusionError::from)?;
            files.write(&stays, batch).await?;
        }
        files.finish().await
    }
}

fn pool_of(file: &ActiveFile) -> String {
    file.partition.get("pool").cloned().flatten().unwrap_or_default()
}

fn rows_of(add: &Add) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(add.stats.as_deref()?).ok()?.get("numRecords")?.as_u64()
}

impl StateFile {
    fn new(living: ActiveFile) -> Self {
        let bound = |side: &str| living.statistics[side]["identity_id"].as_str().map(str::to_owned);
        let rows = living.statistics["numRecords"].as_u64().unwrap_or(0);
        let (low, high) = (bound("minValues"), bound("maxValues"));
        // A file whose range is unknown may hold any identity.
        let is_touched = low.is_none() || high.is_none() || rows < FILE_ROWS_MIN;
        let nulls = living.statistics["nullCount"]["identity_id"].as_u64();
        let low = low.unwrap_or_default();
        let has_nulls = nulls != Some(0) || low.is_empty();
        Self { low, high: high.unwrap_or_default(), rows, has_nulls, is_touched, living }
    }
}

impl StateFile {
    /// Marks a file that is replaced, whatever the tail holds.
    fn touched(self) -> Self {
        Self { is_touched: true, ..self }
    }
}

/// Marks the files, sorted by their lowest identity, that may hold an identity of the tail.
async fn mark_touched(
    context: &SessionContext,
    tail: Arc<dyn datafusion::catalog::TableProvider>,
    files: &mut [StateFile],
) -> Result<(), RefreshError> {
    // The highest identity of each file and all files before it, because files of another writer may overlap later
    // ones.
    let mut reach: Vec<String> = Vec::with_capacity(files.len());
    for file in files.iter() {
        let before = reach.last().filter(|before| **before > file.high).cloned();
        reach.push(before.unwrap_or_else(|| file.high.clone()));
    }
    let identities = context.read_table(tail)?.select(vec![col("identity_id")])?.distinct()?;
    let mut batches = identities.execute_stream().await?;
    while let Some(batch) = batches.next().await {
        let column = cast(batch?.column(0), &DataType::Utf8View).map_err(datafusion::error::DataFusionError::from)?;
        for identity in column.as_string_view() {
            let Some(identity) = identity else {
                files.iter_mut().filter(|file| file.has_nulls).for_each(|file| file.is_touched = true);
                continue;
            };
            let after = files.partition_point(|file| file.low.as_str() <= identity);
            for (file, reach) in files[..after].iter_mut().zip(&reach[..after]).rev() {
                if reach.as_str() < identity {
                    break;
                }
                file.is_touched |= file.high.as_str() >= identity;
            }
        }
    }
    let touched = files.iter().filter(|file| file.is_touched);
    tracing::debug!(
        files = files.len(),
        touched = touched.clone().count(),
        // The log of a foreign writer may state any number.
        rows = touched.fold(0_u64, |sum, file| sum.saturating_add(file.rows)),
        "files of the state that the changes touch"
    );
    Ok(())
}

/// The files of a pool, written one at a time.
struct Files<'a> {
    store: Store,
    pool: &'a str,
    version: u64,
    open: Option<StateWriter>,
    adds: &'a mut Vec<Add>,
}

impl Files<'_> {
    async fn write(&mut self, stays: &[&str], batch: RecordBatch) -> Result<(), RefreshError> {
        let identities = batch.column_by_name("identity_id").and_then(|c| c.as_string_opt::<i32>().cloned());
        let Some(identities) = identities else { return Ok(()) };
        let slot = |row: usize| stays.partition_point(|low| *low <= identities.value(row));
        let mut start = 0;
        while start < batch.num_rows() {
            let end = (start + 1..batch.num_rows()).find(|&row| slot(row) != slot(start)).unwrap_or(batch.num_rows());
            let full = self.open.as_ref().is_some_and(|open| open.bytes() >= FILE_BYTES);
            let crosses = self
                .open
                .as_ref()
                .and_then(StateWriter::last_identity)
                .is_some_and(|last| stays.partition_point(|low| *low <= last) != slot(start));
            if full || crosses {
                self.roll().await?;
            }
            let open = match &mut self.open {
                Some(open) => open,
                none => none.insert(StateWriter::new().map_err(|e| encode_error(&self.store, e))?),
            };
            open.write(&batch.slice(start, end - start)).map_err(|e| encode_error(&self.store, e))?;
            start = end;
        }
        Ok(())
    }

    async fn roll(&mut self) -> Result<(), RefreshError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let name = format!("state-{:010}-{:016x}.parquet", self.version, new_token());
        let path = format!("pool={}/{name}", self.pool);
        let encoded = data_file::encode(&self.store, &path, move || open.finish()).await?;
        let values = [("pool", self.pool.to_owned())];
        self.adds.push(data_file::write(&self.store, path, &values, encoded).await?);
        Ok(())
    }

    async fn finish(mut self) -> Result<(), RefreshError> {
        self.roll().await
    }
}

fn encode_error(store: &Store, source: parquet::errors::ParquetError) -> LakeError {
    LakeError::Parquet { action: "encode", path: store.url().to_string(), source }
}

/// Deletes files of refreshes that were killed, or lost a race. Their names hold versions that are taken, and no
/// version lists or listed them.
async fn sweep(lake: &Store, version: u64) -> Result<(), LakeError> {
    let store = Table::State.store(lake);
    let version_of = |name: &str| name.strip_prefix("state-")?.split('-').next()?.parse::<u64>().ok();
    let swept =
        crate::lake::sweep::delete_unlisted(&store, |name, _| version_of(name).is_some_and(|v| v <= version)).await?;
    if swept > 0 {
        tracing::info!(table = Table::State.name(), files = swept, "deleted files that no commit lists");
    }
    Ok(())
}
