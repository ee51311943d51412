//! Earlier versions of a table, by the time of their commits.
//!
//! The time of a version is the one that its commit states. Writers have clocks of their own, so it is exact to the
//! difference between them.

use chrono::{DateTime, Utc};
use deltalake::kernel::Action;

use super::log::{self, Versions};
use super::{LakeError, Store};

/// What a past version of a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// The table did not exist yet.
    Before,
    /// This version.
    Version(u64),
}

/// Returns the newest version of a table that was committed at or before `at`. Returns `None` if there is no table.
///
/// # Errors
/// The log cannot be read, or does not reach back to that time.
pub(crate) async fn version_at(table: &Store, at: DateTime<Utc>) -> Result<Option<Past>, LakeError> {
    let Some(versions) = log::versions(table).await? else { return Ok(None) };
    let at_ms = at.timestamp_millis();
    let (mut low, mut high) = (versions.first, versions.last + 1);
    // All versions below `low` are of before that time, and those from `high` on are later.
    while low < high {
        let middle = low + (high - low) / 2;
        match time_of_version(table, &versions, middle).await? <= at_ms {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    match low.checked_sub(1).filter(|found| *found >= versions.first) {
        Some(found) => Ok(Some(Past::Version(found))),
        None if versions.first == 0 => Ok(Some(Past::Before)),
        None => Err(gone(table, &versions, &format!("the one of {}", shown(at))).await?),
    }
}

/// Returns the time of a version of a table.
///
/// # Errors
/// The log cannot be read, or does not have that version.
pub(crate) async fn time_at(table: &Store, version: u64) -> Result<Option<DateTime<Utc>>, LakeError> {
    let Some(versions) = log::versions(table).await? else { return Ok(None) };
    if version > versions.last {
        return Err(LakeError::Invalid(format!(
            "{table} has no version {version} yet; the newest one is {}",
            versions.last
        )));
    }
    if version < versions.first {
        return Err(gone(table, &versions, &format!("version {version}")).await?);
    }
    Ok(DateTime::from_timestamp_millis(time_of_version(table, &versions, version).await?))
}

/// Returns the error of a version that the log no longer has.
async fn gone(table: &Store, versions: &Versions, wanted: &str) -> Result<LakeError, LakeError> {
    let first = versions.first;
    let since = time_of_version(table, versions, first).await?;
    let since =
        DateTime::from_timestamp_millis(since).map(|since| format!(", of {}", shown(since))).unwrap_or_default();
    Ok(LakeError::Invalid(format!(
        "{table} no longer has {wanted}: its log was cleaned up, and its oldest version is {first}{since}"
    )))
}

fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Returns the time of a version; that of the version before it if its commit states none, or has been cleaned up.
async fn time_of_version(table: &Store, versions: &Versions, version: u64) -> Result<i64, LakeError> {
    for version in (versions.first..=version).rev() {
        let stated = match versions.commits.contains(&version) {
            true => log::read_commit(table, version).await?.as_deref().and_then(time_of),
            false => None,
        };
        if let Some(ms) = stated {
            return Ok(ms);
        }
    }
    Ok(i64::MIN)
}

/// Returns the time of a commit, in milliseconds since the epoch: its in-commit timestamp, else the one of its writer.
pub(crate) fn time_of(actions: &[Action]) -> Option<i64> {
    let stated = actions.iter().find_map(|action| match action {
        Action::CommitInfo(info) => info.in_commit_timestamp.or(info.timestamp),
        _ => None,
    });
    stated.or_else(|| {
        let written = |action: &Action| if let Action::Add(add) = action { Some(add.modification_time) } else { None };
        actions.iter().filter_map(written).max()
    })
}
