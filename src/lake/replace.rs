//! Commits that replace active files of a table by new files.
//!
//! **Invariant: the commit for version `v + 1` removes only files that are active at `v`.** A writer that loses the
//! race for `v + 1` selects the files again. So of two concurrent rewrites of the same files, one succeeds, never both.

use std::collections::HashSet;

use chrono::{TimeDelta, Utc};
use deltalake::kernel::{Add, Remove};

use super::commit::{self, Draft, Operation, Proposal, metadata_of};
use super::log::{self, Transactions};
use super::snapshot::{self, ActiveFile};
use super::{LakeError, Store};
use crate::schema::Table;

/// Replaces all files whose partition column `column` has `value` by `files`. `ids` returns the transaction ids of the
/// commit; its argument is the version of the commit. Returns that version.
///
/// # Errors
/// The store failed, or other writers won for too long. Then either nothing or everything is replaced.
pub(crate) async fn replace(
    lake: &Store,
    table: Table,
    column: &str,
    value: &str,
    files: Vec<Add>,
    ids: impl Fn(i64) -> Vec<(String, i64)> + Sync,
) -> Result<u64, LakeError> {
    let in_partition =
        |file: &ActiveFile| file.partition.get(column).is_some_and(|found| found.as_deref() == Some(value));
    let predicate = format!("{column} = '{value}'");
    let select =
        |living: Vec<ActiveFile>| Some(living.into_iter().filter(in_partition).map(|file| file.remove).collect());
    let version = rewrite(lake, table, Operation::Overwrite(Some(predicate)), files, ids, select).await?;
    version.ok_or_else(|| LakeError::Invalid("a replacement that selects nothing was refused".to_owned()))
}

/// Replaces exactly the files `old` by `files`. Returns the version, or `None` if one of the old files is not active
/// any more.
///
/// # Errors
/// As [`replace`].
pub(crate) async fn swap(
    lake: &Store,
    table: Table,
    old: &[String],
    files: Vec<Add>,
) -> Result<Option<u64>, LakeError> {
    let wanted: HashSet<&str> = old.iter().map(String::as_str).collect();
    let select = |living: Vec<ActiveFile>| {
        let found: Vec<Remove> =
            living.into_iter().filter(|file| wanted.contains(file.path.as_str())).map(|file| file.remove).collect();
        (found.len() == wanted.len()).then_some(found)
    };
    rewrite(lake, table, Operation::Overwrite(None), files, |_| Vec::new(), select).await
}

/// The age at which a written file must not be committed any more. It is far below the ages at which a vacuum (a day) and
/// [`super::sweep::sweep_compactions`] (a week) delete unlisted files.
const MOVE_TIMEOUT: TimeDelta = TimeDelta::hours(12);

/// Files that hold the rows of older files.
pub(crate) struct MovedRows {
    /// The new files.
    pub files: Vec<Add>,
    /// The size that they should have, for people who read the log.
    pub target_bytes: u64,
    /// Whether they have the column `copies`. The commit adds it to a table that lacks it.
    pub has_copies: bool,
}

/// Moves the rows of exactly the files `old` to other files, without a change of data. Returns the version, or `None` if
/// one of the old files is not active any more, or lost rows to a deletion vector.
///
/// # Errors
/// As [`replace`].
pub(crate) async fn move_rows(
    lake: &Store,
    table: Table,
    old: &[String],
    moved: MovedRows,
) -> Result<Option<u64>, LakeError> {
    let MovedRows { mut files, target_bytes, has_copies } = moved;
    files.iter_mut().for_each(|file| file.data_change = false);
    let wanted: HashSet<&str> = old.iter().map(String::as_str).collect();
    let written_at = Utc::now();
    let select = |living: Vec<ActiveFile>| {
        let is_whole = |file: &ActiveFile| file.remove.deletion_vector.is_none();
        let found: Vec<Remove> = living
            .into_iter()
            .filter(|file| wanted.contains(file.path.as_str()) && is_whole(file))
            .map(|file| Remove { data_change: false, ..file.remove })
            .collect();
        // The machine may have slept since the files were written.
        let is_recent = Utc::now() - written_at < MOVE_TIMEOUT;
        (is_recent && found.len() == wanted.len()).then_some(found)
    };
    let (operation, ids) = (Operation::Compact(target_bytes), |_: i64| Vec::new());
    propose(lake, table, &Rewrite { lake, table, operation, files, has_copies, ids, select }).await
}

