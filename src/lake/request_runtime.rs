//! Object store wrappers: [`OnRequestRuntime`] runs requests on a runtime of their own, [`HidingStore`] hides objects.
//!
//! **Invariant: a task that waits for a request can never keep the request from running.** For each deletion vector,
//! the Delta kernel blocks one thread of its caller's pool until the vector is read. Local reads and host lookups also
//! need a thread of a pool. In one shared pool, enough blocked kernel threads leave no thread for the reads, and all of
//! them wait forever.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::Objects;

/// Maximum of blocking threads, and so of concurrent local reads.
const THREADS_MAX: usize = 64;
/// Maximum of listed names that wait for the reader of the listing.
const NAMES_MAX: usize = 1_000;

/// The runtime of the requests; `None` if the system cannot create its threads.
static REQUESTS: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().thread_name("requests").max_blocking_threads(THREADS_MAX).build().ok()
});

/// Runs a request on the request runtime.
pub(super) async fn on_request_runtime<T: Send + 'static>(
    request: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match &*REQUESTS {
        Some(runtime) => runtime.spawn(request).await.map_err(|source| Error::JoinError { source })?,
        None => request.await,
    }
}

/// Starts a task on the request runtime. It runs to its end, also if nobody waits for it.
pub(super) fn spawned<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match &*REQUESTS {
        Some(runtime) => runtime.spawn(task),
        None => tokio::spawn(task),
    }
}

/// Adds the likely reason to an error about a data file that does not exist. Readers turn such an error into text early,
/// so the reason must be in the error itself.
fn explained(error: Error) -> Error {
    match error {
        Error::NotFound { path, .. } if path.ends_with(".parquet") && !path.contains("_delta_log/") => {
            let reason = "a vacuum deletes files that only versions older than its retention list (7 days, or its \
                          --retain); run the command again to read the newest version, and `synclake verify` if that \
                          fails too";
            Error::NotFound { path, source: reason.into() }
        }
        other => other,
    }
}

/// A store that runs its requests on the request runtime, apart from the tasks that wait for them.
#[derive(Debug)]
pub(crate) struct OnRequestRuntime<S>(Arc<S>);

impl<S: ObjectStore> OnRequestRuntime<S> {
    /// Wraps a store.
    pub(crate) fn new(store: S) -> Self {
        Self(Arc::new(store))
    }

    /// Runs a listing, or another stream of answers, on the request runtime. The stream is created in the task that
    /// polls it.
    fn forward<T: Send + 'static>(
        &self,
        answers: impl FnOnce(&S) -> BoxStream<'static, Result<T>> + Send + 'static,
    ) -> BoxStream<'static, Result<T>> {
        let Some(runtime) = &*REQUESTS else { return answers(&self.0) };
        let (names, taken) = tokio::sync::mpsc::channel(NAMES_MAX);
        let store = self.0.clone();
        runtime.spawn(async move {
            let mut found = answers(&store);
            while let Some(name) = found.next().await {
                if names.send(name).await.is_err() {
                    return;
                }
            }
        });
        let next = |mut taken: tokio::sync::mpsc::Receiver<_>| async move { Some((taken.recv().await?, taken)) };
        futures::stream::unfold(taken, next).boxed()
    }
}

impl<S: ObjectStore> fmt::Display for OnRequestRuntime<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[async_trait::async_trait]
impl<S: ObjectStore> ObjectStore for OnRequestRuntime<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (store, location) = (self.0.clone(), location.clone());
        on_request_runtime(async move { store.put_opts(&location, payload, options).await }).await
    }

    /// Starts a multipart upload. Its parts run on the caller's runtime; only large checkpoints of the log use it.
    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (store, location) = (self.0.clone(), location.clone());
        on_request_runtime(async move {
            let is_head = options.head;
            let found = store.get_opts(&location, options).await.map_err(explained)?;
            if is_head {
                return Ok(found);
            }
            // The payload is read to its end here, because its reader would poll it on a thread of its own pool.
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let bytes = found.bytes().await?;
            let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
            Ok(GetResult { payload, meta, range, attributes })
        })
        .await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (store, location, ranges) = (self.0.clone(), location.clone(), ranges.to_vec());
        on_request_runtime(async move { store.get_ranges(&location, &ranges).await.map_err(explained) }).await
    }

    /// Deletes objects; S3 takes a thousand names in one request.
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.forward(move |store| store.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        self.forward(move |store| store.list(prefix.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        self.forward(move |store| store.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (store, prefix) = (self.0.clone(), prefix.cloned());
        on_request_runtime(async move { store.list_with_delimiter(prefix.as_ref()).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (store, from, to) = (self.0.clone(), from.clone(), to.clone());
        on_request_runtime(async move { store.copy_opts(&from, &to, options).await }).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (store, from, to) = (self.0.clone(), from.clone(), to.clone());
        on_request_runtime(async move { store.rename_opts(&from, &to, options).await }).await
    }
}

/// A store that hides some objects: unusable objects of a log, which deltalake would not skip.
#[derive(Debug)]
pub(crate) struct HidingStore {
    objects: Objects,
    hidden: Arc<HashSet<Path>>,
}

impl HidingStore {
    /// Wraps a store and hides the objects `hidden`.
    pub(crate) fn new(objects: Objects, hidden: HashSet<Path>) -> Self {
        Self { objects, hidden: Arc::new(hidden) }
    }

    fn rest(&self, found: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let hidden = self.hidden.clone();
        let is_seen = move |name: &Result<ObjectMeta>| {
            let is_hidden = name.as_ref().is_ok_and(|name| hidden.contains(&name.location));
            futures::future::ready(!is_hidden)
        };
        found.filter(is_seen).boxed()
    }

    fn look(&self, location: &Path) -> Result<()> {
        match self.hidden.contains(location) {
            true => Err(Error::NotFound { path: location.to_string(), source: "it cannot be used".into() }),
            false => Ok(()),
        }
    }
}

impl fmt::Display for HidingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

#[async_trait::async_trait]
impl ObjectStore for HidingStore {
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
        self.look(location)?;
        self.objects.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.look(location)?;
        self.objects.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.rest(self.objects.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.rest(self.objects.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut found = self.objects.list_with_delimiter(prefix).await?;
        found.objects.retain(|object| !self.hidden.contains(&object.location));
        Ok(found)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
