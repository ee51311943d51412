//! Lets old extracts leave `daily_state`.
//!
//! The newest extract stays, because the next one is computed from it. If another writer changed it, all stay: one of them
//! may have to be that base. With an extract go its transaction ids, so that no later extract takes it for its base.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use chrono::NaiveDate;

use super::policy::TablePolicy;
use super::{ExpiredRows, let_leave};
use crate::extract::{NewestExtract, forgotten_ids, recorded};
use crate::lake::commit::{Draft, Operation, Proposal};
use crate::lake::log::Transactions;
use crate::lake::snapshot;
use crate::lake::{LakeError, Store};
use crate::schema::Table;

/// Lets the extracts leave that are older than the policy.
pub(super) async fn expire(lake: &Store, policy: &TablePolicy, today: NaiveDate) -> Result<ExpiredRows, LakeError> {
    let proposal = Expiry { lake, policy, today, result: Mutex::default() };
    let_leave(lake, Table::DailyState, &proposal, &proposal.result).await
}

struct Expiry<'a> {
    lake: &'a Store,
    policy: &'a TablePolicy,
    today: NaiveDate,
    /// The result of the last draft.
    result: Mutex<ExpiredRows>,
}

impl Proposal for Expiry<'_> {
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let recorded = recorded(known).covers;
        let store = Table::DailyState.store(self.lake);
        let Some(newest) = NewestExtract::find(&store, known).await? else { return Ok(None) };
        let (is_whole, newest) = (newest.is_as_written, newest.day);
        let is_due = |day: NaiveDate| day < newest && self.policy.is_due("", day, self.today);
        let loaded = snapshot::load(&store, Some(known.version)).await?;
        let loaded = loaded.ok_or_else(|| LakeError::NoLake(self.lake.to_string()))?;
        let (mut result, mut partitions, mut removes) = (ExpiredRows::default(), BTreeSet::new(), Vec::new());
        for file in snapshot::files(&store, &loaded).await? {
            let value = |name: &str| file.partition.get(name).cloned().flatten();
            let day = value("extract_date").and_then(|day| day.parse().ok()).filter(|day| is_due(*day));
            let Some(day) = day else { continue };
            if !is_whole {
                *result.waiting.entry("newest_changed").or_default() += 1;
                continue;
            }
            result.count(&file);
            partitions.insert((day, value("pool")));
            removes.push(file.remove);
        }
        result.partitions = partitions.len() as u64;
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        // An extract without rows has no files, but it may be a base too.
        let days: Vec<NaiveDate> = recorded.keys().copied().filter(|day| is_whole && is_due(*day)).collect();
        if removes.is_empty() && days.is_empty() {
            return Ok(None);
        }
        let ids = days.into_iter().flat_map(forgotten_ids).collect();
        let first = self.policy.first_date(self.today).unwrap_or(newest).min(newest);
        let operation = Operation::Delete(format!("extract_date < '{first}'"));
        Ok(Some(Draft { removes, ids, operation, ..Draft::default() }))
    }

    fn failpoints(&self) -> (&'static str, &'static str) {
        ("expire/before", "expire/after")
    }
}
