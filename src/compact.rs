//! Compaction: merges small files of a partition into files of a target size.
//!
//! The files of `sync_records` are sorted, those of `quarantine` have no order. A refresh and an extract write the rows of
//! a partition anew, so `state` and `daily_state` have no small files to merge.
//!
//! 1. Plan: small files of each partition are packed into groups, from the log alone.
//! 2. Merge: the files of a group become one file, in the order of ingest (`merge`), or one after the other (`append`).
//! 3. Commit: one commit removes the files of a group and adds the new one, both without a change of data.
//!
//! # Invariants
//! - The rows of a new file are the rows of the files that it replaces. The bytes of each file are those that the log
//!   states the digest of, its rows are counted against the log, and the new file against their sum, before anything is
//!   written.
//! - If copies are collapsed, the rows of a new file stand for as many delivered rows as those of the files that it replaces
//!   (`collapse`).
//! - Each commit says `dataChange = false`, so a reader of changes sees no row again.
//! - A commit removes only files that are active, and without deletion vectors, at the version before it. Of two
//!   compactions of a file, one succeeds, and the other deletes its new file.
//! - A killed run leaves committed groups, and at most one unlisted file per group at work. The next run does the rest.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;
use deltalake::kernel::Add;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lake::ledger::new_token;
use crate::lake::paths::{CompactName, pool_partition};
use crate::lake::replace::MovedRows;
use crate::lake::snapshot::ActiveFile;
use crate::lake::{LakeError, Store, data_file, log, manifest, replace, snapshot, sweep};
use crate::schema::Table;
use crate::{cpu, failpoint};

mod append;
mod collapse;
mod merge;
mod plan;

use append::append;
use collapse::merge_collapsed;
use merge::{Input, MergeError, MergeLimits, Merged, merge};
use plan::{Group, Source, plan};

/// The files to compact, and the limits of a run.
#[derive(Debug, Clone)]
pub struct CompactOptions {
    /// The table: `sync_records` or `quarantine`.
    pub table: Table,
    /// Only this pool of `sync_records`: its id or its partition value.
    pub pool: Option<String>,
    /// Only this day and later ones.
    pub from: Option<NaiveDate>,
    /// Only this day and earlier ones.
    pub to: Option<NaiveDate>,
    /// Size of the new files, in bytes. Files of less than half of it are merged.
    pub target_bytes: u64,
    /// Limit of the memory for files and rows, in bytes.
    pub memory_bytes: u64,
    /// Whether to plan only.
    pub dry_run: bool,
    /// Start no group after this time.
    pub max_duration: Option<Duration>,
    /// Whether exact copies of a change become one row, which counts them.
    pub collapse_duplicates: bool,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self {
            table: Table::SyncRecords,
            pool: None,
            from: None,
            to: None,
            target_bytes: Self::TARGET_BYTES,
            memory_bytes: Self::MEMORY_BYTES,
            dry_run: false,
            max_duration: None,
            collapse_duplicates: false,
        }
    }
}

impl CompactOptions {
    /// Default size of the new files.
    pub const TARGET_BYTES: u64 = 128 << 20;
    /// Default limit of memory.
    pub const MEMORY_BYTES: u64 = 512 << 20;
    /// Lowest limit of memory.
    pub const MEMORY_BYTES_MIN: u64 = 64 << 20;

