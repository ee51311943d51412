//! Replacement of an object under the condition that nobody else replaced it.

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use super::{LakeError, Store};

impl Store {
    /// Writes an object if the object that stands there has the tag `etag`, or if there is none and `etag` is `None`.
    /// Returns the new tag, or `None` if the condition does not hold. After a retried request `None` may also mean that
    /// this object was written: look again.
    ///
    /// A local folder has no such condition. The caller holds [`Store::lock`], and so do all others.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub(crate) async fn put_if_same(
        &self,
        relative: &str,
        bytes: Bytes,
        etag: Option<&str>,
    ) -> Result<Option<String>, LakeError> {
        let fail = |source| LakeError::storage("write", self, relative, source);
        if self.is_local() {
            self.put(relative, bytes).await?;
            let now = self.objects().head(&self.key(relative)).await.map_err(fail)?;
            return Ok(Some(now.e_tag.unwrap_or_default()));
        }
        let mode = match etag {
            Some(etag) => PutMode::Update(UpdateVersion { e_tag: Some(etag.to_owned()), version: None }),
            None => PutMode::Create,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.objects().put_opts(&self.key(relative), bytes.into(), options).await {
            Ok(written) => Ok(Some(written.e_tag.unwrap_or_default())),
            Err(
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. }
                | object_store::Error::NotFound { .. },
            ) => Ok(None),
            Err(source) => Err(fail(source)),
        }
    }

    /// Waits for the lock of a local folder, and holds it until the returned file is dropped, or the process ends. Other
    /// stores need no lock: `None`.
    ///
    /// # Errors
    /// The file of the lock cannot be made or locked.
    pub(crate) async fn lock(&self, relative: &str) -> Result<Option<std::fs::File>, LakeError> {
        let Some(folder) = self.url().to_file_path().ok().filter(|_| self.is_local()) else { return Ok(None) };
        let path = folder.join(relative);
        let shown = path.clone();
        let lock = move || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            Ok::<_, std::io::Error>(file)
        };
        let locked = tokio::task::spawn_blocking(lock).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        locked.map(Some).map_err(|source| LakeError::Folder { action: "lock", path: shown, source })
    }
}
