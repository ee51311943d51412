//! Changes of a table between two versions, taken from the log alone; no data file is read.
//!
//! | commit | rows of the added files | rows of the removed files |
//! |---|---|---|
//! | of synclake: `ingest/…` or `redrive/…` among its transaction ids | are new | it removes no file |
//! | that lets files leave by retention (`expired`) | it adds no file | are gone, and stand in the state |
//! | of another writer, without removed or restored files | are new | |
//! | without data change (OPTIMIZE, Z-ORDER, PURGE) | are the rows of the removed files | are now in other files |
//! | other (DELETE, UPDATE, MERGE, RESTORE, overwrite, deletion vector) | may be older rows | are removed or changed |

use std::collections::{BTreeMap, HashMap};

use deltalake::kernel::{Action, Add, Remove};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::expired::{Expired, is_expiry};
use super::{LakeError, Store, log, paths};

/// Commits that are read concurrently.
const READS: usize = 16;
/// Prefixes of transaction ids that only synclake's commits with new rows have.
const OURS: [&str; 2] = ["ingest/", "redrive/"];

/// Values of partition columns.
pub(crate) type Partition = HashMap<String, Option<String>>;

/// A file of new rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewFile {
    /// The version that added the file.
    pub version: u64,
    /// The version that removed the file, if any.
    pub removed_at: Option<u64>,
    /// Values of its partition columns.
    pub partition: Partition,
    /// Row count, as far as the log states it.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// A file that was removed because some of its rows were removed or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemovedFile {
    /// The version that removed the file.
    pub version: u64,
    /// The version that had added the file; `None` if the file may hold rows of any earlier version.
    pub added: Option<u64>,
    /// Values of its partition columns, if the log states them.
    pub partition: Option<Partition>,
}

impl RemovedFile {
    /// Returns whether the file may have held rows of dates that have left by retention.
    pub(crate) fn may_be_of(&self, expired: &Expired) -> bool {
        let value = |name: &str| self.partition.as_ref()?.get(name)?.clone();
        let date = value("event_date").and_then(|date| date.parse().ok());
        value("pool").is_none_or(|pool| expired.is_before(&pool, date))
    }
}

/// A commit of another writer that removed or changed rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The version of the commit.
    pub version: u64,
    /// The name of the operation in the log, such as `DELETE`.
    pub operation: String,
}

/// The changes after one version (the first) up to another (the last).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TableChanges {
    /// Files of new rows, by path, including files that were removed since.
    pub new: BTreeMap<String, NewFile>,
    /// Other files of the last version that may hold rows which the first version lacks, by path. The value is the
    /// newest version whose rows the file may hold.
    pub rewritten: BTreeMap<String, u64>,
    /// Files that were removed because rows were removed or changed.
    pub removed: Vec<RemovedFile>,
    /// Files that left by retention, although the first version lacks rows of them. None of what covers the first version
    /// can hold these rows.
    pub expired_new: Vec<RemovedFile>,
    /// Whether new rows were removed or changed before the last version.
    pub is_new_changed: bool,
    /// Commits that removed or changed rows.
    pub commits: Vec<Change>,
}

impl TableChanges {
    /// Returns files of the last version that together hold every row which the first version lacks. The value is the
    /// newest version whose rows the file may hold. The files may hold rows of the first version too.
    pub(crate) fn files(&self) -> BTreeMap<String, u64> {
        let left = self.new.iter().filter(|(_, file)| file.removed_at.is_none());
        let left = left.map(|(path, file)| (path.clone(), file.version));
        self.rewritten.iter().map(|(path, version)| (path.clone(), *version)).chain(left).collect()
    }

    /// Returns the removed files that hold rows of `version`, which lies between the first and the last version.
    pub(crate) fn removed_with_rows_of(&self, version: u64) -> impl Iterator<Item = &RemovedFile> {
        self.removed
            .iter()
            .filter(move |file| file.version > version && file.added.is_none_or(|added| added <= version))
    }

