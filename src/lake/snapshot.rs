//! One version of a table, loaded by deltalake: for queries, for checkpoints of the log, and for the list of active
//! files.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::{DeletionVectorDescriptor, Remove, StorageType};
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::TryStreamExt;
use object_store::prefix::PrefixStore;

use super::files::SHA256;
use super::remember::LogReads;
use super::request_runtime::HidingStore;
use super::terms::TableRequirements;
use super::{LakeError, Objects, Store, log, paths};
use crate::schema::Table;

/// Creates deltalake's log store for a table from the table's own object store, so that credentials, endpoints and
/// retries are the same everywhere.
///
/// # Errors
/// The storage options do not parse (they are empty, so never in practice).
pub(crate) fn log_store(table: &Store) -> Result<LogStoreRef, LakeError> {
    log_store_of(table, table.objects())
}

fn log_store_of(table: &Store, objects: Objects) -> Result<LogStoreRef, LakeError> {
    let config = StorageConfig::parse_options(std::iter::empty::<(String, String)>())
        .map_err(|e| LakeError::delta("open", table, e))?;
    let prefixed = Arc::new(PrefixStore::new(objects.clone(), table.key("")));
    Ok(default_logstore(prefixed, objects, table.url(), &config))
}

/// Loads a table at a version, or at the newest one. Returns `None` if the table does not exist.
///
/// # Errors
/// The log cannot be read or is inconsistent.
pub(crate) async fn load(table: &Store, version: Option<u64>) -> Result<Option<DeltaTable>, LakeError> {
    load_among(&LogReads::begin(table), version).await
}

/// Loads a table as [`load`] does, beside other reads of its log.
///
/// # Errors
/// As [`load`].
pub(crate) async fn load_among(reads: &LogReads, version: Option<u64>) -> Result<Option<DeltaTable>, LakeError> {
    let table = reads.store();
    // This check comes first, because deltalake logs an error of its own for an empty location.
    if !log::is_there(table).await? {
        return Ok(None);
    }
    let fail = |source| LakeError::delta("load", table, source);
    let loaded = match load_from(log_store(table)?, version).await {
        Ok(loaded) => loaded,
        Err(source) => {
            // `log` names the damaged object; deltalake's error does not. `log` also skips unusable checkpoints. With
            // those hidden, deltalake finds the other checkpoints, or the commits.
            let known = log::read_transactions(table).await?.unwrap_or_default();
            if let Some(reason) = known.requirements.unreadable() {
                return Err(LakeError::Unsupported { table: table.to_string(), reason });
            }
            if known.unusable.is_empty() {
                return Err(fail(source));
            }
            let hidden = known.unusable.iter().map(|path| table.key(path)).collect();
            let rest = Arc::new(HidingStore::new(table.objects(), hidden));
            load_from(log_store_of(table, rest)?, version).await.map_err(fail)?
        }
    };
    let snapshot = loaded.snapshot().map_err(fail)?;
    // What deltalake cannot read, it tells only when rows are read, and in its own words.
    let mut requirements = TableRequirements::default();
    let action = serde_json::json!({ "protocol": snapshot.protocol(), "metaData": snapshot.metadata() });
    requirements.apply_action(&action).map_err(|error| fail(error.into()))?;
    let name = table.url().path_segments().and_then(|mut parts| parts.rfind(|part| !part.is_empty()));
    let of_lake = Table::ALL.into_iter().find(|of| Some(of.name()) == name);
    let reason = of_lake.map_or_else(|| requirements.unreadable(), |of| requirements.unreadable_rows(of));
    if let Some(reason) = reason {
        return Err(LakeError::Unsupported { table: table.to_string(), reason });
    }
    check_paths(table, &loaded).await?;
    Ok(Some(loaded))
}

async fn load_from(log_store: LogStoreRef, version: Option<u64>) -> Result<DeltaTable, deltalake::DeltaTableError> {
    let mut loaded = DeltaTable::new(log_store);
    match version {
        Some(version) => loaded.load_version(version).await?,
        None => loaded.load().await?,
    }
    Ok(loaded)
}

