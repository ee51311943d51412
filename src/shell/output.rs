//! Where results go: standard output, a file, an object of S3, or a folder of either. Files and objects appear whole or
//! not at all.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::lake::Location;
use crate::lake::upload::{self, Upload};
use crate::print::Format;
use crate::query::QueryError;
use crate::schema::Table;

mod file;
mod folder;
mod stdout;

pub(super) use file::Pending;
pub(super) use folder::{Folder, Part};
pub(super) use stdout::Stoppable;

/// Temporary files and folders beside their targets, for code that ends the program midway.
#[derive(Debug)]
struct Staged {
    paths: Vec<PathBuf>,
    /// Whether the program ends, so that nothing may appear any more.
    is_ending: bool,
}

static STAGED: Mutex<Staged> = Mutex::new(Staged { paths: Vec::new(), is_ending: false });

fn staged() -> MutexGuard<'static, Staged> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ending() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the program ends")
}

/// Takes a temporary path whose file or folder this call creates.
fn stage<T>(path: &Path, create: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut staged = staged();
    if staged.is_ending {
        return Err(ending());
    }
    let created = create()?;
    staged.paths.push(path.to_owned());
    Ok(created)
}

/// Moves what was staged to its place, unless the program is removing it.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    let mut staged = staged();
    if !staged.paths.iter().any(|path| path == from) {
        return Err(ending());
    }
    std::fs::rename(from, to)?;
    staged.paths.retain(|path| path != from);
    Ok(())
}

/// Removes what was staged and is not published.
fn discard(path: &Path) {
    let mut staged = staged();
    let before = staged.paths.len();
    staged.paths.retain(|staged| staged != path);
    if staged.paths.len() < before {
        remove(path);
    }
}

fn remove(path: &Path) {
    // Best effort: the result has failed already, or the program is ending.
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Removes what was written of results that will not be finished: temporary files, and uploads. Nothing is published
/// after that, so the program must end.
pub fn discard_unfinished() {
    {
        let mut staged = staged();
        staged.is_ending = true;
        // Within the lock: a folder that is being removed must not appear.
        staged.paths.drain(..).for_each(|path| remove(&path));
    }
    // The caller may be within a runtime, which may not wait.
    let aborts = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let aborts = async { tokio::time::timeout(crate::timeouts::ABORT_TIMEOUT, upload::abort_all()).await };
        // Uploads that were not aborted in time are counted below.
        let _ = runtime.block_on(aborts);
        Ok::<_, io::Error>(())
    });
    let _ = aborts.join();
    let upload::Registered { uploads, objects } = upload::registered();
    if uploads > 0 {
        crate::terminal::write_line(&format!(
            "warning: {uploads} multipart uploads could not be aborted in time; a rule of the bucket with \
             AbortIncompleteMultipartUpload removes them"
        ));
    }
    if let Some(first) = objects.first() {
        crate::terminal::write_line(&format!(
            "warning: {} objects of a result may be left, such as {first}; if the folder of the result has no _SUCCESS, \
             remove them",
            objects.len()
        ));
    }
}

/// A file or object for results, or a folder of them. Each result is added as a whole: a reader never sees a part of one.
#[derive(Debug, Clone)]
pub struct Output {
    place: Place,
    /// Whether its name ends with a slash.
    names_folder: bool,
    /// Whether a result is in it.
    is_begun: Arc<AtomicBool>,
}

/// A place for results.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A local file, or a folder.
    Local(PathBuf),
    /// An object of S3, or a prefix.
    Object(Location),
}

