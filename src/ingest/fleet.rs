//! The frame of a run that reads shards or objects, alone or as one worker of a fleet: its start, its end, and its leases.

use tokio_util::sync::CancellationToken;

use super::{IngestError, RUN_AGAIN, Run, in_time};
use crate::aws::AwsSettings;
use crate::source::leases::{Keeper, LeaseOptions};

impl Run {
    /// Runs as one worker, with a lease keeper if `start` makes one: `start`, then `follow`, then the last commit. The
    /// leases are given back at any end.
    pub(super) async fn in_fleet(
        mut self,
        signal: CancellationToken,
        start: impl AsyncFnOnce(&mut Self) -> Result<(), IngestError>,
        follow: impl AsyncFnOnce(&mut Self) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
        tokio::select! {
            biased;
            // Nothing has been read yet.
            () = signal.cancelled() => return Ok(()),
            started = start(&mut self) => started?,
        }
        let counters = self.counters.clone();
        let work = async {
            follow(&mut self).await?;
            self.finish().await?;
            self.foreign.pop_first().map_or(Ok(()), |shard| Err(IngestError::TakenOver(shard)))
        };
        let done = in_time(signal, &counters, RUN_AGAIN, work).await;
        if let Some(listing) = self.listing.take() {
            listing.abort();
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.close().await;
        }
        done
    }

    /// Starts the lease keeper of a stream, under the id of this lake.
    pub(super) async fn keep(
        &mut self,
        aws: &AwsSettings,
        stream: &str,
        options: &LeaseOptions,
    ) -> Result<(), IngestError> {
        let options = LeaseOptions { lake: format!("{:016x}", self.writer.lake_id().await?), ..options.clone() };
        self.keeper = Some(Keeper::start(aws, stream, options).await?);
        Ok(())
    }
}
