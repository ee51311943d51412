//! Objects of events below a prefix of a bucket, as Firehose and exports leave them.
//!
//! # What an object is
//! **Invariant: an object is its ETag and its size, not its name.** S3 gives another ETag to other content, so an object
//! that is replaced is another object, and a copy of an object is the same one. The shard of an object is named by both,
//! and a request for its bytes states the ETag: bytes of another object never come under its name.
//!
//! # Order
//! Objects are read in the order of the listing. A listing never ends for good: an object may arrive before the place that
//! was reached. So a reader goes on to the end of the prefix, and begins again at its start.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::SourceError;
use crate::ids::{FILES, ShardKey};

/// Parts into which the objects are divided among the workers of a fleet. A part is read by one worker.
pub const PARTS: usize = 32;

/// A prefix of a bucket.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// URL as the user gave it, with a slash at its end if it is a prefix.
    url: String,
    prefix: Path,
}

/// An object below the prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Key in the bucket.
    pub key: Path,
    /// Size in bytes.
    pub size: u64,
    etag: String,
    shard: ShardKey,
}

/// Part of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Objects, in the order of their keys.
    pub objects: Vec<Object>,
    /// Key after which the next page begins; `None` at the end of the prefix.
    pub next: Option<Path>,
}

impl Object {
    /// Returns the object of a listing; `None` for an empty one, which holds nothing.
    ///
    /// # Errors
    /// The store gives no ETag.
    fn new(meta: ObjectMeta, url: &str) -> Result<Option<Self>, SourceError> {
        if meta.size == 0 {
            return Ok(None);
        }
        let Some(etag) = meta.e_tag.filter(|etag| !etag.is_empty()) else {
            return Err(SourceError::Invalid(format!(
                "the store of {url} gives no ETag for {}, by which an object is known; copy the objects to S3",
                meta.location
            )));
        };
        let digest = Sha256::digest(format!("{} {}", etag.trim_matches('"'), meta.size));
        let name = digest.iter().take(16).fold(String::from("object-"), |name, byte| format!("{name}{byte:02x}"));
        let shard = ShardKey::new(FILES, &name).ok_or_else(|| SourceError::Invalid(format!("shard name {name}")))?;
        Ok(Some(Self { key: meta.location, size: meta.size, etag, shard }))
    }

    /// Returns the shard of the object.
    pub fn shard(&self) -> &ShardKey {
        &self.shard
    }

    /// Returns the part to which the object belongs, below [`PARTS`].
    pub fn part(&self) -> usize {
        // The name ends in hexadecimal digits of a digest.
        let name = self.shard.shard();
        let digits = name.get(name.len().saturating_sub(4)..).unwrap_or_default();
        usize::from_str_radix(digits, 16).unwrap_or(0) % PARTS
    }
}

impl Objects {
    /// Creates a reader of a prefix of a store; sends nothing yet. `url` is the prefix as the user gave it.
    pub fn new(store: Arc<dyn ObjectStore>, url: &str, prefix: Path) -> Self {
        Self { store, url: url.to_owned(), prefix }
    }

    /// Returns the URL as the user gave it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the name of an object for messages.
    pub fn name_of(&self, object: &Object) -> String {
        let scheme = self.url.find("://").map_or(0, |at| at + 3);
        let bucket = self.url[scheme..].find('/').map_or(self.url.as_str(), |at| &self.url[..scheme + at]);
        format!("{bucket}/{}", object.key)
    }

    /// Returns the next objects after a key, at most `max`, without those for which `is_left` is true.
    ///
    /// # Errors
    /// The store cannot list the prefix.
    pub async fn page(
        &self,
        after: Option<&Path>,
        max: usize,
        is_left: impl Fn(&Object) -> bool,
    ) -> Result<Page, SourceError> {
        let fail = |source| SourceError::Store { url: self.url.clone(), source };
        let mut listed = match after {
            Some(after) => self.store.list_with_offset(Some(&self.prefix), after),
            None => self.store.list(Some(&self.prefix)),
        };
        let mut page = Page::default();
        let mut is_empty = true;
        while let Some(meta) = listed.try_next().await.map_err(fail)? {
            is_empty = false;
            let key = meta.location.clone();
            // Hive and Spark keep files of their own under such names.
            let is_hidden = key.filename().is_some_and(|name| name.starts_with(['_', '.']));
            let object = if is_hidden { None } else { Object::new(meta, &self.url)? };
            page.objects.extend(object.filter(|object| !is_left(object)));
            if page.objects.len() >= max {
                page.next = Some(key);
                break;
            }
        }
        if is_empty && after.is_none() && !self.url.ends_with('/') {
            // Perhaps the URL names an object.
            match self.store.head(&self.prefix).await {
                Ok(meta) => page.objects.extend(Object::new(meta, &self.url)?.filter(|one| !is_left(one))),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(fail(source)),
            }
        }
        Ok(page)
    }

