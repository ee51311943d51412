//! An object that is written in parts and appears at the end, whole or not at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use tokio::task::JoinHandle;

use super::request_runtime::{detached, on_request_runtime};
use super::uploads::Uploads;
use super::{LakeError, Store};

/// Bytes of each of the first parts. S3 requires 5 MiB, except of the last one.
const PART_BYTES: usize = 16 << 20;
/// Parts of that size; later ones are larger, because S3 takes 10,000 parts.
const SMALL_PARTS: usize = 2_000;
/// Bytes of each later part.
const LARGE_PART_BYTES: usize = 64 << 20;
/// Parts that S3 takes, so that an object has at most 531 GiB.
const PARTS_MAX: usize = 10_000;
/// Uploads that are aborted at a time.
const ABORTS: usize = 8;

/// Uploads of this process that are neither completed nor aborted.
static OPEN: Mutex<BTreeMap<String, Open>> = Mutex::new(BTreeMap::new());

fn open() -> MutexGuard<'static, BTreeMap<String, Open>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it takes to end an upload.
#[derive(Debug, Clone)]
struct Open {
    uploads: Arc<Uploads>,
    key: Path,
    id: String,
}

impl Open {
    /// Aborts the upload. Nothing remains of it, and readers of the object notice nothing.
    async fn abort(self) -> object_store::Result<()> {
        let id = self.id.clone();
        let aborted =
            on_request_runtime(async move { self.uploads.objects.abort_multipart(&self.key, &self.id).await });
        let aborted = aborted.await;
        open().remove(&id);
        aborted
    }
}

/// Aborts all uploads of this process that were not completed.
pub(crate) async fn abort_all() {
    let left: Vec<Open> = open().values().cloned().collect();
    // Best effort: the program is ending, and a rule of the bucket should abort what stays.
    let aborts = left.into_iter().map(Open::abort);
    futures::stream::iter(aborts).buffer_unordered(ABORTS).for_each(async |_| ()).await;
}

/// An upload into one object. Holds two parts in memory: one that is filled, and one that is on its way.
#[derive(Debug)]
pub(crate) struct Upload {
    open: Open,
    shown: String,
    buffer: Vec<u8>,
    parts: Vec<PartId>,
    running: Option<JoinHandle<object_store::Result<PartId>>>,
    is_ended: bool,
}

impl Store {
    /// Begins an upload into an object, which replaces an older one when it is completed; `None` for a local folder.
    ///
    /// # Errors
    /// The store failed, or the credentials do not allow it.
    pub(crate) async fn upload(&self, relative: &str) -> Result<Option<Upload>, LakeError> {
        let Some(uploads) = self.uploads() else { return Ok(None) };
        let fail = |source| LakeError::storage("write", self, relative, source);
        let (prefix, relative_key) = (self.key(""), relative.trim_matches('/'));
        let key = match (prefix.as_ref(), relative_key) {
            (prefix, "") => Path::parse(prefix),
            ("", relative) => Path::parse(relative),
            (prefix, relative) => Path::parse(format!("{prefix}/{relative}")),
        };
        let key = key.map_err(|error| fail(error.into()))?;
        let (store, of) = (uploads.clone(), key.clone());
        let id = on_request_runtime(async move { store.objects.create_multipart(&of).await }).await.map_err(fail)?;
        let begun = Open { uploads, key, id };
        open().insert(begun.id.clone(), begun.clone());
        let shown = format!("{}{relative}", self.url());
        let shown = if relative.is_empty() { shown.trim_end_matches('/').to_owned() } else { shown };
        Ok(Some(Upload { open: begun, shown, buffer: Vec::new(), parts: Vec::new(), running: None, is_ended: false }))
    }
}

impl Upload {
    fn failed(&self, source: object_store::Error) -> LakeError {
        LakeError::Storage { action: "write", path: self.shown.clone(), source }
    }

    /// Sends the full parts of what was written.
    ///
    /// # Errors
    /// The store failed after its own retries, or the object would be too large.
    pub(crate) async fn advance(&mut self) -> Result<(), LakeError> {
        loop {
            let sent = self.parts.len() + usize::from(self.running.is_some());
            let full = if sent < SMALL_PARTS { PART_BYTES } else { LARGE_PART_BYTES };
            if self.buffer.len() < full {
                return Ok(());
            }
            let rest = self.buffer.split_off(full);
            self.send(rest).await?;
        }
    }

    /// Sends the buffer as a part, after the part before it. `rest` becomes the buffer.
    async fn send(&mut self, rest: Vec<u8>) -> Result<(), LakeError> {
        let part = std::mem::replace(&mut self.buffer, rest);
        self.sent().await?;
        let number = self.parts.len();
        if number >= PARTS_MAX {
            let source = "S3 takes no more parts; write several objects, for example by --partition-by".into();
            return Err(self.failed(object_store::Error::Generic { store: "S3", source }));
        }
        let Open { uploads, key, id } = self.open.clone();
        let put = async move { uploads.objects.put_part(&key, &id, number, part.into()).await };
        self.running = Some(tokio::spawn(on_request_runtime(put)));
        Ok(())
    }

    /// Waits for the part that is on its way.
    async fn sent(&mut self) -> Result<(), LakeError> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let sent = running.await.unwrap_or_else(|source| Err(object_store::Error::JoinError { source }));
        let part = sent.map_err(|source| self.failed(source))?;
        self.parts.push(part);
        Ok(())
    }

    /// Sends what is left. The object does not appear before [`Self::complete`].
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub(crate) async fn finish(&mut self) -> Result<(), LakeError> {
        // Each object has a part, even if it has no bytes.
        let is_first = self.parts.is_empty() && self.running.is_none();
        if !self.buffer.is_empty() || is_first {
            self.send(Vec::new()).await?;
        }
        self.sent().await
    }

    /// Makes the object appear, with all that was written.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub(crate) async fn complete(mut self) -> Result<(), LakeError> {
        self.finish().await?;
        let (Open { uploads, key, id }, parts) = (self.open.clone(), std::mem::take(&mut self.parts));
        let complete = async move { uploads.objects.complete_multipart(&key, &id, parts).await };
        on_request_runtime(complete).await.map_err(|source| self.failed(source))?;
        self.is_ended = true;
        open().remove(&self.open.id);
        Ok(())
    }
}

/// Keeps bytes in memory until [`Upload::advance`] is called.
impl io::Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    /// Aborts an upload that was not completed, if the process goes on for long enough; [`abort_all`] waits for it.
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let (open, running) = (self.open.clone(), self.running.take());
        detached(async move {
            // A part that arrives after the end of its upload would stay.
            if let Some(running) = running {
                let _ = running.await;
            }
            let _ = open.abort().await;
        });
    }
}
