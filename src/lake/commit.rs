//! The commit protocol of a table. Every commit after the creation of a table goes through this module.
//!
//! A commit is one put-if-absent of the next log version. These invariants hold for every commit:
//!
//! - **It is drafted for the version right before it.** [`Proposal::draft`] sees the log at that version. A writer that
//!   loses the race for the next version drafts again, or gives up.
//! - **It is encoded once per version that is tried, and it carries its own token.** So its writer recognises the
//!   commit when the answer was lost, whatever was committed after it.
//! - **The table has the columns of the files that it adds.** If an older version of synclake made the table, a commit of
//!   its own adds the missing ones first.
//! - **The table's requirements allow it**, as they are at the version right before it.
//! - **Every reader sees it.** Log clean-up deletes commits below the checkpoint at which all readers begin. A writer
//!   that was idle for that long could put a version there. That is detected, undone and retried at the newest version.

use std::collections::HashMap;

use deltalake::kernel::{Action, Add, DataType as DeltaType, Metadata, Remove, StructField, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use object_store::Error;
use rand::RngExt;
use tokio::time::Instant;

use super::log::{self, Transactions};
use super::{LakeError, Store, fault, paths};
use crate::backoff::Backoff;
use crate::failpoint;
use crate::schema::Table;
use crate::timeouts::COMMIT_TIMEOUT;

/// The content of a commit.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// Files to remove.
    pub removes: Vec<Remove>,
    /// Files to add.
    pub adds: Vec<Add>,
    /// Transaction ids to set.
    pub ids: Vec<(String, i64)>,
    /// New metadata of the table.
    pub metadata: Option<Metadata>,
    /// The operation that the log names.
    pub operation: Operation,
}

/// The operation that the log names for a commit.
#[derive(Debug, Default, Clone)]
pub(crate) enum Operation {
    /// Adds rows.
    #[default]
    Append,
    /// Replaces files, which a predicate may select.
    Overwrite(Option<String>),
    /// Moves rows into files of about this many bytes.
    Compact(u64),
    /// Removes the rows that a predicate selects.
    Delete(String),
    /// Sets table properties.
    SetProperties(HashMap<String, String>),
    /// Adds columns, whose values are null in all rows so far.
    AddColumns(Vec<StructField>),
}

impl Operation {
    fn of_table(self, table: Table) -> DeltaOperation {
        let (mode, predicate) = match self {
            Self::Append => (SaveMode::Append, None),
            Self::Overwrite(predicate) => (SaveMode::Overwrite, predicate),
            Self::AddColumns(fields) => return DeltaOperation::AddColumn { fields },
            Self::Delete(predicate) => return DeltaOperation::Delete { predicate: Some(predicate) },
            Self::SetProperties(properties) => return DeltaOperation::SetTableProperties { properties },
            Self::Compact(target_bytes) => {
                // The protocol stores the size as an i64; the size is for people only.
                let target_size = i64::try_from(target_bytes).unwrap_or(i64::MAX);
                return DeltaOperation::Optimize { predicate: None, target_size };
            }
        };
        let partition_by = Some(table.partition_columns().iter().map(|c| (*c).to_owned()).collect());
        DeltaOperation::Write { mode, partition_by, predicate }
    }
}

/// Returns the metadata of a table as a commit holds it.
///
/// # Errors
/// It does not have the form that the Delta protocol defines.
pub(crate) fn metadata_of(table: Table, metadata: serde_json::Value) -> Result<Metadata, LakeError> {
    serde_json::from_value(metadata)
        .map_err(|error| LakeError::Invalid(format!("cannot use the metadata of {}: {error}", table.name())))
}

/// A commit that a writer wants to make.
pub(crate) trait Proposal {
    /// Drafts the commit right after the version of `known`. Returns `None` if the commit must not be made any more.
    ///
    /// # Errors
    /// The table cannot be read.
    fn draft(&self, known: &Transactions) -> impl Future<Output = Result<Option<Draft>, LakeError>> + Send;

    /// Returns the names of the failpoints before and after the commit.
    fn failpoints(&self) -> (&'static str, &'static str) {
        ("commit/before", "commit/after")
    }
}

