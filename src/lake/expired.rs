//! What has left `sync_records` by retention, as transaction ids of its log.
//!
//! | id | value |
//! |---|---|
//! | `expire/pool/<pool>` | the boundary of a pool, in days since 1970: rows of earlier dates have left |
//! | `expire/covers` | the newest version that the maintained state covered when rows left |
//!
//! Both come in the commit that removes the files (`retain/expire.rs`), and never go back. A commit with such an id is an
//! expiry: its removals are no change for the state, for extracts and for consumers, which hold the removed rows.

use std::collections::BTreeMap;

use chrono::{Days, NaiveDate};
use deltalake::kernel::Action;

use super::log::{self, Transactions};
use super::{LakeError, Store};

const PREFIX: &str = "expire/";
const POOL: &str = "expire/pool/";
const COVERS: &str = "expire/covers";

/// What has left `sync_records` up to a version.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Expired {
    /// The boundary of each pool: rows of earlier dates have left. Rows that came late may still be there.
    pub before: BTreeMap<String, NaiveDate>,
    /// The version of `sync_records` that a maintained state must cover at least to hold all rows that have left.
    pub covers: u64,
}

impl Expired {
    /// Reads it from the transaction ids of `sync_records`.
    pub(crate) fn of(known: &Transactions) -> Self {
        let boundary = |(id, days): (&String, &i64)| {
            let date =
                u64::try_from(*days).ok().and_then(|days| NaiveDate::default().checked_add_days(Days::new(days)));
            // A value that is no date must not hide that rows have left.
            Some((id.strip_prefix(POOL)?.to_owned(), date.unwrap_or(NaiveDate::MAX)))
        };
        let covers = known.ids.get(COVERS).and_then(|version| u64::try_from(*version).ok()).unwrap_or(0);
        Self { before: known.ids.iter().filter_map(boundary).collect(), covers }
    }

    /// Reads it from the newest version of a log.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) async fn read(records: &Store) -> Result<Self, LakeError> {
        Ok(log::read_transactions(records).await?.map(|known| Self::of(&known)).unwrap_or_default())
    }

    /// Returns the transaction ids that record it.
    ///
    /// # Errors
    /// A version does not fit into a transaction id.
    pub(crate) fn ids(&self) -> Result<Vec<(String, i64)>, LakeError> {
        let days = |date: &NaiveDate| date.signed_duration_since(NaiveDate::default()).num_days();
        let pools = self.before.iter().map(|(pool, date)| (format!("{POOL}{pool}"), days(date)));
        Ok(pools.chain([(COVERS.to_owned(), log::id_value(self.covers)?)]).collect())
    }

    /// Returns whether no rows have left.
    pub(crate) fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    /// Returns the newest day of which rows have left.
    pub(crate) fn last_day(&self) -> Option<NaiveDate> {
        self.before.values().max()?.pred_opt()
    }

    /// Returns whether a date of a pool lies before the boundary of the pool. An unknown date counts as such.
    pub(crate) fn is_before(&self, pool: &str, date: Option<NaiveDate>) -> bool {
        self.before.get(pool).is_some_and(|boundary| date.is_none_or(|date| date < *boundary))
    }

    /// Returns the error of an answer that would need rows that have left. `remedy` says why nothing replaces them, and
    /// what to do.
    pub(crate) fn refusal(&self, answer: &str, remedy: &str) -> LakeError {
        let mut pools = self.before.iter().map(|(pool, date)| format!("pool {pool} before {date}"));
        let shown: Vec<String> = pools.by_ref().take(3).collect();
        let others = match pools.count() {
            0 => String::new(),
            others => format!(", and {others} more pools"),
        };
        let rows = shown.join(", ") + &others;
        LakeError::Expired(format!("{answer} needs rows of sync_records that left by retention ({rows}): {remedy}"))
    }
}

/// Returns whether a commit is an expiry.
pub(crate) fn is_expiry(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Txn(txn) if txn.app_id.starts_with(PREFIX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_left_is_read_as_it_was_recorded() {
        let date = |text: &str| text.parse::<NaiveDate>().unwrap();
        let before = [("a", "2026-01-05"), ("", "1970-01-01")].map(|(pool, day)| (pool.to_owned(), date(day)));
        let expired = Expired { before: before.into(), covers: 7 };
        let ids = expired.ids().unwrap().into_iter().collect();
        assert_eq!(Expired::of(&Transactions { ids, ..Transactions::default() }), expired);
        assert_eq!(expired.last_day(), Some(date("2026-01-04")));
        assert!(expired.is_before("a", Some(date("2026-01-04"))) && expired.is_before("a", None));
        assert!(!expired.is_before("a", Some(date("2026-01-05"))) && !expired.is_before("b", None));
        let wrong = [("expire/pool/a".to_owned(), -1)].into();
        let wrong = Expired::of(&Transactions { ids: wrong, ..Transactions::default() });
        assert!(!wrong.is_empty(), "a wrong value does not hide that rows have left");
        assert!(Expired::of(&Transactions::default()).is_empty());
    }
}