    /// Applies an expiry. Whoever holds the rows of the first version has lost nothing, unless they were newer.
    fn expire(&mut self, version: u64, actions: &[Action]) {
        for action in actions {
            let Action::Remove(remove) = action else { continue };
            let added = match self.new.get_mut(&remove.path).filter(|file| file.removed_at.is_none()) {
                Some(file) => {
                    file.removed_at = Some(version);
                    Some(file.version)
                }
                None => self.rewritten.remove(&remove.path),
            };
            if added.is_some() {
                self.expired_new.push(RemovedFile { version, added, partition: remove.partition_values.clone() });
            }
        }
    }

    fn apply(&mut self, version: u64, actions: Vec<Action>) {
        let kind = Kind::of(&actions);
        if kind == Kind::Expiry {
            self.expire(version, &actions);
            return;
        }
        // The newest version whose rows are in the files that this commit removes, if they held new rows.
        let mut inherited: Option<u64> = None;
        for action in &actions {
            let Action::Remove(remove) = action else { continue };
            let new = self.new.get_mut(&remove.path).filter(|file| file.removed_at.is_none());
            let (added, partition, newest) = match new {
                Some(file) => {
                    file.removed_at = Some(version);
                    (Some(file.version), Some(file.partition.clone()), Some(file.version))
                }
                None => (None, None, self.rewritten.remove(&remove.path)),
            };
            inherited = inherited.max(newest);
            if remove.data_change {
                self.is_new_changed |= newest.is_some();
                let partition = remove.partition_values.clone().or(partition);
                self.removed.push(RemovedFile { version, added, partition });
            }
        }
        if kind == Kind::Change {
            self.commits.push(Change { version, operation: operation_of(&actions) });
        }
        for action in actions {
            let Action::Add(add) = action else { continue };
            match (kind, inherited) {
                (Kind::New, _) if add.data_change => {
                    let (rows, bytes) = (rows_of(&add), u64::try_from(add.size).unwrap_or(0));
                    let (removed_at, partition) = (None, add.partition_values);
                    self.new.insert(add.path, NewFile { version, removed_at, partition, rows, bytes });
                }
                (Kind::Change, _) => drop(self.rewritten.insert(add.path, version)),
                (Kind::Same, Some(newest)) => drop(self.rewritten.insert(add.path, newest)),
                (Kind::New | Kind::Same | Kind::Expiry, _) => {}
            }
        }
    }
}

/// The effect of a commit on the rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Adds new rows.
    New,
    /// Changes no rows; may move them to other files.
    Same,
    /// Removes or changes rows.
    Change,
    /// Lets rows leave that the state, the extracts and the consumers hold.
    Expiry,
}

impl Kind {
    fn of(actions: &[Action]) -> Self {
        if is_expiry(actions) {
            return Self::Expiry;
        }
        let (mut changes, mut is_rewrite) = (false, false);
        for action in actions {
            match action {
                Action::Txn(txn) if OURS.iter().any(|prefix| txn.app_id.starts_with(prefix)) => return Self::New,
                Action::CommitInfo(info) => is_rewrite |= info.operation.as_deref() == Some("RESTORE"),
                Action::Remove(remove) => {
                    is_rewrite = true;
                    changes |= remove.data_change;
                }
                Action::Add(add) => {
                    changes |= add.data_change;
                    // This file existed before: only synclake uses such names, and deletion vectors apply to existing
                    // files only.
                    is_rewrite |= add.deletion_vector.is_some() || is_named_by_us(&add.path);
                }
                _ => {}
            }
        }
        match (changes, is_rewrite) {
            (false, _) => Self::Same,
            (true, true) => Self::Change,
            (true, false) => Self::New,
        }
    }
}

/// Returns the rows and the bytes that a commit adds: those of its files of new rows, as far as the log states them.
pub(crate) fn new_rows(actions: &[Action]) -> (u64, u64) {
    if Kind::of(actions) != Kind::New {
        return (0, 0);
    }
    let adds = actions.iter().filter_map(|action| if let Action::Add(add) = action { Some(add) } else { None });
    adds.filter(|add| add.data_change).fold((0, 0), |(rows, bytes): (u64, u64), add| {
        (rows.saturating_add(rows_of(add)), bytes.saturating_add(u64::try_from(add.size).unwrap_or(0)))
    })
}

