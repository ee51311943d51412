//! One version of a table, through deltalake: for reading, for checkpoints of the log, for knowing which files live.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::Remove;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::TryStreamExt;
use object_store::prefix::PrefixStore;

use super::{LakeError, Store};

/// deltalake's handle on a table's storage. Built from our own store, so that credentials, endpoints and retries are
/// the same everywhere.
///
/// # Errors
/// The storage options do not parse (they are empty, so never in practice).
pub fn log_store(table: &Store) -> Result<LogStoreRef, LakeError> {
    let config = StorageConfig::parse_options(std::iter::empty::<(String, String)>())
        .map_err(|e| LakeError::delta("open", table, e))?;
    let objects = table.objects();
    let prefixed = Arc::new(PrefixStore::new(objects.clone(), table.key("")));
    Ok(default_logstore(prefixed, objects, table.url(), &config))
}

/// Loads a table at a version, or at its newest; `None` when there is no table.
///
/// # Errors
/// The log cannot be read or does not make sense.
pub async fn load(table: &Store, version: Option<u64>) -> Result<Option<DeltaTable>, LakeError> {
    // Asked first, because deltalake logs an error of its own for a place that is merely empty.
    let hint = table.get("_delta_log/_last_checkpoint").await?;
    if hint.is_none() && table.get(&super::paths::commit(0)).await?.is_none() {
        return Ok(None);
    }
    let mut loaded = DeltaTable::new(log_store(table)?);
    let result = match version {
        Some(version) => loaded.load_version(version).await,
        None => loaded.load().await,
    };
    if let Err(source) = result {
        // Our own reading of the log names the object that is at fault; deltalake's error does not.
        super::log::read_transactions(table).await?;
        return Err(LakeError::delta("load", table, source));
    }
    Ok(Some(loaded))
}

/// Paths, relative to the table, of all files that live at the loaded version.
///
/// # Errors
/// The log cannot be read.
pub async fn live_files(table: &Store, loaded: &DeltaTable) -> Result<HashSet<String>, LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let snapshot = loaded.snapshot().map_err(fail)?;
    let log_store = loaded.log_store();
    let views = snapshot.snapshot().file_views(log_store.as_ref(), None);
    views.map_ok(|view| view.path().into_owned()).try_collect().await.map_err(fail)
}

/// A file that lives at a version.
#[derive(Debug, Clone)]
pub struct Living {
    /// Relative to the table.
    pub path: String,
    /// Values of the partition columns.
    pub partition: HashMap<String, Option<String>>,
    /// Bytes.
    pub size: u64,
    /// What the log says of its rows, as it says it.
    pub statistics: serde_json::Value,
    /// The action that would take it out.
    pub remove: Remove,
}

/// All files that live at the loaded version.
///
/// # Errors
/// The log cannot be read.
pub async fn files(table: &Store, loaded: &DeltaTable) -> Result<Vec<Living>, LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let snapshot = loaded.snapshot().map_err(fail)?;
    let log_store = loaded.log_store();
    let views = snapshot.snapshot().file_views(log_store.as_ref(), None);
    let living = views.map_ok(|view| Living {
        path: view.path().into_owned(),
        partition: view.partition_values_map(),
        size: u64::try_from(view.size()).unwrap_or(0),
        statistics: view.stats().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        remove: view.remove_action(true),
    });
    living.try_collect().await.map_err(fail)
}

/// Paths of files that were taken out of the table not long ago: older versions still list them.
///
/// # Errors
/// The log cannot be read.
pub async fn removed_files(table: &Store, loaded: &DeltaTable) -> Result<HashSet<String>, LakeError> {
    let fail = |source| LakeError::delta("list the removed files of", table, source);
    let log_store = loaded.log_store();
    let removed = loaded.snapshot().map_err(fail)?.all_tombstones(log_store.as_ref());
    removed.map_ok(|tombstone| tombstone.path().into_owned()).try_collect().await.map_err(fail)
}

/// Writes a checkpoint of the log at its newest version, so that readers need not replay it from the beginning.
///
/// # Errors
/// The log cannot be read, or the checkpoint not written; the table is whole all the same.
pub async fn checkpoint(table: &Store) -> Result<(), LakeError> {
    let Some(loaded) = load(table, None).await? else { return Ok(()) };
    deltalake::checkpoints::create_checkpoint(&loaded, None).await.map_err(|e| LakeError::delta("checkpoint", table, e))
}

/// Versions between two checkpoints of a table that is committed to now and then.
const CHECKPOINT_EVERY: u64 = 10;

/// Writes a checkpoint when the version that was just committed is due for one. The table is as whole without it.
pub async fn checkpoint_at_times(table: &Store, version: u64) {
    if version > 0
        && version.is_multiple_of(CHECKPOINT_EVERY)
        && let Err(error) = checkpoint(table).await
    {
        tracing::warn!(table = %table, error = %error, "cannot write a checkpoint of the log; opening it gets slower");
    }
}
