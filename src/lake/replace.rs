//! Old files out and new files in, in one commit.
//!
//! **Invariant: the commit for version `v + 1` removes only files that live at `v`.** Losing the race for `v + 1` means
//! looking again, so of two rewrites of the same files at once one stands, never both.

use std::collections::HashSet;
use std::time::Duration;

use deltalake::kernel::{Action, Add, Remove, Transaction};
use deltalake::protocol::SaveMode;
use tokio::time::Instant;

use super::snapshot::Living;
use super::tables::Table;
use super::{LakeError, Store, fault, log, paths, snapshot};
use crate::backoff::Backoff;
use crate::failpoint;

const PATIENCE: Duration = Duration::from_secs(120);

/// Replaces all files whose partition column has `value` by `files`, with transaction ids in the same commit. Returns the
/// version.
///
/// # Errors
/// The store failed or others won for two minutes; then nothing is replaced, or all of it.
pub async fn replace(
    lake: &Store,
    table: Table,
    column: &str,
    value: &str,
    files: Vec<Add>,
    ids: Vec<(String, i64)>,
) -> Result<u64, LakeError> {
    let in_partition = |file: &Living| file.partition.get(column).is_some_and(|found| found.as_deref() == Some(value));
    let predicate = format!("{column} = '{value}'");
    let select = |living: Vec<Living>| Some(living.into_iter().filter(in_partition).map(|file| file.remove).collect());
    let version = rewrite(lake, table, Some(predicate), files, ids, select).await?;
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
    rewrite(lake, table, None, files, Vec::new(), select).await
}

/// Commits exactly version `version` of a table, with transaction ids; `false` when that version is somebody else's.
///
/// # Errors
/// The store failed for two minutes; then it is unknown whether it was committed.
pub async fn commit_version(
    lake: &Store,
    table: Table,
    version: u64,
    removes: Vec<Remove>,
    files: Vec<Add>,
    ids: Vec<(String, i64)>,
) -> Result<bool, LakeError> {
    let store = table.store(lake);
    let known = log::read_transactions(&store).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
    if known.version + 1 != version {
        return Ok(false);
    }
    known.admit(table, &store, takes_out(&removes))?;
    // A value of our own, by which the commit is known again even if it has no files.
    let token = i64::try_from(super::ledger::new_token()).unwrap_or(i64::MAX);
    let ids = ids.into_iter().chain([(format!("commit/{}", table.name()), token)]);
    let mut actions: Vec<Action> = removes.into_iter().map(Action::Remove).collect();
    actions.extend(files.into_iter().map(Action::Add));
    actions.extend(ids.map(|(id, value)| Action::Txn(Transaction::new(id, value))));
    let (bytes, _) = known.encode(table, &store, actions, (SaveMode::Overwrite, None))?;
    let path = paths::commit(version);
    let began = Instant::now();
    let mut backoff = Backoff::new(200, 5_000);
    loop {
        failpoint::hit("commit/before");
        let put = store.put_new(&path, bytes.clone()).await;
        failpoint::hit("commit/after");
        let Err(error) = put else {
            snapshot::checkpoint_at_times(&store, version).await;
            return Ok(true);
        };
        if fault::is_permanent(&error) {
            return Err(LakeError::storage("write commit", &store, &path, error));
        }
        match store.get(&path).await {
            Ok(Some(found)) => return Ok(found == bytes),
            Ok(None) | Err(_) if began.elapsed() > PATIENCE => {
                let (table, seconds) = (store.url().to_string(), PATIENCE.as_secs());
                return Err(LakeError::Contended { table, seconds, source: Some(error) });
            }
            Ok(None) | Err(_) => {
                tracing::warn!(table = table.name(), version, error = %error, "commit failed, trying again");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

fn takes_out(removes: &[Remove]) -> bool {
    removes.iter().any(|remove| remove.data_change)
}

async fn rewrite(
    lake: &Store,
    table: Table,
    predicate: Option<String>,
    files: Vec<Add>,
    ids: Vec<(String, i64)>,
    select: impl Fn(Vec<Living>) -> Option<Vec<Remove>>,
) -> Result<Option<u64>, LakeError> {
    let store = table.store(lake);
    let none = || LakeError::NoLake(store.to_string());
    let began = Instant::now();
    let mut backoff = Backoff::new(200, 5_000);
    loop {
        let known = log::read_transactions(&store).await?.ok_or_else(none)?;
        let loaded = table.load(lake, Some(known.version)).await?.ok_or_else(none)?;
        let version = known.version + 1;
        let living = snapshot::files(&store, &loaded).await?;
        let Some(removes) = select(living) else { return Ok(None) };
        known.admit(table, &store, takes_out(&removes))?;
        let mut actions: Vec<Action> = removes.into_iter().map(Action::Remove).collect();
        actions.extend(files.iter().cloned().map(Action::Add));
        actions.extend(ids.iter().cloned().map(|(id, value)| Action::Txn(Transaction::new(id, value))));
        let (bytes, _) = known.encode(table, &store, actions, (SaveMode::Overwrite, predicate.clone()))?;
        let path = paths::commit(version);
        let error = match store.put_new(&path, bytes.clone()).await {
            Ok(()) => {
                snapshot::checkpoint_at_times(&store, version).await;
                return Ok(Some(version));
            }
            Err(error) => error,
        };
        if fault::is_permanent(&error) {
            return Err(LakeError::storage("write commit", &store, &path, error));
        }
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
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}