/// Returns whether a commit adds, removes or changes rows, other than by retention.
pub(crate) fn changes_rows(actions: &[Action]) -> bool {
    !is_expiry(actions)
        && actions.iter().any(|action| match action {
            Action::Add(add) => add.data_change,
            Action::Remove(remove) => remove.data_change,
            _ => false,
        })
}

/// Returns whether ingest or a redrive gave the file its name.
pub(crate) fn is_named_by_us(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    paths::is_ours(name) || name.starts_with("redrive-")
}

fn operation_of(actions: &[Action]) -> String {
    let named = actions.iter().find_map(|action| match action {
        Action::CommitInfo(info) => info.operation.clone(),
        _ => None,
    });
    named.unwrap_or_else(|| "an unnamed operation".to_owned())
}

fn rows_of(add: &Add) -> u64 {
    let statistics = add.stats.as_deref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    statistics.and_then(|statistics| statistics["numRecords"].as_u64()).unwrap_or(0)
}

/// Returns the changes after version `from` up to version `to`, or `None` if the log does not reach back that far any
/// more.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn changes_between(table: &Store, from: u64, to: u64) -> Result<Option<TableChanges>, LakeError> {
    let mut found = TableChanges::default();
    let is_whole = for_each_commit(table, (from, to), |version, actions| found.apply(version, actions)).await?;
    Ok(is_whole.then_some(found))
}

/// Reads the commits after version `from` up to version `to`, in order. Returns `false` if the log does not reach back to
/// `from` any more; the commits before the first one that is missing were read then.
async fn for_each_commit(
    table: &Store,
    (from, to): (u64, u64),
    mut read: impl FnMut(u64, Vec<Action>),
) -> Result<bool, LakeError> {
    let mut commits = futures::stream::iter(from + 1..=to)
        .map(|version| async move { log::read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { return Ok(false) };
        read(version, actions);
    }
    Ok(true)
}

/// The last versions that touched the rows of a partition value.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touched {
    /// The last version that added, removed or changed rows.
    pub last: u64,
    /// The last version that did so by more than a DELETE of single rows. A DELETE that leaves fewer files in a partition may
    /// have taken all of its rows.
    pub last_other: u64,
}

/// Returns whether a commit adds at least as many files to each partition as it removes from it.
fn leaves_each_file(actions: &[Action]) -> bool {
    let mut more: BTreeMap<BTreeMap<&str, Option<&str>>, i64> = BTreeMap::new();
    for action in actions {
        let (partition, change) = match action {
            Action::Add(add) => (&add.partition_values, 1),
            Action::Remove(Remove { partition_values: Some(partition), .. }) => (partition, -1),
            Action::Remove(_) => return false,
            _ => continue,
        };
        let partition = partition.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        *more.entry(partition).or_default() += change;
    }
    more.values().all(|change| *change >= 0)
}

