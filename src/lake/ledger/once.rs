//! A commit that may happen once: files under a transaction id that must not be there yet.

use deltalake::kernel::{Action, Add, Transaction};
use tokio::time::Instant;

use super::{Backoff, Ledger, PATIENCE, encode_actions, new_token};
use crate::failpoint;
use crate::lake::{LakeError, log, paths};

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
        let token = i64::try_from(new_token()).unwrap_or(i64::MAX);
        let mut actions: Vec<Action> = files.into_iter().map(Action::Add).collect();
        actions.push(Action::Txn(Transaction::new(id.to_owned(), token)));
        let bytes = encode_actions(self.table, &self.store, actions)?;
        let began = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            let mut failed = false;
            match log::read_forward(&self.store, &mut self.known).await {
                Ok(()) => {}
                Err(error @ LakeError::Log { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(table = self.table.name(), error = %error, "cannot read the log, trying again");
                    failed = true;
                }
            }
            if let Some(found) = self.known.ids.get(id) {
                return Ok(*found == token);
            }
            let mut last = None;
            if !failed {
                let version = self.known.version + 1;
                failpoint::hit("commit/before");
                let put = self.store.put_new(&paths::commit(version), bytes.clone()).await;
                failpoint::hit("commit/after");
                match put {
                    Ok(()) => {
                        self.known.ids.insert(id.to_owned(), token);
                        self.known.version = version;
                        return Ok(true);
                    }
                    Err(error) => last = Some(error),
                }
            }
            if began.elapsed() > PATIENCE {
                let table = self.store.url().to_string();
                return Err(LakeError::Contended { table, seconds: PATIENCE.as_secs(), source: last });
            }
            backoff.pause().await;
        }
    }
}
