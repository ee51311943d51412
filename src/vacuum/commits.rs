//! Commits of a log that are older than its retention, and what other writers left beside them.
//!
//! This is the clean-up of metadata that the Delta protocol describes: a checkpoint becomes the beginning of the log, and
//! the objects of all earlier versions go.
//!
//! # Invariants
//! - **Every version from the beginning on can be read.** The beginning is loaded with everything hidden that goes, and no
//!   commit after it is missing.
//! - **The beginning is expired, too.** So the commit before a young commit stays.
//! - **Nobody misses a commit.** Whoever reads commits one by one finds all of them after the version from which it reads
//!   ([`read_from`]).
//! - **Oldest first, one at a time.** The store confirms each deletion before the next one begins. So the version before a
//!   deleted version is deleted, however the vacuum ends, and a writer that slept notices that its commit is buried
//!   (`lake/commit.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use deltalake::kernel::Action;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use super::{Progress, Vacuum, checkpoints};
use crate::extract::{consumer, recorded};
use crate::failpoint;
use crate::lake::log::{self, Transactions};
use crate::lake::request_runtime::HidingStore;
use crate::lake::{LakeError, Store, paths, snapshot};
use crate::query::reading::{COVERS, REFRESHED};
use crate::redrive::examined_to;
use crate::schema::Table;
use crate::timeouts::LOG_RETENTION;

/// Table properties of the Delta protocol.
const KEEPS: &str = "delta.logRetentionDuration";
const IS_CLEANED: &str = "delta.enableExpiredLogCleanup";
const PROTECTED_BEFORE: &str = "delta.requireCheckpointProtectionBeforeVersion";
/// The newest extracts, on which the next extract of a day builds: also if it replaces the newest one.
const BASES: usize = 2;

/// Returns how long a table keeps its commits: as its properties say, and no shorter than the vacuum's own retention.
/// `None` if it keeps all of them.
pub(super) fn retention(table: &Store, known: &Transactions, at_least: Duration) -> Option<Duration> {
    let property = |name: &str| known.requirements.properties().find_map(|(n, value)| (n == name).then_some(value));
    let is_cleaned = property(IS_CLEANED).is_none_or(|value| !value.eq_ignore_ascii_case("false"));
    if !is_cleaned || property(PROTECTED_BEFORE).is_some_and(|version| version != "0") {
        return None;
    }
    let Some(stated) = property(KEEPS) else { return Some(LOG_RETENTION.max(at_least)) };
    let parsed = parse_interval(stated);
    if parsed.is_none() {
        tracing::warn!(%table, value = stated, "{KEEPS} is no interval such as `interval 90 days`; all commits stay");
    }
    parsed.map(|stated| stated.max(at_least))
}

/// Parses an interval of Spark: `interval 30 days`.
fn parse_interval(text: &str) -> Option<Duration> {
    let text = text.trim().to_ascii_lowercase();
    humantime::parse_duration(text.strip_prefix("interval ").unwrap_or(&text)).ok()
}

/// Returns the versions of a table after which somebody reads all commits: the table's readers by version.
///
/// | log | reader | reads the commits after |
/// |---|---|---|
/// | `sync_records` | queries of the state, refresh, retention | the version that the state covers |
/// | `sync_records` | a consumer | its last delivery; before its first one ends, the version that it reaches |
/// | `sync_records`, `daily_state` | an extract, retention | the version that the newest extracts cover, or that wrote them |
/// | `state` | queries, refresh | its last refresh |
/// | `quarantine` | status | the last redrive of the whole quarantine |
///
/// `verify`, the history of `status` and the extract of an old day read what is there.
async fn read_from(
    lake: &Store,
    table: Table,
    known: &Transactions,
    keeps_undelivered: bool,
) -> Result<Vec<u64>, LakeError> {
    let id = |known: &Transactions, id: &str| known.ids.get(id).and_then(|version| u64::try_from(*version).ok());
    let of =
        async |other: Table| Ok::<_, LakeError>(log::read_transactions(&other.store(lake)).await?.unwrap_or_default());
    Ok(match table {
        Table::SyncRecords => {
            let (state, daily) = (of(Table::State).await?, of(Table::DailyState).await?);
            let extracts = recorded(&daily).covers.into_values().rev().take(BASES);
            let consumers = consumer::cursors(&daily).into_iter().filter(|_| keeps_undelivered);
            let consumers = consumers.filter_map(|cursor| cursor.version.or(cursor.unfinished_to));
            id(&state, COVERS).into_iter().chain(extracts).chain(consumers).collect()
        }
        Table::State => id(known, REFRESHED).into_iter().collect(),
        Table::DailyState => recorded(known).committed.into_values().rev().take(BASES).collect(),
        Table::Quarantine => examined_to(known).into_iter().collect(),
        Table::Gaps => Vec::new(),
    })
}

