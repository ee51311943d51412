//! Buffers to data files.

use futures::{StreamExt, TryStreamExt};

use super::Writer;
use crate::batch::{Partition, PartitionKey};
use crate::ingest::IngestError;
use crate::lake::LakeError;
use crate::lake::part::write_sorted;
use crate::lake::paths::PartName;
use crate::schema::Table;

impl Writer {
    /// Writes partitions to files, each for the next commit of its shard.
    pub(super) async fn write(&mut self, partitions: Vec<(PartitionKey, Partition)>) -> Result<(), IngestError> {
        let mut jobs = Vec::new();
        for (key, partition) in partitions {
            let Some(held) = self.held.get_mut(&key.shard) else { continue };
            if partition.is_empty() {
                continue;
            }
            let name = PartName::new(&key.shard, self.token, held.state.number + 1, held.next_file);
            held.next_file += 1;
            jobs.push((key, partition, name));
        }
        let store = Table::SyncRecords.store(&self.lake);
        let written = futures::stream::iter(jobs)
            .map(|(key, partition, name)| {
                let store = store.clone();
                async move {
                    let shard = key.shard.clone();
                    Ok::<_, LakeError>((shard, write_sorted(&store, name, key, partition).await?))
                }
            })
            .buffer_unordered(self.encoders)
            .try_collect::<Vec<_>>()
            .await?;
        for (shard, file) in written {
            self.counters.file(u64::try_from(file.size).unwrap_or(0));
            if let Some(held) = self.held.get_mut(&shard) {
                held.work.files += 1;
                held.work.file_bytes += u64::try_from(file.size).unwrap_or(0);
                held.files.push(file);
            }
        }
        Ok(())
    }
}
