//! An object that is written in parts and appears at the end, whole or not at all.
//!
//! **Invariant: an upload is completed, or aborted after its last part.** A part that arrives after an abort would stay
//! and cost money. So each upload is registered by the task that begins it, its parts run apart from the query, and an
//! abort waits for the part that is on its way.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use tokio::task::JoinHandle;

use super::request_runtime::{on_request_runtime, spawned};
use super::uploads::Uploads;
use super::{LakeError, Store};
use crate::failpoint;

pub(crate) mod together;

/// Bytes of each of the first parts. S3 requires 5 MiB, except of the last one.
const PART_BYTES: usize = 16 << 20;
/// Parts of that size; later ones are larger, because S3 takes 10,000 parts.
const SMALL_PARTS: usize = 2_000;
/// Bytes of each later part.
const LARGE_PART_BYTES: usize = 64 << 20;
/// Parts that S3 takes, so that an object has at most 531 GiB.
const PARTS_MAX: usize = 10_000;
/// Uploads that are aborted at a time.
const ABORTS: usize = 64;

/// Uploads of this process that are neither aborted, nor completed together with all objects of their result.
#[derive(Debug)]
struct Registry {
    open: BTreeMap<String, Open>,
    /// Whether the program ends, so that no upload may begin.
    is_ending: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { open: BTreeMap::new(), is_ending: false });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ending() -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: "the program ends".into() }
}

/// A registered upload: its store, its key and its id.
#[derive(Debug, Clone)]
struct Open {
    uploads: Arc<Uploads>,
    key: Path,
    id: String,
    /// The URL of the object.
    shown: String,
    /// Held while a part is on its way, and by an abort. Of an object that is published together with others, held also
    /// while it is completed, and while the last object of the result is put.
    busy: Arc<tokio::sync::Mutex<()>>,
    /// Whether S3 may show the object although its result is not complete.
    is_visible: Arc<AtomicBool>,
}

impl Open {
    fn set_visible(&self) {
        self.is_visible.store(true, Ordering::Relaxed);
    }

    /// Aborts the upload, and deletes the object if it is visible too early. Returns whether no object remains.
    async fn abort(self) -> bool {
        let _busy = self.busy.lock().await;
        if !registry().open.contains_key(&self.id) {
            return true;
        }
        // Best effort: a rule of the bucket should abort what stays.
        let _ = self.uploads.objects.abort_multipart(&self.key, &self.id).await;
        let is_gone = match self.is_visible.load(Ordering::Relaxed) {
            true => self.uploads.objects.delete(&self.key).await.is_ok(),
            false => true,
        };
        if is_gone {
            registry().open.remove(&self.id);
        }
        is_gone
    }
}

/// Aborts all registered uploads of this process. No other one begins after that.
pub(crate) async fn abort_all() {
    let left: Vec<Open> = {
        let mut registry = registry();
        registry.is_ending = true;
        registry.open.values().cloned().collect()
    };
    let aborts = left.into_iter().map(|open| spawned(open.abort()));
    futures::stream::iter(aborts).buffer_unordered(ABORTS).for_each(async |_| ()).await;
}

/// Registered uploads, after [`abort_all`] or a part of it.
#[derive(Debug)]
pub(crate) struct Registered {
    /// Number of uploads that are neither completed nor aborted.
    pub uploads: usize,
    /// URLs of objects that S3 may show although their result was not known to be complete.
    pub objects: Vec<String>,
}

/// Returns the registered uploads.
pub(crate) fn registered() -> Registered {
    let registry = registry();
    let visible = registry.open.values().filter(|open| open.is_visible.load(Ordering::Relaxed));
    let objects: Vec<String> = visible.map(|open| open.shown.clone()).collect();
    Registered { uploads: registry.open.len() - objects.len(), objects }
}

/// An upload into one object. Holds what one batch or row group encodes to, and one part that is on its way.
#[derive(Debug)]
pub(crate) struct Upload {
    open: Open,
    buffer: BytesMut,
    parts: Vec<PartId>,
    running: Option<JoinHandle<object_store::Result<PartId>>>,
    is_ended: bool,
}

impl Store {
    /// Begins an upload into an object, which replaces an older one when it is completed; `None` for a local folder.
    ///
    /// # Errors
    /// The store failed, the credentials do not allow it, or the program ends.
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
        let shown = format!("{}{relative}", self.url());
        let shown = if relative.is_empty() { shown.trim_end_matches('/').to_owned() } else { shown };
        // The task that begins the upload also owns it: if nobody waits for the answer any more, it is dropped there.
        let begin = async move {
            let id = uploads.objects.create_multipart(&key).await?;
            let open = Open { uploads, key, id, shown, busy: Arc::default(), is_visible: Arc::default() };
            let upload = Upload {
                open: open.clone(),
                buffer: BytesMut::new(),
                parts: Vec::new(),
                running: None,
                is_ended: false,
            };
            let mut registry = registry();
            registry.open.insert(open.id.clone(), open);
            match registry.is_ending {
                false => Ok(upload),
                true => Err(ending()),
            }
        };
        on_request_runtime(begin).await.map(Some).map_err(fail)
    }
}

impl Upload {
    fn failed(&self, source: object_store::Error) -> LakeError {
        LakeError::Storage { action: "write", path: self.open.shown.clone(), source }
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
            let part = self.buffer.split_to(full).freeze();
            self.send(part).await?;
        }
    }

    /// Sends a part, after the part before it.
    async fn send(&mut self, part: Bytes) -> Result<(), LakeError> {
        self.sent().await?;
        let number = self.parts.len();
        if number >= PARTS_MAX {
            let source = "S3 takes no more parts; write several objects, for example by --partition-by".into();
            return Err(self.failed(object_store::Error::Generic { store: "S3", source }));
        }
        let Open { uploads, key, id, busy, .. } = self.open.clone();
        // Locked here, so that no abort can come before the part.
        let busy = busy.lock_owned().await;
        self.running = Some(spawned(async move {
            let _busy = busy;
            uploads.objects.put_part(&key, &id, number, part.into()).await
        }));
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
            let part = self.buffer.split().freeze();
            self.send(part).await?;
        }
        self.sent().await
    }

    /// Makes the object appear, with all that was written.
    ///
    /// # Errors
    /// The store failed after its own retries.
    pub(crate) async fn complete(mut self) -> Result<(), LakeError> {
        self.finish().await?;
        self.complete_parts().await?;
        self.is_ended = true;
        registry().open.remove(&self.open.id);
        Ok(())
    }

    async fn complete_parts(&mut self) -> Result<(), LakeError> {
        if failpoint::refuses("upload/complete") {
            let (path, source) = (self.open.shown.clone(), "a test refuses it".into());
            return Err(self.failed(object_store::Error::PermissionDenied { path, source }));
        }
        let (Open { uploads, key, id, .. }, parts) = (self.open.clone(), std::mem::take(&mut self.parts));
        let complete = async move { uploads.objects.complete_multipart(&key, &id, parts).await };
        on_request_runtime(complete).await.map(drop).map_err(|source| self.failed(source))
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
        if !self.is_ended {
            drop(spawned(self.open.clone().abort()));
        }
    }
}
