//! A reader of the Delta log for the ledger: the newest version, its transaction ids, and the table's requirements. It
//! also encodes the next commit.
//!
//! deltalake replays the log once per transaction id. With nine ids a shard that would be hundreds of replays. This
//! module reads all ids in one pass over the newest checkpoint and the commits after it. deltalake does everything else
//! with the log.
//!
//! Both kinds of checkpoints are read: classic ones, in one part or several, and v2 checkpoints, whose sidecars hold
//! only files. A missing, incomplete or damaged checkpoint is skipped in favour of an older one, or of the commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use chrono::Utc;
use deltalake::kernel::Action;
use deltalake::kernel::transaction::CommitData;
use deltalake::protocol::DeltaOperation;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use serde_json::Value;

use super::files::open;
use super::terms::TableRequirements;
use super::{LakeError, RESTORE, Store, paths};
use crate::schema::Table;

/// Commits that are read concurrently, because a starting worker must not wait for them one by one.
const READS: usize = 16;
/// The object that names the newest checkpoint. It is only a hint: it may be outdated or wrong.
const HINT: &str = "_delta_log/_last_checkpoint";

/// Versions between two checkpoints of a log. Fewer in builds with failpoints, so that tests can kill during a
/// checkpoint.
const CHECKPOINT_EVERY: u64 = if cfg!(feature = "failpoints") { 20 } else { 100 };

/// Converts a version, an epoch or a token to the value of a transaction id, which the Delta protocol stores as an i64.
///
/// # Errors
/// The number exceeds `i64::MAX`. Every count of commits and every token is smaller, so the log holds a wrong number.
pub(crate) fn id_value(number: u64) -> Result<i64, LakeError> {
    i64::try_from(number).map_err(|_| {
        LakeError::Invalid(format!(
            "cannot store {number} as the value of a transaction id: the Delta protocol allows at most {}; run \
             `synclake verify`",
            i64::MAX
        ))
    })
}

/// The content of the log at one version.
#[derive(Debug, Default, Clone)]
pub struct Transactions {
    /// The newest known checkpoint.
    pub checkpoint: Option<u64>,
    /// The log version; the commits up to it are included.
    pub version: u64,
    /// The newest value of each transaction id.
    pub ids: HashMap<String, i64>,
    /// The table's requirements on its readers and writers.
    pub requirements: TableRequirements,
    /// The in-commit timestamp of the newest commit, if it has one, in milliseconds.
    pub in_commit_ms: Option<i64>,
    /// Skipped objects of the log: they, or the objects that they name, are missing or damaged.
    pub unusable: Vec<String>,
}

impl Transactions {
    /// Checks that the table's requirements allow a commit.
    ///
    /// # Errors
    /// They forbid it. The message says what to do.
    pub fn admit(&self, table: Table, store: &Store, takes_out: bool) -> Result<(), LakeError> {
        match self.requirements.refusal(table, takes_out) {
            Some(reason) => Err(LakeError::Unsupported { table: store.to_string(), reason }),
            None => Ok(()),
        }
    }

    /// Returns whether a checkpoint is due. If so, the checkpoint counts as in progress.
    ///
    /// Every writer asks after every commit. So if a writer dies during a checkpoint, the next one comes one commit
    /// later, not a hundred. Without checkpoints, writers would start more and more slowly.
    pub fn checkpoint_due(&mut self) -> bool {
        let due = self.version >= self.checkpoint.unwrap_or(0) + CHECKPOINT_EVERY;
        if due {
            self.checkpoint = Some(self.version);
        }
        due
    }

    /// Returns the version of the next commit.
    ///
    /// # Errors
    /// The log is at the largest version. No series of commits gets there, so an object of the log has a wrong name.
    pub fn next_version(&self, store: &Store) -> Result<u64, LakeError> {
        if self.version < paths::VERSION_MAX {
            return Ok(self.version + 1);
        }
        let path = format!("{}_delta_log", store.url());
        let reason = format!("version {} is the last that the Delta protocol allows; delete its objects", self.version);
        Err(LakeError::Log { path, reason })
    }

