//! A file that appears whole or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::{discard, publish, stage};
use crate::query::QueryError;

/// A file that appears whole or not at all, with the permissions of the file that it replaces.
pub(in crate::shell) struct Pending {
    file: File,
    /// Temporary path beside the target; `None` when the target is written directly.
    staged: Option<PathBuf>,
    /// Target path, with links followed.
    path: PathBuf,
}

/// Returns the target of a link, even if nothing exists there yet.
pub(super) fn followed(path: &Path) -> PathBuf {
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
    pub(in crate::shell) fn create(path: &Path, adds: bool) -> Result<Self, QueryError> {
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
        let file = stage(&place, || options.open(&place)).map_err(fail)?;
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

    pub(in crate::shell) fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether this is a file that appears at the end, and no device or pipe.
    pub(in crate::shell) fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    pub(in crate::shell) fn publish(mut self) -> Result<(), QueryError> {
        let Some(place) = self.staged.take() else { return Ok(()) };
        let done = self.file.sync_all().and_then(|()| publish(&place, &self.path));
        if done.is_err() {
            discard(&place);
        }
        done.map_err(|source| QueryError::Output { path: self.path.display().to_string(), source })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(place) = &self.staged {
            discard(place);
        }
    }
}
