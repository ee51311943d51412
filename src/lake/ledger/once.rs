//! A commit that may happen once: files under a transaction id that must not be there yet.

use deltalake::kernel::Add;

use super::{Ledger, new_token};
use crate::lake::LakeError;

impl Ledger {
    /// Whether a commit of that id was made, as far as the log was read.
    pub fn is_done(&self, id: &str) -> bool {
        self.known.ids.contains_key(id)
    }

    /// The value of an id, as far as the log was read.
    pub fn value(&self, id: &str) -> Option<i64> {
        self.known.ids.get(id).copied()
    }

    /// The value of an id, which `value` gives if no commit of that id was made before. The first writer's word stands.
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
            // A token beside it: another writer may commit the same value.
            let token = i64::try_from(new_token()).unwrap_or(i64::MAX);
            let ids = vec![(id.to_owned(), value), (format!("{id}@by"), token)];
            self.publish(Vec::new(), ids, ("fence/before", "fence/after"), free).await?;
        }
    }

    /// Commits files under an id, unless a commit of that id was made before. Returns whether it was ours.
    ///
    /// The id's version is a random token, by which a commit whose answer was lost is known again.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub async fn commit_once(&mut self, files: Vec<Add>, id: &str) -> Result<bool, LakeError> {
        self.refresh().await?;
        let token = i64::try_from(new_token()).unwrap_or(i64::MAX);
        let failpoints = self.failpoints(&files);
        let free = |known: &crate::lake::log::Transactions| !known.ids.contains_key(id);
        let published = self.publish(files, vec![(id.to_owned(), token)], failpoints, free).await?;
        Ok(published.is_some())
    }
}
