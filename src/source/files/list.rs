//! Which files a path names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::source::SourceError;

/// Folders are followed this deep.
const DEPTH_MAX: usize = 64;
/// Skipped names that a warning shows.
const NAMES_SHOWN: usize = 5;

/// Whether a path can be read once only: standard input, a named pipe, `/dev/fd/3`.
pub fn is_pipe(path: &Path) -> bool {
    path == Path::new("-") || std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// The files that a path names: itself, standard input for `-`, or those below a folder that end in `.json`, `.ndjson` or
/// `.jsonl` (and `.gz`, `.zst`), in the order of their paths.
///
/// # Errors
/// The path does not exist, or a folder cannot be read, or holds no such file.
pub fn expand(path: &str) -> Result<Vec<PathBuf>, SourceError> {
    if path == "-" {
        return Ok(vec![PathBuf::from("-")]);
    }
    let fail = |source| SourceError::File { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(fail)?.is_dir() {
        return Ok(vec![PathBuf::from(path)]);
    }
    let mut walk = Walk::default();
    walk.folder(Path::new(path), 0)?;
    if walk.found.is_empty() {
        let message = format!("folder {path} holds no .json, .ndjson or .jsonl file (plain, .gz or .zst)");
        return Err(SourceError::Invalid(message));
    }
    for (reason, mut names) in walk.skipped {
        names.sort();
        let (count, names) = (names.len(), names[..names.len().min(NAMES_SHOWN)].join(", "));
        tracing::warn!(folder = path, count, names, reason, "skipped");
    }
    walk.found.sort();
    Ok(walk.found)
}

#[derive(Default)]
struct Walk {
    found: Vec<PathBuf>,
    /// Names by the reason why they are skipped.
    skipped: std::collections::BTreeMap<&'static str, Vec<String>>,
    /// Folders by their true paths: a link may lead back.
    seen: BTreeSet<PathBuf>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), SourceError> {
        let fail = |source| SourceError::File { path: folder.display().to_string(), source };
        if depth > DEPTH_MAX || !self.seen.insert(folder.canonicalize().map_err(fail)?) {
            self.skip(folder, "a folder that was read already, or lies too deep");
            return Ok(());
        }
        let mut entries = std::fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
            .map_err(fail)?;
        entries.sort();
        for path in entries {
            match std::fs::metadata(&path) {
                Err(_) => self.skip(&path, "a link that leads nowhere, or may not be read"),
                Ok(kind) if kind.is_dir() => self.folder(&path, depth + 1)?,
                Ok(_) if !has_ending(&path) => self.skip(&path, "does not end in .json, .ndjson or .jsonl"),
                Ok(kind) if kind.is_file() => self.found.push(path),
                Ok(_) => self.skip(&path, "is a pipe, a socket or a device; name it alone to read it"),
            }
        }
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &'static str) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.skipped.entry(reason).or_default().push(name);
    }
}

fn has_ending(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    [".json", ".ndjson", ".jsonl"].iter().any(|end| plain.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_below_are_read_and_links_end() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("2026/11/20");
        std::fs::create_dir_all(&deep).unwrap();
        for name in ["b.json", "2026/a.ndjson.gz", "2026/11/20/c.jsonl", "2026/notes.txt"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), deep.join("back.json")).unwrap();
        std::os::unix::fs::symlink("nowhere", deep.join("gone.json")).unwrap();
        let found = expand(folder.path().to_str().unwrap()).unwrap();
        let found: Vec<_> = found.iter().map(|p| p.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["2026/11/20/c.jsonl", "2026/a.ndjson.gz", "b.json"]);
    }
}
