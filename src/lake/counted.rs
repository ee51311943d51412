//! A store that counts what is read of the data files.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use super::{Objects, Store};

/// Counts of the data files that were read, and of their bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    files: HashSet<Path>,
    bytes: u64,
}

impl Reads {
    /// Returns a store whose reads are counted.
    pub(crate) fn of(store: &Store) -> (Store, Self) {
        let reads = Self::default();
        let objects = CountingStore { objects: store.objects(), reads: reads.clone() };
        (store.with_objects(Arc::new(objects)), reads)
    }

    /// Begins to count anew.
    pub(crate) fn reset(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Counted::default();
    }

    /// Returns the number of files of which something was read, and the bytes.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (counted.files.len() as u64, counted.bytes)
    }

    fn add(&self, location: &Path, bytes: u64) {
        if !location.as_ref().ends_with(".parquet") || location.parts().any(|part| part.as_ref() == "_delta_log") {
            return;
        }
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !counted.files.contains(location) {
            counted.files.insert(location.clone());
        }
        counted.bytes += bytes;
    }
}

/// A store that counts the reads of data files, and passes all requests on.
#[derive(Debug)]
struct CountingStore {
    objects: Objects,
    reads: Reads,
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

#[async_trait::async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let is_head = options.head;
        let found = self.objects.get_opts(location, options).await?;
        if !is_head {
            self.reads.add(location, found.range.end - found.range.start);
        }
        Ok(found)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let found = self.objects.get_ranges(location, ranges).await?;
        self.reads.add(location, found.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.objects.rename_opts(from, to, options).await
    }
}