    /// Encodes the next commit. Returns its bytes, and its in-commit timestamp if the table requires one.
    ///
    /// # Errors
    /// The newest commit has the largest timestamp, or the commit cannot be encoded (never in practice).
    pub fn encode(
        &self,
        store: &Store,
        actions: Vec<Action>,
        operation: DeltaOperation,
    ) -> Result<(Bytes, Option<i64>), LakeError> {
        let mut commit = CommitData::new(actions, operation, HashMap::new(), Vec::new());
        let in_commit_ms = match self.requirements.have_in_commit_timestamps() {
            true => Some(self.next_ms(store)?),
            false => None,
        };
        if let Some(Action::CommitInfo(info)) = commit.actions.first_mut() {
            info.in_commit_timestamp = in_commit_ms;
        }
        let bytes = commit.get_bytes().map_err(|e| LakeError::delta("encode commit of", store, e.into()))?;
        Ok((bytes, in_commit_ms))
    }

    /// Returns the in-commit timestamp of the next commit. It must be later than the previous one, whatever the clocks
    /// say.
    fn next_ms(&self, store: &Store) -> Result<i64, LakeError> {
        let now_ms = Utc::now().timestamp_millis();
        match self.in_commit_ms.map(|last_ms| last_ms.checked_add(1)) {
            Some(Some(next_ms)) => Ok(now_ms.max(next_ms)),
            None => Ok(now_ms),
            Some(None) => {
                let path = format!("{}{}", store.url(), paths::commit(self.version));
                let reason = "no in-commit timestamp is later than that of this version; set the table property \
                              delta.enableInCommitTimestamps to false";
                Err(LakeError::Log { path, reason: reason.to_owned() })
            }
        }
    }

    /// Applies an action of a checkpoint.
    fn take(&mut self, action: &Value) -> Result<(), serde_json::Error> {
        self.requirements.apply_action(action)?;
        let txn = &action["txn"];
        if let (Some(id), Some(version)) = (txn["appId"].as_str(), txn["version"].as_i64()) {
            self.ids.insert(id.to_owned(), version);
        }
        Ok(())
    }
}

/// Reads the actions of one commit. Returns `None` if the version does not exist yet.
///
/// # Errors
/// The store failed, the object is no commit, or a newer version of the protocol wrote it.
pub(crate) async fn read_commit(table: &Store, version: u64) -> Result<Option<Vec<Action>>, LakeError> {
    let path = paths::commit(version);
    let Some(bytes) = table.get(&path).await? else { return Ok(None) };
    deltalake::logstore::get_actions(version, &bytes).map(Some).map_err(|e| {
        let mut requirements = TableRequirements::default();
        let actions = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        actions.flatten().for_each(|action| drop(requirements.apply_action(&action)));
        match requirements.unreadable() {
            // This is no damage: the table needs a newer reader.
            Some(reason) => LakeError::Unsupported { table: table.to_string(), reason },
            None => LakeError::Log {
                path: format!("{}{path}", table.url()),
                reason: match &e {
                    deltalake::DeltaTableError::InvalidJsonLog { json_err, .. } => format!("{json_err}; {RESTORE}"),
                    other => format!("{other}; {RESTORE}"),
                },
            },
        }
    })
}

/// Returns whether a log exists.
///
/// # Errors
/// The store failed.
pub(crate) async fn exists(table: &Store) -> Result<bool, LakeError> {
    if table.get(&paths::commit(0)).await?.is_some() || table.get(HINT).await?.is_some() {
        return Ok(true);
    }
    // Clean-up deletes the first commits, and the hint may be lost.
    let listing = Listing::read(table, None).await?;
    Ok(!(listing.commits.is_empty() && listing.checkpoints.is_empty()))
}

