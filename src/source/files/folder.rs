//! Finds the files that a path names.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::shown;
use crate::source::SourceError;

/// Number of names that a message lists.
const NAMES_SHOWN: usize = 5;

/// The files that a path names.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Files, in the order of their paths.
    pub files: Vec<PathBuf>,
    /// Paths that could not be examined, each with the reason.
    pub failed: Vec<(String, String)>,
}

/// Returns the files that a path names: the path itself, standard input for `-`, or all files below a folder that end
/// in `.json`, `.ndjson` or `.jsonl` (and `.gz`, `.zst`).
///
/// Follows links, and reads each folder once, so a link to a parent folder ends there. Skips Delta tables, and folders
/// whose names begin with `.` or `_`, because Hive and Spark keep internal files there.
///
/// # Errors
/// The path does not exist or cannot be read, or the folder holds no such file.
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
            // Another process has removed the folder since its parent was read.
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
    /// Reads a folder. Returns its subfolders, in the order of their names.
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
                    // Another process has removed the entry since the folder was read.
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