/// A commit that is in the log exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The log version of the commit.
    pub version: u64,
    /// The number of versions lost to other writers on the way.
    pub conflicts: u32,
}

/// Returns a random token as the value of a transaction id. It is not negative, so it has 63 bits.
pub(crate) fn new_token_value() -> i64 {
    rand::rng().random::<i64>() & i64::MAX
}

/// Returns a random token. It has 63 bits, so that it fits into the value of a transaction id.
pub fn new_token() -> u64 {
    new_token_value().unsigned_abs()
}

/// Commits a proposal and moves `known` to its version. Returns `None` if the proposal must not be made any more.
///
/// # Errors
/// The store failed for longer than five minutes, the log is corrupt, or the table's requirements forbid the commit. In
/// the first case the outcome is unknown to the caller, but the log knows it. Starting over from the log is always
/// correct.
pub(crate) async fn commit(
    table: Table,
    store: &Store,
    known: &mut Transactions,
    proposal: &impl Proposal,
) -> Result<Option<Committed>, LakeError> {
    let mut attempt = Attempt {
        table,
        store,
        token: (format!("commit/{}", table.name()), new_token_value()),
        failpoints: proposal.failpoints(),
        began: Instant::now(),
        backoff: Backoff::new(10, 2_000),
        conflicts: 0,
    };
    while let Some(mut draft) = proposal.draft(known).await? {
        known.admit(table, store, draft.removes.iter().any(|remove| remove.data_change))?;
        if attempt.upgrade(known).await? {
            continue;
        }
        draft.ids.push(attempt.token.clone());
        let Some(version) = attempt.put(known, draft).await? else { continue };
        // The commit is in the log. Nothing may be drafted again until it is known whether readers see the commit.
        if !attempt.is_buried(version).await? {
            return Ok(Some(Committed { version, conflicts: attempt.conflicts }));
        }
        tracing::warn!(table = table.name(), version, "the log was cleaned up meanwhile, reading it anew");
        // No reader begins that far back, so the buried commit is only garbage.
        if let Err(error) = store.delete(&paths::commit(version)).await {
            tracing::warn!(table = table.name(), version, %error, "left a commit below the log's checkpoint");
        }
        *known = log::read_transactions(store).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
    }
    Ok(None)
}

/// A commit that is being made.
struct Attempt<'a> {
    table: Table,
    store: &'a Store,
    /// The transaction id by which the commit is recognised in the log.
    token: (String, i64),
    failpoints: (&'static str, &'static str),
    began: Instant,
    backoff: Backoff,
    conflicts: u32,
}