/// Returns whether a log exists, from what a loading reads anyway: the hint and the listing.
///
/// # Errors
/// The store failed.
pub(crate) async fn is_there(table: &Store) -> Result<bool, LakeError> {
    if table.get(HINT).await?.is_some() {
        return Ok(true);
    }
    let listing = Listing::read(table, None).await?;
    Ok(!(listing.commits.is_empty() && listing.checkpoints.is_empty()))
}

/// The versions of a table that can be read.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The oldest one.
    pub first: u64,
    /// The newest one.
    pub last: u64,
    /// Versions whose commits are there. The first one may be a checkpoint alone.
    pub commits: BTreeSet<u64>,
}

/// Lists the versions that can be read. Returns `None` if there is no log.
///
/// # Errors
/// The store failed.
pub(crate) async fn versions(table: &Store) -> Result<Option<Versions>, LakeError> {
    let Listing { mut commits, checkpoints, .. } = Listing::read(table, None).await?;
    let oldest = checkpoints.into_keys().next();
    let last = commits.last().copied().max(oldest);
    // Without its first commit, a log begins with a checkpoint.
    let first = if commits.contains(&0) { Some(0) } else { oldest };
    let (Some(first), Some(last)) = (first, last) else { return Ok(None) };
    commits.retain(|version| *version >= first);
    Ok(Some(Versions { first, last, commits }))
}

