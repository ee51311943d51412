//! Files of `sync_records` that a delivery to come reads, although a compaction replaced them.

use crate::extract::consumer;
use crate::lake::since::changes_between;
use crate::lake::{LakeError, Store, log, snapshot};
use crate::schema::Table;

/// Calls `keep` with each file up to version `newest` that was replaced before some consumer got its rows.
///
/// If the log does not reach back to a consumer's last delivery, no file helps it: it must start over.
///
/// # Errors
/// A log cannot be read.
pub(super) async fn find(lake: &Store, newest: u64, mut keep: impl FnMut(&str)) -> Result<(), LakeError> {
    let Some(known) = log::read_transactions(&Table::DailyState.store(lake)).await? else { return Ok(()) };
    let cursors = consumer::cursors(&known);
    let records = Table::SyncRecords.store(lake);
    // Every file that a later cursor needs is among those of the earliest one. A first delivery that is not finished will
    // leave its consumer at the version that it reaches.
    let positions = cursors.iter().filter_map(|cursor| cursor.version.or(cursor.unfinished_to));
    let earliest = positions.min().filter(|from| *from < newest);
    if let Some(from) = earliest
        && let Some(changes) = changes_between(&records, from, newest).await?
    {
        changes.new.iter().filter(|(_, file)| file.removed_at.is_some()).for_each(|(path, _)| keep(path));
    }
    // A delivery that was not finished reads the version that it reaches.
    for to in cursors.iter().filter_map(|cursor| cursor.unfinished_to) {
        match snapshot::load(&records, Some(to)).await {
            Ok(Some(loaded)) => {
                snapshot::visit_active(&records, &loaded, |path, _| {
                    keep(path);
                    Ok(())
                })
                .await?;
            }
            Ok(None) => {}
            // Nobody can deliver such a version any more.
            Err(error) if error.is_damage() || matches!(error, LakeError::Unsupported { .. }) => {
                tracing::warn!(version = to, %error, "cannot read the version of an unfinished delivery");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
