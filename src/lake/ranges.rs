//! A Parquet reader that fetches only the requested byte ranges of a file: its footer, or some columns.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{LakeError, Store};

/// Bytes read from the end of a file in the first request. Most footers fit.
const FOOTER_BYTES: usize = 64 << 10;

/// A file of a table, read by byte ranges.
#[derive(Debug)]
pub(crate) struct Ranged {
    store: Store,
    path: String,
    size: u64,
}

impl Ranged {
    /// Opens a file of a table. Returns `None` if the file does not exist.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn open(store: &Store, path: &str) -> Result<Option<Self>, LakeError> {
        let size = store.size(path).await?;
        Ok(size.map(|size| Self { store: store.clone(), path: path.to_owned(), size }))
    }
}

/// Describes the damage of a file that a reader's error reports. An error of the store is no damage of the file.
///
/// # Errors
/// The store failed.
pub(crate) fn damage(store: &Store, path: &str, error: ParquetError) -> Result<String, LakeError> {
    match error {
        ParquetError::External(source) => match source.downcast::<object_store::Error>() {
            Ok(source) => Err(LakeError::storage("read", store, path, *source)),
            Err(source) => Ok(format!("is no readable Parquet file: {source}")),
        },
        error => Ok(format!("is no readable Parquet file: {error}")),
    }
}

impl AsyncFileReader for Ranged {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let read = async move { self.store.objects().get_range(&self.store.key(&self.path), range).await };
        read.map(|read| read.map_err(|source| ParquetError::External(Box::new(source)))).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.size;
        let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
        let reader = reader.with_prefetch_hint(Some(FOOTER_BYTES));
        async move { reader.load_and_finish(self, size).await.map(Arc::new) }.boxed()
    }
}