    /// Requests the bytes of an object. The reader waits for them on `runtime`, so it must not run on one of its threads.
    ///
    /// # Errors
    /// The object is gone or was replaced, or the store does not answer.
    pub fn open(
        &self,
        object: &Object,
        runtime: &tokio::runtime::Handle,
        stop: &CancellationToken,
    ) -> std::io::Result<impl Read + Send + 'static> {
        let options = GetOptions { if_match: Some(object.etag.clone()), ..GetOptions::default() };
        let got = runtime.block_on(self.store.get_opts(&object.key, options)).map_err(said)?;
        Ok(ObjectBytes { stream: got.into_stream(), rest: Bytes::new(), runtime: runtime.clone(), stop: stop.clone() })
    }
}

/// Returns an error of the store that says what a reader of objects must know.
fn said(error: object_store::Error) -> std::io::Error {
    match error {
        object_store::Error::NotFound { .. } => {
            std::io::Error::new(ErrorKind::NotFound, "the object was deleted after it was listed")
        }
        object_store::Error::Precondition { .. } => {
            std::io::Error::new(ErrorKind::NotFound, "the object was replaced after it was listed")
        }
        error => std::io::Error::other(error),
    }
}

/// The bytes of an object as they arrive.
struct ObjectBytes {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    rest: Bytes,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
}

impl Read for ObjectBytes {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            let next = self.runtime.block_on(async {
                tokio::select! {
                    next = self.stream.next() => Ok(next),
                    () = self.stop.cancelled() => Err(ErrorKind::WouldBlock),
                }
            });
            match next? {
                Some(bytes) => self.rest = bytes.map_err(said)?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(into.len());
        into[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    async fn put(store: &InMemory, key: &str, text: &str) {
        store.put(&Path::from(key), text.as_bytes().to_vec().into()).await.unwrap();
    }

    #[tokio::test]
    async fn pages_follow_the_keys_and_leave_out_what_holds_nothing() {
        let store = Arc::new(InMemory::new());
        for (key, text) in
            [("in/b", "2"), ("in/a", "1"), ("in/_SUCCESS", "x"), ("in/c", ""), ("in/d/e", "3"), ("other", "4")]
        {
            put(&store, key, text).await;
        }
        let objects = Objects::new(store.clone(), "s3://bucket/in/", Path::from("in"));
        let keys = |page: &Page| page.objects.iter().map(|object| object.key.to_string()).collect::<Vec<_>>();
        let first = objects.page(None, 2, |_| false).await.unwrap();
        assert_eq!(keys(&first), ["in/a", "in/b"]);
        let second = objects.page(first.next.as_ref(), 2, |_| false).await.unwrap();
        assert_eq!((keys(&second), &second.next), (vec!["in/d/e".to_owned()], &None));
        assert_eq!(objects.name_of(&second.objects[0]), "s3://bucket/in/d/e");
        let known = first.objects[0].shard().clone();
        assert_eq!(keys(&objects.page(None, 9, |object| *object.shard() == known).await.unwrap()), ["in/b", "in/d/e"]);
        // A URL may name one object.
        let one = Objects::new(store, "s3://bucket/in/a", Path::from("in/a"));
        assert_eq!(keys(&one.page(None, 9, |_| false).await.unwrap()), ["in/a"]);
    }

    #[test]
    fn an_object_is_its_etag_and_its_size() {
        let object = |key: &str, etag: &str, size| {
            let meta = ObjectMeta {
                location: Path::from(key),
                last_modified: Default::default(),
                size,
                e_tag: Some(etag.to_owned()),
                version: None,
            };
            Object::new(meta, "s3://b/").unwrap().unwrap()
        };
        let one = object("a", "\"x\"", 1);
        assert_eq!(one.shard(), object("copy", "x", 1).shard());
        assert_ne!(one.shard(), object("a", "y", 1).shard());
        assert_ne!(one.shard(), object("a", "x", 2).shard());
        let parts: std::collections::BTreeSet<usize> =
            (0..1_000).map(|n| object("a", &n.to_string(), 1).part()).collect();
        assert_eq!(parts, (0..PARTS).collect());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replaced_object_gives_no_bytes() {
        let store = Arc::new(InMemory::new());
        put(&store, "in/a", "first").await;
        let objects = Objects::new(store.clone(), "s3://bucket/in/", Path::from("in"));
        let listed = objects.page(None, 9, |_| false).await.unwrap().objects.remove(0);
        let runtime = tokio::runtime::Handle::current();
        let read = move || {
            let mut text = String::new();
            let opened = objects.open(&listed, &runtime, &CancellationToken::new());
            opened.map(|mut bytes| bytes.read_to_string(&mut text).map(|_| text))
        };
        let twice = read.clone();
        assert_eq!(std::thread::spawn(read).join().unwrap().unwrap().unwrap(), "first");
        put(&store, "in/a", "second").await;
        let error = std::thread::spawn(twice).join().unwrap().err().unwrap();
        assert!(error.to_string().contains("replaced"), "{error}");
    }
}
