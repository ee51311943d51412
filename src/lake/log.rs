//! Reading the Delta log for what the ledger needs: the newest version, the transaction ids at it, and what the table asks
//! of its writers. And the bytes of a commit on top of that.
//!
//! deltalake answers one transaction id per replay of the log, which for seven ids a shard is hundreds of replays; here
//! all of them are read in one pass over the newest checkpoint and the commits after it. Everything else about the log is
//! deltalake's.
//!
//! Checkpoints of both kinds are read: classic ones, in one part or several, and those of version 2, whose sidecars hold
//! files alone. One that is missing, not whole or damaged is passed over for an older one, or for the commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use chrono::Utc;
use deltalake::kernel::Action;
use deltalake::kernel::transaction::CommitData;
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use serde_json::Value;

use super::files::open;
use super::terms::Terms;
use super::{LakeError, Store, paths};
use crate::schema::Table;

/// Commits that are read at a time: a worker that starts must not wait for one after the other.
const READS: usize = 16;
/// The object that names the newest checkpoint. A hint only: it may be behind, or wrong.
const HINT: &str = "_delta_log/_last_checkpoint";

/// Versions between two checkpoints of a log; fewer where tests kill in the midst of one.
const CHECKPOINT_EVERY: u64 = if cfg!(feature = "failpoints") { 20 } else { 100 };

/// What the log says at one version.
#[derive(Debug, Default, Clone)]
pub struct Transactions {
    /// The newest checkpoint, as far as was seen.
    pub checkpoint: Option<u64>,
    /// The version; commits up to and including it are covered.
    pub version: u64,
    /// Newest version number of each application id.
    pub ids: HashMap<String, i64>,
    /// What the table asks of its writers.
    pub terms: Terms,
    /// The time of the newest commit by its own word, if it has one.
    pub in_commit_ms: Option<i64>,
    /// Objects of the log that were passed over, because what they are or name is missing or damaged.
    pub unusable: Vec<String>,
}

impl Transactions {
    /// Refuses a commit that the table's terms do not allow.
    ///
    /// # Errors
    /// It is one. The message says what to do.
    pub fn admit(&self, table: Table, store: &Store, takes_out: bool) -> Result<(), LakeError> {
        match self.terms.refusal(table, takes_out) {
            Some(reason) => Err(LakeError::Unsupported { table: store.to_string(), reason }),
            None => Ok(()),
        }
    }

    /// Whether it is time to write a checkpoint; it is then taken to be under way.
    ///
    /// Asked after every commit, and by every writer: so one that dies over it delays the next by a commit, not by a
    /// hundred. Without checkpoints a writer would start ever more slowly.
    pub fn checkpoint_due(&mut self) -> bool {
        let due = self.version >= self.checkpoint.unwrap_or(0) + CHECKPOINT_EVERY;
        if due {
            self.checkpoint = Some(self.version);
        }
        due
    }

    /// The next commit: its bytes, and the time that it carries if the table asks for one.
    ///
    /// # Errors
    /// It cannot be encoded (never in practice).
    pub fn encode(
        &self,
        table: Table,
        store: &Store,
        actions: Vec<Action>,
        (mode, predicate): (SaveMode, Option<String>),
    ) -> Result<(Bytes, Option<i64>), LakeError> {
        let partition_by = Some(table.partition_columns().iter().map(|c| (*c).to_owned()).collect());
        let operation = DeltaOperation::Write { mode, partition_by, predicate };
        let mut commit = CommitData::new(actions, operation, HashMap::new(), Vec::new());
        let now_ms = Utc::now().timestamp_millis();
        // Later than the one before, whatever the clocks say.
        let next_ms = self.in_commit_ms.map_or(now_ms, |last_ms| now_ms.max(last_ms + 1));
        let in_commit_ms = self.terms.have_in_commit_timestamps().then_some(next_ms);
        if let Some(Action::CommitInfo(info)) = commit.actions.first_mut() {
            info.in_commit_timestamp = in_commit_ms;
        }
        let bytes = commit.get_bytes().map_err(|e| LakeError::delta("encode commit of", store, e.into()))?;
        Ok((bytes, in_commit_ms))
    }

    /// Takes over an action of a checkpoint.
    fn take(&mut self, action: &Value) -> Result<(), serde_json::Error> {
        self.terms.take(action)?;
        let txn = &action["txn"];
        if let (Some(id), Some(version)) = (txn["appId"].as_str(), txn["version"].as_i64()) {
            self.ids.insert(id.to_owned(), version);
        }
        Ok(())
    }
}

