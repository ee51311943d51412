//! A commit that may happen once: files under a transaction id that must not be there yet.

use deltalake::kernel::Add;

use super::{Ledger, Published, new_token};
use crate::lake::LakeError;

impl Ledger {
    /// Whether a commit of that id was made, as far as the log was read.
    pub fn is_done(&self, id: &str) -> bool {
        self.known.ids.contains_key(id)
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
        Ok(matches!(published, Published::Done { .. }))
    }
}