/// Reads all transaction ids at the newest version. Returns `None` if there is no log.
///
/// # Errors
/// The store failed, or the log is corrupt or lacks a version.
pub(crate) async fn read_transactions(table: &Store) -> Result<Option<Transactions>, LakeError> {
    let hint = last_checkpoint(table).await?;
    let mut listing = Listing::read(table, hint).await?;
    let mut unusable = Vec::new();
    let mut found = newest_checkpoint(table, &listing, (hint.unwrap_or(0), u64::MAX), &mut unusable).await?;
    if let Some(named) = hint.filter(|_| found.is_none()) {
        tracing::warn!(
            table = %table, version = named,
            "the newest checkpoint of the log is missing or damaged; reading an older checkpoint or the commits instead"
        );
        unusable.push(HINT.to_owned());
        listing = Listing::read(table, None).await?;
        found = newest_checkpoint(table, &listing, (0, named.saturating_sub(1)), &mut unusable).await?;
    }
    if found.is_none() && listing.commits.is_empty() && hint.is_none() {
        return Ok(None);
    }
    let mut found = found.unwrap_or_default();
    found.unusable = unusable;
    found.unusable.append(&mut listing.misnamed);
    let first = found.checkpoint.map_or(0, |v| v + 1);
    let versions: Vec<u64> = listing.commits.range(first..).copied().collect();
    let hole = (first..).zip(&versions).find(|(next, version)| next != *version);
    if let Some((next, version)) = hole {
        let path = format!("{}{}", table.url(), paths::commit(next));
        let reason = format!("it is missing, while version {version} is there; {RESTORE}");
        return Err(LakeError::Log { path, reason });
    }
    if found.checkpoint.is_none() && versions.is_empty() {
        let path = format!("{}{HINT}", table.url());
        return Err(LakeError::Log {
            path,
            reason: format!("it names a checkpoint that does not exist, and there are no commits; {RESTORE}"),
        });
    }
    let mut commits = futures::stream::iter(versions)
        .map(|version| async move { read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { break };
        apply(&mut found, version, actions);
    }
    if found.in_commit_ms.is_none() && found.requirements.have_in_commit_timestamps() {
        // The newest version is that of the checkpoint, and a checkpoint does not hold the commit's timestamp.
        let actions = read_commit(table, found.version).await?;
        found.in_commit_ms = actions.iter().flatten().find_map(in_commit_ms);
    }
    Ok(Some(found))
}

/// Moves `known` forward over all commits that were made since.
///
/// # Errors
/// As [`read_commit`].
pub(crate) async fn read_forward(table: &Store, known: &mut Transactions) -> Result<(), LakeError> {
    while read_next(table, known).await? {}
    Ok(())
}

/// Moves `known` forward by one commit. Returns `false` if there is no next commit yet.
///
/// # Errors
/// As [`read_commit`].
pub(crate) async fn read_next(table: &Store, known: &mut Transactions) -> Result<bool, LakeError> {
    let version = known.version + 1;
    let Some(actions) = read_commit(table, version).await? else { return Ok(false) };
    apply(known, version, actions);
    Ok(true)
}

/// Moves `known` forward by one commit whose actions were already read.
pub(crate) fn apply(known: &mut Transactions, version: u64, actions: Vec<Action>) {
    known.in_commit_ms = actions.iter().find_map(in_commit_ms);
    for action in actions {
        if matches!(action, Action::Protocol(_) | Action::Metadata(_)) {
            // This should not fail: deltalake just parsed the action from the same JSON form.
            let taken = serde_json::to_value(&action).and_then(|action| known.requirements.apply_action(&action));
            if let Err(error) = taken {
                tracing::error!(version, %error, "cannot parse the protocol or metadata in the log");
                known.requirements = TableRequirements::default();
            }
        } else if let Action::Txn(txn) = action {
            known.ids.insert(txn.app_id, txn.version);
        }
    }
    known.version = version;
}

fn in_commit_ms(action: &Action) -> Option<i64> {
    if let Action::CommitInfo(info) = action { info.in_commit_timestamp } else { None }
}

/// Returns the version of the newest checkpoint according to the hint. Returns `None` if the hint is missing or
/// unreadable.
///
/// # Errors
/// The store failed.
pub(crate) async fn last_checkpoint(table: &Store) -> Result<Option<u64>, LakeError> {
    let Some(bytes) = table.get(HINT).await? else { return Ok(None) };
    // The protocol lets a reader ignore an unreadable hint and list the log from the beginning.
    let hint: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(hint.get("version").and_then(Value::as_u64))
}

/// The objects of a log.
#[derive(Default)]
struct Listing {
    /// Objects whose numbers are no versions. deltalake would take them for the newest versions.
    misnamed: Vec<String>,
    commits: BTreeSet<u64>,
    /// Checkpoints with all their parts. A version may have several.
    checkpoints: BTreeMap<u64, Vec<Vec<String>>>,
}

impl Listing {
    /// Lists the log from a version on, or all of it.
    async fn read(table: &Store, from: Option<u64>) -> Result<Self, LakeError> {
        // Names sort by version. deltalake begins its listing at the same name, so one listing serves both.
        let offset = from.and_then(|v| v.checked_sub(1)).map(|v| format!("{v:020}"));
        let mut found = Self::default();
        let mut parts: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
        // Sidecars and staged commits are in subfolders.
        for name in table.names("_delta_log", offset.as_deref()).await? {
            let (path, name) = (format!("_delta_log/{name}"), name.as_str());
            if name.get(..20).and_then(|digits| digits.parse::<u64>().ok()).is_some_and(|n| n > paths::VERSION_MAX) {
                found.misnamed.push(path);
                continue;
            }
            if let Some(version) = paths::commit_version(name) {
                found.commits.insert(version);
                continue;
            }
            let Some((digits, rest)) = name.split_once(".checkpoint.") else { continue };
            let Some(version) = paths::commit_version(&format!("{digits}.json")) else { continue };
            let rest: Vec<&str> = rest.split('.').collect();
            match rest[..] {
                ["parquet"] => found.checkpoints.entry(version).or_default().push(vec![path.clone()]),
                [part, of, "parquet"] if part.parse::<u64>().is_ok() => {
                    let of = of.parse().unwrap_or(0);
                    parts.entry((version, of)).or_default().push(path.clone());
                }
                [_, "parquet" | "json"] => found.checkpoints.entry(version).or_default().push(vec![path.clone()]),
                _ => {}
            }
        }
        for ((version, of), paths) in parts {
            if paths.len() as u64 == of {
                found.checkpoints.entry(version).or_default().push(paths);
            }
        }
        Ok(found)
    }
}

/// Reads the newest readable checkpoint in a range of versions.
async fn newest_checkpoint(
    table: &Store,
    listing: &Listing,
    (first, last): (u64, u64),
    unusable: &mut Vec<String>,
) -> Result<Option<Transactions>, LakeError> {
    for (version, same) in listing.checkpoints.range(first..=last).rev() {
        for parts in same {
            let mut found = Transactions { version: *version, checkpoint: Some(*version), ..Transactions::default() };
            match read_checkpoint(table, parts, &mut found).await {
                Ok(()) => return Ok(Some(found)),
                Err(error) if error.is_damage() => {
                    tracing::warn!(table = %table, version, %error, "a checkpoint of the log cannot be read");
                    unusable.extend(parts.iter().cloned());
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

async fn read_checkpoint(table: &Store, parts: &[String], found: &mut Transactions) -> Result<(), LakeError> {
    for path in parts {
        let place = || format!("{}{path}", table.url());
        let damaged = |reason: String| LakeError::Log { path: place(), reason };
        let bytes = table.get(path).await?.ok_or_else(|| damaged("it is missing".to_owned()))?;
        if path.ends_with(".json") {
            for action in serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>() {
                action.and_then(|action| found.take(&action)).map_err(|e| damaged(e.to_string()))?;
            }
        } else {
            let fail = |source| LakeError::Parquet { action: "decode", path: place(), source };
            let builder = open(bytes).map_err(fail)?;
            let columns = ["txn.appId", "txn.version", "protocol", "metaData"];
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
            for batch in builder.with_projection(mask).build().map_err(fail)? {
                let batch = batch.map_err(|e| fail(e.into()))?;
                take_ids(&batch, &mut found.ids).map_err(fail)?;
                for action in terms_of(&batch).map_err(fail)? {
                    found.take(&action).map_err(|e| damaged(e.to_string()))?;
                }
            }
        }
    }
    match found.requirements.are_known() {
        true => Ok(()),
        false => Err(LakeError::Log { path: parts.join(", "), reason: "it holds no protocol, or no metadata".into() }),
    }
}

fn take_ids(batch: &RecordBatch, ids: &mut HashMap<String, i64>) -> Result<(), ParquetError> {
    let Some(txn) = batch.column_by_name("txn").and_then(|c| c.as_struct_opt()) else { return Ok(()) };
    let columns = (txn.column_by_name("appId"), txn.column_by_name("version"));
    let (Some(app_id), Some(version)) = columns else { return Ok(()) };
    let app_id = arrow::compute::cast(app_id, &arrow::datatypes::DataType::Utf8)?;
    let app_id = app_id.as_string::<i32>();
    let Some(version) = version.as_primitive_opt::<Int64Type>() else { return Ok(()) };
    for row in (0..txn.len()).filter(|&row| txn.is_valid(row) && app_id.is_valid(row) && version.is_valid(row)) {
        ids.insert(app_id.value(row).to_owned(), version.value(row));
    }
    Ok(())
}

/// Returns the rows of a checkpoint that hold a protocol or metadata, in the JSON form of commits.
fn terms_of(batch: &RecordBatch) -> Result<Vec<Value>, ParquetError> {
    let mut found = Vec::new();
    for name in ["protocol", "metaData"] {
        let Some(column) = batch.column_by_name(name) else { continue };
        let rows = arrow::compute::filter(column, &arrow::compute::is_not_null(column)?)?;
        if rows.is_empty() {
            continue;
        }
        let mut text = Vec::new();
        let mut writer = arrow::json::LineDelimitedWriter::new(&mut text);
        writer.write(&RecordBatch::try_from_iter([(name, rows)])?)?;
        writer.finish()?;
        drop(writer);
        for row in serde_json::Deserializer::from_slice(&text).into_iter::<Value>() {
            found.push(row.map_err(|e| ParquetError::External(e.into()))?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