/// The part of an object of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Commit,
    Checkpoint,
    /// A checkpoint whose sidecars other checkpoints may share. Its own writer deletes both.
    SharedCheckpoint,
    /// A checksum or a compacted log of another writer.
    Beside,
}

impl Part {
    /// Parses the name of an object of a log. The version of a compacted log is its first one. Returns `None` for objects
    /// of no version, and for names of no known form.
    fn parse(name: &str) -> Option<(u64, Self)> {
        // Hadoop keeps a hidden checksum beside each file of a local folder.
        let (digits, rest) = name.strip_prefix('.').unwrap_or(name).split_once('.')?;
        let version = paths::commit_version(&format!("{digits}.json"))?;
        let compacted = || rest.strip_suffix(".compacted.json").filter(|to| to.bytes().all(|b| b.is_ascii_digit()));
        let part = match rest {
            _ if rest == "crc" || rest.ends_with(".crc") => Self::Beside,
            _ if name.starts_with('.') => return None,
            "json" => Self::Commit,
            _ if checkpoints::classic(name).is_some() => Self::Checkpoint,
            _ if rest.starts_with("checkpoint.") => Self::SharedCheckpoint,
            _ if compacted().is_some() => Self::Beside,
            _ => return None,
        };
        Some((version, part))
    }
}

/// An object of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LogObject {
    version: u64,
    part: Part,
    path: String,
    bytes: u64,
}

/// The objects of a log.
#[derive(Debug, Default)]
struct LogObjects {
    /// When the store got each commit.
    commits: BTreeMap<u64, DateTime<Utc>>,
    checkpoints: BTreeSet<u64>,
    /// By version, the commit first.
    all: Vec<LogObject>,
}

impl LogObjects {
    async fn list(table: &Store) -> Result<Self, LakeError> {
        let mut found = Self::default();
        let mut objects = table.listed("_delta_log", None);
        while let Some((path, object)) = objects.try_next().await? {
            // Sidecars and staged commits are in subfolders.
            let name = path.strip_prefix("_delta_log/").filter(|name| !name.contains('/'));
            let Some((version, part)) = name.and_then(Part::parse) else { continue };
            match part {
                Part::Commit => drop(found.commits.insert(version, object.last_modified)),
                Part::Checkpoint | Part::SharedCheckpoint => drop(found.checkpoints.insert(version)),
                Part::Beside => {}
            }
            found.all.push(LogObject { version, part, path, bytes: object.size });
        }
        found.all.sort_by_key(|object| (object.version, object.part));
        Ok(found)
    }

    /// Returns the first version from which on no commit is missing.
    fn first(&self) -> Option<u64> {
        let newest = *self.commits.last_key_value()?.0;
        (0..=newest).rev().zip(self.commits.keys().rev()).take_while(|(n, v)| n == *v).map(|(n, _)| n).last()
    }

    /// Returns the last version up to which all commits from `first` on are older than `before`.
    fn expired_to(&self, first: u64, before: DateTime<Utc>) -> Option<u64> {
        self.commits.range(first..).take_while(|(_, at)| **at < before).map(|(version, _)| *version).last()
    }

