//! Locations, writes that never replace, and a store that tests watch.

use futures::future::BoxFuture;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, PutMultipartOptions, PutPayload, PutResult, Result,
};

use super::*;

pub(crate) type LosesAnswer = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// A request that a test watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// A listing of the names below a prefix.
    List(String),
    /// A read of an object, or of a part of it.
    Read(String),
    /// A write of an object in one request.
    Write(String),
}

/// A callback that gets a request. The request starts when the future is ready.
pub(crate) type BeforeRequest = Box<dyn Fn(Request) -> BoxFuture<'static, ()> + Send + Sync>;

/// Returns the store with a callback before every listing, read and write, also before those of deltalake and DataFusion.
pub(crate) fn watched(store: &Store, before: BeforeRequest) -> Store {
    Store { objects: Arc::new(Watched { objects: store.objects(), before }), ..store.clone() }
}

/// Returns an empty store in memory, with the conditional writes of S3.
pub(crate) fn in_memory() -> Store {
    let (url, key) = s3_place("tests", "lake").unwrap();
    Store::at(Arc::new(object_store::memory::InMemory::new()), url, key, None)
}

/// The object store of tests, with a callback before every listing, read and write.
struct Watched {
    objects: Arc<dyn ObjectStore>,
    before: BeforeRequest,
}

impl Watched {
    fn before_listing(&self, prefix: Option<&Path>) -> BoxFuture<'static, ()> {
        (self.before)(Request::List(prefix.map(ToString::to_string).unwrap_or_default()))
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({})", self.objects)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        (self.before)(Request::Write(location.to_string())).await;
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
        if !options.head {
            (self.before)(Request::Read(location.to_string())).await;
        }
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    // The default of `list_with_offset` calls this method.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (before, objects, prefix) = (self.before_listing(prefix), self.objects.clone(), prefix.cloned());
        let started = async move {
            before.await;
            objects.list(prefix.as_ref())
        };
        futures::stream::once(started).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before_listing(prefix).await;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[test]
fn locations() {
    let parse = |s: &str| s.parse::<Location>();
    assert_eq!(parse("s3://b/x/y/"), Ok(Location::S3 { bucket: "b".into(), prefix: "x/y".into() }));
    assert_eq!(parse("s3://b"), Ok(Location::S3 { bucket: "b".into(), prefix: String::new() }));
    assert_eq!(parse("lake"), Ok(Location::Folder("lake".into())));
    for bad in ["", "s3://", "s3:///x", "s3://b/../x", "s3://b//x/", "gs://b/x"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    for good in [
        "plain",
        "a=b/c",
        "a b",
        "ünï/日本",
        "a+b",
        "100%",
        "a&b",
        "it's",
        "a~b",
        "a[1]",
        "a:b",
        "tr ail /x",
        "a;b@c$d,e",
    ] {
        assert!(parse(&format!("s3://b/{good}")).is_ok(), "{good}");
    }
    for bad in ["a#b", "a?b", "a%20b", "a%2Fb", "%C3%BC", "x/%2e%2e/y", "a\tb", "a\\b", "a\u{0}b", "#", "a/?"] {
        assert!(parse(&format!("s3://b/{bad}")).is_err(), "{bad}");
    }
    for bad in ["s3:/b/x", "s3:b", "S3:/b", "file:/x", "s3://b#c/x", "s3://user@b/x", "s3://b:9000/x"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert_eq!(parse("./s3:/x"), Ok(Location::Folder("./s3:/x".into())));
    assert_eq!(parse("a:b"), Ok(Location::Folder("a:b".into())));
}

#[test]
fn a_new_file_never_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let link: Publish = |staged, path| std::fs::hard_link(staged, path);
    durable_write(&path, b"one", link).unwrap();
    let again = durable_write(&path, b"two", link).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    durable_write(&path, b"three", |staged, path| std::fs::rename(staged, path)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"three");
    assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1, "no staged file stays");
}
