//! Replacing a partition: old files out and new files in, in one commit.
//!
//! **Invariant: the commit for version `v + 1` removes exactly the partition's files that live at `v`.** Losing the race
//! for `v + 1` means looking again, so two replacements at once leave the files of one of them, never of both.

use std::time::Duration;

use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, Add};
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::TryStreamExt;
use tokio::time::Instant;

use super::tables::Table;
use super::{LakeError, Store, paths};

const PATIENCE: Duration = Duration::from_secs(120);

/// Replaces all files whose partition column has `value` by `files`. Returns the version.
///
/// # Errors
/// The store failed or others won for two minutes; then nothing is replaced, or all of it.
pub async fn replace(lake: &Store, table: Table, column: &str, value: &str, files: Vec<Add>) -> Result<u64, LakeError> {
    let store = table.store(lake);
    let fail = |source| LakeError::delta("read", &store, source);
    let began = Instant::now();
    loop {
        let loaded = table.load(lake, None).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        let snapshot = loaded.snapshot().map_err(fail)?;
        let version = snapshot.version() + 1;
        let log_store = loaded.log_store();
        let views: Vec<_> =
            snapshot.snapshot().file_views(log_store.as_ref(), None).try_collect().await.map_err(fail)?;
        let old = views
            .iter()
            .filter(|v| v.partition_values_map().get(column).is_some_and(|found| found.as_deref() == Some(value)));
        let mut actions: Vec<Action> = old.map(|v| Action::Remove(v.remove_action(true))).collect();
        actions.extend(files.iter().cloned().map(Action::Add));
        let operation = DeltaOperation::Write {
            mode: SaveMode::Overwrite,
            partition_by: Some(table.partition_columns().iter().map(|c| (*c).to_owned()).collect()),
            predicate: Some(format!("{column} = '{value}'")),
        };
        let bytes = CommitData::new(actions, operation, Default::default(), Vec::new())
            .get_bytes()
            .map_err(|e| LakeError::delta("encode commit of", &store, e.into()))?;
        let path = paths::commit(version);
        let error = match store.put_new(&path, bytes.clone()).await {
            Ok(()) => return Ok(version),
            Err(error) => error,
        };
        // The file names in it are ours alone: equal bytes are our own commit, its answer lost.
        if store.get(&path).await?.is_some_and(|found| found == bytes) {
            return Ok(version);
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
