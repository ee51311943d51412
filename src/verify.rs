//! Checks the integrity of a lake, from the log and the files alone.
//!
//! For each shard, over the commits that the log still holds: epochs count up by one, positions never go back, and the
//! rows of a commit's files are within `(position before, position after]`. For each table: every active file exists,
//! with the rows that the log claims and, on request, with the bytes that were committed. No table covers a newer
//! version of `sync_records` than exists. Unlisted files that ingest wrote are no fault: files that a rewrite took out
//! wait for vacuum (`superseded`), and the next ingest of their shard sweeps the others (`orphans`).

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray};
use deltalake::kernel::{Action, Add};
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use serde::Serialize;

use crate::cpu;
use crate::ids::{SequenceNumber, ShardKey};
use crate::lake::expired::Expired;
use crate::lake::files::{SHA256, open, sha256_of};
use crate::lake::ledger::{ShardState, decode_state};
use crate::lake::log::{self, Transactions};
use crate::lake::paths::{self, PartName};
use crate::lake::ranges::{Ranged, damage};
use crate::lake::{LakeError, Store, snapshot};
use crate::query::reading::{COVERS, Reading};
use crate::schema::Table;
use crate::source::files;

mod removals;

use removals::Removals;

/// Files that are read at a time.
const READERS: usize = 8;

/// The result of a check.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub struct VerifyReport {
    /// Every fault, one line each; empty if the lake is intact.
    pub faults: Vec<String>,
    /// Results by table.
    pub tables: BTreeMap<&'static str, TableReport>,
    /// Results by shard.
    pub shards: BTreeMap<String, ShardReport>,
    /// Gaps: records that retention trimmed before they were read, one line each. They are no fault of the lake.
    pub gaps: Vec<String>,
}

/// The result for a table.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub struct TableReport {
    /// Newest version.
    pub version: u64,
    /// Active files.
    pub files: usize,
    /// Rows of the active files.
    pub rows: u64,
    /// Files written by ingest or a compaction that no commit lists or listed.
    pub orphans: usize,
    /// Files written by ingest or a compaction that a rewrite took out, and that stay for older versions until vacuum.
    pub superseded: usize,
    /// The oldest version whose commit the log still holds. Earlier commits cannot be checked.
    pub log_from: u64,
}

/// An active file to check.
struct CheckedFile {
    path: String,
    /// Rows that the log claims, including those that a deletion vector has taken out.
    rows: Option<usize>,
    /// Rows that a deletion vector has taken out.
    deleted: u64,
    /// SHA-256 of the bytes; `None` for a file of another writer, or of an older synclake.
    sha256: Option<String>,
}

/// The result for a shard.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct ShardReport {
    /// Commits of the shard so far.
    pub commits: u64,
    /// Commits that the log still holds, and that were checked.
    pub commits_checked: u64,
    /// Position of the shard.
    pub position: Option<String>,
    /// Whether the shard was read to its end.
    pub ended: bool,
}

/// Checks a lake; with `deep`, every byte of its files.
///
/// # Errors
/// Fails if the lake cannot be read. Faults of the lake are in the report.
pub async fn run(lake: &Store, deep: bool) -> Result<VerifyReport, LakeError> {
    let mut report = VerifyReport::default();
    let Some(records) = Table::SyncRecords.load(lake, None).await? else {
        return Err(LakeError::NoLake(lake.to_string()));
    };
    for table in Table::ALL {
        let store = table.store(lake);
        let Some(loaded) = snapshot::load(&store, None).await? else {
            // Ingest makes all three tables before it commits to any of them.
            if matches!(table, Table::Quarantine | Table::Gaps) && records.version() > Some(0) {
                report.faults.push(format!("the table {} is missing; restore it from a backup", table.name()));
            }
            if table == Table::State {
                check_expired(lake, &store, &mut report.faults).await?;
            }
            continue;
        };
        let log_store = loaded.log_store();
        let views = loaded.snapshot().map_err(|e| LakeError::delta("read", &store, e))?.snapshot();
        let live: Vec<CheckedFile> = views
            .file_views(log_store.as_ref(), None)
            .map_ok(|view| {
                // There is no other way to the tags.
                #[expect(deprecated)]
                let tags = view.add_action().tags.unwrap_or_default();
                let deleted = view.deletion_vector_descriptor().map_or(0, |vector| vector.cardinality);
                CheckedFile {
                    path: view.path().into_owned(),
                    rows: view.num_records(),
                    deleted: u64::try_from(deleted).unwrap_or(0),
                    sha256: tags.get(SHA256).cloned().flatten(),
                }
            })
            .try_collect()
            .await
            .map_err(|e| LakeError::delta("list the files of", &store, e))?;
        let mut found = check_files(&store, table, &live, deep, &mut report.faults).await?;
        let removed = snapshot::removed_files(&store, &loaded).await?;
        let listed: BTreeSet<&str> = live.iter().map(|file| file.path.as_str()).collect();
        let mut objects = store.listed("", None);
        while let Some((path, _)) = objects.try_next().await? {
            let is_ours = path.rsplit('/').next().is_some_and(paths::is_ours);
            match is_ours && !listed.contains(path.as_str()) {
                true if removed.contains(&path) => found.superseded += 1,
                true => found.orphans += 1,
                false => {}
            }
        }
        if table == Table::State {
            check_expired(lake, &store, &mut report.faults).await?;
        }
        if let Some(records) = report.tables.get(Table::SyncRecords.name()) {
            check_covers(lake, table, records.version, &mut report.faults).await?;
        }
        report.tables.insert(table.name(), found);
        match table {
            Table::SyncRecords => check_shards(&store, &mut report).await?,
            Table::Gaps => report.gaps = read_gaps(&store, &live).await?,
            Table::Quarantine | Table::DailyState | Table::State => {}
        }
    }
    Ok(report)
}

