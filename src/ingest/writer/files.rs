//! Buffers to data files.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{PUT_PATIENCE, Writer};
use crate::batch::columns::Sorted;
use crate::batch::{Partition, PartitionKey};
use crate::failpoint;
use crate::ingest::IngestError;
use crate::lake::parquet::{add, delta_statistics, encode_sorted};
use crate::lake::paths::{PartName, pool_partition, sync_records_partition};
use crate::lake::tables::Table;
use crate::lake::{LakeError, Store};

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
                    let pool = pool_partition(&key.identity_pool_id);
                    let path = format!("{}/{name}", sync_records_partition(&pool, key.event_date));
                    let values = [("pool", pool), ("event_date", key.event_date.to_string())];
                    let encode_path = path.clone();
                    let (bytes, statistics) = tokio::task::spawn_blocking(move || {
                        let sorted = Sorted::new(key, partition);
                        let encoded = encode_sorted(&sorted);
                        encoded
                            .map(|bytes| (bytes, delta_statistics(&sorted.statistics())))
                            .map_err(|source| LakeError::Parquet { action: "encode", path: encode_path, source })
                    })
                    .await
                    .map_err(IngestError::task)??;
                    let size = bytes.len();
                    put_file(&store, &path, bytes).await?;
                    let now_ms = chrono::Utc::now().timestamp_millis();
                    Ok::<_, IngestError>((shard, add(path, &values, size, now_ms, statistics)))
                }
            })
            .buffer_unordered(self.encoders)
            .try_collect::<Vec<_>>()
            .await?;
        for (shard, file) in written {
            self.counters.file(u64::try_from(file.size).unwrap_or(0));
            if let Some(held) = self.held.get_mut(&shard) {
                held.files.push(file);
            }
        }
        Ok(())
    }
}

/// Writes a data file under a name that only this attempt can have.
pub(super) async fn put_file(store: &Store, path: &str, bytes: Bytes) -> Result<(), IngestError> {
    failpoint::hit("file/before");
    let began = tokio::time::Instant::now();
    let mut pause_ms = 200;
    loop {
        let error = match store.put_new(path, bytes.clone()).await {
            Ok(()) => break,
            // The name holds our token and a number that is never used twice: what exists is what we wrote before. But
            // no commit may list a file on the word of an error alone.
            Err(error @ object_store::Error::AlreadyExists { .. }) => match store.size(path).await {
                Ok(Some(size)) if size == bytes.len() as u64 => break,
                Ok(_) | Err(_) => error,
            },
            Err(error) => error,
        };
        let hopeless =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
        if hopeless || store.is_local() || began.elapsed() > PUT_PATIENCE {
            let path = format!("{}{path}", store.url());
            return Err(LakeError::Storage { action: "write", path, source: error }.into());
        }
        tracing::warn!(path, error = %error, "cannot write a file, trying again");
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (pause_ms * 2).min(10_000);
    }
    failpoint::hit("file/after");
    Ok(())
}