    /// Checks the limits.
    ///
    /// # Errors
    /// Returns one line that says which limit to change.
    pub fn check(&self) -> Result<(), String> {
        if self.memory_bytes < Self::MEMORY_BYTES_MIN {
            return Err(format!("--memory must be at least {} MiB", Self::MEMORY_BYTES_MIN >> 20));
        }
        if self.target_bytes > self.memory_bytes / 4 {
            let needed = self.target_bytes.saturating_mul(4).div_ceil(1 << 20);
            return Err(format!("--target-size is more than a quarter of --memory; raise --memory to {needed}MiB"));
        }
        if !matches!(self.table, Table::SyncRecords | Table::Quarantine) {
            let table = self.table.name();
            return Err(format!("the files of {table} are never small; compact sync_records or quarantine"));
        }
        if self.table != Table::SyncRecords && self.pool.is_some() {
            return Err(format!("--pool is given, but {} is not divided by pools; leave it out", self.table.name()));
        }
        if self.table != Table::SyncRecords && self.collapse_duplicates {
            let table = self.table.name();
            return Err(format!(
                "--collapse-duplicates is given, but the rows of {table} are no changes; leave it out"
            ));
        }
        match (self.from, self.to) {
            (Some(from), Some(to)) if from > to => Err(format!("--from {from} is after --to {to}; exchange them")),
            _ => Ok(()),
        }
    }

    /// Checks that the lake has rows of the pool: a misspelt pool must not look like one without small files.
    fn check_pool(&self, lake: &Store, files: &[ActiveFile]) -> Result<(), LakeError> {
        let Some(pool) = &self.pool else { return Ok(()) };
        let wanted = pool_partition(pool);
        let is_known = files.iter().any(|file| file.partition.get("pool").and_then(Option::as_ref) == Some(&wanted));
        is_known.then_some(()).ok_or_else(|| {
            LakeError::Invalid(format!(
                "{lake} has no rows of the pool {pool:?}, which --pool names; `synclake status --verbose` lists the pools"
            ))
        })
    }
}

/// The result of a run.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub struct CompactReport {
    /// The table.
    pub table: &'static str,
    /// Whether nothing was changed because only a plan was wanted. Then the other numbers are those of the plan.
    pub dry_run: bool,
    /// Active files of the selected partitions before the run.
    pub files: u64,
    /// Groups of files that were merged; one commit each.
    pub groups: u64,
    /// Files that were replaced.
    pub files_removed: u64,
    /// Bytes of those files.
    pub bytes_removed: u64,
    /// Files that replace them.
    pub files_added: u64,
    /// Bytes of those files; in a plan, the most that they can be.
    pub bytes_added: u64,
    /// Whether `bytes_added` is only an upper bound, because nothing was merged yet.
    pub is_bytes_added_bound: bool,
    /// Rows that were moved.
    pub rows: u64,
    /// Rows among them that were dropped, because another row counts them; absent if that was not
    /// wanted, and in a plan, which reads no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_collapsed: Option<u64>,
    /// Groups of which another writer replaced a file meanwhile.
    pub groups_changed: u64,
    /// Groups that were planned and not merged: the time was over, or a signal came.
    pub groups_left: u64,
    /// Small files that are left alone, by the reason.
    pub files_left: BTreeMap<String, u64>,
    /// Damaged files, one line each. Their groups are left alone.
    pub faults: Vec<String>,
}

/// The progress of a run, in bytes of the files to merge.
#[derive(Debug, Clone, Copy)]
pub struct CompactProgress {
    /// Bytes that are merged and committed.
    pub done: u64,
    /// All bytes of the plan.
    pub total: u64,
}

/// Plans are made anew at most this often in a run, because merged files may be small too.
const PASSES: usize = 4;
/// Groups that are fetched or uploaded while each processor merges one, if the memory has room for them.
const TRANSFERS: usize = 2;
/// Files of a group that are fetched at a time.
const FETCHES: usize = 32;
/// Least memory for decoding and sorting a group.
const WORK_BYTES_MIN: u64 = 32 << 20;
/// Memory for decoding and sorting a byte of a file: decoded rows have about 15 times the bytes of their file.
const DECODED_PER_BYTE: u64 = 24;

