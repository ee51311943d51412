//! The storage under a lake: a local folder or an S3 prefix, and the one primitive that everything rests on, a durable
//! put-if-absent.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};
use url::Url;

use super::LakeError;

/// How long one request to S3 is tried, with jitter in between, before whoever asked hears of it.
const RETRY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Root of a lake (or of an export): an object store, and the URL under which the tables live.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: Url,
    prefix: Path,
    /// Set for a local folder only.
    folder: Option<PathBuf>,
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
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            if scheme != "file" {
                return Err(format!("scheme {scheme}:// is not supported; give a folder or s3://bucket/prefix"));
            }
            let url = Url::parse(text).map_err(|e| format!("{text:?} is no URL: {e}"))?;
            return url.to_file_path().map(Self::Folder).map_err(|()| format!("{text:?} names no local folder"));
        }
        Ok(Self::Folder(PathBuf::from(text)))
    }
}

impl Store {
    /// Opens a location for reading and writing; a local folder is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made, or the S3 client cannot be built.
    pub async fn create(location: &Location, aws: &AwsSettings) -> Result<Self, LakeError> {
        if let Location::Folder(folder) = location {
            std::fs::create_dir_all(folder).map_err(|source| LakeError::Folder {
                action: "create folder",
                path: folder.clone(),
                source,
            })?;
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
                let url = match prefix.as_str() {
                    "" => format!("s3://{bucket}/"),
                    prefix => format!("s3://{bucket}/{prefix}/"),
                };
                let url = Url::parse(&url).map_err(|e| LakeError::Invalid(format!("lake {url:?} is no URL: {e}")))?;
                let objects = aws.s3(bucket).await?;
                let prefix = Path::parse(prefix)
                    .map_err(|e| LakeError::Invalid(format!("lake prefix {prefix:?} is no object key: {e}")))?;
                Ok(Self { objects, url, prefix, folder: None })
            }
        }
    }

    fn open_folder(folder: &FsPath) -> Result<Self, LakeError> {
        let fail = |source| LakeError::Folder { action: "open folder", path: folder.to_owned(), source };
        let folder = folder.canonicalize().map_err(fail)?;
        let shown = folder.display().to_string();
        let escape = |at: usize| shown[at + 1..].bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
        if shown.contains('\\') || shown.match_indices('%').any(|(at, _)| escape(at)) {
            let message = format!(
                "folder {shown} holds a backslash or an escape such as %20; readers of the Delta log would look elsewhere, so choose another name"
            );
            return Err(LakeError::Invalid(message));
        }
        if !folder.is_dir() {
            return Err(fail(std::io::ErrorKind::NotADirectory.into()));
        }
        let url = Url::from_directory_path(&folder)
            .map_err(|()| LakeError::Invalid(format!("folder {} cannot be written as a URL", folder.display())))?;
        let prefix = Path::from_absolute_path(&folder)
            .map_err(|e| LakeError::Invalid(format!("folder {}: {e}", folder.display())))?;
        let objects = Arc::new(object_store::local::LocalFileSystem::new());
        Ok(Self { objects, url, prefix, folder: Some(folder) })
    }

    /// The same storage, one folder further down.
    pub fn child(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{name}/", self.url.path()));
        let prefix = name.split('/').fold(self.prefix.clone(), |path, part| path.join(part));
        Self { objects: self.objects.clone(), url, prefix, folder: self.folder.as_ref().map(|f| f.join(name)) }
    }

    /// The object store, rooted at the bucket or at `/`.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }

    /// Whether this is a local folder.
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// URL of this root, with a slash at its end.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Full key of a relative path whose characters need no escaping.
    pub fn key(&self, relative: &str) -> Path {
        relative.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Reads a whole object; `None` if there is none.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn get(&self, relative: &str) -> Result<Option<Bytes>, LakeError> {
        let read = async { self.objects.get(&self.key(relative)).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(LakeError::storage("read", self, relative, source)),
        }
    }

    /// Bytes of an object; `None` if there is none.
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

    /// Writes an object that must not exist yet. Durable when it returns `Ok`.
    ///
    /// `AlreadyExists` is also what a store answers when a retry meets its own success, and any other error may come
    /// after the object was stored: on every error the outcome is unknown until it is read back.
    ///
    /// # Errors
    /// As the store says; see above.
    pub async fn put_new(&self, relative: &str, bytes: Bytes) -> Result<(), object_store::Error> {
        if let Some(folder) = &self.folder {
            let path = folder.join(relative);
            let result = tokio::task::spawn_blocking(move || durable_create(&path, &bytes).map_err(|e| (path, e)))
                .await
                .map_err(|source| object_store::Error::JoinError { source })?;
            return result.map_err(|(path, source)| local_error(&path, source));
        }
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        self.objects.put_opts(&self.key(relative), bytes.into(), options).await.map(drop)
    }

    /// Writes an object, over an older one if there is one.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn put(&self, relative: &str, bytes: Bytes) -> Result<(), LakeError> {
        let done = self.objects.put(&self.key(relative), bytes.into()).await;
        done.map(drop).map_err(|source| LakeError::storage("write", self, relative, source))
    }

    /// Deletes an object; that it is not there is no error.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn delete(&self, relative: &str) -> Result<(), LakeError> {
        match self.objects.delete(&self.key(relative)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(LakeError::storage("delete", self, relative, source)),
        }
    }

    /// Whether this root is another one, or lies in it.
    pub fn is_within(&self, other: &Self) -> bool {
        let place = |store: &Self| store.url().to_string().trim_end_matches('/').to_owned() + "/";
        place(self).starts_with(&place(other))
    }

    /// All objects below `relative`, by their paths relative to this root.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn list(&self, relative: &str) -> Result<Vec<(String, ObjectMeta)>, LakeError> {
        self.list_after(relative, None).await
    }

    /// As [`Store::list`], only names after `offset` (relative to this root).
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub async fn list_after(
        &self,
        relative: &str,
        offset: Option<&str>,
    ) -> Result<Vec<(String, ObjectMeta)>, LakeError> {
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
            .try_filter_map(|meta| futures::future::ready(Ok(relative_name(meta))))
            .boxed()
            .try_collect()
            .await
            .map_err(|source| LakeError::storage("list", self, relative, source))
    }
}

