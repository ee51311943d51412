//! Retention: how long rows of `sync_records` and extracts in `daily_state` stay, and how they leave.
//!
//! **The promise: no wrong answer, and nothing is lost that the policy does not name.** A row that leaves `sync_records`
//! stays in the maintained state as long as it is the latest change of its key.
//!
//! # Invariants
//! - RETAIN-1. A file leaves only if its pool has a policy and its date is older than that. If a policy cannot be read,
//!   nothing leaves.
//! - RETAIN-2. A file leaves only if the maintained state holds its rows: at the version before the commit, the state covers
//!   the file, and nobody changed rows that the state covers. Otherwise the file waits for a refresh.
//! - RETAIN-3. A file leaves only if every consumer has its rows. Otherwise it waits for a delivery.
//! - RETAIN-4. If the lake has extracts, a file leaves only if the newest extract holds its rows. Otherwise it waits for an
//!   extract, because the next extract is computed from the newest one and from the rows that came after it.
//! - RETAIN-5. What left is recorded in the commit that lets it leave (`lake/expired.rs`). An answer that would need rows
//!   that left is an error which says so, and is never made from the rest: `current_state` and the other views of the state
//!   without a whole state, the state of an earlier day (`--as-of`), `resolved`, and an extract without the extract that
//!   holds these rows.
//! - RETAIN-6. The newest extract never leaves.
//! - RETAIN-7. A row that left counts in the state as long as it is the latest change of its key, also if the state is
//!   computed anew (`query/reading.rs`).
//!
//! Rows that come late for a date that has left are read like all others. They leave with the next round that finds them in
//! the state.
//!
//! `sync_records`, `changes` and `daily_changes` show the rows that are there. Files that left are deleted by a vacuum.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use chrono::NaiveDate;
use serde::Serialize;

use crate::lake::commit::Proposal;
use crate::lake::expired::Expired;
use crate::lake::snapshot::ActiveFile;
use crate::lake::{LakeError, Store, log, manifest, replace};
use crate::schema::Table;

mod extracts;
mod policy;
mod records;

pub use policy::{POOL_DEFAULT, PolicyChange, RETAIN_DAYS_MIN, Retain, TablePolicy, parse_retain, set};

/// The reason why files wait, and their number.
pub type Waiting = BTreeMap<&'static str, u64>;

/// What left a table, or would leave it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ExpiredRows {
    /// The version in which it left; null if nothing left.
    pub version: Option<u64>,
    /// Partitions with files that left.
    pub partitions: u64,
    /// Files that left.
    pub files: u64,
    /// Their rows, as far as the log states them.
    pub rows: u64,
    /// Their bytes. A vacuum deletes them.
    pub bytes: u64,
    /// Files that are older than the policy and stay for now, by the reason: `not_refreshed`, `not_delivered`,
    /// `not_extracted`; for extracts `newest_changed`.
    pub waiting: Waiting,
}

impl ExpiredRows {
    fn count(&mut self, file: &ActiveFile) {
        let (rows, bytes) = file.rows_and_bytes();
        self.files += 1;
        self.rows = self.rows.saturating_add(rows);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The result of a round.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ExpireReport {
    /// What left `sync_records`.
    pub sync_records: ExpiredRows,
    /// What left `daily_state`.
    pub daily_state: ExpiredRows,
}

/// The policy of a lake, and what has left by it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyReport {
    /// The policy of `sync_records`.
    pub sync_records: TablePolicy,
    /// The policy of `daily_state`.
    pub daily_state: TablePolicy,
    /// The first date of each pool whose rows are all there; pools from which nothing left are missing.
    pub complete_from: BTreeMap<String, NaiveDate>,
}

/// Reads the policy of a lake.
///
/// # Errors
/// There is no lake, a log cannot be read, or a property of the policy has no meaning.
pub async fn read(lake: &Store) -> Result<PolicyReport, LakeError> {
    let known = log::read_transactions(&Table::SyncRecords.store(lake)).await?;
    let known = known.ok_or_else(|| LakeError::NoLake(lake.to_string()))?;
    let daily = log::read_transactions(&Table::DailyState.store(lake)).await?.unwrap_or_default();
    Ok(PolicyReport {
        sync_records: TablePolicy::read(Table::SyncRecords, &known)?,
        daily_state: TablePolicy::read(Table::DailyState, &daily)?,
        complete_from: complete_from(&known),
    })
}

/// Returns the first date of each pool whose rows are all there, for pools from which rows have left.
pub(crate) fn complete_from(known: &log::Transactions) -> BTreeMap<String, NaiveDate> {
    Expired::of(known).before
}

/// Lets the rows leave that are older than the policy. `sync_records` comes first: the extracts that it waits for stay in
/// their place meanwhile.
///
/// # Errors
/// There is no lake, it cannot be read or committed to, or a property of the policy has no meaning. Running again is always
/// safe.
pub async fn expire(lake: &Store) -> Result<ExpireReport, LakeError> {
    let policy = read(lake).await?;
    let mut report = ExpireReport::default();
    if policy.sync_records.is_forever() && policy.daily_state.is_forever() {
        return Ok(report);
    }
    // As for a vacuum, the clock of this machine decides nothing.
    let today = lake.clock().await?.date_naive();
    if !policy.sync_records.is_forever() {
        report.sync_records = records::expire(lake, &policy.sync_records, today).await?;
    }
    if !policy.daily_state.is_forever() {
        report.daily_state = extracts::expire(lake, &policy.daily_state, today).await?;
    }
    Ok(report)
}

/// Commits a proposal by which files leave a table. Returns `result`, which holds what the last draft lets leave, with the
/// version.
async fn let_leave(
    lake: &Store,
    table: Table,
    proposal: &impl Proposal,
    result: &Mutex<ExpiredRows>,
) -> Result<ExpiredRows, LakeError> {
    let version = replace::propose(lake, table, proposal).await?;
    if version.is_some() {
        manifest::follow_commit(lake, table).await;
    }
    let result = result.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(ExpiredRows { version, ..result })
}