/// Compacts a table once. A lake without the table has nothing to do.
///
/// # Errors
/// The lake cannot be read or written. What is committed stays; run again for the rest.
pub async fn run(
    lake: &Store,
    options: &CompactOptions,
    progress: impl Fn(CompactProgress) + Sync,
    stop: &CancellationToken,
) -> Result<CompactReport, LakeError> {
    options.check().map_err(LakeError::Invalid)?;
    let table = options.table;
    let store = table.store(lake);
    let Some(known) = log::read_transactions(&store).await? else {
        let report = CompactReport { table: table.name(), dry_run: options.dry_run, ..CompactReport::default() };
        let is_lake = table != Table::SyncRecords && Table::SyncRecords.exists(lake).await?;
        return is_lake.then_some(report).ok_or_else(|| LakeError::NoLake(lake.to_string()));
    };
    known.admit(table, &store, false)?;
    let mut run = Run {
        lake,
        store,
        options,
        token: new_token(),
        next_file: 0,
        memory: Arc::new(Semaphore::new(permits(usable_bytes(options)))),
        deadline: options.max_duration.map(|limit| Instant::now() + limit),
        unfit: HashSet::new(),
        done: 0,
        report: CompactReport {
            table: table.name(),
            dry_run: options.dry_run,
            is_bytes_added_bound: options.dry_run,
            rows_collapsed: (options.collapse_duplicates && !options.dry_run).then_some(0),
            ..CompactReport::default()
        },
    };
    for pass in 0..PASSES {
        let loaded = table.load(lake, None).await?.ok_or_else(|| LakeError::NoLake(lake.to_string()))?;
        let digests = snapshot::digests(&run.store, &loaded).await?;
        let files = snapshot::files(&run.store, &loaded).await?;
        options.check_pool(lake, &files)?;
        let plan = plan(files, digests, options, &run.unfit);
        if pass == 0 {
            (run.report.files, run.report.files_left) = (plan.files, plan.left);
        }
        if options.dry_run {
            run.report.count(&plan.groups);
            return Ok(run.report);
        }
        let before = (run.report.groups, run.unfit.len());
        run.report.groups_left = run.merge_all(plan.groups, &progress, stop).await?;
        // Without a file that is left alone, the rest of its group can be merged.
        if (run.report.groups, run.unfit.len()) == before || run.report.groups_left > 0 {
            break;
        }
    }
    if run.report.groups > 0 {
        // The last checkpoint lists all files that are gone now, with their statistics: reading it would cost every
        // opening more than all files that are left.
        snapshot::checkpoint_or_warn(&run.store).await;
    }
    // Files that cannot be deleted now are left to the next run.
    match sweep::sweep_compactions(&run.store).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(table = table.name(), files, "deleted files that no commit lists"),
        Err(error) => tracing::warn!(%error, "left files of killed compactions that no commit lists"),
    }
    manifest::follow_commit(lake, table).await;
    Ok(run.report)
}

impl CompactReport {
    /// Counts groups as if they were merged.
    fn count(&mut self, groups: &[Group]) {
        for group in groups {
            self.groups += 1;
            self.files_removed += group.sources.len() as u64;
            self.bytes_removed += group.bytes();
            self.files_added += 1;
            self.bytes_added += group.bytes();
            self.rows += group.sources.iter().filter_map(|source| source.rows).sum::<u64>();
        }
    }
}

/// Returns the memory for groups. The rest is for the log and for what the allocator holds back.
fn usable_bytes(options: &CompactOptions) -> u64 {
    options.memory_bytes / 4 * 3
}

/// Returns the memory for decoding and sorting a group, beside the group's files and the new file.
///
/// The rows of a small group are decoded and sorted at once, which is nearly twice as fast as in chunks. Two groups at a
/// time have room for that; a large group has a quarter of all memory.
fn work_bytes(group: &Group, options: &CompactOptions) -> u64 {
    let room = (usable_bytes(options) / 2).saturating_sub(2 * group.bytes()).max(options.memory_bytes / 4);
    (WORK_BYTES_MIN + DECODED_PER_BYTE * group.bytes()).min(room)
}

