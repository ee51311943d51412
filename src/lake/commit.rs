//! The one way to commit to a table.
//!
//! A commit is one put-if-absent of the next version of the log. These invariants hold for every one:
//!
//! - **It is proposed for the version right before it.** [`Proposal::draft`] sees what the log says at that version, and whoever
//!   loses the race for the next one proposes anew, or not any more.
//! - **It is encoded once for each version that it is tried at, and it carries a token of its own.** So it is known again
//!   when its answer was lost, whatever was committed after it.
//! - **The table's terms admit it**, as they are at the version right before it.
//! - **Every reader sees it.** The clean-up of a log makes room below the checkpoint that all readers begin at; a writer that
//!   was idle for so long could put a version there. That is noticed, undone and tried again at the top.

use std::time::Duration;

use deltalake::kernel::{Action, Add, Remove, Transaction};
use deltalake::protocol::SaveMode;
use object_store::Error;
use rand::RngExt;
use tokio::time::Instant;

use super::log::{self, Transactions};
use super::{LakeError, Store, fault, paths};
use crate::backoff::Backoff;
use crate::failpoint;
use crate::schema::Table;

/// How long a commit is tried before the caller hears of it. A cap on time, because a count says nothing.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a commit holds.
#[derive(Debug, Default)]
pub struct Draft {
    /// Files that it takes out.
    pub removes: Vec<Remove>,
    /// Files that it adds.
    pub adds: Vec<Add>,
    /// Transaction ids.
    pub ids: Vec<(String, i64)>,
    /// Whether it replaces files, as the log tells other programs; and which, if one predicate says so.
    pub replaces: Option<Option<String>>,
}

/// What somebody wants to commit.
pub trait Proposal {
    /// The commit right after a version of which the log is `known`; `None` when it is not to be made any more.
    ///
    /// # Errors
    /// The table cannot be read.
    fn draft(&self, known: &Transactions) -> impl Future<Output = Result<Option<Draft>, LakeError>> + Send;

    /// Where tests kill: before the commit is made and after.
    fn failpoints(&self) -> (&'static str, &'static str) {
        ("commit/before", "commit/after")
    }
}

/// A commit that is in the log, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The version that holds it.
    pub version: u64,
    /// How many versions were lost to other writers on the way.
    pub conflicts: u32,
}

/// A token: 63 bits, because a transaction id's version is an i64.
pub fn new_token() -> u64 {
    rand::rng().random::<u64>() >> 1
}

/// Commits what is proposed, and moves `known` there; `None` when it was not to be made any more.
///
/// # Errors
/// The store failed for longer than five minutes, the log is corrupt, or the table's terms do not admit the commit. In the first
/// case the outcome is unknown to the caller and known to the log; starting over from the log is always right.
pub async fn commit(
    table: Table,
    store: &Store,
    known: &mut Transactions,
    proposal: &impl Proposal,
) -> Result<Option<Committed>, LakeError> {
    let (before, after) = proposal.failpoints();
    let token = (format!("commit/{}", table.name()), i64::try_from(new_token()).unwrap_or(i64::MAX));
    let began = Instant::now();
    let mut conflicts = 0;
    let mut backoff = Backoff::new(10, 2_000);
    while let Some(mut draft) = proposal.draft(known).await? {
        known.admit(table, store, draft.removes.iter().any(|remove| remove.data_change))?;
        draft.ids.push(token.clone());
        let ids = draft.ids.clone();
        let (bytes, in_commit_ms) = encode(table, store, known, draft)?;
        let version = known.version + 1;
        let path = paths::commit(version);
        let mut found = None;
        // The same bytes, until that version is somebody's.
        while known.version + 1 == version {
            failpoint::hit(before);
            let put = store.put_new(&path, bytes.clone()).await;
            failpoint::hit(after);
            let failure = match put {
                Ok(()) => {
                    known.ids.extend(ids.iter().cloned());
                    (known.version, known.in_commit_ms) = (version, in_commit_ms);
                    found = Some(version);
                    break;
                }
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    conflicts += 1;
                    None
                }
                Err(error) if fault::is_permanent(&error) => {
                    return Err(LakeError::storage("write commit", store, &path, error));
                }
                Err(error) => {
                    tracing::warn!(table = table.name(), version, %error, "commit failed, reading back");
                    Some(error)
                }
            };
            if began.elapsed() > PATIENCE {
                let (table, seconds) = (store.url().to_string(), PATIENCE.as_secs());
                return Err(LakeError::Contended { table, seconds, source: failure });
            }
            let read = read_back(store, known, &token).await;
            // A lost race needs no pause when the log moved: whoever won has made progress, and whoever waits would only
            // lose again to those who do not. An error does.
            if failure.is_some() || read.is_err() || known.version + 1 == version {
                tokio::time::sleep(backoff.spread()).await;
            }
            match read {
                Ok(read) => found = read,
                Err(error) => transient(table, error)?,
            }
        }
        let Some(version) = found else { continue };
        // It is in the log: from here on nothing is proposed anew before it is known whether readers see it.
        let is_buried = loop {
            match is_buried(store, version, &token).await {
                Ok(is_buried) => break is_buried,
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(error) => transient(table, error)?,
            }
            tokio::time::sleep(backoff.spread()).await;
        };
        if !is_buried {
            return Ok(Some(Committed { version, conflicts }));
        }
        tracing::warn!(table = table.name(), version, "the log was cleaned up meanwhile, reading it anew");
        // No reader begins that far down.
        if let Err(error) = store.delete(&paths::commit(version)).await {
            tracing::warn!(table = table.name(), version, %error, "left a commit below the log's checkpoint");
        }
        *known = log::read_transactions(store).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
    }
    Ok(None)
}

/// Passes on an error that would come again.
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
    let mut actions: Vec<Action> = draft.removes.into_iter().map(Action::Remove).collect();
    actions.extend(draft.adds.into_iter().map(Action::Add));
    actions.extend(draft.ids.into_iter().map(|(id, version)| Action::Txn(Transaction::new(id, version))));
    let mode = match draft.replaces {
        Some(predicate) => (SaveMode::Overwrite, predicate),
        None => (SaveMode::Append, None),
    };
    known.encode(table, store, actions, mode)
}

/// Reads forward, and returns the version that carries the token, if there is one.
///
/// Looks after every single commit: a later one carries another token.
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

/// Whether a version that was just put lies below what the clean-up of the log has removed.
async fn is_buried(store: &Store, version: u64, (id, token): &(String, i64)) -> Result<bool, LakeError> {
    // A checkpoint at that version or above is of long before, or of somebody who was quick.
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

    /// A writer slept while others committed, made a checkpoint and cleaned the log up.
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
        // What has come meanwhile counts: a proposal may not be one any more.
        assert_eq!(commit(Table::Quarantine, &store, &mut asleep, &Say("c")).await.unwrap(), None);
    }

    /// Its answer is lost, and others commit on top of it: it is known again, and not made twice.
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

    /// Its answer came, and then the store does not tell for a while whether readers see it: it is not made twice.
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
