//! Reading the Delta log for what the ledger needs: the newest version, and the transaction ids at it.
//!
//! deltalake answers one transaction id per replay of the log, which for seven ids a shard is hundreds of replays; here
//! all of them are read in one pass over the newest checkpoint and the commits after it. Adding to the log is the
//! ledger's work; everything else about it is deltalake's.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use deltalake::kernel::Action;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{LakeError, Store, paths};

/// Commits that are read at a time: a worker that starts must not wait for one after the other.
const READS: usize = 16;

/// What the log says of transaction ids at one version.
#[derive(Debug, Default, Clone)]
pub struct Transactions {
    /// The newest checkpoint, as far as was seen.
    pub checkpoint: Option<u64>,
    /// The version; commits up to and including it are covered.
    pub version: u64,
    /// Newest version number of each application id.
    pub ids: HashMap<String, i64>,
}

/// The actions of one commit; `None` when that version is not there yet.
///
/// # Errors
/// The store failed, or the object is no commit.
pub async fn read_commit(table: &Store, version: u64) -> Result<Option<Vec<Action>>, LakeError> {
    let path = paths::commit(version);
    let Some(bytes) = table.get(&path).await? else { return Ok(None) };
    deltalake::logstore::get_actions(version, &bytes).map(Some).map_err(|e| LakeError::Log {
        path: format!("{}{path}", table.url()),
        reason: match &e {
            deltalake::DeltaTableError::InvalidJsonLog { json_err, .. } => json_err.to_string(),
            other => other.to_string(),
        },
    })
}

/// Reads all transaction ids at the newest version; `None` when there is no log.
///
/// # Errors
/// The store failed, or the log is corrupt or has a hole.
pub async fn read_transactions(table: &Store) -> Result<Option<Transactions>, LakeError> {
    let mut found = Transactions::default();
    let checkpoint = last_checkpoint(table).await?;
    if let Some(version) = checkpoint {
        read_checkpoint(table, version, &mut found.ids).await?;
        found.version = version;
        found.checkpoint = checkpoint;
    }
    let offset = checkpoint.map(paths::commit);
    let listed = table.list_after("_delta_log", offset.as_deref()).await?;
    let mut versions: Vec<u64> =
        listed.iter().filter_map(|(path, _)| paths::commit_version(path.rsplit('/').next()?)).collect();
    versions.sort_unstable();
    if checkpoint.is_none() && versions.is_empty() {
        return Ok(None);
    }
    let first = checkpoint.map_or(0, |v| v + 1);
    versions.retain(|version| *version >= first);
    if let Some((next, version)) = (first..).zip(&versions).find(|(next, version)| next != *version) {
        let path = format!("{}{}", table.url(), paths::commit(next));
        return Err(LakeError::Log { path, reason: format!("it is missing, while version {version} is there") });
    }
    let mut commits = futures::stream::iter(versions)
        .map(|version| async move { read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { break };
        apply(&mut found, version, actions);
    }
    Ok(Some(found))
}

/// Moves `known` forward over the commits that were made since.
///
/// # Errors
/// As [`read_commit`].
pub async fn read_forward(table: &Store, known: &mut Transactions) -> Result<(), LakeError> {
    while read_next(table, known).await? {}
    Ok(())
}

/// Moves `known` forward by one commit; `false` when there is none yet.
///
/// # Errors
/// As [`read_commit`].
pub async fn read_next(table: &Store, known: &mut Transactions) -> Result<bool, LakeError> {
    let version = known.version + 1;
    let Some(actions) = read_commit(table, version).await? else { return Ok(false) };
    apply(known, version, actions);
    Ok(true)
}

/// Moves `known` forward by one commit whose actions are at hand.
pub fn apply(known: &mut Transactions, version: u64, actions: Vec<Action>) {
    for action in actions {
        if let Action::Txn(txn) = action {
            known.ids.insert(txn.app_id, txn.version);
        }
    }
    known.version = version;
}

async fn last_checkpoint(table: &Store) -> Result<Option<u64>, LakeError> {
    let path = "_delta_log/_last_checkpoint";
    let Some(bytes) = table.get(path).await? else { return Ok(None) };
    // A hint only: the protocol lets a reader ignore one that it cannot read, and list from the beginning.
    let hint: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(hint.get("version").and_then(serde_json::Value::as_u64))
}

async fn read_checkpoint(table: &Store, version: u64, ids: &mut HashMap<String, i64>) -> Result<(), LakeError> {
    let prefix = format!("_delta_log/{version:020}.checkpoint.");
    // Names sort by version, so this reads one page of names.
    let before = version.checked_sub(1).map(|v| format!("_delta_log/{v:020}.zzz"));
    let listed = table.list_after("_delta_log", before.as_deref()).await?;
    let parts: Vec<_> = listed
        .into_iter()
        .map(|(path, _)| path)
        .filter(|p| p.starts_with(&prefix) && p.ends_with(".parquet"))
        .collect();
    if parts.is_empty() {
        let path = format!("{}{prefix}parquet", table.url());
        return Err(LakeError::Log { path, reason: "_last_checkpoint names it and it is not there".to_owned() });
    }
    for path in parts {
        let Some(bytes) = table.get(&path).await? else { continue };
        let fail = |source| LakeError::Parquet { action: "decode", path: format!("{}{path}", table.url()), source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(fail)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["txn.appId", "txn.version"]);
        let reader = builder.with_projection(mask).build().map_err(fail)?;
        for batch in reader {
            let batch = batch.map_err(|e| fail(e.into()))?;
            let Some(txn) = batch.column_by_name("txn").and_then(|c| c.as_struct_opt()) else { continue };
            let columns = (txn.column_by_name("appId"), txn.column_by_name("version"));
            let (Some(app_id), Some(version)) = columns else { continue };
            let app_id = arrow::compute::cast(app_id, &arrow::datatypes::DataType::Utf8).map_err(|e| fail(e.into()))?;
            let app_id = app_id.as_string::<i32>();
            let Some(version) = version.as_primitive_opt::<Int64Type>() else { continue };
            for row in (0..txn.len()).filter(|&row| txn.is_valid(row) && app_id.is_valid(row) && version.is_valid(row))
            {
                ids.insert(app_id.value(row).to_owned(), version.value(row));
            }
        }
    }
    Ok(())
}
