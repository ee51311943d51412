//! The lake: whether it can be read and written, and what its status advises.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::ObjectStore;

use super::{Check, DoctorOptions};
use crate::lake::{LakeError, Location, Store, fault};
use crate::status::{self, StatusOptions, StatusReport};
use crate::terminal;

const LAKE: &str = "lake";
const PERMISSIONS: &str = "lake permissions";
/// Commits that the status reads.
const COMMITS_MAX: usize = 1_000;

/// The lake as it was seen, for the checks that compare it with something.
#[derive(Debug, Default)]
pub(super) struct Seen {
    store: Opened,
    report: Option<Result<StatusReport, LakeError>>,
}

impl Seen {
    /// Returns whether a lake was named.
    pub(super) fn is_wanted(&self) -> bool {
        self.store.is_some()
    }

    /// Returns the store of the lake, if it could be opened.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()?.as_ref().ok()
    }

    /// Returns the status of the lake, if it can be read.
    pub(super) fn report(&self) -> Option<&StatusReport> {
        self.report.as_ref()?.as_ref().ok()
    }

    /// Returns up to when a stream was read.
    pub(super) fn read_to(&self, stream: &str) -> Option<DateTime<Utc>> {
        self.report()?.read_to(stream).map(|moment| moment.at)
    }
}

/// The store of the lake, if one is named.
pub(super) type Opened = Option<Result<Store, LakeError>>;

/// Opens the lake. Without credentials, only a folder.
pub(super) async fn open(options: &DoctorOptions, has_credentials: bool) -> Opened {
    match &options.lake {
        Some(Location::S3 { .. }) if !has_credentials => None,
        Some(location) => Some(Store::open(location, &options.aws).await),
        None => None,
    }
}

/// Looks at the lake, unless its bucket is missing.
pub(super) async fn look(store: Opened, options: &DoctorOptions, has_bucket: bool) -> Seen {
    let report = match &store {
        Some(Ok(store)) if has_bucket => {
            let options =
                StatusOptions { lake: store.to_string(), commits_max: COMMITS_MAX, verbose: false, now: options.now };
            Some(status::run(store, &options).await)
        }
        _ => None,
    };
    Seen { store, report }
}

pub(super) async fn check(seen: &Seen) -> Vec<Check> {
    let mut checks = Vec::new();
    match &seen.store {
        None => return checks,
        Some(Err(LakeError::NoFolder(folder))) => {
            checks.push(none(&folder.display().to_string()));
            return checks;
        }
        Some(Err(error)) => {
            checks.push(failed(LAKE, error));
            return checks;
        }
        Some(Ok(store)) => checks.push(permissions(store).await),
    }
    match &seen.report {
        Some(Ok(report)) => {
            let rows = report.tables.get("sync_records").map_or(0, |table| table.sums.rows);
            checks.push(Check::ok(LAKE, format!("{rows} rows, {} pools", report.pools.len())));
            checks.extend(report.next.iter().map(|advice| {
                Check::warning("lake status", advice.text.as_str(), format!("run `{}`", advice.commands.join("`, `")))
            }));
        }
        Some(Err(LakeError::NoLake(place))) => checks.push(none(place)),
        Some(Err(error)) => checks.push(failed(LAKE, error)),
        None => {}
    }
    checks
}

fn none(place: &str) -> Check {
    Check::fault(LAKE, format!("{place} has no lake"), "check the name; the first ingest makes a lake")
}

fn failed(check: &'static str, error: &LakeError) -> Check {
    Check::fault(check, spoken_error(error), "see the advice in this error, and run `synclake verify`")
}

/// Returns an error on one line: its known cause, or the chain of its causes.
pub(super) fn spoken_error(error: &LakeError) -> String {
    fault::sentence(error).unwrap_or_else(|| terminal::chain(error))
}

/// Lists, writes, reads and deletes an object of its own below the lake.
async fn permissions(store: &Store) -> Check {
    let path = format!("_doctor-{:016x}", rand::random::<u64>());
    match probe(store, &path).await {
        Ok(()) => Check::ok(PERMISSIONS, "an object was listed, written, read and deleted"),
        Err((action, error)) => Check::warning(
            PERMISSIONS,
            format!("cannot {action} the object {store}/{path}: {}", spoken_error(&error)),
            match store.folder() {
                Some(_) => "ingest, extract and care write below the lake; a query only lists and reads",
                None => "`synclake iam-policy --role ingest` prints what a worker needs; a query only lists and reads",
            },
        ),
    }
}

async fn probe(store: &Store, path: &str) -> Result<(), (&'static str, LakeError)> {
    let listed = store.objects().list_with_delimiter(Some(&store.key(""))).await;
    listed.map_err(|source| ("list", LakeError::storage("list", store, "", source)))?;
    store.put(path, Bytes::from_static(b"synclake doctor")).await.map_err(|error| ("write", error))?;
    let read = store.get(path).await;
    store.delete(path).await.map_err(|error| ("delete", error))?;
    read.map(drop).map_err(|error| ("read", error))
}