/// Reports a table that covers a version of `sync_records` that does not exist: it was computed from another one.
async fn check_covers(lake: &Store, table: Table, newest: u64, faults: &mut Vec<String>) -> Result<(), LakeError> {
    let known = log::read_transactions(&table.store(lake)).await?.unwrap_or_default();
    let is_cover = |id: &str| match table {
        Table::State => id == COVERS,
        Table::DailyState => id.starts_with("extract/") || id.starts_with("consumer/") && id.matches('/').count() == 1,
        _ => false,
    };
    let is_ahead =
        |id: &str, version: i64, newest: u64| is_cover(id) && u64::try_from(version).is_ok_and(|v| v > newest);
    if !known.ids.iter().any(|(id, version)| is_ahead(id, *version, newest)) {
        return Ok(());
    }
    // `sync_records` was read before this table, and both may have grown since.
    let records = log::read_transactions(&Table::SyncRecords.store(lake)).await?;
    let newest = records.map_or(newest, |known| known.version);
    let covers = known.ids.iter().filter(|(id, version)| is_ahead(id, **version, newest));
    let mut found: Vec<String> = covers
        .map(|(id, version)| {
            let name = table.name();
            format!("{name}: {id} refers to version {version}, but sync_records is only at version {newest}")
        })
        .collect();
    found.sort();
    faults.extend(found);
    Ok(())
}

/// Reports a state that is older than rows which left by retention: it lacks them, and they are nowhere else.
async fn check_expired(lake: &Store, state: &Store, faults: &mut Vec<String>) -> Result<(), LakeError> {
    let expired = Expired::read(&Table::SyncRecords.store(lake)).await?;
    let known = log::read_transactions(state).await?.unwrap_or_default();
    let covers = known.ids.get(COVERS).and_then(|version| u64::try_from(*version).ok());
    if !expired.is_empty() && covers.is_none_or(|covers| covers < expired.covers) {
        let (needed, has) = (expired.covers, covers.map_or_else(|| "none".to_owned(), |covers| covers.to_string()));
        faults.push(format!(
            "state: rows that it must hold have left sync_records by retention: it must cover version {needed}, and \
             covers {has}; restore a newer copy of the table"
        ));
    } else if let Err(error @ LakeError::Expired(_)) = Reading::load(lake).await {
        faults.push(format!("state: {error}"));
    }
    Ok(())
}

async fn check_files(
    store: &Store,
    table: Table,
    live: &[CheckedFile],
    deep: bool,
    faults: &mut Vec<String>,
) -> Result<TableReport, LakeError> {
    let checked: Vec<(u64, Option<String>)> = futures::stream::iter(live)
        .map(|file| async move {
            let name = format!("{}/{}", table.name(), file.path);
            Ok::<_, LakeError>(match check_file(store, file, deep).await? {
                Err(fault) => (0, Some(format!("{name}: {fault}"))),
                Ok(rows) if file.rows.is_some_and(|claimed| claimed as u64 != rows) => {
                    (rows, Some(format!("{name}: holds {rows} rows, the log claims {}", file.rows.unwrap_or(0))))
                }
                Ok(rows) => (rows.saturating_sub(file.deleted), None),
            })
        })
        .buffer_unordered(READERS)
        .try_collect()
        .await?;
    faults.extend(checked.iter().filter_map(|(_, fault)| fault.clone()));
    let version = log::read_transactions(store).await?.map_or(0, |t| t.version);
    let commits = store.list("_delta_log").await?;
    let commits = commits.iter().filter_map(|(path, _)| paths::commit_version(path.rsplit('/').next()?));
    Ok(TableReport {
        version,
        files: live.len(),
        rows: checked.iter().map(|(rows, _)| rows).sum(),
        log_from: commits.min().unwrap_or(version),
        ..TableReport::default()
    })
}

