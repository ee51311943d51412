//! The storage under a lake, a local folder or an S3 prefix. Its one primitive, on which everything rests, is a durable
//! put-if-absent.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use url::Url;

use super::request_runtime::OnRequestRuntime;
use super::uploads::Uploads;
use super::{LakeError, bucket, paths};
use crate::aws::AwsSettings;
use crate::failpoint;

/// The root of a lake, a table or an export: an object store, and the URL under which the tables are.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: Url,
    prefix: Path,
    /// The folder; `None` on S3.
    folder: Option<PathBuf>,
    /// The multipart uploads of the bucket; `None` for a folder.
    uploads: Option<Arc<Uploads>>,
    /// Test hook, called after a successful put-if-absent: returns whether the answer is lost.
    #[cfg(test)]
    pub(crate) loses_answer: Option<tests::LosesAnswer>,
    /// Test hook: whether a refusal takes the place of an answer that is lost.
    #[cfg(test)]
    pub(crate) loses_it_for_good: bool,
    /// Test hook: the number of next reads that get no answer.
    #[cfg(test)]
    pub(crate) silent_reads: Option<Arc<std::sync::atomic::AtomicUsize>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({self})")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            Some(folder) => write!(f, "{}", folder.display()),
            None => f.write_str(self.url.as_str().trim_end_matches('/')),
        }
    }
}

/// A parsed `--lake` or `--out`: `s3://bucket/prefix` or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A bucket and a prefix without slashes at its ends.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, possibly empty.
        prefix: String,
    },
    /// A local folder.
    Folder(PathBuf),
}

impl std::str::FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty; give a folder or s3://bucket/prefix".to_owned());
        }
        if let Some(rest) = text.strip_prefix("s3://").or_else(|| text.strip_prefix("s3a://")) {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(format!("{text:?} names no bucket; write s3://bucket/prefix"));
            }
            let prefix = prefix.trim_end_matches('/').to_owned();
            if prefix.split('/').any(|part| part == "." || part == ".." || (part.is_empty() && !prefix.is_empty())) {
                return Err(format!("{text:?} has an empty, `.` or `..` part; write s3://bucket/prefix"));
            }
            s3_place(bucket, &prefix)?;
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            if scheme != "file" {
                return Err(format!("scheme {scheme}:// is not supported; give a folder or s3://bucket/prefix"));
            }
            let url = Url::parse(text).map_err(|e| format!("{text:?} is no URL: {e}"))?;
            return url.to_file_path().map(Self::Folder).map_err(|()| format!("{text:?} names no local folder"));
        }
        // A likely typo: without this check `s3:/bucket` would name a local folder.
        if let Some((scheme, rest)) = text.split_once(':')
            && SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
        {
            let rest = rest.trim_start_matches('/');
            return Err(format!("{text:?} is no URL; write {scheme}://{rest}, or ./{text} for a folder of that name"));
        }
        Ok(Self::Folder(PathBuf::from(text)))
    }
}

