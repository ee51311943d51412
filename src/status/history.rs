//! The newest commits of a log, read from the newest one backwards.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use deltalake::kernel::Action;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use crate::lake::past::time_of;
use crate::lake::since::{changes_rows, new_rows};
use crate::lake::{LakeError, Store, log};
use crate::redrive::examined_to;

use super::positions::SourceStatus;
use super::{Behind, Read, StatusOptions};

/// Commits that are read concurrently.
const READS: usize = 16;
/// Days of growth, today included.
const DAYS: u64 = 7;
/// Only this many older commits in a row end the reading, because one writer's clock may be wrong.
const OLDER_COMMITS: usize = 16;

/// The growth of `sync_records` on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DayGrowth {
    /// The UTC day of the commits.
    pub day: NaiveDate,
    /// Rows that commits of this day added.
    pub rows: u64,
    /// Bytes of the files that they added.
    pub bytes: u64,
    /// Whether all commits of the day were read. If not, rows and bytes are those of the active files that were written
    /// on this day and not rewritten since: a lower bound.
    pub is_exact: bool,
}

#[derive(Debug)]
struct Commit {
    version: u64,
    ms: Option<i64>,
    rows: u64,
    bytes: u64,
    /// Whether it adds, removes or changes rows. A compaction and a worker's idle commit do not.
    changes_rows: bool,
}

/// The newest commits of `sync_records`.
#[derive(Debug)]
pub(super) struct History {
    newest: u64,
    /// Newest first.
    read: Vec<Commit>,
    /// The newest commit of each shard, by its transaction id.
    shards: HashMap<String, i64>,
    /// Commits that were read.
    pub commits: u64,
}

