//! The extract that a day builds on: whether it still holds the rows that it was written with, and whether it holds the
//! rows that left `sync_records` by retention.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;

use super::plan::{self, day_in, recorded, removes_rows};
use crate::lake::expired::Expired;
use crate::lake::log::Transactions;
use crate::lake::since::{self, RemovedFile, TableChanges, Touched};
use crate::lake::{LakeError, Store};

/// Knowledge about which extracts still hold the rows that they were written with.
pub(super) struct AsWritten {
    by_day: BTreeMap<NaiveDate, u64>,
    /// The version that last wrote or changed rows of each day; `None` if the log does not tell.
    touched: Option<BTreeMap<Option<String>, Touched>>,
}

impl AsWritten {
    pub(super) async fn read(
        daily: &Store,
        known: &Transactions,
        days: impl IntoIterator<Item = NaiveDate>,
    ) -> Result<Self, LakeError> {
        let mut by_day = plan::days(known, "extracted/");
        let days: BTreeSet<NaiveDate> = days.into_iter().collect();
        by_day.retain(|day, _| days.contains(day));
        let touched = match by_day.values().min() {
            Some(from) => since::touched(daily, (*from, known.version), "extract_date").await?,
            None => None,
        };
        Ok(Self { by_day, touched })
    }

    pub(super) fn is(&self, day: NaiveDate) -> bool {
        self.has_none_since(day, |touched| touched.last)
    }

    /// Returns whether the extract has lost rows by DELETE at most.
    fn has_lost_rows_at_most(&self, day: NaiveDate) -> bool {
        self.has_none_since(day, |touched| touched.last_other)
    }

    fn has_none_since(&self, day: NaiveDate, version: impl Fn(&Touched) -> u64) -> bool {
        let (Some(written), Some(touched)) = (self.by_day.get(&day), &self.touched) else { return false };
        [Some(day.to_string()), None]
            .iter()
            .all(|of| touched.get(of).is_none_or(|touched| version(touched) <= *written))
    }
}

/// The newest extract, on which the next one builds.
pub(crate) struct NewestExtract {
    /// Its day.
    pub day: NaiveDate,
    /// The version of `sync_records` that it covers.
    pub covers: u64,
    /// Whether it still holds the rows that it was written with.
    pub is_as_written: bool,
}

impl NewestExtract {
    /// Finds it in the log of `daily_state`; `None` if there is no extract.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) async fn find(daily: &Store, known: &Transactions) -> Result<Option<Self>, LakeError> {
        let Some((day, covers)) = recorded(known).covers.pop_last() else { return Ok(None) };
        let is_as_written = AsWritten::read(daily, known, [day]).await?.is(day);
        Ok(Some(Self { day, covers, is_as_written }))
    }
}

/// An earlier extract: its day, the version that it covers, and what changed since.
pub(super) type Base = (NaiveDate, u64, TableChanges);

/// Returns the extract if it is a base, and what has left if it serves only for that.
pub(super) fn use_of<'a>(
    base: &'a Base,
    as_written: &AsWritten,
    left: &Expired,
) -> (Option<&'a Base>, Option<Expired>) {
    let (day, covers, changes) = base;
    let unusable = if removes_rows(changes, *covers, *day) {
        "another writer removed or changed rows that this extract holds; it is not used as a base"
    } else if !as_written.is(*day) {
        "another writer changed this extract in daily_state; it is not used as a base"
    } else {
        return (Some(base), None);
    };
    // Rows of dates that have left are nowhere else. As for the state (`query/reading.rs`), it must be told which of them
    // another writer deleted.
    let serves = match as_written.is(*day) {
        true => !changes.removed_with_rows_of(*covers).any(|file| file.may_be_of(left)),
        false => as_written.has_lost_rows_at_most(*day),
    };
    if !left.is_empty() && serves {
        return (Some(base), Some(left.clone()));
    }
    tracing::warn!(%day, "{unusable}");
    (None, None)
}

/// Checks that the base holds all rows of days up to `date` that have left. Its days are whole days, and all rows of later
/// days must be there.
pub(super) fn check(left: &Expired, date: NaiveDate, base: Option<&Base>) -> Result<(), LakeError> {
    let Some(last) = left.last_day() else { return Ok(()) };
    let is_of = |file: &RemovedFile| {
        let day = file.partition.as_ref().and_then(|partition| day_in(partition, "event_date"));
        day.is_none_or(|day| day <= date)
    };
    match base {
        Some((day, _, changes)) if *day >= last && !changes.expired_new.iter().any(is_of) => Ok(()),
        Some((day, ..)) => Err(left.refusal(
            &format!("the extract of {date}"),
            &format!("the extract of {day}, on which it builds, does not hold them; extract a later day"),
        )),
        None => Err(left.refusal(
            &format!("the extract of {date}"),
            &format!(
                "no earlier extract that holds them can be used; restore such an extract in daily_state, or query \
                 current_state in place of an extract of {date}"
            ),
        )),
    }
}
