//! Writes partition buffers to data files.

use deltalake::kernel::Add;
use futures::{StreamExt, TryStreamExt};

use super::Writer;
use crate::batch::parquet::encode_partition;
use crate::batch::{Partition, PartitionKey};
use crate::ingest::IngestError;
use crate::lake::paths::{PartName, pool_partition, sync_records_partition};
use crate::lake::{LakeError, Store, part};
use crate::schema::Table;

impl Writer {
    /// Writes partition buffers to files, each named for the next commit of its shard.
    pub(super) async fn write(&mut self, partitions: Vec<(PartitionKey, Partition)>) -> Result<(), IngestError> {
        let mut jobs = Vec::new();
        for (key, partition) in partitions {
            let Some(held) = self.held.get_mut(&key.shard) else { continue };
            if partition.is_empty() {
                continue;
            }
            let name = PartName::new(&key.shard, self.token, held.state.epoch + 1, held.next_file);
            held.next_file += 1;
            jobs.push((key, partition, name));
        }
        let store = Table::SyncRecords.store(&self.lake);
        let written = futures::stream::iter(jobs)
            .map(|(key, partition, name)| {
                let store = store.clone();
                async move {
                    let shard = key.shard.clone();
                    Ok::<_, LakeError>((shard, write_partition(&store, &name.to_string(), key, partition).await?))
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

/// Encodes a partition of `sync_records`, writes it as the file `name`, and returns the action that lists it.
///
/// # Errors
/// The store refuses or is out, or the partition cannot be encoded (a bug, never the data).
pub(crate) async fn write_partition(
    table: &Store,
    name: &str,
    key: PartitionKey,
    partition: Partition,
) -> Result<Add, LakeError> {
    let (pool, date) = (pool_partition(&key.identity_pool_id), key.event_date);
    let path = format!("{}/{name}", sync_records_partition(&pool, date));
    let encoded = part::encode(table, &path, move || encode_partition(key, partition)).await?;
    part::write(table, path, &[("pool", pool), ("event_date", date.to_string())], encoded).await
}
