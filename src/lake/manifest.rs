//! Manifests: the active files of a table, for readers that do not read the Delta log.
//!
//! `_symlink_format_manifest/<partition>/manifest` has the URI of each active file of a partition, one in a line. This is
//! the form of Hive's `SymlinkTextInputFormat`, which Athena, Redshift Spectrum, Trino, Presto, Hive and Spark read.
//!
//! # Invariants
//! - A manifest holds all files that are active in its partition at one version, and nothing else. A partition without
//!   files has an empty manifest.
//! - A manifest never goes back to an older version. It replaces only the manifest that stood there before the version
//!   was loaded (`Store::put_if_same`); if another writer was faster, the whole update begins anew.
//! - The record of an update (`_synclake.json`) is written last. A manifest that is not as the record says, for example of a
//!   killed update, is written again.
//! - `vacuum` updates the manifests before it deletes files, so no manifest lists a file that a vacuum deleted.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::files::sha256_of;
use super::snapshot::{self, ListedFile};
use super::{LakeError, Store};
use crate::failpoint;
use crate::schema::Table;

/// The folder of the manifests of a table.
const FOLDER: &str = "_symlink_format_manifest";
/// The record of the last update. Readers skip names with an underscore.
const RECORD: &str = "_symlink_format_manifest/_synclake.json";
/// The file that updates of a local table lock.
const LOCK: &str = "_symlink_format_manifest/_lock";
/// Manifests that are written at a time.
const WRITES: usize = 16;
/// Updates that may lose against other writers before this one gives up.
const ATTEMPTS: usize = 20;
/// The value of a null in the name of a Hive partition.
pub(crate) const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// The result of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestReport {
    /// The table.
    pub table: &'static str,
    /// The version whose files the manifests list.
    pub version: u64,
    /// Manifests; one for each partition that has files, or had some.
    pub manifests: u64,
    /// Manifests that were written, because their files changed.
    pub written: u64,
    /// Files that all manifests list.
    pub files: u64,
}

/// What the last update wrote.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    version: u64,
    /// Manifests by their path.
    manifests: BTreeMap<String, Written>,
}

/// A manifest as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    /// SHA-256 of its text.
    sha256: String,
    /// The store's tag of the object.
    etag: String,
}

/// Brings the manifests of a table up to date, and makes them if there are none. Returns `None` if the table does not
/// exist.
///
/// # Errors
/// The log cannot be read, the store failed, a file has rows that only a reader of the log knows to be deleted, or
/// other writers were faster for too long.
pub async fn update(lake: &Store, table: Table) -> Result<Option<ManifestReport>, LakeError> {
    let store = table.store(lake);
    if !table.exists(lake).await? {
        return Ok(None);
    }
    let _lock = store.lock(LOCK).await?;
    for _ in 0..ATTEMPTS {
        if let Some(report) = update_once(&store, table).await? {
            return Ok(Some(report));
        }
        tracing::info!(table = table.name(), "another process wrote manifests, looking again");
    }
    Err(LakeError::Invalid(format!(
        "other processes keep writing the manifests of {store}; run `synclake manifest` again when they are done"
    )))
}

/// Brings the manifests of a table up to date if it has a folder for them.
///
/// # Errors
/// As [`update`].
pub(crate) async fn follow(lake: &Store, table: Table) -> Result<(), LakeError> {
    // A killed first update may have left manifests without a record.
    let store = table.store(lake);
    let is_wanted = store.listed(FOLDER, None).try_next().await?.is_some();
    match is_wanted {
        true => update(lake, table).await.map(drop),
        false => Ok(()),
    }
}

/// Returns the values of the partition columns of each manifest, and its folder below the table. `None` without manifests.
///
/// # Errors
/// The store failed.
pub(crate) async fn partitions(lake: &Store, table: Table) -> Result<Option<Vec<(Vec<String>, String)>>, LakeError> {
    let Some(record) = table.store(lake).get(RECORD).await? else { return Ok(None) };
    let record: Record = serde_json::from_slice(&record).map_err(|e| {
        LakeError::Invalid(format!("{RECORD} of {} is damaged: {e}; run `synclake manifest`", table.name()))
    })?;
    let of_path = |path: &String| {
        let folder = path.strip_suffix("/manifest")?;
        let parts = folder.strip_prefix(FOLDER)?.split('/').skip(1);
        let values = parts.map(|part| part.split_once('=').map(|(_, value)| value.to_owned()));
        Some((values.collect::<Option<Vec<_>>>()?, folder.to_owned()))
    };
    Ok(Some(record.manifests.keys().filter_map(of_path).collect()))
}