    /// Returns the objects of versions before `version`, other than shared checkpoints.
    fn before(&self, version: u64) -> impl Iterator<Item = &LogObject> {
        let is_before = move |object: &&LogObject| object.version < version;
        self.all.iter().take_while(is_before).filter(|object| object.part != Part::SharedCheckpoint)
    }
}

/// The objects of a log that a vacuum deletes.
#[derive(Debug, Default)]
pub(super) struct CleanUp {
    /// The version at which the log begins then; `None` if nothing goes.
    pub begin: Option<u64>,
    /// The objects of earlier versions, in the order of their deletion.
    objects: Vec<LogObject>,
    /// Expired commits that stay because somebody reads them.
    kept: u64,
}

impl CleanUp {
    /// Finds what goes of the log of `vacuum`. Commits that are younger than `before` stay.
    ///
    /// # Errors
    /// The store failed, or a log cannot be read.
    pub(super) async fn find(
        lake: &Store,
        vacuum: &Vacuum,
        before: DateTime<Utc>,
        keeps_undelivered: bool,
    ) -> Result<Self, LakeError> {
        let (table, newest) = (&vacuum.store, vacuum.listed.version);
        // The positions of the readers are read before the log: they only move on.
        let readers = read_from(lake, vacuum.table, &vacuum.listed.known, keeps_undelivered).await?;
        // Without the hint, a writer that slept does not look whether its commit is buried.
        let Some(hint) = log::last_checkpoint(table).await? else { return Ok(Self::default()) };
        let log = LogObjects::list(table).await?;
        let Some(first) = log.first() else { return Ok(Self::default()) };
        let Some(expired_to) = log.expired_to(first, before) else { return Ok(Self::default()) };
        // No commit helps a reader that misses some already, and one of another `sync_records`.
        let needed = readers.into_iter().filter(|from| from + 1 >= first && *from <= newest).min();
        let unneeded = log.checkpoints.range(first..=expired_to.min(hint).max(first)).next_back().copied();
        let last = needed.map_or(u64::MAX, |needed| needed).min(expired_to).min(hint);
        let mut found = Self::default();
        for version in log.checkpoints.iter().rev().filter(|version| (first..=last).contains(version)) {
            let objects: Vec<LogObject> = log.before(*version).cloned().collect();
            if objects.is_empty() {
                break;
            }
            if is_older(table, *version, before).await? && is_beginning(table, *version, &objects).await? {
                (found.begin, found.objects) = (Some(*version), objects);
                break;
            }
        }
        let kept = found.begin.unwrap_or(first)..unneeded.unwrap_or(first);
        found.kept = if kept.is_empty() { 0 } else { log.commits.range(kept).count() as u64 };
        Ok(found)
    }
}

/// Returns whether the in-commit timestamp of a commit, if it has one, is older than `before`. Those of all earlier
/// commits are older, too.
async fn is_older(table: &Store, version: u64, before: DateTime<Utc>) -> Result<bool, LakeError> {
    let actions = log::read_commit(table, version).await?;
    let stated = actions.iter().flatten().find_map(|action| match action {
        Action::CommitInfo(info) => info.in_commit_timestamp,
        _ => None,
    });
    Ok(actions.is_some() && stated.is_none_or(|ms| ms < before.timestamp_millis()))
}