impl Attempt<'_> {
    /// Adds the columns that the table lacks because an older version of synclake made it, in a commit of its own.
    /// Returns whether it lacked some.
    async fn upgrade(&mut self, known: &mut Transactions) -> Result<bool, LakeError> {
        let corrupt = |error: serde_json::Error| LakeError::Log {
            path: format!("{}_delta_log", self.store.url()),
            reason: format!("its metadata: {error}"),
        };
        let Some((action, names)) = known.requirements.upgrade(self.table).map_err(corrupt)? else { return Ok(false) };
        let metadata = serde_json::from_value(action.clone()).map_err(corrupt)?;
        let columns = names.iter().map(|name| StructField::nullable(name, DeltaType::STRING)).collect();
        let draft = Draft {
            ids: vec![self.token.clone()],
            metadata: Some(metadata),
            operation: Operation::AddColumns(columns),
            ..Draft::default()
        };
        if let Some(version) = self.put(known, draft).await?
            && version == known.version
        {
            known.requirements.apply_action(&serde_json::json!({ "metaData": action })).map_err(corrupt)?;
            tracing::info!(table = self.table.name(), version, columns = names.join(", "), "upgraded the table");
        }
        Ok(true)
    }

    /// Puts a draft at the next version, and reads the log back after every error. Returns the version that holds the
    /// commit, or `None` if that version belongs to another commit.
    async fn put(&mut self, known: &mut Transactions, draft: Draft) -> Result<Option<u64>, LakeError> {
        let ids = draft.ids.clone();
        let version = known.next_version(self.store)?;
        let (bytes, in_commit_ms) = encode(self.table, self.store, known, draft)?;
        let path = paths::commit(version);
        // The same bytes are retried until some commit takes that version.
        while known.version + 1 == version {
            failpoint::hit(self.failpoints.0);
            let put = self.store.put_new(&path, bytes.clone()).await;
            failpoint::hit(self.failpoints.1);
            let failure = match put {
                Ok(()) => {
                    known.ids.extend(ids);
                    (known.version, known.in_commit_ms) = (version, in_commit_ms);
                    return Ok(Some(version));
                }
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    self.conflicts += 1;
                    None
                }
                // The refused try may follow an earlier one, of the store's own, that succeeded.
                Err(error) if fault::is_permanent(&error) => match read_back(self.store, known, &self.token).await {
                    Ok(Some(version)) => return Ok(Some(version)),
                    Ok(None) | Err(_) => return Err(LakeError::storage("write commit", self.store, &path, error)),
                },
                Err(error) => {
                    tracing::warn!(table = self.table.name(), version, %error, "commit failed, reading back");
                    Some(error)
                }
            };
            if self.began.elapsed() > COMMIT_TIMEOUT {
                let (table, seconds) = (self.store.url().to_string(), COMMIT_TIMEOUT.as_secs());
                return Err(LakeError::Contended { table, seconds, source: failure });
            }
            let read = read_back(self.store, known, &self.token).await;
            // A lost race needs no pause if the log moved: the winner made progress, and a writer that pauses would
            // lose again to writers that do not. An error needs a pause.
            if failure.is_some() || read.is_err() || known.version + 1 == version {
                tokio::time::sleep(self.backoff.spread()).await;
            }
            match read {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => transient(self.table, error)?,
            }
        }
        Ok(None)
    }

    /// Returns whether no reader sees a commit that is in the log. Asks until the store answers.
    async fn is_buried(&mut self, version: u64) -> Result<bool, LakeError> {
        loop {
            match is_buried(self.store, version, &self.token).await {
                Ok(is_buried) => return Ok(is_buried),
                Err(error) if self.began.elapsed() > COMMIT_TIMEOUT => return Err(error),
                Err(error) => transient(self.table, error)?,
            }
            tokio::time::sleep(self.backoff.spread()).await;
        }
    }
}

/// Returns an error that would occur again; logs any other error.
fn transient(table: Table, error: LakeError) -> Result<(), LakeError> {
    let is_lasting = matches!(error, LakeError::Log { .. } | LakeError::Unsupported { .. });
    if is_lasting || fault::is_permanent(&error) {
        return Err(error);
    }
    tracing::warn!(table = table.name(), %error, "cannot read the log back, trying again");
    Ok(())
}

fn encode(
    table: Table,
    store: &Store,
    known: &Transactions,
    draft: Draft,
) -> Result<(bytes::Bytes, Option<i64>), LakeError> {
    let mut actions: Vec<Action> = draft.metadata.into_iter().map(Action::Metadata).collect();
    actions.extend(draft.removes.into_iter().map(Action::Remove));
    actions.extend(draft.adds.into_iter().map(Action::Add));
    actions.extend(draft.ids.into_iter().map(|(id, version)| Action::Txn(Transaction::new(id, version))));
    known.encode(store, actions, draft.operation.of_table(table))
}

/// Reads the log forward. Returns the version that carries the token, if there is one.
///
/// The token is checked after every single commit, because a later commit overwrites the token of the same id.
async fn read_back(
    store: &Store,
    known: &mut Transactions,
    (id, token): &(String, i64),
) -> Result<Option<u64>, LakeError> {
    let mut found = None;
    while log::read_next(store, known).await? {
        if known.ids.get(id) == Some(token) {
            found = found.or(Some(known.version));
        }
    }
    Ok(found)
}