fn local_error(path: &FsPath, source: std::io::Error) -> object_store::Error {
    let path = path.display().to_string();
    match source.kind() {
        std::io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source: source.into() },
        std::io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path, source: source.into() },
        _ => object_store::Error::Generic { store: "LocalFileSystem", source: format!("{path}: {source}").into() },
    }
}

/// Publishes `bytes` at `path` in one step, on disk before it is visible.
///
/// object_store's local backend has the same steps without the two syncs; after a power cut it could leave a commit
/// that is listed and empty.
fn durable_create(path: &FsPath, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let parent = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(parent)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or(std::io::ErrorKind::InvalidInput)?;
    // Hidden, so that a glob over the folder never sees it; one of a kind, so that two writers never share it.
    let staged = parent.join(format!(".{name}.{:016x}.tmp", rand::random::<u64>()));
    let publish = || {
        let mut file = std::fs::File::options().write(true).create_new(true).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        crate::failpoint::hit("file/staged");
        std::fs::hard_link(&staged, path)
    };
    let result = publish();
    // A failed removal leaves a hidden file; it must not turn a published object into an error.
    let _ = std::fs::remove_file(&staged);
    result?;
    std::fs::File::open(parent)?.sync_all()
}

/// How AWS is reached: what every AWS tool reads from its environment and profile, and what the user overrides.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// Region, over the environment's.
    pub region: Option<String>,
    /// Endpoint of all services, over the environment's.
    pub endpoint_url: Option<String>,
    /// Named profile, over the environment's.
    pub profile: Option<String>,
}

impl AwsSettings {
    /// Loads region, credentials and endpoint the way the AWS command line does.
    pub async fn load(&self) -> aws_config::SdkConfig {
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
        if let Some(region) = &self.region {
            loader = loader.region(aws_config::Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &self.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        loader.load().await
    }

    async fn s3(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
        let config = self.load().await;
        let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
        let provider = config.credentials_provider().ok_or_else(|| {
            LakeError::Invalid("no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID".to_owned())
        })?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            // Bounded by time: ten tries, the default, may be over in two seconds.
            .with_retry(RetryConfig { max_retries: 100, retry_timeout: RETRY_PATIENCE, ..RetryConfig::default() })
            .with_credentials(Arc::new(Credentials { provider, last: tokio::sync::Mutex::new(None) }));
        // The more special setting wins, so that one flag for Kinesis does not redirect S3.
        let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|v| !v.is_empty());
        let endpoint = endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
        builder = match endpoint {
            Some(endpoint) => builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint),
            None => builder.with_virtual_hosted_style_request(true),
        };
        let store = builder.build().map_err(|source| LakeError::Storage {
            action: "open bucket",
            path: format!("s3://{bucket}"),
            source,
        })?;
        Ok(Arc::new(store))
    }
}

/// Lends the SDK's credential chain to object_store, which asks before every request: so the last answer is kept until
/// five minutes before it expires, or until half of its life is over if that is shorter.
#[derive(Debug)]
struct Credentials {
    provider: aws_sdk_kinesis::config::SharedCredentialsProvider,
    last: tokio::sync::Mutex<Option<(Arc<AwsCredential>, std::time::SystemTime)>>,
}

const CREDENTIALS_SLACK: std::time::Duration = std::time::Duration::from_secs(300);
/// Credentials without an expiry are read again now and then: a user may have replaced them.
const CREDENTIALS_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(900);

#[async_trait::async_trait]
impl object_store::CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        use aws_sdk_kinesis::config::ProvideCredentials;
        let now = std::time::SystemTime::now();
        let mut last = self.last.lock().await;
        if let Some((credential, until)) = last.as_ref().filter(|(_, until)| now < *until) {
            tracing::trace!(?until, "credentials still good");
            return Ok(credential.clone());
        }
        let found = self
            .provider
            .provide_credentials()
            .await
            .map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        let until = found.expiry().map_or(now + CREDENTIALS_AGE_MAX, |expiry| {
            let life = expiry.duration_since(now).unwrap_or_default();
            expiry - CREDENTIALS_SLACK.min(life / 2)
        });
        *last = Some((credential.clone(), until));
        Ok(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let parse = |s: &str| s.parse::<Location>();
        assert_eq!(parse("s3://b/x/y/"), Ok(Location::S3 { bucket: "b".into(), prefix: "x/y".into() }));
        assert_eq!(parse("s3://b"), Ok(Location::S3 { bucket: "b".into(), prefix: String::new() }));
        assert_eq!(parse("lake"), Ok(Location::Folder("lake".into())));
        for bad in ["", "s3://", "s3:///x", "s3://b/../x", "s3://b//x/", "gs://b/x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durable_create_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        durable_create(&path, b"one").unwrap();
        let again = durable_create(&path, b"two").unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1, "no staged file stays");
    }
}
