//! Commits that happen at most once: the commit sets a transaction id that must not exist yet.

use deltalake::kernel::Add;

use super::Ledger;
use crate::lake::LakeError;
use crate::lake::commit::new_token_value;

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
            let free = |known: &crate::lake::log::Transactions| !known.ids.contains_key(id);
            self.publish(Vec::new(), vec![(id.to_owned(), value)], ("fence/before", "fence/after"), free).await?;
        }
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
        let free = |known: &crate::lake::log::Transactions| !known.ids.contains_key(id);
        let published = self.publish(files, vec![(id.to_owned(), token)], failpoints, free).await?;
        Ok(published.is_some())
    }
}