/// Returns the rows of a file by its own footer, or what is wrong with it. Without `deep`, only the footer is read.
async fn check_file(store: &Store, file: &CheckedFile, deep: bool) -> Result<Result<u64, String>, LakeError> {
    let gone = || Ok(Err("the log lists this file, but it does not exist".to_owned()));
    if deep {
        let Some(bytes) = store.get(&file.path).await? else { return gone() };
        let sha256 = file.sha256.clone();
        return Ok(cpu::run(move || judge(bytes, sha256.as_deref())).await);
    }
    let Some(mut reader) = Ranged::open(store, &file.path).await? else { return gone() };
    match reader.get_metadata(None).await {
        Ok(metadata) => Ok(Ok(u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0))),
        Err(error) => damage(store, &file.path, error).map(Err),
    }
}

fn judge(bytes: bytes::Bytes, sha256: Option<&str>) -> Result<u64, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("is no readable Parquet file: {error}");
    if let Some(committed) = sha256 {
        let found = sha256_of(&bytes);
        if found != committed {
            return Err(format!("holds other bytes than were committed: their SHA-256 is {found}, not {committed}"));
        }
    }
    let builder = open(bytes).map_err(|error| unreadable(&error))?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    if sha256.is_none() {
        // There is no committed digest. Decoding the whole file is the only check left.
        for batch in builder.build().map_err(|error| unreadable(&error))? {
            batch.map_err(|error| unreadable(&error))?;
        }
    }
    Ok(rows)
}

