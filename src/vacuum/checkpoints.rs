//! Checkpoints of a log that no reader needs any more.
//!
//! Each checkpoint repeats the list of all files, so that the checkpoints of a table with many commits are larger than
//! all its commits. A reader begins at the newest one; older ones only make it quicker to read older versions.
//!
//! # Invariants
//! - Every version that could be read can still be read. A checkpoint goes only if all commits since an earlier beginning
//!   are there: version 0, or a checkpoint that stays.
//! - The newest two stay, the one that the log's hint names, one of each day of the retention, and whatever is younger
//!   than an hour. So a reader that is in the middle of the log finds what it was told of.
//! - One of each month of the log's own retention stays: the log can begin there when its commits expire (`commits`).

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use futures::TryStreamExt;

use crate::lake::{LakeError, Store, log, paths};
use crate::timeouts::VACUUM_RETENTION_MIN;

/// The newest checkpoints, which stay.
const NEWEST: usize = 2;

/// A checkpoint in one object, or in several parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Checkpoint {
    /// Paths of the objects and their sizes.
    objects: Vec<(String, u64)>,
    /// When the store got the last of them.
    written_at: DateTime<Utc>,
}

/// The times that checkpoints are compared with, by the clock of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckpointTimes {
    /// The current time.
    pub now: DateTime<Utc>,
    /// The beginning of the vacuum's retention.
    pub retention: DateTime<Utc>,
    /// The beginning of the log's own retention; `None` if its commits never expire.
    pub log_retention: Option<DateTime<Utc>>,
}

/// A span of time of which one checkpoint stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Day(NaiveDate),
    Month(i32, u32),
}

impl CheckpointTimes {
    fn span(&self, at: DateTime<Utc>) -> Option<Span> {
        let date = at.date_naive();
        let is_in_log = self.log_retention.is_some_and(|from| at >= from);
        match at >= self.retention {
            true => Some(Span::Day(date)),
            false => is_in_log.then_some(Span::Month(date.year(), date.month())),
        }
    }
}

/// Returns the objects of checkpoints that can go, and their sizes. Those of versions before `begin` have gone.
///
/// # Errors
/// The store failed.
pub(super) async fn superseded(
    table: &Store,
    times: CheckpointTimes,
    begin: Option<u64>,
) -> Result<Vec<(String, u64)>, LakeError> {
    let begin = begin.unwrap_or(0);
    let hint = log::last_checkpoint(table).await?;
    let mut commits = BTreeSet::new();
    let mut found: BTreeMap<u64, Checkpoint> = BTreeMap::new();
    let mut objects = table.listed("_delta_log", None);
    while let Some((path, object)) = objects.try_next().await? {
        let Some(name) = path.strip_prefix("_delta_log/") else { continue };
        if let Some(version) = paths::commit_version(name).filter(|version| *version >= begin) {
            commits.insert(version);
        } else if let Some(version) = classic(name).filter(|version| *version >= begin) {
            let written_at = object.last_modified;
            let known = found.entry(version).or_insert_with(|| Checkpoint { objects: Vec::new(), written_at });
            known.written_at = known.written_at.max(written_at);
            known.objects.push((path, object.size));
        }
    }
    let hour = times.now - TimeDelta::from_std(VACUUM_RETENTION_MIN).unwrap_or(TimeDelta::MAX);
    let mut kept = needed(&commits, found.keys().copied());
    kept.extend(found.keys().rev().take(NEWEST).copied().chain(hint));
    kept.extend(found.iter().filter(|(_, checkpoint)| checkpoint.written_at >= hour).map(|(version, _)| *version));
    let mut by_time: BTreeMap<Span, u64> = BTreeMap::new();
    for (version, checkpoint) in &found {
        if let Some(span) = times.span(checkpoint.written_at) {
            by_time.entry(span).or_insert(*version);
        }
    }
    kept.extend(by_time.into_values());
    found.retain(|version, _| !kept.contains(version));
    Ok(found.into_values().flat_map(|checkpoint| checkpoint.objects).collect())
}

/// Returns the version of a classic checkpoint's object. Others, which may have sidecars, are left alone.
pub(super) fn classic(name: &str) -> Option<u64> {
    let (version, rest) = name.split_once(".checkpoint.")?;
    let is_number = |part: &str| part.len() == 10 && part.bytes().all(|b| b.is_ascii_digit());
    let is_classic = match *rest.split('.').collect::<Vec<_>>() {
        ["parquet"] => true,
        [part, of, "parquet"] => is_number(part) && is_number(of),
        _ => false,
    };
    is_classic.then(|| paths::commit_version(&format!("{version}.json"))).flatten()
}

/// Returns the checkpoints without which a version could not be read, because commits before it are missing.
fn needed(commits: &BTreeSet<u64>, checkpoints: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    let last_after =
        |first: u64| (first..).zip(commits.range(first..)).take_while(|(n, v)| n == *v).map(|(n, _)| n).last();
    let mut reached = last_after(0);
    let mut needed = BTreeSet::new();
    for checkpoint in checkpoints {
        if reached.is_none_or(|reached| reached < checkpoint) {
            needed.insert(checkpoint);
            reached = Some(last_after(checkpoint + 1).unwrap_or(checkpoint));
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_all_commits_before_it_can_go() {
        let commits = |ranges: &[(u64, u64)]| ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
        let of = |ranges: &[(u64, u64)], checkpoints: &[u64]| -> Vec<u64> {
            needed(&commits(ranges), checkpoints.iter().copied()).into_iter().collect()
        };
        assert_eq!(of(&[(0, 300)], &[100, 200, 300]), [0_u64; 0]);
        assert_eq!(of(&[(120, 300)], &[100, 200, 300]), [100, 200], "commits up to 119 are gone");
        assert_eq!(of(&[(101, 300)], &[100, 200, 300]), [100]);
        assert_eq!(of(&[(0, 149), (180, 300)], &[100, 200, 300]), [200], "there is a hole");
        assert_eq!(of(&[], &[100]), [100]);
    }

    #[test]
    fn one_of_each_day_and_then_of_each_month_stays() {
        let at = |text: &str| format!("{text}T12:00:00Z").parse::<DateTime<Utc>>().unwrap();
        let (now, retention) = (at("2026-06-20"), at("2026-06-13"));
        let times = CheckpointTimes { now, retention, log_retention: Some(at("2026-03-20")) };
        assert_eq!(times.span(at("2026-06-13")), Some(Span::Day("2026-06-13".parse().unwrap())));
        assert_eq!(times.span(at("2026-06-12")), Some(Span::Month(2026, 6)));
        assert_eq!(times.span(at("2026-03-20")), Some(Span::Month(2026, 3)));
        assert_eq!(times.span(at("2026-03-19")), None);
        assert_eq!(CheckpointTimes { log_retention: None, ..times }.span(at("2026-06-12")), None);
    }

    #[test]
    fn names_of_classic_checkpoints() {
        assert_eq!(classic("00000000000000000100.checkpoint.parquet"), Some(100));
        assert_eq!(classic("00000000000000000100.checkpoint.0000000001.0000000003.parquet"), Some(100));
        for other in [
            "00000000000000000100.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.parquet",
            "00000000000000000100.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json",
            "_last_checkpoint",
            "00000000000000000100.json",
            "_sidecars/a.checkpoint.parquet",
        ] {
            assert_eq!(classic(other), None, "{other}");
        }
    }
}
