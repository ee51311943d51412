//! Destinations of results: a file that appears whole or not at all, or standard output that stops on cancellation.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::print::Format;
use crate::query::QueryError;

/// Path of the temporary file beside the target, for code that ends the program midway.
static STAGED: Mutex<Option<PathBuf>> = Mutex::new(None);

fn staged() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary file of a result that will not be finished.
pub fn remove_staged() {
    if let Some(path) = staged().take() {
        // Best effort: the program is ending.
        let _ = std::fs::remove_file(path);
    }
}

/// A file for results. Each result is added as a whole: a reader of the file never sees a part of one.
#[derive(Debug, Clone)]
pub struct Output {
    /// The file.
    pub(super) path: PathBuf,
    /// Whether a result is in it.
    is_begun: Arc<AtomicBool>,
}

impl Output {
    /// Names a file, which the first result replaces.
    pub fn new(path: PathBuf) -> Self {
        Self { path, is_begun: Arc::default() }
    }

    pub(super) fn is_begun(&self) -> bool {
        self.is_begun.load(Ordering::Relaxed)
    }

    pub(super) fn begun(&self) {
        self.is_begun.store(true, Ordering::Relaxed);
    }

    /// Checks that the file can take another result.
    pub(super) fn check(&self, format: Format) -> Result<(), QueryError> {
        match self.is_begun() && matches!(format, Format::Parquet | Format::Json) {
            false => Ok(()),
            true => Err(QueryError::Refused(format!(
                "{} has a result already, and a file of this format holds one; name another file with \\o FILE",
                self.path.display()
            ))),
        }
    }
}

/// A file that appears whole or not at all, with the permissions of the file that it replaces.
pub(super) struct Pending {
    file: File,
    /// Temporary path beside the target; `None` when the target is written directly.
    staged: Option<PathBuf>,
    /// Target path, with links followed.
    path: PathBuf,
}

/// Returns the target of a link, even if nothing exists there yet.
fn followed(path: &Path) -> PathBuf {
    if let Ok(there) = path.canonicalize() {
        return there;
    }
    match std::fs::read_link(path) {
        Ok(to) => path.parent().unwrap_or(Path::new("")).join(to),
        Err(_) => path.to_owned(),
    }
}

impl Pending {
    /// Creates the file; with `adds`, it begins with what the file at this path has.
    pub(super) fn create(path: &Path, adds: bool) -> Result<Self, QueryError> {
        let fail = |source| QueryError::Output { path: path.display().to_string(), source };
        let path = followed(path);
        let path = path.as_path();
        let old = std::fs::metadata(path).ok();
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            let file = File::options().write(true).open(path).map_err(fail)?;
            return Ok(Self { file, staged: None, path: path.to_owned() });
        }
        if let Some(old) = &old {
            // A read-only file is not replaced either. Root could open the file all the same.
            if old.permissions().readonly() {
                return Err(fail(io::Error::new(io::ErrorKind::PermissionDenied, "the file is read-only")));
            }
            File::options().write(true).open(path).map_err(fail)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:08x}.tmp", rand::random::<u32>()));
        let place = path.with_file_name(name);
        let mut options = File::options();
        options.write(true).create_new(true);
        if old.is_some() {
            options.mode(0o600);
        }
        let file = options.open(&place).map_err(fail)?;
        *staged() = Some(place.clone());
        let pending = Self { file, staged: Some(place), path: path.to_owned() };
        if let Some(old) = old {
            // Only root may change the owner. That clears some bits of the mode, so the mode is set afterwards.
            let _ = fchown(&pending.file, Some(old.uid()), Some(old.gid()));
            pending.file.set_permissions(old.permissions()).map_err(fail)?;
            if adds {
                let mut before = File::open(path).map_err(fail)?;
                io::copy(&mut before, &mut &pending.file).map_err(fail)?;
            }
        }
        Ok(pending)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn publish(mut self) -> Result<(), QueryError> {
        let Some(place) = self.staged.take() else { return Ok(()) };
        let done = self.file.sync_all().and_then(|()| std::fs::rename(&place, &self.path));
        match done {
            Ok(()) => *staged() = None,
            Err(_) => remove_staged(),
        }
        done.map_err(|source| QueryError::Output { path: self.path.display().to_string(), source })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.staged.is_some() {
            remove_staged();
        }
    }
}

/// Bytes written at a time: a cancelled query stops between two writes.
const WRITE_BYTES: usize = 8 << 10;

/// Standard output that stops when the query is cancelled.
///
/// It has its own file descriptor, so an abandoned query holds no lock that the next query needs.
pub(super) struct Stoppable {
    file: File,
    cancel: CancellationToken,
}

impl Stoppable {
    pub(super) fn stdout(cancel: &CancellationToken) -> io::Result<Self> {
        Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), cancel: cancel.clone() })
    }
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.write(&bytes[..bytes.len().min(WRITE_BYTES)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
