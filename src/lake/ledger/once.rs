//! Commits that happen at most once: the commit sets a transaction id that must not exist yet.

use std::time::Duration;

use deltalake::kernel::Add;

use super::Ledger;
use crate::lake::LakeError;
use crate::lake::commit::new_token_value;
use crate::lake::log::{self, Transactions};

/// Transaction id in the log of `sync_records`: when a process last took the turn to care for the lake (see
/// [`Ledger::take_turn`]).
pub const CARE_TURN: &str = "care/turn";

/// When the next turn is due: after a time, or after so many versions of the log.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    /// The time; `None` if only versions count.
    pub every: Option<Duration>,
    /// The number of versions.
    pub versions: u64,
}

fn version_id(id: &str) -> String {
    format!("{id}_version")
}

impl Ledger {
    /// Returns whether a commit set this transaction id, as far as the log was read.
    pub fn is_done(&self, id: &str) -> bool {
        self.known.ids.contains_key(id)
    }

    /// Returns the value of a transaction id, as far as the log was read.
    pub fn value(&self, id: &str) -> Option<i64> {
        self.known.ids.get(id).copied()
    }

    /// Returns the value of a transaction id, and sets the id to `value` if it does not exist. The first writer wins.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn settle(&mut self, id: &str, value: i64) -> Result<i64, LakeError> {
        self.refresh().await?;
        loop {
            if let Some(known) = self.known.ids.get(id) {
                return Ok(*known);
            }
            let free = |known: &Transactions| !known.ids.contains_key(id);
            self.publish(Vec::new(), vec![(id.to_owned(), value)], ("fence/before", "fence/after"), free).await?;
        }
    }

    /// Takes the turn for work that one process at a time should do. Returns whether this call took it. The transaction
    /// id `id` holds when the last turn was taken, in milliseconds, and `<id>_version` the version that it began with or
    /// ended at; `now_ms` is the current time.
    ///
    /// A turn only saves work. Clocks of processes may differ, so two turns may be closer than [`Turns::every`].
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn take_turn(&mut self, id: &str, now_ms: i64, turns: Turns) -> Result<bool, LakeError> {
        self.refresh().await?;
        let version_id = version_id(id);
        let is_due = |known: &Transactions| {
            let last = |id: &str| known.ids.get(id).copied();
            let has_passed = |every: Duration| {
                let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
                // A time that lies further ahead than the next turn comes from a wrong clock.
                last(id).is_none_or(|last_ms| now_ms.saturating_sub(last_ms).saturating_abs() >= every_ms)
            };
            let since = last(&version_id).and_then(|version| u64::try_from(version).ok()).unwrap_or(0);
            turns.every.is_some_and(has_passed) || known.version.saturating_sub(since) >= turns.versions
        };
        if !is_due(&self.known) {
            return Ok(false);
        }
        let ids = vec![(id.to_owned(), now_ms), (version_id.clone(), log::id_value(self.known.version)?)];
        Ok(self.publish(Vec::new(), ids, ("fence/before", "fence/after"), is_due).await?.is_some())
    }

    /// Returns the version from which the next turn counts, as far as the log was read.
    pub fn turn_version(&self, id: &str) -> Option<u64> {
        self.value(&version_id(id)).and_then(|version| u64::try_from(version).ok())
    }

    /// Ends a turn: the versions that it made itself do not bring the next one closer.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn end_turn(&mut self, id: &str) -> Result<(), LakeError> {
        self.refresh().await?;
        let ids = vec![(version_id(id), log::id_value(self.known.version)?)];
        self.publish(Vec::new(), ids, ("fence/before", "fence/after"), |_| true).await.map(drop)
    }

    /// Commits files and sets a transaction id, unless the id exists. Returns whether this call made the commit.
    ///
    /// The value of the id is a random token. A commit whose answer was lost is recognised by the token of
    /// `lake::commit`, not by this one.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn commit_once(&mut self, files: Vec<Add>, id: &str) -> Result<bool, LakeError> {
        self.refresh().await?;
        let token = new_token_value();
        let failpoints = self.failpoints(&files);
        let free = |known: &Transactions| !known.ids.contains_key(id);
        let published = self.publish(files, vec![(id.to_owned(), token)], failpoints, free).await?;
        Ok(published.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::{Location, Store};
    use crate::schema::Table;

    #[tokio::test]
    async fn one_of_all_processes_takes_a_turn() {
        let folder = tempfile::tempdir().unwrap();
        let place = Location::Folder(folder.path().into());
        let lake = Store::create(&place, &AwsSettings::default()).await.unwrap();
        let open = async || Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let (mut a, mut b) = (open().await, open().await);
        let hour = Turns { every: Some(Duration::from_secs(3_600)), versions: 1_000 };
        let begin = 1_800_000_000_000;
        let of_both = futures::join!(a.take_turn("care", begin, hour), b.take_turn("care", begin + 5, hour));
        assert!(of_both.0.unwrap() != of_both.1.unwrap(), "one of two that ask at once");
        for (after_ms, is_due) in [(60_000, false), (3_600_005, true), (3_700_000, false), (-9_000_000, true)] {
            assert_eq!(b.take_turn("care", begin + after_ms, hour).await.unwrap(), is_due, "{after_ms}");
        }
        // Versions count from the end of the last turn, whoever took it.
        let versions = Turns { every: None, versions: 3 };
        b.end_turn("care").await.unwrap();
        a.refresh().await.unwrap();
        assert_eq!(a.turn_version("care"), Some(3), "the version before the end of the turn");
        for (key, is_due) in [("a", false), ("b", true), ("c", false)] {
            let key = crate::ids::ShardKey::new("stream", key).unwrap();
            b.fence(&[(key, crate::ids::StartAt::TrimHorizon)], 7).await.unwrap();
            assert_eq!(a.take_turn("care", begin, versions).await.unwrap(), is_due);
        }
    }
}