/// Returns, for each value of a partition column, the last versions that added, removed or changed rows of it. Only the
/// commits after the first version of `range`, up to the second one, are read. If the log does not state the value, the version is stored under `None` and
/// counts for every value.
///
/// Returns `None` if the log does not reach back that far any more.
///
/// # Errors
/// The log cannot be read.
pub(crate) async fn touched(
    table: &Store,
    range: (u64, u64),
    column: &str,
) -> Result<Option<BTreeMap<Option<String>, Touched>>, LakeError> {
    let mut touched: BTreeMap<Option<String>, Touched> = BTreeMap::new();
    let note = |version, actions: Vec<Action>| {
        let is_deletion_of_rows = operation_of(&actions) == "DELETE" && leaves_each_file(&actions);
        for action in &actions {
            let partition = match action {
                Action::Add(add) if add.data_change => Some(&add.partition_values),
                Action::Remove(remove) if remove.data_change => remove.partition_values.as_ref(),
                _ => continue,
            };
            let value = partition.and_then(|partition| partition.get(column).cloned()).flatten();
            let of_value = touched.entry(value).or_default();
            of_value.last = version;
            if !is_deletion_of_rows {
                of_value.last_other = version;
            }
        }
    };
    let is_whole = for_each_commit(table, range, note).await?;
    Ok(is_whole.then_some(touched))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::{Location, files, paths};
    use crate::schema::Table;

    fn add(path: &str, data_change: bool) -> Value {
        let mut add = files::add(path.to_owned(), &[], 1, 0, json!({ "numRecords": 1 }));
        add.data_change = data_change;
        json!({ "add": add })
    }

    fn remove(path: &str, data_change: bool) -> Value {
        json!({"remove": {"path": path, "dataChange": data_change, "deletionTimestamp": 1}})
    }

    fn called(operation: &str) -> Value {
        json!({"commitInfo": {"operation": operation}})
    }

    /// Creates a table with these commits, from version 0 on.
    async fn table(folder: &std::path::Path, commits: &[Vec<Value>]) -> Store {
        let lake = Store::create(&Location::Folder(folder.into()), &AwsSettings::default()).await.unwrap();
        let table = Table::SyncRecords.store(&lake);
        for (version, actions) in (0..).zip(commits) {
            let text: String = actions.iter().map(|action| format!("{action}\n")).collect();
            table.put_new(&paths::commit(version), text.into()).await.unwrap();
        }
        table
    }

    fn new_and_gone(changes: &TableChanges) -> (Vec<&str>, Vec<&str>) {
        let paths = |gone: bool| {
            let of = changes.new.iter().filter(|(_, file)| file.removed_at.is_some() == gone);
            of.map(|(path, _)| path.as_str()).collect()
        };
        (paths(false), paths(true))
    }

    #[tokio::test]
    async fn a_compaction_adds_nothing_and_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let commits = [
            vec![add("a", true)],
            vec![add("b", true)],
            vec![add("c", true)],
            vec![remove("a", false), add("a-compacted", false)],
            vec![remove("b", false), remove("c", false), add("bc-compacted", false)],
            vec![add("d", true)],
        ];
        let table = table(folder.path(), &commits).await;
        let after = async |from| changes_between(&table, from, 5).await.unwrap();
        assert_eq!(after(5).await.unwrap(), TableChanges::default());
        let found = after(2).await.unwrap();
        assert_eq!(
            (new_and_gone(&found), found.rewritten.len()),
            ((vec!["d"], vec![]), 0),
            "what was compacted is covered"
        );
        let found = after(1).await.unwrap();
        assert_eq!(new_and_gone(&found), (vec!["d"], vec!["c"]));
        assert_eq!(found.new["c"].removed_at, Some(4), "version 3 lists it still");
        assert_eq!(found.files(), BTreeMap::from([("bc-compacted".to_owned(), 2), ("d".to_owned(), 5)]));
        assert!(found.removed.is_empty() && !found.is_new_changed);
        table.delete(&paths::commit(4)).await.unwrap();
        assert_eq!(after(1).await, None);
    }

    #[tokio::test]
    async fn a_change_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let mut with_vector = add("b", true);
        with_vector["add"]["deletionVector"] =
            json!({"storageType": "i", "pathOrInlineDv": "x", "sizeInBytes": 1, "cardinality": 1});
        let commits = [
            vec![add("a", true)],
            vec![add("b", true)],
            // This commit changes covered rows, the next one new rows.
            vec![called("DELETE"), add("a2", true), remove("a", true)],
            vec![with_vector, remove("b", true)],
            vec![called("RESTORE"), add("a", true)],
            vec![add("c", true)],
            vec![json!({"txn": {"appId": "ingest/s/a", "version": 1}}), add("d", true)],
        ];
        let table = table(folder.path(), &commits).await;
        let found = changes_between(&table, 0, 6).await.unwrap().unwrap();
        assert_eq!(new_and_gone(&found), (vec!["c", "d"], vec!["b"]));
        assert!(found.is_new_changed);
        assert_eq!(found.rewritten.keys().collect::<Vec<_>>(), ["a", "a2", "b"]);
        assert_eq!(
            found.removed_with_rows_of(0).map(|file| file.version).collect::<Vec<_>>(),
            [2],
            "b was not there at version 0"
        );
        assert_eq!(found.removed_with_rows_of(1).map(|file| file.version).collect::<Vec<_>>(), [2, 3]);
        let operations: Vec<_> =
            found.commits.iter().map(|change| (change.version, change.operation.as_str())).collect();
        assert_eq!(operations, [(2, "DELETE"), (3, "an unnamed operation"), (4, "RESTORE")]);
    }
}