/// The actions of one commit; `None` when that version is not there yet.
///
/// # Errors
/// The store failed, or the object is no commit.
pub async fn read_commit(table: &Store, version: u64) -> Result<Option<Vec<Action>>, LakeError> {
    let path = paths::commit(version);
    let Some(bytes) = table.get(&path).await? else { return Ok(None) };
    deltalake::logstore::get_actions(version, &bytes).map(Some).map_err(|e| {
        let mut terms = Terms::default();
        let actions = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        actions.flatten().for_each(|action| drop(terms.take(&action)));
        match terms.unreadable() {
            // No damage: a newer version wrote it.
            Some(reason) => LakeError::Unsupported { table: table.to_string(), reason },
            None => LakeError::Log {
                path: format!("{}{path}", table.url()),
                reason: match &e {
                    deltalake::DeltaTableError::InvalidJsonLog { json_err, .. } => json_err.to_string(),
                    other => other.to_string(),
                },
            },
        }
    })
}

/// Whether there is a log.
///
/// # Errors
/// The store failed.
pub async fn exists(table: &Store) -> Result<bool, LakeError> {
    if table.get(&paths::commit(0)).await?.is_some() || table.get(HINT).await?.is_some() {
        return Ok(true);
    }
    // Clean-up takes the first commits, and the hint may be lost.
    let listing = Listing::read(table, None).await?;
    Ok(!(listing.commits.is_empty() && listing.checkpoints.is_empty()))
}