/// Rejects a table whose log lists files outside its root: the author of the log would choose what is read.
async fn check_paths(table: &Store, loaded: &DeltaTable) -> Result<(), LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let log_store = loaded.log_store();
    let mut views = loaded.snapshot().map_err(fail)?.snapshot().file_views(log_store.as_ref(), None);
    while let Some(view) = views.try_next().await.map_err(fail)? {
        let path = view.path();
        let vector = view.deletion_vector_descriptor();
        let is_inside = paths::lies_inside(&path)
            && vector.as_ref().is_none_or(|vector| match vector.storage_type {
                StorageType::Inline => true,
                StorageType::AbsolutePath => false,
                // An optional folder, followed by twenty characters of a file name.
                StorageType::UuidRelativePath => {
                    let folder = vector.path_or_inline_dv.len().saturating_sub(20);
                    let folder = vector.path_or_inline_dv.get(..folder);
                    folder.is_some_and(|folder| folder.is_empty() || paths::lies_inside(folder))
                }
            });
        if !is_inside {
            let reason = format!(
                "it lists {path:?}, or a deletion vector of it, which lies outside of the table; undo that commit with the engine that made it"
            );
            return Err(LakeError::Log { path: format!("{}_delta_log", table.url()), reason });
        }
    }
    Ok(())
}

/// Returns the paths of all active files of the loaded version, relative to the table.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn active_paths(table: &Store, loaded: &DeltaTable) -> Result<HashSet<String>, LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let snapshot = loaded.snapshot().map_err(fail)?;
    let log_store = loaded.log_store();
    let views = snapshot.snapshot().file_views(log_store.as_ref(), None);
    views.map_ok(|view| view.path().into_owned()).try_collect().await.map_err(fail)
}

/// An active file of a version.
#[derive(Debug, Clone)]
pub(crate) struct ActiveFile {
    /// Path relative to the table.
    pub path: String,
    /// Values of the partition columns.
    pub partition: HashMap<String, Option<String>>,
    /// Size in bytes.
    pub size: u64,
    /// Statistics of the rows, as they are in the log.
    pub statistics: serde_json::Value,
    /// The action that removes the file.
    pub remove: Remove,
}

impl ActiveFile {
    /// Returns the row count, as far as the log states it, and the size in bytes.
    pub(crate) fn rows_and_bytes(&self) -> (u64, u64) {
        (self.statistics["numRecords"].as_u64().unwrap_or(0), self.size)
    }
}

/// Returns all active files of the loaded version.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn files(table: &Store, loaded: &DeltaTable) -> Result<Vec<ActiveFile>, LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let snapshot = loaded.snapshot().map_err(fail)?;
    let log_store = loaded.log_store();
    let views = snapshot.snapshot().file_views(log_store.as_ref(), None);
    let living = views.map_ok(|view| ActiveFile {
        path: view.path().into_owned(),
        partition: view.partition_values_map(),
        size: u64::try_from(view.size()).unwrap_or(0),
        statistics: view.stats().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        remove: view.remove_action(true),
    });
    living.try_collect().await.map_err(fail)
}

/// Returns the SHA-256 of each active file, by its path, as far as the log states it.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn digests(table: &Store, loaded: &DeltaTable) -> Result<HashMap<String, String>, LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let log_store = loaded.log_store();
    let views = loaded.snapshot().map_err(fail)?.snapshot().file_views(log_store.as_ref(), None);
    let digests = views.try_filter_map(|view| {
        // There is no other way to the tags.
        #[expect(deprecated)]
        let tags = view.add_action().tags.unwrap_or_default();
        let digest = tags.get(SHA256).cloned().flatten();
        std::future::ready(Ok(digest.map(|digest| (view.path().into_owned(), digest))))
    });
    digests.try_collect().await.map_err(fail)
}

/// What a version states of an active file.
#[derive(Debug, Clone)]
pub(crate) struct ListedFile {
    /// Path relative to the table.
    pub path: String,
    /// Values of the partition columns.
    pub partition: HashMap<String, Option<String>>,
    /// Size in bytes.
    pub size: u64,
    /// Time at which the file was written, in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Rows that a deletion vector has taken out.
    pub deleted: u64,
    /// Statistics of the rows, as they are in the log.
    pub statistics: Option<String>,
}