/// Updates the manifests after a commit, as [`follow`]. The commit stands, so an error is only told.
pub(crate) async fn follow_commit(lake: &Store, table: Table) {
    if let Err(error) = follow(lake, table).await {
        let causes = crate::causes::causes(&error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
        tracing::warn!(
            table = table.name(),
            error = causes,
            "the manifests still list the files of an older version; run `synclake manifest`"
        );
    }
}

/// Updates the manifests. Returns `None` if another writer was faster.
async fn update_once(store: &Store, table: Table) -> Result<Option<ManifestReport>, LakeError> {
    // The tags come first: what was written before them lists an older version than the one that is loaded now.
    let listed = store.list(FOLDER).await?;
    let etags: HashMap<String, String> =
        listed.into_iter().map(|(path, object)| (path, object.e_tag.unwrap_or_default())).collect();
    let record = store.get(RECORD).await?.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    let record = record.unwrap_or_default();
    let loaded = snapshot::load(store, None).await?.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
    let mut report = ManifestReport {
        table: table.name(),
        version: loaded.version().unwrap_or(0),
        manifests: 0,
        written: 0,
        files: 0,
    };
    let old = etags.keys().filter(|path| path.rsplit('/').next() == Some("manifest"));
    let mut wanted: BTreeMap<String, Vec<String>> = old.map(|path| (path.clone(), Vec::new())).collect();
    let mut refused = None;
    snapshot::visit_files(store, &loaded, |file| match path_of(store, table, &file) {
        Ok(path) => wanted.entry(path).or_default().push(uri_of(store, &file.path)),
        Err(error) => refused = Some(error),
    })
    .await?;
    if let Some(error) = refused {
        return Err(error);
    }
    report.manifests = wanted.len() as u64;
    report.files = wanted.values().map(|files| files.len() as u64).sum();
    let written = wanted.into_iter().map(|(path, files)| {
        let (etag, known) = (etags.get(&path).cloned(), record.manifests.get(&path).cloned());
        write_one(store, path, files, etag, known)
    });
    let written: Vec<_> = futures::stream::iter(written).buffer_unordered(WRITES).try_collect().await?;
    let mut manifests = BTreeMap::new();
    for one in written {
        let Some((path, now, is_new)) = one else { return Ok(None) };
        report.written += u64::from(is_new);
        manifests.insert(path, now);
    }
    let now = Record { version: report.version, manifests };
    if etags.contains_key(RECORD) && now.version == record.version && now.manifests == record.manifests {
        return Ok(Some(report));
    }
    failpoint::hit("manifest/record");
    let text = serde_json::to_vec(&now).map_err(|e| LakeError::Invalid(format!("cannot write {RECORD}: {e}")))?;
    let done = store.put_if_same(RECORD, text.into(), etags.get(RECORD).map(String::as_str)).await?;
    Ok(done.map(|_| report))
}

/// Writes a manifest unless it is as it should be. Returns its path, what stands there now, and whether it was written;
/// `None` if another writer was faster.
async fn write_one(
    store: &Store,
    path: String,
    mut files: Vec<String>,
    etag: Option<String>,
    known: Option<Written>,
) -> Result<Option<(String, Written, bool)>, LakeError> {
    files.sort_unstable();
    let text: String = files.iter().flat_map(|file| [file.as_str(), "\n"]).collect();
    let sha256 = sha256_of(text.as_bytes());
    if let Some(known) = known.filter(|known| known.sha256 == sha256 && Some(&known.etag) == etag.as_ref()) {
        return Ok(Some((path, known, false)));
    }
    let etag = store.put_if_same(&path, Bytes::from(text), etag.as_deref()).await?;
    failpoint::hit("manifest/written");
    Ok(etag.map(|etag| (path, Written { sha256, etag }, true)))
}

/// Returns the path of the manifest that lists a file.
fn path_of(store: &Store, table: Table, file: &ListedFile) -> Result<String, LakeError> {
    let refuse = |reason: String| Err(LakeError::Unsupported { table: store.to_string(), reason });
    if file.deleted > 0 {
        return refuse(format!(
            "another writer deleted rows of {:?} by a deletion vector, and readers of manifests would still see them; \
             rewrite the file first (Spark: REORG TABLE … APPLY (PURGE))",
            file.path
        ));
    }
    let mut path = FOLDER.to_owned();
    for column in table.partition_columns() {
        let value = file.partition.get(*column).and_then(Option::as_deref).filter(|value| !value.is_empty());
        let value = value.unwrap_or(NULL);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !value.chars().all(is_plain) {
            return refuse(format!("the value {value:?} of {column} cannot be the name of a folder of manifests"));
        }
        path += &format!("/{column}={value}");
    }
    Ok(path + "/manifest")
}

/// Returns the URI of a file as Hadoop writes it: without escapes.
fn uri_of(store: &Store, path: &str) -> String {
    match store.is_local() {
        true => format!("file://{store}/{path}"),
        false => format!("{store}/{path}"),
    }
}

#[cfg(test)]
mod tests;