/// Returns whether a version that was just put lies below the commits that log clean-up removed.
async fn is_buried(store: &Store, version: u64, (id, token): &(String, i64)) -> Result<bool, LakeError> {
    // A checkpoint at or above that version is either much older than this commit, or another writer was quick.
    if log::last_checkpoint(store).await?.is_none_or(|checkpoint| checkpoint < version) {
        return Ok(false);
    }
    if store.size(&paths::commit(version - 1)).await?.is_some() {
        return Ok(false);
    }
    let top = log::read_transactions(store).await?.unwrap_or_default();
    Ok(top.ids.get(id) != Some(token))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::{Location, snapshot};

    struct Say(&'static str);

    impl Proposal for Say {
        async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
            let ids = vec![(self.0.to_owned(), i64::try_from(known.version).unwrap())];
            Ok((!known.ids.contains_key(self.0)).then(|| Draft { ids, ..Draft::default() }))
        }
    }

    async fn table(folder: &std::path::Path) -> Store {
        let lake = Store::create(&Location::Folder(folder.into()), &AwsSettings::default()).await.unwrap();
        Table::Quarantine.ensure(&lake).await.unwrap();
        Table::Quarantine.store(&lake)
    }

    /// A writer sleeps while others commit, write a checkpoint and clean up the log.
    #[tokio::test]
    async fn nothing_is_committed_below_what_was_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = table(folder.path()).await;
        let mut idle = log::read_transactions(&store).await.unwrap().unwrap();
        let (mut other, mut asleep) = (idle.clone(), idle.clone());
        for id in ["a", "b", "c"] {
            commit(Table::Quarantine, &store, &mut other, &Say(id)).await.unwrap().unwrap();
        }
        snapshot::checkpoint(&store).await.unwrap();
        for version in 0..3 {
            store.delete(&paths::commit(version)).await.unwrap();
        }
        let done = commit(Table::Quarantine, &store, &mut idle, &Say("idle")).await.unwrap().unwrap();
        assert_eq!((done.version, done.conflicts), (4, 0));
        assert_eq!(store.size(&paths::commit(1)).await.unwrap(), None, "nothing is left where nobody looks");
        let seen = log::read_transactions(&store).await.unwrap().unwrap();
        assert_eq!((seen.version, seen.ids.get("idle")), (4, Some(&3)), "it was proposed anew, at the top");
        // A commit made in the meantime counts: the proposal need not be made any more.
        assert_eq!(commit(Table::Quarantine, &store, &mut asleep, &Say("c")).await.unwrap(), None);
    }

    /// The answer is lost, and others commit on top: the writer recognises its commit and does not repeat it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_whose_answer_was_lost_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = table(folder.path()).await;
        let mut known = log::read_transactions(&store).await.unwrap().unwrap();
        let other = store.clone();
        store.loses_answer = Some(Arc::new(move || {
            let other = other.clone();
            Box::pin(async move {
                let mut known = log::read_transactions(&other).await.unwrap().unwrap();
                commit(Table::Quarantine, &other, &mut known, &Say("other")).await.unwrap();
                true
            })
        }));
        let done = commit(Table::Quarantine, &store, &mut known, &Say("lost")).await.unwrap();
        assert_eq!(done, Some(Committed { version: 1, conflicts: 0 }));
        assert_eq!(log::read_transactions(&store).await.unwrap().unwrap().version, 2);
    }

    /// The store makes the commit, and then refuses a try of its own: the commit is recognised.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_was_made_before_a_refusal_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = table(folder.path()).await;
        let mut known = log::read_transactions(&store).await.unwrap().unwrap();
        store.loses_answer = Some(Arc::new(|| Box::pin(async { true })));
        store.loses_it_for_good = true;
        let done = commit(Table::Quarantine, &store, &mut known, &Say("refused")).await.unwrap();
        assert_eq!(done, Some(Committed { version: 1, conflicts: 0 }));
    }

    /// The answer arrives, but reads then fail for a while, so visibility is unknown: the commit is not repeated.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_is_made_once_however_long_the_store_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = table(folder.path()).await;
        let mut known = log::read_transactions(&store).await.unwrap().unwrap();
        let silent = Arc::new(AtomicUsize::new(0));
        store.silent_reads = Some(silent.clone());
        store.loses_answer = Some(Arc::new(move || {
            silent.store(3, Ordering::SeqCst);
            Box::pin(async { false })
        }));
        let done = commit(Table::Quarantine, &store, &mut known, &Say("once")).await.unwrap();
        assert_eq!(done, Some(Committed { version: 1, conflicts: 0 }));
        store.silent_reads = None;
        assert_eq!(log::read_transactions(&store).await.unwrap().unwrap().version, 1);
    }
}
