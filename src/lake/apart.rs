//! Object stores whose requests run on a runtime of their own.
//!
//! **Invariant: nothing that waits for a request can keep the request from running.** The Delta kernel blocks one thread of
//! its caller's pool for each deletion vector until it is read. Reading a local file, and looking up a host, need a thread
//! of a pool as well. In one pool, enough of the former leave none for the latter, and all of them wait for ever.

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
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::runtime::{Builder, Runtime};

use super::Objects;

/// Local reads at a time.
const THREADS_MAX: usize = 64;
/// Names of a listing that wait to be taken.
const NAMES_MAX: usize = 1_000;

/// `None` when the system gives no threads for it.
static REQUESTS: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().thread_name("requests").max_blocking_threads(THREADS_MAX).build().ok()
});

/// Runs a request on the runtime of the requests.
async fn apart<T: Send + 'static>(request: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match &*REQUESTS {
        Some(runtime) => runtime.spawn(request).await.map_err(|source| Error::JoinError { source })?,
        None => request.await,
    }
}

/// A store whose requests run apart from whoever waits for them.
#[derive(Debug)]
pub struct Apart<S>(Arc<S>);

impl<S: ObjectStore> Apart<S> {
    /// Around a store.
    pub fn new(store: S) -> Self {
        Self(Arc::new(store))
    }

    /// A listing, which is made where it is read.
    fn forward(
        &self,
        list: impl FnOnce(&S) -> BoxStream<'static, Result<ObjectMeta>> + Send + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let Some(runtime) = &*REQUESTS else { return list(&self.0) };
        let (names, taken) = tokio::sync::mpsc::channel(NAMES_MAX);
        let store = self.0.clone();
        runtime.spawn(async move {
            let mut found = list(&store);
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

impl<S: ObjectStore> fmt::Display for Apart<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[async_trait::async_trait]
impl<S: ObjectStore> ObjectStore for Apart<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (store, location) = (self.0.clone(), location.clone());
        apart(async move { store.put_opts(&location, payload, options).await }).await
    }

    /// Its parts are put by whoever polls them: only large checkpoints of the log come this way.
    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (store, location) = (self.0.clone(), location.clone());
        apart(async move {
            let is_head = options.head;
            let found = store.get_opts(&location, options).await?;
            if is_head {
                return Ok(found);
            }
            // Read to its end here: whoever polls a payload reads it on a thread of its own pool.
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let bytes = found.bytes().await?;
            let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
            Ok(GetResult { payload, meta, range, attributes })
        })
        .await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (store, location, ranges) = (self.0.clone(), location.clone(), ranges.to_vec());
        apart(async move { store.get_ranges(&location, &ranges).await }).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.0.clone();
        let delete = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                apart(async move { store.delete(&location).await.map(|()| location) }).await
            }
        };
        locations.map(delete).buffered(10).boxed()
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
        apart(async move { store.list_with_delimiter(prefix.as_ref()).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (store, from, to) = (self.0.clone(), from.clone(), to.clone());
        apart(async move { store.copy_opts(&from, &to, options).await }).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (store, from, to) = (self.0.clone(), from.clone(), to.clone());
        apart(async move { store.rename_opts(&from, &to, options).await }).await
    }
}

/// A store without some of its objects: those of a log that cannot be used, and that deltalake would not pass over.
#[derive(Debug)]
pub struct Without {
    objects: Objects,
    hidden: Arc<HashSet<Path>>,
}

impl Without {
    /// Of a store, all objects but these.
    pub fn new(objects: Objects, hidden: HashSet<Path>) -> Self {
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

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Without {
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