/// Reads the gap ledger, one line per row.
async fn read_gaps(store: &Store, live: &[CheckedFile]) -> Result<Vec<String>, LakeError> {
    let mut found = Vec::new();
    for CheckedFile { path, .. } in live {
        let Some(bytes) = store.get(path).await? else { continue };
        let fail = |source| LakeError::Parquet { action: "decode", path: format!("{}{path}", store.url()), source };
        let reader = open(bytes).and_then(|b| b.build()).map_err(fail)?;
        for batch in reader {
            let batch = batch.map_err(|e| fail(e.into()))?;
            let text = |name: &str, row: usize| {
                let column = batch.column_by_name(name)?;
                let shown = arrow::util::display::array_value_to_string(column, row).ok()?;
                (!shown.is_empty()).then_some(shown)
            };
            for row in 0..batch.num_rows() {
                let part = |name: &str, otherwise: &str| text(name, row).unwrap_or_else(|| otherwise.to_owned());
                found.push(format!(
                    "{}.{} after {}: records that arrived from {} until {} were trimmed before they were read",
                    part("stream", "?"),
                    part("shard_id", "?"),
                    part("after_sequence_number", "its beginning"),
                    part("arrived_from", "an unknown time"),
                    part("arrived_until", "its end"),
                ));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Checks the commits that the log still holds.
async fn check_shards(store: &Store, report: &mut VerifyReport) -> Result<(), LakeError> {
    let mut versions: Vec<u64> = store
        .list("_delta_log")
        .await?
        .iter()
        .filter_map(|(path, _)| paths::commit_version(path.rsplit('/').next()?))
        .collect();
    versions.sort_unstable();
    let mut known = Transactions::default();
    let mut checked: BTreeMap<ShardKey, u64> = BTreeMap::new();
    let mut removals = Removals::default();
    // Nothing is known of a shard before the oldest commit that is left, so its first step is accepted.
    let whole = versions.first() == Some(&0);
    for version in versions {
        let Some(actions) = log::read_commit(store, version).await? else { continue };
        if actions.is_empty() {
            report.faults.push(format!("version {version}: the commit is empty"));
        }
        removals.note(version, &actions);
        let moved: BTreeSet<ShardKey> = actions.iter().filter_map(shard_of).collect();
        // Only shards that a commit moves are compared, because a log of many shards has many commits.
        let moved: Vec<_> = moved.into_iter().map(|shard| (decode_state(&known, &shard), shard)).collect();
        log::apply(&mut known, version, actions.clone());
        let mut adds: BTreeMap<String, Vec<&Add>> = BTreeMap::new();
        for action in &actions {
            if let Action::Add(add) = action
                && let Some(name) = add.path.rsplit('/').next().and_then(PartName::parse)
            {
                adds.entry(name.shard).or_default().push(add);
            }
        }
        for (old, shard) in moved {
            let Some(new) = decode_state(&known, &shard) else {
                report.faults.push(format!("version {version}: shard {shard} has no readable state"));
                continue;
            };
            *checked.entry(shard.clone()).or_default() += 1;
            check_step(&shard, version, old.as_ref(), &new, whole, &mut report.faults);
            let adds = adds.get(&shard.to_string()).map(Vec::as_slice).unwrap_or_default();
            check_range(store, &shard, version, old.as_ref(), &new, adds, &mut report.faults).await?;
        }
    }
    report.faults.extend(removals.faults());
    let all = log::read_transactions(store).await?.unwrap_or_default();
    let shards: BTreeSet<ShardKey> = all.ids.keys().filter_map(|id| key_of(id)).collect();
    for shard in shards {
        let Some(state) = decode_state(&all, &shard) else { continue };
        let ended = SequenceNumber::is_end_of(&state.position);
        let found = ShardReport {
            commits: state.epoch,
            commits_checked: checked.get(&shard).copied().unwrap_or(0),
            position: state.position.filter(|_| !ended).map(|p| p.to_string()),
            ended,
        };
        report.shards.insert(shard.to_string(), found);
    }
    Ok(())
}

fn check_step(
    shard: &ShardKey,
    version: u64,
    old: Option<&ShardState>,
    new: &ShardState,
    whole: bool,
    faults: &mut Vec<String>,
) {
    let expected = old.map_or(1, |old| old.epoch + 1);
    if new.epoch != expected && (old.is_some() || whole) {
        faults.push(format!("version {version}: shard {shard} has commit number {}, expected {expected}", new.epoch));
    }
    let Some(old) = old else { return };
    if new.position < old.position {
        faults.push(format!("version {version}: the position of shard {shard} went back"));
    }
    if new.owner != old.owner && new.position != old.position {
        faults.push(format!("version {version}: shard {shard} changed its owner and its position in one commit"));
    }
}

/// Checks that the rows of a commit's files are within the range that the commit moved over.
async fn check_range(
    store: &Store,
    shard: &ShardKey,
    version: u64,
    old: Option<&ShardState>,
    new: &ShardState,
    adds: &[&Add],
    faults: &mut Vec<String>,
) -> Result<(), LakeError> {
    let from = old.and_then(|old| old.position.as_ref()).map(|p| comparable(shard, p));
    let to = new.position.as_ref().map(|p| comparable(shard, p));
    for add in adds {
        let name = add.path.rsplit('/').next().and_then(PartName::parse);
        let Some(name) = name.filter(|name| name.shard == shard.to_string()) else { continue };
        if (name.owner, name.epoch) != (new.owner, new.epoch) {
            faults.push(format!("version {version}: {} was written for another commit", add.path));
        }
        // The file may be gone because a later rewrite removed it and vacuum deleted it; check_files checks the active
        // files.
        let Some(reader) = Ranged::open(store, &add.path).await? else { continue };
        let range = match sequence_range(reader).await {
            Ok(range) => range,
            Err(error) => {
                damage(store, &add.path, error)?;
                continue;
            }
        };
        let Some((low, high)) = range else { continue };
        if from.as_ref().is_some_and(|from| low <= *from) || to.as_ref().is_none_or(|to| high > *to) {
            faults.push(format!(
                "version {version}: {} holds sequence numbers {low} to {high}, outside the range of the commit",
                add.path
            ));
        }
    }
    Ok(())
}

/// Returns a position that compares with sequence numbers. The position of a file has a digest behind the offset.
pub(super) fn comparable(shard: &ShardKey, position: &SequenceNumber) -> SequenceNumber {
    let is_offset = shard.stream() == files::STREAM && !position.is_shard_end();
    if is_offset { files::offset_of(position) } else { position.clone() }
}

/// Returns the lowest and the highest sequence number in a file, and reads only that column.
async fn sequence_range(reader: Ranged) -> Result<Option<(SequenceNumber, SequenceNumber)>, ParquetError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["sequence_number"]);
    let mut range: Option<(SequenceNumber, SequenceNumber)> = None;
    let mut batches = builder.with_projection(mask).build()?;
    while let Some(batch) = batches.try_next().await? {
        let Some(numbers) = batch.column(0).as_string_opt::<i32>() else { continue };
        for number in (0..numbers.len()).filter(|&row| numbers.is_valid(row)) {
            let Some(number) = SequenceNumber::parse(numbers.value(number)) else { continue };
            range = Some(match range {
                None => (number.clone(), number),
                Some((low, high)) => (low.min(number.clone()), high.max(number)),
            });
        }
    }
    Ok(range)
}

fn shard_of(action: &Action) -> Option<ShardKey> {
    if let Action::Txn(txn) = action { key_of(&txn.app_id) } else { None }
}

fn key_of(app_id: &str) -> Option<ShardKey> {
    let (stream, shard) = app_id.strip_prefix("ingest/")?.split_once('/')?;
    ShardKey::new(stream, shard)
}
