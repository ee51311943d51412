//! Vacuum: deletes data files that no version of a table within the retention lists, and what expired of the log.
//!
//! | file | is deleted when |
//! |---|---|
//! | a commit removed it | that was before the retention began, no newer version lists it, and every consumer has its rows |
//! | of ingest, unlisted | it is older than the retention, and its shard's epoch in the ledger has reached its own |
//! | of a refresh, unlisted | it is older than the retention, and another commit has taken its version of `state` |
//! | any other, unlisted | it is older than the retention, and at least a day old |
//! | a checkpoint of the log | newer ones make it needless (`checkpoints`) |
//! | a commit of the log | it is older than the log's own retention, and nobody reads it (`commits`) |
//! | a write that never ended | it is older than the retention, and at least a day old (`uploads`) |
//!
//! # Invariants
//! - Ages are differences of times that the store itself gave. The clock of this machine decides nothing.
//! - No file goes that a running writer may still commit. The commit of a file of ingest or of a refresh is impossible
//!   by then, however long its writer slept. For other files, a day is longer than any run from its first file to its
//!   commit.
//! - Only data files by their names go, from inside the table, and objects of the log.
//! - Before each batch, the commits made meanwhile are read, so what they list stays.
//!
//! A vacuum that is killed, or whose answers are lost, has deleted some of these files. The next one deletes the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use object_store::ObjectMeta;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::failpoint;
use crate::lake::{LakeError, Store, manifest};
use crate::schema::Table;
use crate::timeouts::{VACUUM_RETENTION, VACUUM_RETENTION_MIN};
use checkpoints::CheckpointTimes;
use commits::CleanUp;
use listed::{Cutoffs, Listed, Verdict};

mod checkpoints;
mod commits;
mod listed;
mod names;
mod undelivered;
mod uploads;

/// Files of a batch: ten requests to S3 at a time.
const BATCH: usize = 10_000;
/// The longest retention.
const RETENTION_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// What to delete.
#[derive(Debug, Clone)]
pub struct VacuumOptions {
    /// The tables; all tables if empty.
    pub tables: Vec<Table>,
    /// The retention, at least [`VACUUM_RETENTION_MIN`].
    pub retention: Duration,
    /// Whether to keep files, and commits, whose rows a consumer has not got yet.
    pub keeps_undelivered: bool,
    /// Whether to delete nothing, and only to say what would be deleted.
    pub is_dry_run: bool,
}

impl Default for VacuumOptions {
    fn default() -> Self {
        Self { tables: Vec::new(), retention: VACUUM_RETENTION, keeps_undelivered: true, is_dry_run: false }
    }
}

/// Parses a retention.
///
/// # Errors
/// Returns one line that shows the format, or says why a shorter retention is not safe.
pub fn parse_retention(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).ok().filter(|retention| *retention <= RETENTION_MAX);
    let retention = parsed.ok_or_else(|| format!("{text:?} is no duration up to 3650 days; write 7d, 36h or 30d"))?;
    if retention < VACUUM_RETENTION_MIN {
        return Err(format!(
            "{text:?} is shorter than 1h: a running query, or a writer between its file and its commit, would lose its \
             files; give 1h or more"
        ));
    }
    Ok(retention)
}

/// The result of a vacuum.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct VacuumReport {
    /// Whether nothing was deleted.
    pub dry_run: bool,
    /// The retention, in seconds.
    pub retention_seconds: u64,
    /// The beginning of the retention, by the clock of the store.
    pub retention_from: DateTime<Utc>,
    /// Whether a signal ended the vacuum early.
    pub stopped: bool,
    /// Results by table.
    pub tables: BTreeMap<&'static str, VacuumedTable>,
}

/// The result for a table.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct VacuumedTable {
    /// The newest version.
    pub version: u64,
    /// Deleted files; in a dry run, those that would be deleted.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Files that stay because a version within the retention lists them, or because they are younger.
    pub kept_recent: u64,
    /// Files that stay because their writer may still commit them. The next run of that writer deletes them.
    pub kept_pending: u64,
    /// Deleted objects of superseded checkpoints; in a dry run, those that would be deleted.
    pub checkpoints: u64,
    /// Bytes of these objects.
    pub checkpoint_bytes: u64,
    /// Files of `sync_records` that stay because a consumer has not got their rows yet.
    pub kept_undelivered: u64,
    /// Deleted commits of the log; in a dry run, those that would be deleted.
    pub commits: u64,
    /// Bytes of these commits, and of what other writers left beside them.
    pub commit_bytes: u64,
    /// Expired commits that stay because the state, a consumer or an extract has not passed them.
    pub kept_commits: u64,
    /// Aborted multipart uploads, or deleted temporary files; in a dry run, those that would be.
    pub uploads: u64,
    /// Bytes of the temporary files. S3 does not list those of an upload.
    pub upload_bytes: u64,
}