/// URL schemes of stores, supported or not.
const SCHEMES: [&str; 13] =
    ["s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "wasbs", "hdfs", "file", "http", "https"];

/// Returns the URL and the key of an S3 prefix.
///
/// **Invariant: both name one place.** synclake uses the key. deltalake and other engines derive the key from the URL.
/// A prefix that changes on the way would be written in one place and read in another, so it is rejected. For example,
/// `#` and `?` end a path, and `%20` is a space.
fn s3_place(bucket: &str, prefix: &str) -> Result<(Url, Path), String> {
    let slash = if prefix.is_empty() { "" } else { "/" };
    let shown = format!("s3://{bucket}/{prefix}{slash}");
    let url = Url::parse(&shown).map_err(|e| format!("{shown:?} is no URL: {e}"))?;
    let key = Path::parse(prefix).map_err(|e| format!("{prefix:?} is no object key: {e}"))?;
    let seen = Path::from_url_path(url.path()).ok();
    let is_bare =
        url.query().is_none() && url.fragment().is_none() && url.port().is_none() && url.username().is_empty();
    if url.host_str() != Some(bucket) {
        return Err(format!("{bucket:?} is no bucket's name"));
    }
    if !is_bare || seen.as_ref() != Some(&key) || prefix.contains('\\') {
        let message =
            "contains #, ?, a backslash, or an escape such as %20, which other programs interpret differently";
        return Err(format!("{prefix:?} {message}; choose another prefix"));
    }
    Ok((url, key))
}

impl Store {
    fn at(objects: Arc<dyn ObjectStore>, url: Url, prefix: Path, folder: Option<PathBuf>) -> Self {
        Self {
            objects,
            url,
            prefix,
            folder,
            uploads: None,
            #[cfg(test)]
            loses_answer: None,
            #[cfg(test)]
            loses_it_for_good: false,
            #[cfg(test)]
            silent_reads: None,
        }
    }

    /// Opens a location for reading and writing. Creates a local folder that does not exist.
    ///
    /// # Errors
    /// The folder cannot be created, or the S3 client cannot be built.
    pub async fn create(location: &Location, aws: &AwsSettings) -> Result<Self, LakeError> {
        if let Location::Folder(folder) = location {
            let made = std::path::absolute(folder).and_then(|folder| durable_folders(&folder));
            made.map_err(|source| LakeError::folder("create folder", folder, source))?;
        }
        Self::open(location, aws).await
    }

    /// Opens a location that must exist already (checked for a local folder only).
    ///
    /// # Errors
    /// The folder does not exist, or the S3 client cannot be built.
    pub async fn open(location: &Location, aws: &AwsSettings) -> Result<Self, LakeError> {
        match location {
            Location::Folder(folder) => Self::open_folder(folder),
            Location::S3 { bucket, prefix } => {
                let (url, prefix) = s3_place(bucket, prefix).map_err(LakeError::Invalid)?;
                let (objects, uploads) = bucket::open(aws, bucket).await?;
                Ok(Self { uploads: Some(Arc::new(uploads)), ..Self::at(objects, url, prefix, None) })
            }
        }
    }

    fn open_folder(folder: &FsPath) -> Result<Self, LakeError> {
        let fail = |source| LakeError::folder("open folder", folder, source);
        let folder = folder.canonicalize().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => LakeError::NoFolder(folder.to_owned()),
            _ => fail(source),
        })?;
        let shown = folder.display().to_string();
        let escape = |at: usize| shown[at + 1..].bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
        if shown.contains('\\') || shown.match_indices('%').any(|(at, _)| escape(at)) {
            let message = format!(
                "folder {shown} contains a backslash or an escape such as %20, which other programs interpret \
                 differently; choose another name"
            );
            return Err(LakeError::Invalid(message));
        }
        if !folder.is_dir() {
            return Err(LakeError::NotAFolder(folder));
        }
        let url = Url::from_directory_path(&folder)
            .map_err(|()| LakeError::Invalid(format!("folder {} cannot be written as a URL", folder.display())))?;
        let prefix = Path::from_absolute_path(&folder)
            .map_err(|e| LakeError::Invalid(format!("folder {}: {e}", folder.display())))?;
        let objects = Arc::new(OnRequestRuntime::new(object_store::local::LocalFileSystem::new()));
        Ok(Self::at(objects, url, prefix, Some(folder)))
    }

    /// Returns the store of a folder below this one.
    pub fn child(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{name}/", self.url.path()));
        let prefix = name.split('/').fold(self.prefix.clone(), |path, part| path.join(part));
        Self { url, prefix, folder: self.folder.as_ref().map(|f| f.join(name)), ..self.clone() }
    }

    /// Returns the same root over another object store, such as a wrapper of this one.
    pub(crate) fn with_objects(&self, objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, ..self.clone() }
    }

    /// Returns the object store, rooted at the bucket or at `/`.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }

    /// Returns whether this is a local folder.
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Returns the local folder; `None` on S3.
    pub(crate) fn folder(&self) -> Option<&FsPath> {
        self.folder.as_deref()
    }

    /// Returns the multipart uploads of the bucket; `None` for a folder.
    pub(super) fn uploads(&self) -> Option<Arc<Uploads>> {
        self.uploads.clone()
    }

    /// Returns the URL of this root, with a slash at its end.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Returns the full key of a relative path. Its characters must need no escaping.
    pub fn key(&self, relative: &str) -> Path {
        relative.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Reads a whole object. Returns `None` if the object does not exist.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn get(&self, relative: &str) -> Result<Option<Bytes>, LakeError> {
        #[cfg(test)]
        use std::sync::atomic::Ordering::SeqCst;
        #[cfg(test)]
        if let Some(left) = &self.silent_reads
            && left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
        {
            let silent = object_store::Error::Generic { store: "test", source: "no answer".into() };
            return Err(LakeError::storage("read", self, relative, silent));
        }
        let read = async { self.objects.get(&self.key(relative)).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(LakeError::storage("read", self, relative, source)),
        }
    }

    /// Returns the size of an object in bytes, or `None` if the object does not exist.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn size(&self, relative: &str) -> Result<Option<u64>, LakeError> {
        match self.objects.head(&self.key(relative)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(LakeError::storage("read", self, relative, source)),
        }
    }

    /// Writes an object that must not exist yet (put-if-absent). The object is durable when this returns `Ok`.
    ///
    /// After every error the outcome is unknown until the object is read back. A store also answers `AlreadyExists` if
    /// a retry meets its own success, and any other error may come after the object was stored.
    ///
    /// # Errors
    /// The error of the store; see above.
    pub async fn put_new(&self, relative: &str, bytes: Bytes) -> Result<(), object_store::Error> {
        self.put_if_absent(relative, bytes).await?;
        #[cfg(test)]
        if let Some(loses_answer) = &self.loses_answer
            && loses_answer().await
        {
            let (path, source) = (relative.to_owned(), "the answer is lost".into());
            return Err(match self.loses_it_for_good {
                true => object_store::Error::PermissionDenied { path, source },
                false => object_store::Error::Generic { store: "test", source },
            });
        }
        Ok(())
    }

    async fn put_if_absent(&self, relative: &str, bytes: Bytes) -> Result<(), object_store::Error> {
        self.own(relative)?;
        if let Some(folder) = &self.folder {
            let path = folder.join(relative);
            return durably(path, bytes, |staged, path| std::fs::hard_link(staged, path)).await;
        }
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        self.objects.put_opts(&self.key(relative), bytes.into(), options).await.map(drop)
    }

    /// Writes an object and replaces an older one. The object is durable when this returns `Ok`.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn put(&self, relative: &str, bytes: Bytes) -> Result<(), LakeError> {
        let put = async {
            self.own(relative)?;
            match &self.folder {
                Some(folder) => {
                    durably(folder.join(relative), bytes, |staged, path| std::fs::rename(staged, path)).await
                }
                None => self.objects.put(&self.key(relative), bytes.into()).await.map(drop),
            }
        };
        put.await.map_err(|source| LakeError::storage("write", self, relative, source))
    }

    /// Rejects writes outside this root: a partition value in the log of a foreign lake may contain `..`.
    fn own(&self, relative: &str) -> Result<(), object_store::Error> {
        match paths::lies_inside(relative) {
            true => Ok(()),
            false => Err(object_store::Error::PermissionDenied {
                path: format!("{relative:?}"),
                source: format!("it lies outside of {self}").into(),
            }),
        }
    }

    /// Deletes an object. A missing object is no error.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn delete(&self, relative: &str) -> Result<(), LakeError> {
        if failpoint::refuses("store/delete") {
            let (path, source) = (relative.to_owned(), "a test refuses it".into());
            let denied = object_store::Error::PermissionDenied { path, source };
            return Err(LakeError::storage("delete", self, relative, denied));
        }
        match self.objects.delete(&self.key(relative)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(LakeError::storage("delete", self, relative, source)),
        }
    }

    /// Returns whether this root equals `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        let place = |store: &Self| store.url().to_string().trim_end_matches('/').to_owned() + "/";
        place(self).starts_with(&place(other))
    }

    /// Lists all objects below `relative`, with paths relative to this root.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn list(&self, relative: &str) -> Result<Vec<(String, ObjectMeta)>, LakeError> {
        self.listed(relative, None).try_collect().await
    }

    /// Returns the names of the objects in a folder, without those in its subfolders, and only those after a name.
    ///
    /// A store lists from the name on. A local folder has no order: its names are read alone, because a log has thousands
    /// and a look at each would be most of what a small ingest takes.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub(crate) async fn names(&self, folder: &str, after: Option<&str>) -> Result<Vec<String>, LakeError> {
        if let Some(root) = &self.folder {
            let path = root.join(folder);
            let read = tokio::task::spawn_blocking(move || names_of(&path)).await;
            let read = read.map_err(|source| object_store::Error::JoinError { source }).flatten();
            let mut names = read.map_err(|source| LakeError::storage("list", self, folder, source))?;
            names.retain(|name| after.is_none_or(|after| name.as_str() > after));
            return Ok(names);
        }
        let offset = after.map(|after| format!("{folder}/{after}"));
        let name_of = |(path, _): (String, ObjectMeta)| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.contains('/')).then(|| name.to_owned())
        };
        let names = self.listed(folder, offset.as_deref()).try_filter_map(|found| ready(Ok(name_of(found))));
        names.try_collect().await
    }

    /// Lists as [`Store::list`], but as a stream, and only names after `offset` (relative to this root): a table may have
    /// more names than fit in memory.
    pub fn listed<'a>(
        &'a self,
        relative: &'a str,
        offset: Option<&str>,
    ) -> BoxStream<'a, Result<(String, ObjectMeta), LakeError>> {
        let below = self.key(relative);
        let found = match offset {
            Some(offset) => self.objects.list_with_offset(Some(&below), &self.key(offset)),
            None => self.objects.list(Some(&below)),
        };
        let relative_name = |meta: ObjectMeta| {
            let parts: Vec<_> = meta.location.prefix_match(&self.prefix)?.map(|p| p.as_ref().to_owned()).collect();
            Some((parts.join("/"), meta))
        };
        found
            .try_filter_map(move |meta| ready(Ok(relative_name(meta))))
            .map_err(move |source| LakeError::storage("list", self, relative, source))
            .boxed()
    }
}