/// Returns whether a version can be read without some objects of the log.
async fn is_beginning(table: &Store, version: u64, without: &[LogObject]) -> Result<bool, LakeError> {
    let hidden = without.iter().map(|object| table.key(&object.path)).collect();
    let rest = table.with_objects(Arc::new(HidingStore::new(table.objects(), hidden)));
    // Loading a version checks the path of each file, so it reads the checkpoint to its end.
    match snapshot::load(&rest, Some(version)).await {
        Ok(loaded) => Ok(loaded.is_some()),
        Err(error) if error.is_damage() => {
            tracing::warn!(%table, version, %error, "cannot read a checkpoint of the log; the commits before it stay");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Vacuum {
    /// Deletes what goes of the log. After `stop` is cancelled, the current object is the last one.
    pub(super) async fn clean_up(
        &mut self,
        found: &CleanUp,
        stop: &CancellationToken,
        on: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), LakeError> {
        self.result.kept_commits = found.kept;
        for LogObject { part, path, bytes, .. } in &found.objects {
            if stop.is_cancelled() {
                break;
            }
            failpoint::hit("vacuum/commit");
            if !self.is_dry_run {
                self.store.delete(path).await?;
            }
            on(Progress::Deleted(self.table, path, *bytes));
            match part {
                Part::Checkpoint | Part::SharedCheckpoint => {
                    self.result.checkpoints += 1;
                    self.result.checkpoint_bytes += bytes;
                }
                Part::Commit | Part::Beside => {
                    self.result.commits += u64::from(*part == Part::Commit);
                    self.result.commit_bytes += bytes;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_of_a_log_and_their_versions() {
        let version = "00000000000000000100";
        for (rest, part) in [
            (".json", Part::Commit),
            (".checkpoint.parquet", Part::Checkpoint),
            (".checkpoint.0000000001.0000000003.parquet", Part::Checkpoint),
            (".checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json", Part::SharedCheckpoint),
            (".crc", Part::Beside),
            (".00000000000000000120.compacted.json", Part::Beside),
        ] {
            assert_eq!(Part::parse(&format!("{version}{rest}")), Some((100, part)), "{rest}");
        }
        assert_eq!(Part::parse(&format!(".{version}.json.crc")), Some((100, Part::Beside)));
        let staged = format!(".{version}.json.0011223344556677.tmp");
        for other in
            [staged.as_str(), "_last_checkpoint", "._last_checkpoint.crc", "100.json", &format!("{version}.txt")]
        {
            assert_eq!(Part::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_log_expires_up_to_its_first_young_commit() {
        let now = Utc::now();
        let log = |days: &[(u64, i64)]| LogObjects {
            commits: days.iter().map(|(version, days)| (*version, now - TimeDelta::days(*days))).collect(),
            ..LogObjects::default()
        };
        let before = now - TimeDelta::days(90);
        let of = |days: &[(u64, i64)]| {
            let log = log(days);
            log.first().map(|first| (first, log.expired_to(first, before)))
        };
        assert_eq!(of(&[(0, 99), (1, 98), (2, 5)]), Some((0, Some(1))));
        assert_eq!(of(&[(7, 99), (8, 5), (9, 98)]), Some((7, Some(7))), "no clock goes back");
        assert_eq!(of(&[(0, 99), (2, 98), (3, 97), (4, 1)]), Some((2, Some(3))), "there is a hole");
        assert_eq!(of(&[(0, 5)]), Some((0, None)));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn properties_say_how_long_commits_stay() {
        let url: crate::lake::Location = "/tmp".parse().unwrap();
        let store = futures::executor::block_on(Store::open(&url, &crate::aws::AwsSettings::default())).unwrap();
        let of = |properties: serde_json::Value| {
            let mut known = Transactions::default();
            let metadata = json!({"metaData": {"schemaString": "", "configuration": properties}});
            known.requirements.apply_action(&metadata).unwrap();
            retention(&store, &known, days(7)).map(|retention| retention.as_secs() / 86_400)
        };
        fn days(days: u64) -> Duration {
            Duration::from_secs(days * 86_400)
        }
        assert_eq!(of(json!({})), Some(90));
        assert_eq!(of(json!({KEEPS: "interval 30 days"})), Some(30));
        assert_eq!(of(json!({KEEPS: "INTERVAL 8 WEEKS"})), Some(56));
        assert_eq!(of(json!({KEEPS: "interval 1 hour"})), Some(7), "the vacuum's own retention is longer");
        assert_eq!(of(json!({KEEPS: "for ever"})), None);
        assert_eq!(of(json!({IS_CLEANED: "False"})), None);
        assert_eq!(of(json!({IS_CLEANED: "true", PROTECTED_BEFORE: "0"})), Some(90));
        assert_eq!(of(json!({PROTECTED_BEFORE: "12"})), None);
    }
}