/// What a vacuum is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// It looked at one more object of a table.
    Seen(Table),
    /// It deleted a file; in a dry run, it would delete the file.
    Deleted(Table, &'a str, u64),
}

/// Deletes the files of a lake that no version within the retention lists. After `stop` is cancelled, the current batch
/// is the last one.
///
/// # Errors
/// The store failed, the credentials do not allow listing or deleting, or a log cannot be read. Running again is always
/// safe.
pub async fn run(
    lake: &Store,
    options: &VacuumOptions,
    stop: &CancellationToken,
    mut on: impl FnMut(Progress<'_>),
) -> Result<VacuumReport, LakeError> {
    if !Table::SyncRecords.exists(lake).await? {
        return Err(LakeError::NoLake(lake.to_string()));
    }
    let now = lake.clock().await?;
    let cutoffs = Cutoffs::new(now, options.retention)
        .ok_or_else(|| LakeError::Invalid("the retention is too long".to_owned()))?;
    let mut report = VacuumReport {
        dry_run: options.is_dry_run,
        retention_seconds: options.retention.as_secs(),
        retention_from: cutoffs.retention,
        ..VacuumReport::default()
    };
    let mut are_uploads_allowed = true;
    let is_wanted = |table: &Table| options.tables.is_empty() || options.tables.contains(table);
    for table in Table::ALL.into_iter().filter(is_wanted) {
        if stop.is_cancelled() {
            break;
        }
        let store = table.store(lake);
        if !options.is_dry_run {
            // No manifest may list a file that is deleted.
            manifest::follow(lake, table).await?;
        }
        let Some(mut listed) = Listed::read(&store, cutoffs).await? else { continue };
        listed.admit(table, &store)?;
        if table == Table::SyncRecords && options.keeps_undelivered {
            undelivered::find(lake, listed.version, |path| listed.keep_undelivered(path)).await?;
        }
        let result = VacuumedTable { version: listed.version, ..VacuumedTable::default() };
        let mut vacuum = Vacuum { table, store, listed, is_dry_run: options.is_dry_run, result, folder: None };
        vacuum.run(stop, &mut on).await?;
        vacuum.run_log(lake, (now, options), stop, &mut on).await?;
        // A refusal holds for all tables, and is reported once.
        if are_uploads_allowed && !stop.is_cancelled() {
            are_uploads_allowed = vacuum.abort_uploads(cutoffs.unproven, stop, &mut on).await;
        }
        report.tables.insert(table.name(), vacuum.result);
    }
    report.stopped = stop.is_cancelled();
    Ok(report)
}

/// The vacuum of one table.
struct Vacuum {
    table: Table,
    store: Store,
    listed: Listed,
    is_dry_run: bool,
    result: VacuumedTable,
    /// The local folder that was looked at last, and whether it lies inside the table.
    folder: Option<(PathBuf, bool)>,
}

impl Vacuum {
    async fn run(&mut self, stop: &CancellationToken, on: &mut impl FnMut(Progress<'_>)) -> Result<(), LakeError> {
        let store = self.store.clone();
        let mut objects = store.listed("", None);
        let mut batch = Vec::new();
        while let Some((path, object)) = objects.try_next().await? {
            if stop.is_cancelled() {
                return Ok(());
            }
            on(Progress::Seen(self.table));
            if self.is_dead(&path, &object).await {
                batch.push((path, object.size));
            }
            if batch.len() == BATCH {
                self.delete(std::mem::take(&mut batch), on).await?;
            }
        }
        self.delete(batch, on).await
    }

    /// Judges an object, and counts those that stay for a while.
    async fn is_dead(&mut self, path: &str, object: &ObjectMeta) -> bool {
        let Some(name) = names::data_name(self.table, path) else { return false };
        match self.listed.judge(path, &name, object.last_modified) {
            Verdict::Active => return false,
            Verdict::Recent => {
                self.result.kept_recent += 1;
                return false;
            }
            Verdict::Pending => {
                self.result.kept_pending += 1;
                return false;
            }
            Verdict::Undelivered => {
                self.result.kept_undelivered += 1;
                return false;
            }
            Verdict::Dead => {}
        }
        self.is_inside(path).await
    }

    /// Returns whether the folder of a file lies inside the table, also if symbolic links are followed.
    async fn is_inside(&mut self, path: &str) -> bool {
        let Some(root) = self.store.url().to_file_path().ok().filter(|_| self.store.is_local()) else { return true };
        let folder = root.join(path.rsplit_once('/').map_or("", |(folder, _)| folder));
        if let Some((last, is_inside)) = &self.folder
            && *last == folder
        {
            return *is_inside;
        }
        let resolved = futures::join!(tokio::fs::canonicalize(&folder), tokio::fs::canonicalize(&root));
        let is_inside = matches!(resolved, (Ok(folder), Ok(root)) if folder.starts_with(&root));
        if !is_inside {
            tracing::warn!(folder = %folder.display(), "a symbolic link leads out of the table; its files stay");
        }
        self.folder = Some((folder, is_inside));
        is_inside
    }

    /// Deletes what expired of the log, and then checkpoints that the rest does not need.
    async fn run_log(
        &mut self,
        lake: &Store,
        (now, options): (DateTime<Utc>, &VacuumOptions),
        stop: &CancellationToken,
        on: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), LakeError> {
        if stop.is_cancelled() {
            return Ok(());
        }
        let log_retention = commits::retention(&self.store, &self.listed.known, options.retention);
        let log_retention = log_retention.and_then(|age| now.checked_sub_signed(TimeDelta::from_std(age).ok()?));
        let expired = match log_retention {
            Some(before) => CleanUp::find(lake, self, before, options.keeps_undelivered).await?,
            None => CleanUp::default(),
        };
        self.clean_up(&expired, stop, on).await?;
        if stop.is_cancelled() {
            return Ok(());
        }
        let times = CheckpointTimes { now, retention: self.listed.cutoffs.retention, log_retention };
        let superseded = checkpoints::superseded(&self.store, times, expired.begin).await?;
        self.thin_out(superseded, on).await
    }

    /// Deletes objects of superseded checkpoints.
    async fn thin_out(
        &mut self,
        objects: Vec<(String, u64)>,
        on: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), LakeError> {
        if objects.is_empty() {
            return Ok(());
        }
        failpoint::hit("vacuum/batch");
        if !self.is_dry_run {
            let paths: Vec<String> = objects.iter().map(|(path, _)| path.clone()).collect();
            self.store.delete_all(&paths).await?;
        }
        for (path, bytes) in &objects {
            on(Progress::Deleted(self.table, path, *bytes));
            self.result.checkpoints += 1;
            self.result.checkpoint_bytes += bytes;
        }
        Ok(())
    }

    async fn delete(
        &mut self,
        mut batch: Vec<(String, u64)>,
        on: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), LakeError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.listed.read_forward(&self.store).await?;
        batch.retain(|(path, _)| !self.listed.is_listed(path));
        failpoint::hit("vacuum/batch");
        if !self.is_dry_run {
            let paths: Vec<String> = batch.iter().map(|(path, _)| path.clone()).collect();
            self.store.delete_all(&paths).await?;
        }
        for (path, bytes) in &batch {
            on(Progress::Deleted(self.table, path, *bytes));
            self.result.files += 1;
            self.result.bytes += bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::{Location, files, replace};

    /// A RESTORE lists an old file again after the vacuum has read the log.
    #[tokio::test]
    async fn what_is_listed_again_stays() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let table = Table::Quarantine;
        table.ensure(&lake).await.unwrap();
        let store = table.store(&lake);
        let place = |name: &str| format!("arrived_date=2026-01-01/{name}.parquet");
        for name in ["again", "dead"] {
            store.put_new(&place(name), "x".into()).await.unwrap();
        }
        let cutoffs = Cutoffs::new(Utc::now() + TimeDelta::days(8), VACUUM_RETENTION).unwrap();
        let listed = Listed::read(&store, cutoffs).await.unwrap().unwrap();
        let (result, is_dry_run, folder) = (VacuumedTable::default(), false, None);
        let mut vacuum = Vacuum { table, store: store.clone(), listed, is_dry_run, result, folder };
        let values = [("arrived_date", "2026-01-01".to_owned())];
        let again = files::add(place("again"), &values, 1, 0, serde_json::json!({}));
        assert!(replace::commit_version(&lake, table, 1, vec![], vec![again], vec![]).await.unwrap());
        vacuum.run(&CancellationToken::new(), &mut |_| {}).await.unwrap();
        let left = store.list("arrived_date=2026-01-01").await.unwrap();
        assert_eq!(left.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), [place("again")]);
        assert_eq!((vacuum.result.files, vacuum.result.bytes), (1, 1));
    }

    #[test]
    fn retentions() {
        assert_eq!(parse_retention("7d"), Ok(VACUUM_RETENTION));
        assert_eq!(parse_retention("1h"), Ok(VACUUM_RETENTION_MIN));
        assert_eq!(parse_retention("90 days"), Ok(Duration::from_secs(90 * 86_400)));
        for short in ["59m", "0s", "1ms"] {
            assert!(parse_retention(short).unwrap_err().contains("shorter than 1h"), "{short}");
        }
        for none in ["", "7", "week", "4000d", "-1h"] {
            assert!(parse_retention(none).unwrap_err().contains("no duration"), "{none}");
        }
    }
}