/// Returns the permits that stand for bytes: one per KiB.
fn permits(bytes: u64) -> usize {
    usize::try_from(bytes >> 10).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

struct Run<'a> {
    lake: &'a Store,
    store: Store,
    options: &'a CompactOptions,
    token: u64,
    next_file: u64,
    memory: Arc<Semaphore>,
    deadline: Option<Instant>,
    /// Files that are not read again in this run.
    unfit: HashSet<String>,
    /// Bytes of the groups that are done.
    done: u64,
    report: CompactReport,
}

/// A group whose new file is written.
struct Written {
    group: Group,
    merged: Merged,
    add: Option<Add>,
}

/// A group that could not be merged.
#[derive(Debug, thiserror::Error)]
enum GroupError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error("{2}")]
    Damaged(Box<Group>, String, String),
    #[error("{1} does not exist")]
    Missing(Box<Group>, String),
}

impl Run<'_> {
    /// Merges groups, several at a time, and commits each when it is merged. Returns the number of groups that were not
    /// started.
    async fn merge_all(
        &mut self,
        groups: Vec<Group>,
        progress: &(impl Fn(CompactProgress) + Sync),
        stop: &CancellationToken,
    ) -> Result<u64, LakeError> {
        let total = self.done + groups.iter().map(Group::bytes).sum::<u64>();
        progress(CompactProgress { done: self.done, total });
        let mut waiting = groups.into_iter();
        let mut running = JoinSet::new();
        loop {
            let is_over = || stop.is_cancelled() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            while running.len() < cpu::processors() + TRANSFERS && !is_over() {
                let Some(group) = waiting.next() else { break };
                let name = CompactName { run: self.token, index: self.next_file };
                self.next_file += 1;
                let (table, store, memory) = (self.options.table, self.store.clone(), self.memory.clone());
                let merge = if self.options.collapse_duplicates { merge_collapsed } else { merge };
                let work_bytes = work_bytes(&group, self.options);
                running.spawn(async move {
                    let needed = permits(2 * group.bytes() + work_bytes);
                    // The semaphore is never closed.
                    let _memory = memory.acquire_many_owned(u32::try_from(needed).unwrap_or(u32::MAX)).await.ok();
                    write_group(table, &store, name, group, work_bytes, merge).await
                });
            }
            let Some(ended) = running.join_next().await else { break };
            let ended = ended.map_err(|source| {
                let source = object_store::Error::JoinError { source };
                LakeError::Storage { action: "merge files of", path: self.store.url().to_string(), source }
            })?;
            self.done += self.finish(ended).await?;
            progress(CompactProgress { done: self.done, total });
        }
        Ok(waiting.len() as u64)
    }

    /// Notes a file that does not exist: another writer replaced and vacuumed it meanwhile, or it is lost.
    async fn note_missing(&mut self, path: String) -> Result<(), LakeError> {
        let loaded = snapshot::load(&self.store, None).await?;
        let loaded = loaded.ok_or_else(|| LakeError::NoLake(self.store.to_string()))?;
        match snapshot::active_paths(&self.store, &loaded).await?.contains(&path) {
            true => {
                let table = self.report.table;
                self.report.faults.push(format!("{table}: {path}: the log lists this file, but it does not exist"));
                self.unfit.insert(path);
            }
            false => self.report.groups_changed += 1,
        }
        Ok(())
    }

    /// Commits a group. Returns its bytes.
    async fn finish(&mut self, ended: Result<Written, GroupError>) -> Result<u64, LakeError> {
        let Written { group, merged, add } = match ended {
            Ok(written) => written,
            Err(GroupError::Lake(error)) => return Err(error),
            Err(GroupError::Damaged(group, path, fault)) => {
                self.unfit.insert(path);
                self.report.faults.push(format!("{}: {fault}", self.report.table));
                return Ok(group.bytes());
            }
            Err(GroupError::Missing(group, path)) => {
                self.note_missing(path).await?;
                return Ok(group.bytes());
            }
        };
        for (path, reason) in &merged.left {
            *self.report.files_left.entry(reason.clone()).or_default() += 1;
            self.unfit.insert(path.clone());
        }
        let (Some(add), Some(file)) = (add, &merged.file) else { return Ok(group.bytes()) };
        let (path, size) = (add.path.clone(), u64::try_from(add.size).unwrap_or(0));
        failpoint::hit("compact/before");
        let table = self.options.table;
        let moved =
            MovedRows { files: vec![add], target_bytes: self.options.target_bytes, has_copies: file.has_copies };
        let version = replace::move_rows(self.lake, table, &merged.paths, moved).await?;
        failpoint::hit("compact/after");
        if version.is_none() {
            self.report.groups_changed += 1;
            // No commit lists the file, and none will.
            if let Err(error) = self.store.delete(&path).await {
                tracing::warn!(table = table.name(), path, %error, "left a file that no commit lists");
            }
            return Ok(group.bytes());
        }
        let moved: HashSet<&str> = merged.paths.iter().map(String::as_str).collect();
        let removed = group.sources.iter().filter(|source| moved.contains(source.path.as_str()));
        self.report.groups += 1;
        self.report.files_removed += merged.paths.len() as u64;
        self.report.bytes_removed += removed.map(|source| source.bytes).sum::<u64>();
        self.report.files_added += 1;
        self.report.bytes_added += size;
        self.report.rows += file.rows + file.rows_collapsed;
        if let Some(rows) = &mut self.report.rows_collapsed {
            *rows += file.rows_collapsed;
        }
        Ok(group.bytes())
    }
}