/// Calls `visit` for each active file of the loaded version. The files are not collected, because a lake may have many.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn visit_files(
    table: &Store,
    loaded: &DeltaTable,
    mut visit: impl FnMut(ListedFile),
) -> Result<(), LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let log_store = loaded.log_store();
    let mut views = loaded.snapshot().map_err(fail)?.snapshot().file_views(log_store.as_ref(), None);
    while let Some(view) = views.try_next().await.map_err(fail)? {
        let deleted = view.deletion_vector_descriptor().map_or(0, |vector| vector.cardinality);
        visit(ListedFile {
            path: view.path().into_owned(),
            partition: view.partition_values_map(),
            size: u64::try_from(view.size()).unwrap_or(0),
            modified_ms: view.modification_time(),
            deleted: u64::try_from(deleted).unwrap_or(0),
            statistics: view.stats(),
        });
    }
    Ok(())
}

/// Calls `visit` with the path and the deletion vector of each active file of the loaded version. Nothing is held.
///
/// # Errors
/// The log cannot be read, or `visit` failed.
pub(crate) async fn visit_active(
    table: &Store,
    loaded: &DeltaTable,
    mut visit: impl FnMut(&str, Option<&DeletionVectorDescriptor>) -> Result<(), LakeError>,
) -> Result<(), LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let log_store = loaded.log_store();
    let mut views = loaded.snapshot().map_err(fail)?.snapshot().file_views(log_store.as_ref(), None);
    while let Some(view) = views.try_next().await.map_err(fail)? {
        visit(&view.path(), view.deletion_vector_descriptor().as_ref())?;
    }
    Ok(())
}

/// Calls `visit` with the path and the time of removal, in milliseconds, of each recently removed file.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn visit_removed(
    table: &Store,
    loaded: &DeltaTable,
    mut visit: impl FnMut(&str, Option<i64>),
) -> Result<(), LakeError> {
    let fail = |source| LakeError::delta("list the removed files of", table, source);
    let log_store = loaded.log_store();
    let mut removed = loaded.snapshot().map_err(fail)?.all_tombstones(log_store.as_ref());
    while let Some(file) = removed.try_next().await.map_err(fail)? {
        visit(&file.path(), file.deletion_timestamp());
    }
    Ok(())
}

/// Returns the paths of recently removed files. Older versions still list them.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn removed_files(table: &Store, loaded: &DeltaTable) -> Result<HashSet<String>, LakeError> {
    let fail = |source| LakeError::delta("list the removed files of", table, source);
    let log_store = loaded.log_store();
    let removed = loaded.snapshot().map_err(fail)?.all_tombstones(log_store.as_ref());
    removed.map_ok(|tombstone| tombstone.path().into_owned()).try_collect().await.map_err(fail)
}

/// Removes from `paths` the active files of the loaded version and recently removed files. A reader of an older version
/// may still read the latter.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn retain_unlisted(
    table: &Store,
    loaded: &DeltaTable,
    paths: &mut BTreeSet<String>,
) -> Result<(), LakeError> {
    let fail = |source| LakeError::delta("list the files of", table, source);
    let snapshot = loaded.snapshot().map_err(fail)?;
    let log_store = loaded.log_store();
    let mut live = snapshot.snapshot().file_views(log_store.as_ref(), None);
    while let Some(file) = live.try_next().await.map_err(fail)? {
        paths.remove(file.path().as_ref());
    }
    if paths.is_empty() {
        return Ok(());
    }
    let mut removed = snapshot.all_tombstones(log_store.as_ref());
    while let Some(file) = removed.try_next().await.map_err(fail)? {
        paths.remove(file.path().as_ref());
    }
    Ok(())
}

/// Writes a checkpoint of the log at the newest version, so that readers need not replay the log from the beginning.
///
/// # Errors
/// The log cannot be read, or the checkpoint cannot be written. The table stays intact without it.
pub(crate) async fn checkpoint(table: &Store) -> Result<(), LakeError> {
    let Some(loaded) = load(table, None).await? else { return Ok(()) };
    deltalake::checkpoints::create_checkpoint(&loaded, None).await.map_err(|e| LakeError::delta("checkpoint", table, e))
}

/// Writes a checkpoint if one is due, as [`checkpoint_or_warn`].
pub(crate) async fn checkpoint_if_due(table: &Store, known: &mut log::Transactions) {
    if known.checkpoint_due() {
        checkpoint_or_warn(table).await;
    }
}

/// Writes a checkpoint. A failure is only logged, because the table stays intact without it.
pub(crate) async fn checkpoint_or_warn(table: &Store) {
    if let Err(error) = checkpoint(table).await {
        tracing::warn!(table = %table, %error, "cannot write a checkpoint of the log; opening it gets slower");
    }
}
