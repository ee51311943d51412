//! Old files out and new files in, in one commit.
//!
//! **Invariant: the commit for version `v + 1` removes only files that live at `v`.** Losing the race for `v + 1` means
//! looking again, so of two rewrites of the same files at once one stands, never both.

use std::collections::HashSet;
use std::time::Duration;

use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, Add, Remove};
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::TryStreamExt;
use tokio::time::Instant;

use super::tables::Table;
use super::{LakeError, Store, paths};

const PATIENCE: Duration = Duration::from_secs(120);

/// A file that lives, and the action that would end that.
struct Living {
    path: String,
    partition: std::collections::HashMap<String, Option<String>>,
    remove: Remove,
}

/// Replaces all files whose partition column has `value` by `files`. Returns the version.
///
/// # Errors
/// The store failed or others won for two minutes; then nothing is replaced, or all of it.
pub async fn replace(lake: &Store, table: Table, column: &str, value: &str, files: Vec<Add>) -> Result<u64, LakeError> {
    let in_partition = |file: &Living| file.partition.get(column).is_some_and(|found| found.as_deref() == Some(value));
    let predicate = format!("{column} = '{value}'");
    let select = |living: Vec<Living>| Some(living.into_iter().filter(in_partition).map(|file| file.remove).collect());
    let version = rewrite(lake, table, Some(predicate), files, select).await?;
    version.ok_or_else(|| LakeError::Invalid("a replacement that selects nothing was refused".to_owned()))
}

/// Replaces exactly the files `old` by `files`. Returns the version; `None` when one of them does not live any more.
///
/// # Errors
/// As [`replace`].
pub async fn swap(lake: &Store, table: Table, old: &[String], files: Vec<Add>) -> Result<Option<u64>, LakeError> {
    let wanted: HashSet<&str> = old.iter().map(String::as_str).collect();
    let select = |living: Vec<Living>| {
        let found: Vec<Remove> =
            living.into_iter().filter(|file| wanted.contains(file.path.as_str())).map(|file| file.remove).collect();
        (found.len() == wanted.len()).then_some(found)
    };
    rewrite(lake, table, None, files, select).await
}

async fn rewrite(
    lake: &Store,
    table: Table,
    predicate: Option<String>,
    files: Vec<Add>,
    select: impl Fn(Vec<Living>) -> Option<Vec<Remove>>,
) -> Result<Option<u64>, LakeError> {
    let store = table.store(lake);
    let fail = |source| LakeError::delta("read", &store, source);
    let began = Instant::now();
    loop {
        let loaded = table.load(lake, None).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        let snapshot = loaded.snapshot().map_err(fail)?;
        let version = snapshot.version() + 1;
        let log_store = loaded.log_store();
        let living: Vec<Living> = snapshot
            .snapshot()
            .file_views(log_store.as_ref(), None)
            .map_ok(|view| Living {
                path: view.path().into_owned(),
                partition: view.partition_values_map(),
                remove: view.remove_action(true),
            })
            .try_collect()
            .await
            .map_err(fail)?;
        let Some(removes) = select(living) else { return Ok(None) };
        let mut actions: Vec<Action> = removes.into_iter().map(Action::Remove).collect();
        actions.extend(files.iter().cloned().map(Action::Add));
        let operation = DeltaOperation::Write {
            mode: SaveMode::Overwrite,
            partition_by: Some(table.partition_columns().iter().map(|c| (*c).to_owned()).collect()),
            predicate: predicate.clone(),
        };
        let bytes = CommitData::new(actions, operation, Default::default(), Vec::new())
            .get_bytes()
            .map_err(|e| LakeError::delta("encode commit of", &store, e.into()))?;
        let path = paths::commit(version);
        let error = match store.put_new(&path, bytes.clone()).await {
            Ok(()) => return Ok(Some(version)),
            Err(error) => error,
        };
        // Its removals or its file names are ours alone: equal bytes are our own commit, its answer lost.
        if store.get(&path).await?.is_some_and(|found| found == bytes) {
            return Ok(Some(version));
        }
        if began.elapsed() > PATIENCE {
            let (table, seconds) = (store.url().to_string(), PATIENCE.as_secs());
            return Err(LakeError::Contended { table, seconds, source: Some(error) });
        }
        if !matches!(error, object_store::Error::AlreadyExists { .. }) {
            tracing::warn!(table = table.name(), version, error = %error, "commit failed, trying again");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