/// Returns the names of the files in a folder; none if it does not exist.
fn names_of(folder: &FsPath) -> Result<Vec<String>, object_store::Error> {
    let failed = |source| local_error(folder, source);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().map_err(failed)?.is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

fn local_error(path: &FsPath, source: std::io::Error) -> object_store::Error {
    let path = path.display().to_string();
    match source.kind() {
        std::io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source: source.into() },
        std::io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path, source: source.into() },
        // The source stays unchanged, because its kind decides whether a retry may help.
        _ => object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(source) },
    }
}

/// The operation that gives a staged file its final name.
type Publish = fn(&FsPath, &FsPath) -> std::io::Result<()>;

async fn durably(path: PathBuf, bytes: Bytes, publish: Publish) -> Result<(), object_store::Error> {
    let write = move || durable_write(&path, &bytes, publish).map_err(|error| local_error(&path, error));
    tokio::task::spawn_blocking(write).await.map_err(|source| object_store::Error::JoinError { source })?
}

/// Creates folders that survive a power cut.
fn durable_folders(folder: &FsPath) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    durable_folders(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if !folder.is_dir() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::File::open(parent)?.sync_all()
}

/// Publishes `bytes` at `path` in one step. The bytes are on disk before the file is visible.
///
/// object_store's local backend does the same without the syncs. After a power cut it could leave a commit that is
/// listed but empty.
fn durable_write(path: &FsPath, bytes: &[u8], publish: Publish) -> std::io::Result<()> {
    use std::io::Write;
    let parent = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    durable_folders(parent)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or(std::io::ErrorKind::InvalidInput)?;
    // The name is hidden, so that globs over the folder skip it, and unique, so that two writers never share it.
    let staged = parent.join(format!(".{name}.{:016x}.tmp", rand::random::<u64>()));
    let write = || {
        let mut file = std::fs::File::options().write(true).create_new(true).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        failpoint::hit("file/staged");
        publish(&staged, path)
    };
    let result = write();
    // A failed removal leaves only a hidden file. It must not turn a published object into an error.
    let _ = std::fs::remove_file(&staged);
    result?;
    std::fs::File::open(parent)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests;
