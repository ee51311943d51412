//! Data files as the log lists them.

use std::collections::HashMap;

use bytes::Bytes;
use deltalake::kernel::Add;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Opens a Parquet file by its Parquet schema alone, because other writers leave their own Arrow types in the footer.
///
/// # Errors
/// The bytes are no Parquet file.
pub fn open(bytes: Bytes) -> Result<ParquetRecordBatchReaderBuilder<Bytes>, ParquetError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)
}

/// Returns the `add` action of a file. The protocol stores the size as an i64.
pub fn add(path: String, partition: &[(&str, String)], size: i64, now_ms: i64, statistics: Value) -> Add {
    let values: HashMap<String, Option<String>> =
        partition.iter().map(|(name, value)| ((*name).to_owned(), Some(value.clone()))).collect();
    Add {
        path,
        partition_values: values,
        size,
        modification_time: now_ms,
        data_change: true,
        stats: Some(statistics.to_string()),
        tags: None,
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
        clustering_provider: None,
    }
}

/// The tag of an `add` action that holds the SHA-256 of the file, in hexadecimal.
pub const SHA256: &str = "synclake.sha256";

/// Returns the SHA-256 of bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Adds the SHA-256 of the file to its `add` action.
pub fn with_digest(mut add: Add, sha256: String) -> Add {
    add.tags = Some(HashMap::from([(SHA256.to_owned(), Some(sha256))]));
    add
}
