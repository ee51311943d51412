//! The lake: Delta tables under one root, and the ledger of the committed positions.
//!
//! **Invariant: the commit is the truth.** A file that no commit lists does not exist. A position that no commit holds
//! was not reached. Every commit is one put-if-absent of one object, so readers see all of it or nothing.
//!
//! The lake treats positions as opaque: it stores, compares and returns them.

use std::path::PathBuf;

use object_store::ObjectStore;

use crate::causes::causes;

mod bucket;
mod bucket_requests;
pub(crate) mod bucket_settings;
pub(crate) mod bulk;
pub(crate) mod commit;
mod conditional;
pub(crate) mod counted;
pub(crate) mod data_file;
pub(crate) mod expired;
pub(crate) mod fault;
pub mod files;
pub mod ledger;
pub(crate) mod log;
pub mod manifest;
pub(crate) mod past;
pub mod paths;
pub(crate) mod ranges;
pub(crate) mod remember;
pub(crate) mod replace;
pub(crate) mod request_runtime;
pub(crate) mod s3;
pub(crate) mod since;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod sweep;
mod tables;
pub(crate) mod terms;
pub(crate) mod upload;
pub(crate) mod uploads;

pub use store::{Location, Store};

/// The reason why the lake could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// A local folder is not usable.
    #[error("{action} {path}", path = path.display())]
    Folder {
        /// The attempted action.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The object store failed after its own retries.
    #[error("{action} {path}")]
    Storage {
        /// The attempted action.
        action: &'static str,
        /// The object.
        path: String,
        /// The error of the store.
        #[source]
        source: object_store::Error,
    },
    /// A corrupt entry of the Delta log.
    #[error("Delta log entry {path} is corrupt: {reason}")]
    Log {
        /// The object.
        path: String,
        /// The defect of the object.
        reason: String,
    },
    /// A table that requires something which this version does not support.
    #[error("cannot use {table}: {reason}")]
    Unsupported {
        /// URL of the table.
        table: String,
        /// The requirement, and what to do.
        reason: String,
    },
    /// An error of deltalake.
    #[error("{action} Delta table {table}")]
    Delta {
        /// The attempted action.
        action: &'static str,
        /// URL of the table.
        table: String,
        /// The error of deltalake.
        #[source]
        source: Box<deltalake::DeltaTableError>,
    },
    /// The log of a derived table cannot be read.
    #[error("cannot read the log of {table}; delete that folder and run `synclake refresh` to rebuild it")]
    Derived {
        /// URL of the table.
        table: String,
        /// The defect of the log.
        #[source]
        source: Box<Self>,
    },
    /// A Parquet file cannot be encoded or decoded.
    #[error("{action} Parquet file {path}")]
    Parquet {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: String,
        /// The error of the Parquet library.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The path of a folder leads to a file.
    #[error("{} cannot be used as a folder: it is a file, or lies below one; give a folder or s3://bucket/prefix", .0.display())]
    NotAFolder(PathBuf),
    /// The folder of a lake does not exist.
    #[error("folder {} does not exist; give the folder that `synclake ingest --lake` wrote", .0.display())]
    NoFolder(PathBuf),
    /// The location holds no lake.
    #[error("{0} is not a lake: it has no tables; give the folder or prefix that `synclake ingest --lake` wrote")]
    NoLake(String),
    /// An option or a stored value is not usable.
    #[error("{0}")]
    Invalid(String),
    /// An answer would need rows that left by retention.
    #[error("{0}")]
    Expired(String),
    /// Other writers won every race for a version for too long.
    #[error("commit to {table}: gave up after {seconds} s; nothing was lost, run the same command again")]
    Contended {
        /// The table.
        table: String,
        /// Duration of the attempts, in seconds.
        seconds: u64,
        /// The last error of the store, if the last attempt failed with one.
        #[source]
        source: Option<object_store::Error>,
    },
}

impl LakeError {
    /// An error of the operating system about a local folder.
    fn folder(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match source.kind() {
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => Self::NotAFolder(path.to_owned()),
            _ => Self::Folder { action, path: path.to_owned(), source },
        }
    }

    pub(crate) fn storage(action: &'static str, store: &Store, relative: &str, source: object_store::Error) -> Self {
        let path = format!("{}{relative}", store.url());
        Self::Storage { action, path, source }
    }

    /// Returns whether the log or a file of the log is damaged. An error of the object store is no damage.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Log { .. } | Self::Parquet { .. } => true,
            Self::Delta { source, .. } => !causes(&**source).any(|cause| cause.is::<object_store::Error>()),
            _ => false,
        }
    }

    pub(crate) fn delta(action: &'static str, store: &Store, source: deltalake::DeltaTableError) -> Self {
        Self::Delta { action, table: store.url().to_string(), source: Box::new(source) }
    }
}

/// What to do about an object of a log that is damaged or missing: no program can tell its content.
pub(crate) const RESTORE: &str = "restore that object from a backup, or the whole lake";

/// The object store of a lake, in the type that deltalake and DataFusion expect.
pub type Objects = std::sync::Arc<dyn ObjectStore>;
