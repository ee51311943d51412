//! Writing a data file, and the action that lists it. Used by whatever writes one.
//!
//! **Invariant: no action is made for a file on the word of an error.** A file has a name that only its writer's attempt
//! can have, so one that exists already is its own, written by a try whose answer was lost: if its size is right.

use std::fmt::Display;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use chrono::Utc;
use deltalake::kernel::Add;
use tokio::time::Instant;

use super::parquet::{
    add, delta_statistics, encode_batches, encode_sorted, row_count_statistics, sha256_of, with_digest,
};
use super::paths::{pool_partition, sync_records_partition};
use super::{LakeError, Store, fault};
use crate::backoff::Backoff;
use crate::batch::columns::Sorted;
use crate::batch::{Partition, PartitionKey};
use crate::{cpu, failpoint};

/// How long one file is tried, beyond the store's own retries.
const PATIENCE: Duration = Duration::from_secs(600);

/// Writes a file under a name that only this attempt can have.
///
/// # Errors
/// The store refuses, or failed for ten minutes.
pub async fn put(table: &Store, path: &str, bytes: Bytes) -> Result<(), LakeError> {
    failpoint::hit("file/before");
    let began = Instant::now();
    let mut backoff = Backoff::new(200, 10_000);
    loop {
        let error = match table.put_new(path, bytes.clone()).await {
            Ok(()) => break,
            Err(error @ object_store::Error::AlreadyExists { .. }) => match table.size(path).await {
                Ok(Some(size)) if size == bytes.len() as u64 => break,
                Ok(_) | Err(_) => error,
            },
            Err(error) => error,
        };
        if fault::is_permanent(&error) || table.is_local() || began.elapsed() > PATIENCE {
            return Err(LakeError::storage("write", table, path, error));
        }
        tracing::warn!(path, error = %error, "cannot write a file, trying again");
        tokio::time::sleep(backoff.pause()).await;
    }
    failpoint::hit("file/after");
    Ok(())
}

/// Writes a partition of `sync_records` as the file `name`, sorted and with statistics.
///
/// # Errors
/// As [`put`]; or it cannot be encoded (a bug, never the data).
pub async fn write_sorted(
    table: &Store,
    name: impl Display,
    key: PartitionKey,
    partition: Partition,
) -> Result<Add, LakeError> {
    let pool = pool_partition(&key.identity_pool_id);
    let path = format!("{}/{name}", sync_records_partition(&pool, key.event_date));
    let values = [("pool", pool), ("event_date", key.event_date.to_string())];
    let encoded = cpu::try_run(move || {
        let sorted = Sorted::new(key, partition);
        encode_sorted(&sorted).map(|bytes| {
            let sha256 = sha256_of(&bytes);
            (bytes, delta_statistics(&sorted.statistics()), sha256)
        })
    });
    let encoded = encoded
        .await
        .map_err(|source| LakeError::storage("encode", table, &path, object_store::Error::JoinError { source }))?;
    let (bytes, statistics, sha256) =
        encoded.map_err(|source| LakeError::Parquet { action: "encode", path: path.clone(), source })?;
    let size = bytes.len();
    put(table, &path, bytes).await?;
    Ok(with_digest(add(path, &values, size, Utc::now().timestamp_millis(), statistics), sha256))
}

/// Writes a batch as the file `path`, listed with its row count alone.
///
/// # Errors
/// As [`write_sorted`].
pub async fn write_batch(
    table: &Store,
    path: String,
    values: &[(&str, String)],
    rows: &RecordBatch,
) -> Result<Add, LakeError> {
    let batch = rows.clone();
    let encoded = cpu::try_run(move || {
        encode_batches(batch.schema(), &[batch]).map(|bytes| {
            let sha256 = sha256_of(&bytes);
            (bytes, sha256)
        })
    });
    let encoded = encoded
        .await
        .map_err(|source| LakeError::storage("encode", table, &path, object_store::Error::JoinError { source }))?;
    let (bytes, sha256) =
        encoded.map_err(|source| LakeError::Parquet { action: "encode", path: path.clone(), source })?;
    let size = bytes.len();
    put(table, &path, bytes).await?;
    let file = add(path, values, size, Utc::now().timestamp_millis(), row_count_statistics(rows.num_rows()));
    Ok(with_digest(file, sha256))
}
