//! Lets rows of `sync_records` leave.
//!
//! The commit is drafted for the version right before it, and what the state, the consumers and the newest extract hold is
//! judged at that version. The state, the cursors and the extracts were read before that version, so that none of them is
//! taken to hold more than it does. Each of them only comes to hold more.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use chrono::NaiveDate;

use super::policy::TablePolicy;
use super::{ExpiredRows, let_leave};
use crate::extract::{NewestExtract, consumer};
use crate::lake::commit::{Draft, Operation, Proposal, metadata_of};
use crate::lake::expired::Expired;
use crate::lake::log::{self, Transactions};
use crate::lake::since::{TableChanges, changes_between};
use crate::lake::snapshot::{self, ActiveFile};
use crate::lake::{LakeError, Store};
use crate::query::reading::Reading;
use crate::schema::Table;

/// Lets the files leave that are older than the policy and held elsewhere.
pub(super) async fn expire(lake: &Store, policy: &TablePolicy, today: NaiveDate) -> Result<ExpiredRows, LakeError> {
    let reading = Reading::load(lake).await?;
    let daily_store = Table::DailyState.store(lake);
    let daily = log::read_transactions(&daily_store).await?.unwrap_or_default();
    let mut delivered: Vec<u64> = consumer::cursors(&daily).iter().filter_map(|cursor| cursor.version).collect();
    delivered.sort_unstable();
    let proposal = Expiry {
        lake,
        policy,
        today,
        // A state that serves only for what left before does not hold the rows that are there.
        state: reading.state.as_ref().filter(|state| state.only.is_none()).map(|state| state.covers),
        delivered,
        extract: NewestExtract::find(&daily_store, &daily).await?,
        result: Mutex::default(),
    };
    let_leave(lake, Table::SyncRecords, &proposal, &proposal.result).await
}

struct Expiry<'a> {
    lake: &'a Store,
    policy: &'a TablePolicy,
    today: NaiveDate,
    /// The version that the maintained state covers.
    state: Option<u64>,
    /// The versions up to which consumers have all rows, in order.
    delivered: Vec<u64>,
    extract: Option<NewestExtract>,
    /// The result of the last draft.
    result: Mutex<ExpiredRows>,
}

/// What the others hold, by the files that they lack. `None` means that they lack all.
struct Holders {
    state: Option<BTreeSet<String>>,
    consumers: BTreeSet<String>,
    extract: Option<BTreeSet<String>>,
    extracted_to: Option<NaiveDate>,
}

impl Holders {
    /// Returns why a file must stay, or `None` if all others hold its rows.
    fn waits(&self, path: &str, date: NaiveDate) -> Option<&'static str> {
        let lacks = |files: &Option<BTreeSet<String>>| files.as_ref().is_none_or(|files| files.contains(path));
        if lacks(&self.state) {
            return Some("not_refreshed");
        }
        if self.consumers.contains(path) {
            return Some("not_delivered");
        }
        (lacks(&self.extract) || self.extracted_to.is_some_and(|last| date > last)).then_some("not_extracted")
    }
}

impl Expiry<'_> {
    async fn holders(&self, store: &Store, version: u64) -> Result<Holders, LakeError> {
        let state = match self.state {
            Some(covers) => changes_between(store, covers, version)
                .await?
                .filter(|since| since.removed_with_rows_of(covers).next().is_none() && since.expired_new.is_empty()),
            None => None,
        };
        let mut consumers = BTreeSet::new();
        for delivered in &self.delivered {
            // A consumer to which the log does not reach back must start over, and no file helps it. Every file that a
            // later one lacks is among those that an earlier one lacks.
            if let Some(since) = changes_between(store, *delivered, version).await? {
                consumers = since.files().into_keys().collect();
                break;
            }
        }
        let extract = match &self.extract {
            // A version beyond the newest belongs to another sync_records, of which this one is an older copy.
            Some(extract) if extract.covers > version || !extract.is_as_written => None,
            Some(NewestExtract { covers, .. }) => changes_between(store, *covers, version)
                .await?
                .filter(|since| since.removed_with_rows_of(*covers).next().is_none() && since.expired_new.is_empty()),
            None => Some(TableChanges::default()),
        };
        let lacking = |since: TableChanges| since.files().into_keys().collect();
        Ok(Holders {
            state: state.map(lacking),
            consumers,
            extract: extract.map(lacking),
            extracted_to: self.extract.as_ref().map(|extract| extract.day),
        })
    }

    fn due(&self, files: Vec<ActiveFile>) -> Vec<(String, NaiveDate, ActiveFile)> {
        let due = |file: ActiveFile| {
            let value = |name: &str| file.partition.get(name).cloned().flatten();
            let (pool, date) = (value("pool").unwrap_or_default(), value("event_date")?.parse().ok()?);
            self.policy.is_due(&pool, date, self.today).then_some((pool, date, file))
        };
        files.into_iter().filter_map(due).collect()
    }
}

impl Proposal for Expiry<'_> {
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let store = Table::SyncRecords.store(self.lake);
        let loaded = snapshot::load(&store, Some(known.version)).await?;
        let loaded = loaded.ok_or_else(|| LakeError::NoLake(self.lake.to_string()))?;
        let due = self.due(snapshot::files(&store, &loaded).await?);
        let (mut result, mut partitions, mut removes) = (ExpiredRows::default(), BTreeSet::new(), Vec::new());
        let mut expired = Expired::of(known);
        if !due.is_empty() {
            let holders = self.holders(&store, known.version).await?;
            for (pool, date, file) in due {
                if let Some(reason) = holders.waits(&file.path, date) {
                    *result.waiting.entry(reason).or_default() += 1;
                    continue;
                }
                result.count(&file);
                removes.push(file.remove);
                if let Some(after) = date.succ_opt() {
                    let boundary = expired.before.entry(pool.clone()).or_insert(after);
                    *boundary = after.max(*boundary);
                }
                partitions.insert((pool, date));
            }
        }
        result.partitions = partitions.len() as u64;
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        if removes.is_empty() {
            return Ok(None);
        }
        expired.covers = expired.covers.max(self.state.unwrap_or(0));
        let (ids, operation) = (expired.ids()?, Operation::Delete(predicate(&partitions)));
        // A program that does not know retention must not refresh this lake.
        let metadata = known.requirements.with_expired_rows();
        let metadata = metadata.map(|metadata| metadata_of(Table::SyncRecords, metadata)).transpose()?;
        Ok(Some(Draft { removes, ids, operation, metadata, ..Draft::default() }))
    }

    fn failpoints(&self) -> (&'static str, &'static str) {
        ("expire/before", "expire/after")
    }
}

/// Returns the condition that selects the partitions, for people who read the log.
fn predicate(partitions: &BTreeSet<(String, NaiveDate)>) -> String {
    let last = partitions.iter().map(|(_, date)| *date).max().unwrap_or_default();
    format!("event_date <= '{last}' AND the policy of its pool")
}
