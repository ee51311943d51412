//! A folder of files, or a prefix of objects, for a partitioned result. A local folder appears whole or not at all. Objects
//! appear one after the other, and an empty object `_SUCCESS` after all of them.

use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use futures::StreamExt;

use super::{Place, Sink, discard, publish, stage};
use crate::aws::AwsSettings;
use crate::lake::upload::Upload;
use crate::lake::upload::together::{self, Left, Unpublished};
use crate::lake::{LakeError, Store};
use crate::query::QueryError;

/// The file that says that a folder is complete.
const SUCCESS: &str = "_SUCCESS";

/// A folder whose files do not show before [`Folder::publish`].
pub(in crate::shell) enum Folder {
    /// A temporary folder beside its target.
    Local { staged: PathBuf, target: PathBuf },
    /// A prefix, and the finished uploads below it.
    Prefix { store: Store, done: Vec<Upload> },
}

/// A file of such a folder.
pub(in crate::shell) enum Part {
    File(BufWriter<File>, PathBuf),
    Object(Upload),
}

fn failed(path: &Path) -> impl Fn(io::Error) -> QueryError {
    let path = path.display().to_string();
    move |source| QueryError::Output { path: path.clone(), source }
}

/// Returns the path of a local folder that is new or empty, and can be replaced by another folder.
fn free(target: &Path, shown: &str) -> Result<PathBuf, QueryError> {
    let mut entries = match std::fs::read_dir(target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target.to_owned()),
        Err(error) => return Err(failed(target)(error)),
    };
    if entries.next().is_some() {
        return Err(taken(shown));
    }
    let target = target.canonicalize().map_err(failed(target))?;
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
    let is_mount = match target.parent() {
        Some(parent) => device(parent).map_err(failed(&target))? != device(&target).map_err(failed(&target))?,
        None => true,
    };
    if is_mount || std::env::current_dir().is_ok_and(|current| current == target) {
        let message = format!("{shown} cannot be replaced as a whole; name a new folder within it");
        return Err(QueryError::Refused(message));
    }
    Ok(target)
}

fn taken(shown: &str) -> QueryError {
    QueryError::Refused(format!("{shown} has files already; name a new folder, or remove them"))
}

impl Folder {
    /// Begins a folder.
    ///
    /// # Errors
    /// It has files already, or it cannot be written to.
    pub(in crate::shell) async fn create(place: &Place, aws: &AwsSettings, shown: &str) -> Result<Self, QueryError> {
        match place {
            Place::Local(target) => {
                let target = free(target, shown)?;
                let mut name = target.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{:08x}.tmp", rand::random::<u32>()));
                let staged = target.with_file_name(name);
                // An empty folder keeps its permissions.
                let old = std::fs::metadata(&target).ok().map(|old| old.permissions());
                let create = || {
                    DirBuilder::new().mode(old.as_ref().map_or(0o777, |_| 0o700)).create(&staged)?;
                    old.as_ref().map_or(Ok(()), |old| std::fs::set_permissions(&staged, old.clone()))
                };
                stage(&staged, create).map_err(failed(&target))?;
                Ok(Self::Local { staged, target })
            }
            Place::Object(location) => {
                let store = Store::open(location, aws).await?;
                let first = store.objects().list(Some(&store.key(""))).next().await;
                match first.transpose() {
                    Ok(None) => Ok(Self::Prefix { store, done: Vec::new() }),
                    Ok(Some(_)) => Err(taken(shown)),
                    Err(source) => Err(LakeError::Storage { action: "list", path: shown.to_owned(), source }.into()),
                }
            }
        }
    }

    /// Begins a file at a path within the folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub(in crate::shell) async fn file(&self, path: &str) -> Result<Part, QueryError> {
        match self {
            Self::Local { staged, .. } => {
                let (mut folder, parts) = (staged.clone(), path.rsplit_once('/'));
                // Not `create_dir_all`, which would make the temporary folder again after it was discarded.
                for part in parts.into_iter().flat_map(|(folders, _)| folders.split('/')) {
                    folder.push(part);
                    match std::fs::create_dir(&folder) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(failed(&folder)(error));
                        }
                        _ => {}
                    }
                }
                let path = staged.join(path);
                let file = File::options().write(true).create_new(true).open(&path).map_err(failed(&path))?;
                Ok(Part::File(BufWriter::new(file), path))
            }
            Self::Prefix { store, .. } => match store.upload(path).await? {
                Some(upload) => Ok(Part::Object(upload)),
                None => Err(QueryError::Refused(format!("{} takes no uploads", store.url()))),
            },
        }
    }

    /// Takes a file that is written.
    ///
    /// # Errors
    /// It could not be written to its end.
    pub(in crate::shell) async fn close(&mut self, part: Part) -> Result<(), QueryError> {
        match (self, part) {
            (_, Part::File(file, path)) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error);
                file.and_then(|file| file.sync_all()).map_err(failed(&path))
            }
            (Self::Prefix { done, .. }, Part::Object(mut upload)) => {
                upload.finish().await?;
                done.push(upload);
                Ok(())
            }
            (Self::Local { target, .. }, Part::Object(_)) => {
                Err(failed(target)(io::Error::other("an object is no file of a local folder")))
            }
        }
    }

    /// Shows the files, and `_SUCCESS` last. If that fails, no file stays.
    ///
    /// # Errors
    /// The folder could not be moved to its place, or an upload could not be completed.
    pub(in crate::shell) async fn publish(mut self) -> Result<(), QueryError> {
        match &mut self {
            Self::Local { staged, target } => {
                let done = File::create(staged.join(SUCCESS)).and_then(|file| file.sync_all());
                done.and_then(|()| publish(staged, target)).map_err(failed(target))
            }
            Self::Prefix { store, done } => {
                let published = together::publish(store, std::mem::take(done), SUCCESS).await;
                published.map_err(|unpublished| failed_publish(store, unpublished))
            }
        }
    }
}

fn failed_publish(store: &Store, Unpublished { source, left }: Unpublished) -> QueryError {
    let (url, chain) = (store.url(), crate::terminal::chain(&source));
    match left {
        Left::Objects(0) => source.into(),
        Left::Objects(left) => QueryError::Refused(format!(
            "{chain}; {left} files of this result may be left in {url}, without {SUCCESS}: remove them before you try again"
        )),
        Left::Unknown => QueryError::Refused(format!(
            "{chain}; all files of this result are in {url}: if {SUCCESS} is there, it is complete; if not, remove them \
             before you try again"
        )),
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Self::Local { staged, .. } = self {
            discard(staged);
        }
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file, _) => file.write(bytes),
            Self::Object(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.flush(),
            Self::Object(upload) => upload.flush(),
        }
    }
}

impl Sink for Part {
    async fn advance(&mut self) -> Result<(), QueryError> {
        match self {
            Self::File(..) => Ok(()),
            Self::Object(upload) => Ok(upload.advance().await?),
        }
    }
}