impl Output {
    /// Names a file, or an object as `s3://bucket/key`. The first result replaces it.
    ///
    /// # Errors
    /// The text names no object that other programs would find.
    pub fn new(path: PathBuf) -> Result<Self, QueryError> {
        let names_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let is_url = |text: &&str| text.contains("://") || text.starts_with("s3:");
        let place = match path.to_str().filter(is_url) {
            None => Place::Local(path),
            Some(text) => {
                match text.parse::<Location>().map_err(|error| QueryError::Refused(format!("output: {error}")))? {
                    Location::Folder(path) => Place::Local(path),
                    Location::S3 { bucket, prefix } if prefix.is_empty() => {
                        let message = format!(
                            "{text:?} names no object; write s3://{bucket}/report.csv, or s3://{bucket}/folder with --partition-by"
                        );
                        return Err(QueryError::Refused(message));
                    }
                    object => Place::Object(object),
                }
            }
        };
        Ok(Self { place, names_folder, is_begun: Arc::default() })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the place as a user writes it.
    pub(super) fn shown(&self) -> String {
        match &self.place {
            Place::Local(path) => path.display().to_string(),
            Place::Object(Location::S3 { bucket, prefix }) => format!("s3://{bucket}/{prefix}"),
            Place::Object(Location::Folder(path)) => path.display().to_string(),
        }
    }

    /// Returns the format that the name stands for, if it stands for one.
    pub fn format(&self) -> Option<Format> {
        Format::of_name(&self.shown())
    }

    pub(super) fn is_begun(&self) -> bool {
        self.is_begun.load(Ordering::Relaxed)
    }

    pub(super) fn begun(&self) {
        self.is_begun.store(true, Ordering::Relaxed);
    }

    /// Checks that the place can take another result, or the files of one, and that it is no table's.
    pub(super) fn check(&self, format: Format, is_partitioned: bool, lake: &Location) -> Result<(), QueryError> {
        let is_object = matches!(self.place, Place::Object(_));
        if is_object && self.names_folder && !is_partitioned {
            let message = format!("{}/ names no object; add a name behind the slash", self.shown());
            return Err(QueryError::Refused(message));
        }
        if self.is_begun() && (format.holds_one_result() || is_object || is_partitioned) {
            return Err(QueryError::Refused(format!(
                "{} has a result already, and {} holds one; name another place with \\o",
                self.shown(),
                if is_object { "an object" } else { "a file of this format" },
            )));
        }
        match self.table_of(lake) {
            None => Ok(()),
            Some(table) => Err(QueryError::Refused(format!(
                "{} lies in the folder of the table {table}, which only synclake writes; name another place",
                self.shown()
            ))),
        }
    }

    /// Returns the table of the lake in whose folder the place lies.
    fn table_of(&self, lake: &Location) -> Option<&'static str> {
        let inside = match (&self.place, lake) {
            (Place::Local(path), Location::Folder(lake)) => {
                let path = file::followed(path);
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let folder = folder.canonicalize().or_else(|_| std::path::absolute(folder)).ok()?;
                let path = folder.join(path.file_name()?);
                path.strip_prefix(lake.canonicalize().ok()?).ok()?.to_str()?.to_owned()
            }
            (Place::Object(Location::S3 { bucket, prefix }), Location::S3 { bucket: of_lake, prefix: root })
                if bucket == of_lake =>
            {
                let rest = prefix.strip_prefix(root.as_str())?;
                let inside = if root.is_empty() { Some(rest) } else { rest.strip_prefix('/') };
                inside?.to_owned()
            }
            _ => return None,
        };
        let first = inside.split('/').next()?;
        Table::ALL.into_iter().map(Table::name).find(|name| *name == first)
    }
}

/// Takes the bytes of a result.
pub(super) trait Sink: Write + Send {
    /// Passes on what waits in memory.
    fn advance(&mut self) -> impl Future<Output = Result<(), QueryError>> + Send {
        async { Ok(()) }
    }
}

impl<W: Write + Send> Sink for BufWriter<W> {}

impl Sink for Upload {
    async fn advance(&mut self) -> Result<(), QueryError> {
        Ok(Upload::advance(self).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_folder_of_a_table_is_found() {
        let lake: Location = "s3://b/lake".parse().unwrap();
        let table = |place: &str| Output::new(place.into()).unwrap().table_of(&lake);
        assert_eq!(table("s3://b/lake/sync_records/x.parquet"), Some("sync_records"));
        assert_eq!(table("s3://b/lake/state"), Some("state"));
        for elsewhere in [
            "s3://b/lake/reports/x.csv",
            "s3://b/lakes/state",
            "s3://b/lakestate/x.csv",
            "s3://c/lake/state",
            "state/x.csv",
        ] {
            assert_eq!(table(elsewhere), None, "{elsewhere}");
        }
        let folder = tempfile::tempdir().unwrap();
        let lake = Location::Folder(folder.path().join("lake"));
        std::fs::create_dir_all(folder.path().join("lake/gaps")).unwrap();
        let table = |place: &str| Output::new(folder.path().join(place)).unwrap().table_of(&lake);
        assert_eq!(table("lake/gaps/x.csv"), Some("gaps"));
        assert_eq!(table("lake/../lake/gaps/x.csv"), Some("gaps"));
        assert_eq!(table("lake/x.csv"), None);
        std::os::unix::fs::symlink(folder.path().join("lake/gaps/y.csv"), folder.path().join("link.csv")).unwrap();
        assert_eq!(table("link.csv"), Some("gaps"));
        assert!(Output::new("s3://bucket".into()).is_err());
        assert!(Output::new("gs://bucket/x".into()).is_err());
        assert!(Output::new("s3:/bucket/x".into()).is_err());
    }
}
