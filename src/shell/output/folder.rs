//! A folder of files, or a prefix of objects, for a partitioned result. A local folder appears whole or not at all. Objects
//! appear one after the other, and an empty object `_SUCCESS` after all of them.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};

use super::{Place, Sink, discard, stage, unstage};
use crate::aws::AwsSettings;
use crate::lake::upload::Upload;
use crate::lake::{LakeError, Store};
use crate::query::QueryError;

/// The file that says that a folder is complete.
const SUCCESS: &str = "_SUCCESS";
/// Uploads that are completed at a time.
const COMPLETIONS: usize = 8;

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
                let mut entries = match std::fs::read_dir(target) {
                    Ok(entries) => Some(entries),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(failed(target)(error)),
                };
                if entries.as_mut().is_some_and(|entries| entries.next().is_some()) {
                    return Err(taken(shown));
                }
                let mut name = target.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{:08x}.tmp", rand::random::<u32>()));
                let staged = target.with_file_name(name);
                std::fs::create_dir(&staged).map_err(failed(target))?;
                stage(&staged);
                Ok(Self::Local { staged, target: target.clone() })
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
                let path = staged.join(path);
                let folder = path.parent().unwrap_or(staged);
                std::fs::create_dir_all(folder).map_err(failed(&path))?;
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
            (Self::Local { .. }, Part::Object(upload)) => Ok(upload.complete().await?),
        }
    }

    /// Shows the files, and `_SUCCESS` last.
    ///
    /// # Errors
    /// The folder could not be moved to its place, or an upload could not be completed.
    pub(in crate::shell) async fn publish(mut self) -> Result<(), QueryError> {
        match &mut self {
            Self::Local { staged, target } => {
                let done = File::create(staged.join(SUCCESS)).and_then(|file| file.sync_all());
                done.and_then(|()| std::fs::rename(&*staged, &*target)).map_err(failed(target))?;
                unstage(staged);
            }
            Self::Prefix { store, done } => {
                let completions = std::mem::take(done).into_iter().map(Upload::complete);
                let completed = futures::stream::iter(completions).buffer_unordered(COMPLETIONS);
                completed.try_for_each(async |()| Ok(())).await?;
                store.put(SUCCESS, bytes::Bytes::new()).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        match self {
            // It is gone once it was published.
            Self::Local { staged, .. } if staged.exists() => discard(staged),
            _ => {}
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