/// Calls `visit` for commits from version `newest` backwards, until it returns `false`, or `max` commits were read, or
/// the log does not reach back further.
///
/// # Errors
/// The log cannot be read.
pub(super) async fn newest_first(
    table: &Store,
    newest: u64,
    max: usize,
    mut visit: impl FnMut(u64, Vec<Action>) -> bool,
) -> Result<(), LakeError> {
    let mut commits = futures::stream::iter((0..=newest).rev().take(max))
        .map(|version| async move { log::read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { break };
        if !visit(version, actions) {
            break;
        }
    }
    Ok(())
}

/// Returns the records of the quarantine that came after the last redrive of the whole quarantine; all of them without
/// such a redrive.
///
/// # Errors
/// The log cannot be read.
pub(super) async fn rows_since_redrive(quarantine: &Read, options: &StatusOptions) -> Result<u64, LakeError> {
    let all = quarantine.files.sums().rows;
    let Some(examined) = examined_to(&quarantine.known).filter(|_| all > 0) else { return Ok(all) };
    let mut rows = 0_u64;
    newest_first(&quarantine.store, quarantine.known.version, options.commits_max, |version, actions| {
        let is_later = version > examined;
        rows = rows.saturating_add(if is_later { new_rows(&actions).0 } else { 0 });
        is_later
    })
    .await?;
    // Some of them may have been moved.
    Ok(rows.min(all))
}

impl History {
    /// Reads back to the first day of growth, to version `oldest`, and to the last commit of each open shard of a
    /// stream, but no more commits than `options` allow.
    pub(super) async fn read(
        records: &Read,
        sources: &[SourceStatus],
        oldest: Option<u64>,
        options: &StatusOptions,
    ) -> Result<Self, LakeError> {
        let newest = records.known.version;
        let window_ms = first_day(options.now).and_time(NaiveTime::MIN).and_utc().timestamp_millis();
        let mut wanted: HashSet<String> = sources.iter().flat_map(SourceStatus::open_ids).collect();
        let mut history = Self { newest, read: Vec::new(), shards: HashMap::new(), commits: 0 };
        let mut older = 0;
        newest_first(&records.store, newest, options.commits_max, |version, actions| {
            let ms = time_of(&actions);
            let (rows, bytes) = new_rows(&actions);
            for action in &actions {
                if let Action::Txn(txn) = action
                    && is_of_shard(&txn.app_id)
                {
                    wanted.remove(&txn.app_id);
                    if let Some(ms) = ms {
                        history.shards.entry(txn.app_id.clone()).or_insert(ms);
                    }
                }
            }
            history.read.push(Commit { version, ms, rows, bytes, changes_rows: changes_rows(&actions) });
            older = if ms.is_some_and(|ms| ms < window_ms) { older + 1 } else { 0 };
            let is_done = older >= OLDER_COMMITS && wanted.is_empty();
            !(is_done && oldest.is_none_or(|oldest| version <= oldest.saturating_add(1)))
        })
        .await?;
        history.commits = history.read.len() as u64;
        Ok(history)
    }

    /// Returns the time of the newest commit of a shard, if it is among the commits that were read.
    pub(super) fn last_commit_ms(&self, id: &str) -> Option<i64> {
        self.shards.get(id).copied()
    }

    /// Returns the commits and rows after a version.
    pub(super) fn behind(&self, version: u64) -> Behind {
        self.from(version.saturating_add(1))
    }

    /// Returns the commits and rows after a consumer's version; all of them before its first delivery.
    pub(super) fn behind_cursor(&self, version: Option<u64>) -> Behind {
        self.from(version.map_or(0, |version| version.saturating_add(1)))
    }

    /// Returns the commits that change rows, and the new rows, from a version on.
    fn from(&self, first: u64) -> Behind {
        let mut behind = Behind { commits: 0, rows: 0, is_exact: self.newest < first || self.reaches(first) };
        for commit in self.read.iter().take_while(|commit| commit.version >= first) {
            behind.commits += u64::from(commit.changes_rows);
            behind.rows = behind.rows.saturating_add(commit.rows);
        }
        behind
    }

    /// Returns the time of a version, if it is among the commits that were read.
    pub(super) fn time_of_version(&self, version: u64) -> Option<i64> {
        self.read.iter().find(|commit| commit.version == version)?.ms
    }

    /// Returns the time of the oldest commits that were read.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.read.iter().rev().take(OLDER_COMMITS).filter_map(|commit| commit.ms).max()
    }

    fn reaches(&self, version: u64) -> bool {
        self.read.last().is_some_and(|oldest| oldest.version <= version)
    }

    /// Returns the growth of the last days, oldest first. `written` has the rows and the bytes of the active files by
    /// the day on which they were written.
    pub(super) fn growth(&self, written: &BTreeMap<NaiveDate, (u64, u64)>, now: DateTime<Utc>) -> Vec<DayGrowth> {
        let today = now.date_naive();
        let mut by_day: BTreeMap<NaiveDate, (u64, u64)> = BTreeMap::new();
        for commit in &self.read {
            let day = commit.ms.and_then(DateTime::from_timestamp_millis).map(|at| at.date_naive());
            // A writer's clock may be ahead of this one.
            let sums = by_day.entry(day.map_or(today, |day| day.min(today))).or_default();
            *sums = (sums.0.saturating_add(commit.rows), sums.1.saturating_add(commit.bytes));
        }
        let last_day = self.oldest_ms().and_then(DateTime::from_timestamp_millis).map(|at| at.date_naive());
        let growth = |day: NaiveDate| {
            let is_exact = self.reaches(0) || last_day.is_some_and(|last| last < day);
            let (rows, bytes) = by_day.get(&day).copied().unwrap_or_default();
            let bound = written.get(&day).copied().filter(|_| !is_exact).unwrap_or_default();
            DayGrowth { day, rows: rows.max(bound.0), bytes: bytes.max(bound.1), is_exact }
        };
        first_day(now).iter_days().take_while(|day| *day <= today).map(growth).collect()
    }
}

