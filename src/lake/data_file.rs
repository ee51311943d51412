//! Writing of a data file and of the `add` action that lists it. Every writer of data files uses this module.
//!
//! **Invariant: no `add` action is made on the evidence of an error alone.** A file name belongs to one attempt of one
//! writer. So an existing file of the right size comes from an earlier try of the same attempt, whose answer was lost.

use bytes::Bytes;
use chrono::Utc;
use deltalake::kernel::Add;
use parquet::errors::ParquetError;
use serde_json::Value;
use tokio::time::Instant;

use super::files::{add, sha256_of, with_digest};
use super::{LakeError, Store, fault};
use crate::backoff::Backoff;
use crate::timeouts::FILE_TIMEOUT;
use crate::{cpu, failpoint};

/// Writes a file under a name that only this attempt can have.
///
/// # Errors
/// The store rejects the file, or failed for ten minutes.
async fn put(table: &Store, path: &str, bytes: Bytes) -> Result<(), LakeError> {
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
        if fault::is_permanent(&error) || table.is_local() || began.elapsed() > FILE_TIMEOUT {
            return Err(LakeError::storage("write", table, path, error));
        }
        tracing::warn!(path, error = %error, "cannot write a file, trying again");
        tokio::time::sleep(backoff.pause()).await;
    }
    failpoint::hit("file/after");
    Ok(())
}

/// A file that was encoded and not written yet.
pub(crate) struct Encoded {
    /// The file.
    pub bytes: Bytes,
    /// Its statistics, as the Delta protocol writes them.
    pub statistics: Value,
    sha256: String,
}

/// Encodes a file on a thread for such work. `path` names the file in errors.
///
/// # Errors
/// The encoder refuses the rows (a bug, never the data).
pub(crate) async fn encode(
    table: &Store,
    path: &str,
    encode: impl FnOnce() -> Result<(Bytes, Value), ParquetError> + Send + 'static,
) -> Result<Encoded, LakeError> {
    let encoded = cpu::try_run(move || {
        encode().map(|(bytes, statistics)| {
            let sha256 = sha256_of(&bytes);
            Encoded { bytes, statistics, sha256 }
        })
    });
    encoded
        .await
        .map_err(|source| LakeError::storage("encode", table, path, object_store::Error::JoinError { source }))?
        .map_err(|source| LakeError::Parquet { action: "encode", path: path.to_owned(), source })
}

// A buffer has at most `isize::MAX` bytes, so the cast in `add_size` loses nothing.
const _: () = assert!(isize::BITS <= i64::BITS);

/// Returns the size of a file as its `add` action holds it.
fn add_size(bytes: &Bytes) -> i64 {
    bytes.len() as i64
}

/// Writes an encoded file under a name that only this attempt can have, and returns the action that lists it.
///
/// # Errors
/// As [`put`].
pub(crate) async fn write(
    table: &Store,
    path: String,
    values: &[(&str, String)],
    encoded: Encoded,
) -> Result<Add, LakeError> {
    let Encoded { bytes, statistics, sha256 } = encoded;
    let size = add_size(&bytes);
    put(table, &path, bytes).await?;
    Ok(with_digest(add(path, values, size, Utc::now().timestamp_millis(), statistics), sha256))
}
