//! Writes that were begun and never ended: multipart uploads on S3, temporary files in a local folder.
//!
//! # Invariants
//! - One that is younger than the retention, or than a day, stays: its writer may still be at work.
//! - Nothing depends on them. So an error, such as a permission that is missing, is a warning, and the vacuum goes on.

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::{Progress, Vacuum};
use crate::lake::{LakeError, fault};

impl Vacuum {
    /// Aborts the writes of the table that began before `before`. Returns `false` if the store refused it; a warning says
    /// why.
    pub(super) async fn abort_uploads(
        &mut self,
        before: DateTime<Utc>,
        stop: &CancellationToken,
        on: &mut impl FnMut(Progress<'_>),
    ) -> bool {
        match self.try_abort(before, stop, on).await {
            Ok(()) => true,
            Err(error) => {
                let error = fault::sentence(&error).unwrap_or_else(|| error.to_string());
                tracing::warn!(table = %self.store, error, "writes that never ended stay");
                false
            }
        }
    }

    async fn try_abort(
        &mut self,
        before: DateTime<Utc>,
        stop: &CancellationToken,
        on: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), LakeError> {
        for write in self.store.unfinished_writes(before).await? {
            if stop.is_cancelled() {
                break;
            }
            if !self.is_dry_run {
                self.store.abort(&write).await?;
            }
            on(Progress::Deleted(self.table, &write.path, write.bytes));
            self.result.uploads += 1;
            self.result.upload_bytes += write.bytes;
        }
        Ok(())
    }
}