/// Commits exactly version `version` of a table, with transaction ids. Returns `false` if another writer took that
/// version.
///
/// # Errors
/// The store failed for too long. Then the outcome is unknown.
pub(crate) async fn commit_version(
    lake: &Store,
    table: Table,
    version: u64,
    removes: Vec<Remove>,
    files: Vec<Add>,
    ids: Vec<(String, i64)>,
) -> Result<bool, LakeError> {
    let proposal = Exactly { version, removes, files, ids };
    Ok(propose(lake, table, &proposal).await?.is_some())
}

/// What the newest version of a log means for transaction ids that somebody wants to set.
pub(crate) enum Ids<T> {
    /// Nothing is to be set.
    Keep(T),
    /// These are set, unless another writer is faster.
    Set(Vec<(String, i64)>, T),
}

/// Sets transaction ids of a table. `decide` sees the version right before the commit, and sees a newer one each time
/// that another writer was faster. Returns its last answer.
///
/// # Errors
/// `decide` fails, the log cannot be read, or the store failed for too long. Then the outcome is unknown.
pub(crate) async fn set_ids<T>(
    lake: &Store,
    table: Table,
    decide: impl Fn(&Transactions) -> Result<Ids<T>, LakeError>,
) -> Result<T, LakeError> {
    let store = table.store(lake);
    loop {
        let known = log::read_transactions(&store).await?.unwrap_or_default();
        match decide(&known)? {
            Ids::Keep(answer) => return Ok(answer),
            Ids::Set(ids, answer) => {
                if commit_version(lake, table, known.version + 1, Vec::new(), Vec::new(), ids).await? {
                    return Ok(answer);
                }
            }
        }
    }
}

struct Exactly {
    version: u64,
    removes: Vec<Remove>,
    files: Vec<Add>,
    ids: Vec<(String, i64)>,
}

impl Proposal for Exactly {
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let draft = || Draft {
            removes: self.removes.clone(),
            adds: self.files.clone(),
            ids: self.ids.clone(),
            operation: Operation::Overwrite(None),
            ..Draft::default()
        };
        Ok((known.version + 1 == self.version).then(draft))
    }
}

/// Commits a proposal on top of the newest version of the log. Returns the new version.
pub(crate) async fn propose(lake: &Store, table: Table, proposal: &impl Proposal) -> Result<Option<u64>, LakeError> {
    let store = table.store(lake);
    let known = log::read_transactions(&store).await?;
    let mut known = known.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
    let Some(committed) = commit::commit(table, &store, &mut known, proposal).await? else { return Ok(None) };
    snapshot::checkpoint_if_due(&store, &mut known).await;
    Ok(Some(committed.version))
}

async fn rewrite(
    lake: &Store,
    table: Table,
    operation: Operation,
    files: Vec<Add>,
    ids: impl Fn(i64) -> Vec<(String, i64)> + Sync,
    select: impl Fn(Vec<ActiveFile>) -> Option<Vec<Remove>> + Sync,
) -> Result<Option<u64>, LakeError> {
    propose(lake, table, &Rewrite { lake, table, operation, files, has_copies: false, ids, select }).await
}

struct Rewrite<'a, I, S> {
    lake: &'a Store,
    table: Table,
    operation: Operation,
    files: Vec<Add>,
    has_copies: bool,
    ids: I,
    select: S,
}

impl<I, S> Proposal for Rewrite<'_, I, S>
where
    I: Fn(i64) -> Vec<(String, i64)> + Sync,
    S: Fn(Vec<ActiveFile>) -> Option<Vec<Remove>> + Sync,
{
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let store = self.table.store(self.lake);
        let loaded = self.table.load(self.lake, Some(known.version)).await?;
        let loaded = loaded.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        let living = snapshot::files(&store, &loaded).await?;
        let ids = (self.ids)(log::id_value(known.version + 1)?);
        let (adds, operation) = (self.files.clone(), self.operation.clone());
        // A program that does not know the column must not count the rows of these files.
        let metadata = if self.has_copies { known.requirements.with_copies() } else { Ok(None) };
        let metadata = metadata.map_err(|reason| LakeError::Unsupported { table: store.to_string(), reason })?;
        // delta-rs compares the files that its OPTIMIZE removes only with removals that change data. It would move rows a
        // second time that this commit moves. Repeated metadata makes every writer fail that read the table before it.
        let is_move = matches!(operation, Operation::Compact(_));
        let metadata = metadata.or_else(|| known.requirements.same_metadata().filter(|_| is_move));
        let metadata = metadata.map(|metadata| metadata_of(self.table, metadata)).transpose()?;
        let draft = |removes| Draft { removes, adds, ids, operation, metadata };
        Ok((self.select)(living).map(draft))
    }
}