/// Reads all transaction ids at the newest version; `None` when there is no log.
///
/// # Errors
/// The store failed, or the log is corrupt or has a hole.
pub async fn read_transactions(table: &Store) -> Result<Option<Transactions>, LakeError> {
    let hint = last_checkpoint(table).await?;
    let mut listing = Listing::read(table, hint).await?;
    let mut unusable = Vec::new();
    let mut found = newest_checkpoint(table, &listing, (hint.unwrap_or(0), u64::MAX), &mut unusable).await?;
    if let Some(named) = hint.filter(|_| found.is_none()) {
        tracing::warn!(
            table = %table, version = named,
            "the newest checkpoint of the log is missing or damaged; an older one, or the commits, are read in its place"
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
    let first = found.checkpoint.map_or(0, |v| v + 1);
    let versions: Vec<u64> = listing.commits.range(first..).copied().collect();
    let hole = (first..).zip(&versions).find(|(next, version)| next != *version);
    if let Some((next, version)) = hole {
        let path = format!("{}{}", table.url(), paths::commit(next));
        return Err(LakeError::Log { path, reason: format!("it is missing, while version {version} is there") });
    }
    if found.checkpoint.is_none() && versions.is_empty() {
        let path = format!("{}{HINT}", table.url());
        return Err(LakeError::Log {
            path,
            reason: "neither the checkpoint that it names nor a commit is there".into(),
        });
    }
    let mut commits = futures::stream::iter(versions)
        .map(|version| async move { read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { break };
        apply(&mut found, version, actions);
    }
    if found.in_commit_ms.is_none() && found.terms.have_in_commit_timestamps() {
        // The checkpoint is of the newest version, and does not hold its time.
        let actions = read_commit(table, found.version).await?;
        found.in_commit_ms = actions.iter().flatten().find_map(in_commit_ms);
    }
    Ok(Some(found))
}

/// Moves `known` forward over the commits that were made since.
///
/// # Errors
/// As [`read_commit`].
pub async fn read_forward(table: &Store, known: &mut Transactions) -> Result<(), LakeError> {
    while read_next(table, known).await? {}
    Ok(())
}

/// Moves `known` forward by one commit; `false` when there is none yet.
///
/// # Errors
/// As [`read_commit`].
pub async fn read_next(table: &Store, known: &mut Transactions) -> Result<bool, LakeError> {
    let version = known.version + 1;
    let Some(actions) = read_commit(table, version).await? else { return Ok(false) };
    apply(known, version, actions);
    Ok(true)
}

/// Moves `known` forward by one commit whose actions are at hand.
pub fn apply(known: &mut Transactions, version: u64, actions: Vec<Action>) {
    known.in_commit_ms = actions.iter().find_map(in_commit_ms);
    for action in actions {
        if matches!(action, Action::Protocol(_) | Action::Metadata(_)) {
            // They were just read from the same form.
            let taken = serde_json::to_value(&action).and_then(|action| known.terms.take(&action));
            if let Err(error) = taken {
                tracing::error!(version, %error, "the log has terms of a form that is not known");
                known.terms = Terms::default();
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

/// The version of the newest checkpoint, as the log's hint says; `None` without a hint that can be read.
///
/// # Errors
/// The store failed.
pub async fn last_checkpoint(table: &Store) -> Result<Option<u64>, LakeError> {
    let Some(bytes) = table.get(HINT).await? else { return Ok(None) };
    // The protocol lets a reader ignore one that it cannot read, and list from the beginning.
    let hint: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(hint.get("version").and_then(Value::as_u64))
}

/// The objects of a log.
#[derive(Default)]
struct Listing {
    commits: BTreeSet<u64>,
    /// Those that are there with all their parts; a version may have several.
    checkpoints: BTreeMap<u64, Vec<Vec<String>>>,
}

impl Listing {
    /// From a version on, or all.
    async fn read(table: &Store, from: Option<u64>) -> Result<Self, LakeError> {
        // Names sort by version: everything of the version before sorts before this.
        let offset = from.and_then(|v| v.checked_sub(1)).map(|v| format!("_delta_log/{v:020}.zzz"));
        let mut found = Self::default();
        let mut parts: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
        for (path, _) in table.list_after("_delta_log", offset.as_deref()).await? {
            // Sidecars and staged commits lie further down.
            let Some(name) = path.strip_prefix("_delta_log/").filter(|name| !name.contains('/')) else { continue };
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

/// The newest checkpoint that can be read, of versions in a range.
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
    match found.terms.are_known() {
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

/// The rows of a checkpoint that hold a protocol or metadata, as the commits write them.
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
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::Location;

    /// A table whose first commit sets an id, and whose second one sets it again.
    async fn table(folder: &std::path::Path) -> Store {
        let lake = Store::create(&Location::Folder(folder.into()), &AwsSettings::default()).await.unwrap();
        Table::Gaps.ensure(&lake).await.unwrap();
        let table = Table::Gaps.store(&lake);
        for version in 1..=2 {
            let text = format!("{{\"txn\":{{\"appId\":\"a\",\"version\":{version}}}}}\n");
            table.put_new(&paths::commit(version), text.into()).await.unwrap();
        }
        table
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn checkpoints_of_both_kinds_are_read_and_missing_ones_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path()).await;
        let whole = read_transactions(&table).await.unwrap().unwrap();
        assert_eq!((whole.version, whole.ids["a"], whole.terms.are_known()), (2, 2, true));
        // One of version 2, in JSON, with a file's actions elsewhere.
        let first = table.get(&paths::commit(0)).await.unwrap().unwrap();
        let first = String::from_utf8(first.to_vec()).unwrap();
        let terms: String = first.lines().filter(|l| !l.contains("commitInfo")).map(|l| format!("{l}\n")).collect();
        let more = "{\"checkpointMetadata\":{\"version\":2}}\n{\"sidecar\":{\"path\":\"x.parquet\",\"sizeInBytes\":1,\"modificationTime\":1}}\n";
        let text = format!("{terms}{more}{{\"txn\":{{\"appId\":\"b\",\"version\":7}}}}\n");
        let name = "_delta_log/00000000000000000001.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json";
        table.put_new(name, text.into()).await.unwrap();
        table.put(HINT, "{\"version\":1,\"size\":4}".into()).await.unwrap();
        let found = read_transactions(&table).await.unwrap().unwrap();
        assert_eq!((found.checkpoint, found.version, found.ids["a"], found.ids["b"]), (Some(1), 2, 2, 7));
        assert_eq!(found.terms, whole.terms);
        // It goes, and the hint stays.
        table.delete(name).await.unwrap();
        let found = read_transactions(&table).await.unwrap().unwrap();
        assert_eq!((found.checkpoint, found.version, found.ids, found.terms), (None, 2, whole.ids, whole.terms));
        assert_eq!(found.unusable, [HINT]);
        let loaded = crate::lake::snapshot::load(&table, None).await.unwrap().unwrap();
        assert_eq!(loaded.version(), Some(2), "deltalake passes over it as well");
        // One that deltalake writes, with the terms in it; what it covers may be cleaned away.
        crate::lake::snapshot::checkpoint(&table).await.unwrap();
        for version in 0..=2 {
            table.delete(&paths::commit(version)).await.unwrap();
        }
        let found = read_transactions(&table).await.unwrap().unwrap();
        assert_eq!((found.checkpoint, found.ids["a"], found.terms.refusal(Table::Gaps, true)), (Some(2), 2, None));
    }
}
