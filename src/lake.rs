//! The lake: Delta tables under one root, and the ledger of what has been committed to them.
//!
//! **Invariant: the commit is the truth.** A file that no commit lists does not exist; a position that no commit holds
//! was not reached. Every commit is one put-if-absent of one object, so readers see all of it or nothing.
//!
//! The lake treats positions as opaque: it stores them, compares them and gives them back.

use std::path::PathBuf;

use object_store::ObjectStore;

use crate::causes::causes;

pub(crate) mod apart;
mod bucket;
pub(crate) mod commit;
pub(crate) mod fault;
pub mod files;
pub mod ledger;
pub(crate) mod log;
pub(crate) mod part;
pub mod paths;
pub(crate) mod ranges;
pub(crate) mod replace;
pub(crate) mod s3;
pub(crate) mod since;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod sweep;
mod tables;
pub(crate) mod terms;

pub use store::{Location, Store};

/// Why the lake could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// A local folder is not usable.
    #[error("{action} {path}", path = path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The object store failed after its own retries.
    #[error("{action} {path}")]
    Storage {
        /// What was tried.
        action: &'static str,
        /// The object.
        path: String,
        /// What the store said.
        #[source]
        source: object_store::Error,
    },
    /// The Delta log holds something that it must not.
    #[error("Delta log entry {path} is corrupt: {reason}")]
    Log {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The table asks for something that this version does not do.
    #[error("cannot use {table}: {reason}")]
    Unsupported {
        /// URL of the table.
        table: String,
        /// What it asks for, and what to do.
        reason: String,
    },
    /// deltalake refused.
    #[error("{action} Delta table {table}")]
    Delta {
        /// What was tried.
        action: &'static str,
        /// URL of the table.
        table: String,
        /// What deltalake said.
        #[source]
        source: Box<deltalake::DeltaTableError>,
    },
    /// The log of a table that is made of others cannot be read.
    #[error("the log of {table} cannot be read; delete that folder, and `synclake refresh` makes it anew")]
    Derived {
        /// URL of the table.
        table: String,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },
    /// A Parquet file cannot be encoded or decoded.
    #[error("{action} Parquet file {path}")]
    Parquet {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// What the library said.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The place holds no lake.
    #[error("{0} is no lake: it holds no table; give the folder or prefix that `synclake ingest --lake` wrote")]
    NoLake(String),
    /// An option or a stored value is not usable.
    #[error("{0}")]
    Invalid(String),
    /// Other writers won every round for too long.
    #[error("commit to {table}: gave up after {seconds} s; nothing was lost, run the same command again")]
    Contended {
        /// The table.
        table: String,
        /// How long it was tried.
        seconds: u64,
        /// The last answer of the store, if it was an error.
        #[source]
        source: Option<object_store::Error>,
    },
}

impl LakeError {
    fn storage(action: &'static str, store: &Store, relative: &str, source: object_store::Error) -> Self {
        let path = format!("{}{relative}", store.url());
        Self::Storage { action, path, source }
    }

    /// Whether a log is not what it should be; not whether the store refuses it.
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

/// The object store of a lake, as the libraries below want it.
pub type Objects = std::sync::Arc<dyn ObjectStore>;
