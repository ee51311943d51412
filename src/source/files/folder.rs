//! The files that a path names.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::shown;
use crate::source::SourceError;

/// Names that a message lists.
const NAMES_SHOWN: usize = 5;

/// What a path names.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The files, in the order of their paths.
    pub files: Vec<PathBuf>,
    /// What could not be looked at, and why.
    pub failed: Vec<(String, String)>,
}

/// The files that a path names: itself, standard input for `-`, or all below a folder that end in `.json`, `.ndjson` or
/// `.jsonl` (and `.gz`, `.zst`).
///
/// Links are followed, and each folder is read once, so a link to a folder above ends there. Folders whose names begin
/// with `.` or `_` hold what Hive and Spark keep for themselves; they are left out, and so are Delta tables.
///
/// # Errors
/// The path does not exist, or the folder holds no such file.
pub fn expand(path: &str) -> Result<Found, SourceError> {
    if path == "-" {
        return Ok(Found { files: vec![PathBuf::from("-")], failed: Vec::new() });
    }
    let fail = |source| SourceError::File { path: shown(Path::new(path)), source };
    if !fs::metadata(path).map_err(fail)?.is_dir() {
        return Ok(Found { files: vec![PathBuf::from(path)], failed: Vec::new() });
    }
    let mut walk = Walk::default();
    let mut folders = vec![PathBuf::from(path)];
    while let Some(folder) = folders.pop() {
        let inner = match walk.folder(&folder) {
            Ok(inner) => inner,
            Err(error) if folder == Path::new(path) => return Err(fail(error)),
            // Somebody has removed it since its parent was read.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                walk.found.failed.push((shown(&folder), error.to_string()));
                continue;
            }
        };
        folders.extend(inner.into_iter().rev());
    }
    let Walk { mut found, skipped, .. } = walk;
    found.files.sort();
    let reasons: Vec<String> = skipped.iter().map(|(reason, names)| reason_text(reason, names)).collect();
    if found.files.is_empty() && found.failed.is_empty() {
        let mut message =
            format!("folder {} holds no .json, .ndjson or .jsonl file (plain, .gz or .zst)", shown(Path::new(path)));
        if !reasons.is_empty() {
            message = format!("{message}; skipped {}", reasons.join("; "));
        }
        return Err(SourceError::Invalid(message));
    }
    for (reason, names) in &skipped {
        let (count, names) = (names.len(), first_names(names));
        tracing::warn!(folder = shown(Path::new(path)), count, names, "skipped: {reason}");
    }
    Ok(found)
}

fn first_names(names: &[String]) -> String {
    let more = if names.len() > NAMES_SHOWN { ", …" } else { "" };
    format!("{}{more}", names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", "))
}

fn reason_text(reason: &str, names: &[String]) -> String {
    format!("{} ({reason})", first_names(names))
}

#[derive(Default)]
struct Walk {
    found: Found,
    skipped: BTreeMap<&'static str, Vec<String>>,
    /// Device and inode of each folder that was read.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    /// Reads a folder; returns the folders in it, in the order of their names.
    fn folder(&mut self, folder: &Path) -> std::io::Result<Vec<PathBuf>> {
        let meta = fs::metadata(folder)?;
        if !self.seen.insert((meta.dev(), meta.ino())) {
            self.skip(folder, "links to a folder that is read already");
            return Ok(Vec::new());
        }
        let mut entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        entries.sort();
        if entries.iter().any(|path| name_bytes(path) == b"_delta_log") {
            self.skip(folder, "Delta tables");
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        for path in entries {
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => match name_bytes(&path).first() {
                    Some(b'.' | b'_') => self.skip(&path, "folders whose names begin with . or _"),
                    _ => folders.push(path),
                },
                Ok(meta) if meta.is_file() && has_ending(&path) => self.found.files.push(path),
                Ok(meta) if meta.is_file() => self.skip(&path, "do not end in .json, .ndjson or .jsonl"),
                Ok(meta) if meta.file_type().is_fifo() => {
                    self.skip(&path, "named pipes; name one itself with --source file:<path>");
                }
                Ok(_) => self.skip(&path, "sockets and devices"),
                Err(error) => match fs::symlink_metadata(&path) {
                    Ok(link) if link.is_symlink() && error.kind() == ErrorKind::NotFound => {
                        self.skip(&path, "links to nothing");
                    }
                    Ok(link) if link.is_symlink() && error.kind() != ErrorKind::PermissionDenied => {
                        self.skip(&path, "links that lead in a circle");
                    }
                    // Somebody has removed it since the folder was read.
                    Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                    _ => self.found.failed.push((shown(&path), error.to_string())),
                },
            }
        }
        Ok(folders)
    }

    fn skip(&mut self, path: &Path, reason: &'static str) {
        self.skipped.entry(reason).or_default().push(shown(path));
    }
}

fn name_bytes(path: &Path) -> &[u8] {
    path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default()
}

fn has_ending(path: &Path) -> bool {
    let name = name_bytes(path).to_ascii_lowercase();
    let plain = name.strip_suffix(b".gz").or_else(|| name.strip_suffix(b".zst")).unwrap_or(&name);
    [&b".json"[..], b".ndjson", b".jsonl"].iter().any(|end| plain.ends_with(end))
}
