//! How far the derived tables and the consumers are behind `sync_records`.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, Utc};
use deltalake::kernel::Action;
use serde::Serialize;

use crate::extract::{consumer, recorded};
use crate::lake::past::time_of;
use crate::lake::{LakeError, log};
use crate::query::reading::{COVERS, REFRESHED};

use super::history::{History, newest_first};
use super::{Moment, Read, StatusOptions};

/// The part of `sync_records` that is not covered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// Commits that add, remove or change rows, among those that were read.
    pub commits: u64,
    /// Rows that those of these commits added that were read.
    pub rows: u64,
    /// Whether all of them were read. If not, there may be more commits and rows.
    pub is_exact: bool,
}

/// The maintained state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateStatus {
    /// The version of `sync_records` that it covers.
    pub covers: u64,
    /// What it does not cover.
    pub behind: Behind,
    /// The last refresh; null if the log does not state it any more.
    pub refreshed: Option<Moment>,
}

/// The daily extracts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtractStatus {
    /// Extracted days.
    pub days: u64,
    /// The newest extracted day.
    pub last_date: NaiveDate,
    /// The version of `sync_records` that its extract covers.
    pub covers: u64,
    /// Commits and rows after that version, of any day.
    pub behind: Behind,
    /// The commit of that extract; null if the log does not state it any more.
    pub extracted: Option<Moment>,
    /// Days that were found stale and not extracted since.
    pub stale: Vec<NaiveDate>,
    /// Days with rows, after the first extracted day and before today, that have no extract.
    pub missing: Vec<NaiveDate>,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: String,
    /// The version of `sync_records` up to which it has all rows; null before its first delivery.
    pub version: Option<u64>,
    /// Commits and rows after that version; all rows before its first delivery.
    pub behind: Behind,
    /// The commit of that version; null if it is not among the commits that were read.
    pub delivered_to: Option<Moment>,
    /// Its last delivery; null if it is not among the commits that were read.
    pub delivered: Option<Moment>,
    /// The version that an unfinished delivery will reach.
    pub unfinished_to: Option<u64>,
}

/// The versions of `sync_records` that derived tables and consumers reach.
pub(super) struct Covered(Vec<u64>);

impl Covered {
    /// Collects them from the logs.
    pub(super) fn new(state: Option<&Read>, daily: Option<&Read>) -> Self {
        let mut versions: Vec<u64> = state.and_then(|read| id(read, COVERS)).into_iter().collect();
        if let Some(daily) = daily {
            versions.extend(recorded(&daily.known).covers.into_iter().next_back().map(|(_, covers)| covers));
            versions.extend(consumer::cursors(&daily.known).iter().map(|cursor| cursor.version.unwrap_or(0)));
        }
        Self(versions)
    }

    /// Returns the oldest of them.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.iter().min().copied()
    }
}

fn id(read: &Read, id: &str) -> Option<u64> {
    read.known.ids.get(id).and_then(|version| u64::try_from(*version).ok())
}

/// Returns the time of a version of a table; `None` if its commit was cleaned up.
async fn committed(read: &Read, version: Option<u64>, now: DateTime<Utc>) -> Result<Option<Moment>, LakeError> {
    let Some(version) = version else { return Ok(None) };
    let actions = log::read_commit(&read.store, version).await?;
    Ok(actions.as_deref().and_then(time_of).and_then(|ms| Moment::new(ms, now)))
}

/// Returns the status of the maintained state.
pub(super) async fn state(
    read: Option<&Read>,
    history: &History,
    now: DateTime<Utc>,
) -> Result<Option<StateStatus>, LakeError> {
    let Some((read, covers)) = read.and_then(|read| Some((read, id(read, COVERS)?))) else { return Ok(None) };
    let refreshed = committed(read, id(read, REFRESHED), now).await?;
    Ok(Some(StateStatus { covers, behind: history.behind(covers), refreshed }))
}

/// Returns the status of the daily extracts.
pub(super) async fn extracts(
    daily: Option<&Read>,
    records: &Read,
    history: &History,
    now: DateTime<Utc>,
) -> Result<Option<ExtractStatus>, LakeError> {
    let Some(read) = daily else { return Ok(None) };
    let recorded = recorded(&read.known);
    let Some((last_date, covers)) = recorded.covers.last_key_value().map(|(day, covers)| (*day, *covers)) else {
        return Ok(None);
    };
    let is_missing = |day: &NaiveDate| {
        let is_due = *day < now.date_naive() && recorded.covers.keys().next().is_some_and(|first| first < day);
        is_due && !recorded.covers.contains_key(day)
    };
    Ok(Some(ExtractStatus {
        missing: records.files.dates().into_iter().filter(is_missing).collect(),
        days: recorded.covers.len() as u64,
        last_date,
        covers,
        behind: history.behind(covers),
        extracted: committed(read, recorded.committed.get(&last_date).copied(), now).await?,
        stale: recorded.stale,
    }))
}

/// Returns the status of each consumer.
pub(super) async fn consumers(
    daily: Option<&Read>,
    history: &History,
    options: &StatusOptions,
) -> Result<Vec<ConsumerStatus>, LakeError> {
    let Some(read) = daily else { return Ok(Vec::new()) };
    let cursors = consumer::cursors(&read.known);
    if cursors.is_empty() {
        return Ok(Vec::new());
    }
    let mut delivered: HashMap<String, Option<i64>> = HashMap::new();
    let wanted: Vec<String> =
        cursors.iter().filter(|cursor| cursor.version.is_some()).map(|cursor| consumer::id(&cursor.name)).collect();
    newest_first(&read.store, read.known.version, options.commits_max, |_, actions| {
        for action in &actions {
            if let Action::Txn(txn) = action
                && wanted.contains(&txn.app_id)
            {
                delivered.entry(txn.app_id.clone()).or_insert_with(|| time_of(&actions));
            }
        }
        delivered.len() < wanted.len()
    })
    .await?;
    let moment = |ms: Option<i64>| ms.and_then(|ms| Moment::new(ms, options.now));
    let status = |cursor: consumer::Cursor| ConsumerStatus {
        behind: history.behind_cursor(cursor.version),
        delivered_to: moment(cursor.version.and_then(|version| history.time_of_version(version))),
        delivered: moment(delivered.get(&consumer::id(&cursor.name)).copied().flatten()),
        version: cursor.version,
        unfinished_to: cursor.unfinished_to,
        consumer: cursor.name,
    };
    Ok(cursors.into_iter().map(status).collect())
}