/// Fetches the files of a group.
async fn fetch(store: &Store, group: &Group) -> Result<Vec<Input>, GroupError> {
    let fetches = futures::stream::iter(group.sources.clone()).map(|Source { path, rows, sha256, .. }| async move {
        match store.get(&path).await? {
            Some(bytes) => Ok(Input { path, bytes, rows, sha256 }),
            None => Err(GroupError::Missing(Box::new(group.clone()), path)),
        }
    });
    fetches.buffered(FETCHES).try_collect().await
}

/// Fetches the files of a group, merges them, and writes the new file.
async fn write_group(
    table: Table,
    store: &Store,
    name: CompactName,
    group: Group,
    work_bytes: u64,
    merge: fn(Vec<Input>, MergeLimits) -> Result<Merged, MergeError>,
) -> Result<Written, GroupError> {
    let inputs = fetch(store, &group).await?;
    let limits = MergeLimits::new(group.bytes(), work_bytes);
    let work = move || match table {
        Table::SyncRecords => merge(inputs, limits),
        _ => append(table, inputs, append::DECODED_BYTES_MAX),
    };
    let merged = cpu::run(work).await;
    let mut merged = match merged {
        Ok(merged) => merged,
        Err(error @ MergeError::Damaged { .. }) => {
            let fault = error.to_string();
            let MergeError::Damaged { path, .. } = error else { return Err(LakeError::Invalid(fault).into()) };
            return Err(GroupError::Damaged(Box::new(group), path, fault));
        }
        Err(MergeError::Encode(source)) => {
            return Err(LakeError::Parquet { action: "encode", path: store.url().to_string(), source }.into());
        }
        Err(error @ MergeError::Lost { .. }) => return Err(LakeError::Invalid(error.to_string()).into()),
    };
    let Some(file) = &mut merged.file else { return Ok(Written { group, merged, add: None }) };
    let path = format!("{}/{name}", group.folder());
    let (bytes, statistics) = (std::mem::take(&mut file.bytes), std::mem::take(&mut file.statistics));
    let encoded = data_file::encode(store, &path, move || Ok((bytes, statistics))).await?;
    let add = data_file::write(store, path, &group.partition, encoded).await?;
    failpoint::hit("compact/written");
    Ok(Written { group, merged, add: Some(add) })
}