fn first_day(now: DateTime<Utc>) -> NaiveDate {
    let today = now.date_naive();
    today.checked_sub_days(Days::new(DAYS - 1)).unwrap_or(today)
}

/// Returns whether a transaction id is the epoch of a shard.
pub(super) fn is_of_shard(id: &str) -> bool {
    id.starts_with("ingest/") && id.matches('/').count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(newest: u64, read: &[(u64, &str, u64)]) -> History {
        let ms =
            |day: &str| Some(DateTime::parse_from_rfc3339(&format!("{day}T12:00:00Z")).unwrap().timestamp_millis());
        let commit = |&(version, day, rows): &(u64, &str, u64)| {
            let (ms, changes_rows) = (ms(day), rows > 0);
            Commit { version, ms, rows, bytes: 10 * rows, changes_rows }
        };
        let read: Vec<Commit> = read.iter().map(commit).collect();
        History { newest, commits: read.len() as u64, read, shards: HashMap::new() }
    }

    fn now() -> DateTime<Utc> {
        "2026-03-10T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn days_whose_commits_were_not_all_read_are_lower_bounds() {
        let written: BTreeMap<NaiveDate, (u64, u64)> =
            [("2026-03-07", (5, 50)), ("2026-03-08", (70, 700)), ("2026-03-09", (1, 1)), ("2026-03-01", (9, 90))]
                .map(|(day, sums)| (day.parse().unwrap(), sums))
                .into();
        // A clock that is ahead counts for today.
        let commits = [(9, "2026-03-11", 1), (8, "2026-03-10", 2), (7, "2026-03-09", 4), (6, "2026-03-08", 8)];
        let growth = history(9, &[&commits[..], &[(5, "2026-03-08", 16); 16]].concat()).growth(&written, now());
        let shown: Vec<_> = growth.iter().map(|g| (g.day.to_string(), g.rows, g.is_exact)).collect();
        let day = |day: &str, rows, is_exact| (format!("2026-03-{day}"), rows, is_exact);
        let older = [day("04", 0, false), day("05", 0, false), day("06", 0, false), day("07", 5, false)];
        assert_eq!(shown[..4], older);
        assert_eq!(shown[4..], [day("08", 8 + 16 * 16, false), day("09", 4, true), day("10", 3, true)]);

        // The whole log was read, so a rewritten file counts for nothing.
        let growth = history(1, &[(1, "2026-03-08", 3), (0, "2026-03-08", 0)]).growth(&written, now());
        assert!(growth.iter().all(|day| day.is_exact));
        assert_eq!(growth.iter().map(|day| day.rows).collect::<Vec<_>>(), [0, 0, 0, 0, 3, 0, 0]);
    }

    #[test]
    fn rows_behind_are_exact_if_all_later_commits_were_read() {
        let history = history(9, &[(9, "2026-03-10", 1), (8, "2026-03-10", 2), (7, "2026-03-09", 4)]);
        let behind = |version| {
            let Behind { commits, rows, is_exact } = history.behind(version);
            (commits, rows, is_exact)
        };
        assert_eq!(behind(9), (0, 0, true));
        assert_eq!(behind(8), (1, 1, true));
        assert_eq!(behind(6), (3, 7, true));
        assert_eq!(behind(5), (3, 7, false));
        // A table that covers a version of another lake.
        assert_eq!(behind(12), (0, 0, true));
    }

    #[test]
    fn commits_without_rows_are_not_behind() {
        let merged = history(9, &[(9, "2026-03-10", 0), (8, "2026-03-10", 0), (7, "2026-03-09", 4)]);
        assert_eq!(merged.behind(7), Behind { commits: 0, rows: 0, is_exact: true });
        assert_eq!(merged.behind(6), Behind { commits: 1, rows: 4, is_exact: true });
        assert_eq!(merged.behind_cursor(None), Behind { commits: 1, rows: 4, is_exact: false });
    }
}
