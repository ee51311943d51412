//! Writes partition buffers to data files, in the background.
//!
//! The loop continues to read and decode while files are encoded and stored. **Invariant: the memory of a partition
//! buffer stays reserved until its file is stored**, so a slow store stops the readers, and memory stays bounded.

use std::sync::Arc;

use deltalake::kernel::Add;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Writer;
use crate::batch::parquet::encode_partition;
use crate::batch::{Buffers, PartitionKey};
use crate::budget::Reservation;
use crate::ids::ShardKey;
use crate::ingest::IngestError;
use crate::lake::paths::{PartName, pool_partition, sync_records_partition};
use crate::lake::{LakeError, Store, data_file};
use crate::schema::Table;

/// Files that are encoded or stored at a time. Encoding takes at most the processors; the others wait for the store.
const FILES_AT_A_TIME: usize = 16;

/// A file that is stored and not committed.
#[derive(Debug)]
pub(super) struct Written {
    shard: ShardKey,
    /// Epoch of the assignment for which the file was written.
    assigned_epoch: u64,
    file: Add,
}

/// The files that are being written.
#[derive(Debug)]
pub(super) struct Files {
    tasks: JoinSet<Result<Written, LakeError>>,
    slots: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), slots: Arc::new(Semaphore::new(FILES_AT_A_TIME)) }
    }
}

impl Writer {
    /// Starts to write partitions to files, each named for the next commit of its shard. The memory of the partitions
    /// leaves the reservation of this writer with them.
    pub(super) fn start_files(&mut self, partitions: Vec<(PartitionKey, Buffers)>) {
        let store = Table::SyncRecords.store(&self.lake);
        for (key, buffers) in partitions {
            let Some(owned) = self.held.get_mut(&key.shard) else { continue };
            let name = PartName::new(&key.shard, self.token, owned.state.epoch + 1, owned.next_file).to_string();
            owned.next_file += 1;
            let assigned_epoch = owned.assigned_epoch;
            let reserved = self.reserved.split(buffers.bytes());
            let (store, slots) = (store.clone(), self.files.slots.clone());
            self.files.tasks.spawn(async move {
                // The semaphore is never closed.
                let _slot = slots.acquire_owned().await.ok();
                let shard = key.shard.clone();
                let file = write_partition(&store, &name, key, buffers, reserved).await?;
                Ok(Written { shard, assigned_epoch, file })
            });
        }
    }

    /// Takes over the files that are written by now.
    ///
    /// # Errors
    /// A file could not be written.
    pub(super) fn take_files(&mut self) -> Result<(), IngestError> {
        while let Some(done) = self.files.tasks.try_join_next() {
            self.take_file(done)?;
        }
        Ok(())
    }

    /// Waits for all files.
    ///
    /// # Errors
    /// A file could not be written.
    pub(super) async fn finish_files(&mut self) -> Result<(), IngestError> {
        while let Some(done) = self.files.tasks.join_next().await {
            self.take_file(done)?;
        }
        Ok(())
    }

    fn take_file(
        &mut self,
        done: Result<Result<Written, LakeError>, tokio::task::JoinError>,
    ) -> Result<(), IngestError> {
        let Written { shard, assigned_epoch, file } = done.map_err(IngestError::task)??;
        let size = u64::try_from(file.size).unwrap_or(0);
        self.counters.file(size);
        // The file of a lost shard stays unlisted; the new owner sweeps it.
        if let Some(owned) = self.held.get_mut(&shard).filter(|owned| owned.assigned_epoch == assigned_epoch) {
            owned.work.files += 1;
            owned.work.file_bytes += size;
            owned.files.push(file);
        }
        Ok(())
    }
}

/// Encodes a partition of `sync_records`, writes it as the file `name`, and returns the action that lists it. Once the
/// rows are encoded, `reserved` holds no more than the bytes of the file.
///
/// # Errors
/// The store refuses or is out, or the partition cannot be encoded (a bug, never the data).
pub(crate) async fn write_partition(
    table: &Store,
    name: &str,
    key: PartitionKey,
    buffers: Buffers,
    mut reserved: Reservation,
) -> Result<Add, LakeError> {
    let (path, values) = place(name, &key);
    let encoded = data_file::encode(table, &path, move || encode_partition(&key, buffers.parts())).await?;
    reserved.shrink_to(encoded.bytes.len());
    data_file::write(table, path, &values, encoded).await
}

/// Returns the path of a file inside its table, and its partition values.
fn place(name: &str, key: &PartitionKey) -> (String, [(&'static str, String); 2]) {
    let (pool, date) = (pool_partition(&key.identity_pool_id), key.event_date);
    let path = format!("{}/{name}", sync_records_partition(&pool, date));
    (path, [("pool", pool), ("event_date", date.to_string())])
}
