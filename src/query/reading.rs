//! Tables that a session reads, at versions that are consistent with each other.
//!
//! # Which rows the state is computed from
//! | the maintained state | no rows left by retention | rows left (`lake/expired.rs`) |
//! |---|---|---|
//! | covers a version of this `sync_records`, as written | state and tail | state and tail |
//! | the log does not reach back to that version | all rows | its rows of before the boundaries, and all rows |
//! | rows of `sync_records` that it covers were removed or changed | all rows | the same; an error if such rows are of dates before a boundary |
//! | rows were deleted from it (DELETE) | all rows | the same: this is how an erasure reaches rows that have left |
//! | another change of it, or it is missing, damaged, or ahead | all rows | an error |
//!
//! Where the state counts only for rows of before the boundaries, a refresh computes it anew, and queries of the state are
//! refused until then (`query/relations.rs`).
//!
//! **Invariant: a row that left by retention counts as long as it is the latest change of its key.** Its only copy is in
//! the state. The state's rows of later dates are not needed, because all rows of these dates are there. The state keeps
//! one row of each key. So if another writer deletes the latest row of a key, an older row that has left does not come
//! back.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::NaiveDate;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::scalar::ScalarValue;
use deltalake::DeltaTable;

use super::Guards;
use super::recheck::Rechecked;
use super::widened::Widened;
use crate::lake::expired::Expired;
use crate::lake::remember::LogReads;
use crate::lake::since::{RemovedFile, TableChanges};
use crate::lake::{LakeError, Store, log, since, snapshot};
use crate::schema::Table;

/// Transaction id in the log of `state`: the version of `sync_records` that the state covers.
pub(crate) const COVERS: &str = "refresh/sync_records";
/// Transaction id in the log of `state`: the version of `state` that the refresh made.
pub(crate) const REFRESHED: &str = "refresh/state";

/// `sync_records`, the maintained state if there is one, and the tail.
pub(crate) struct Reading {
    /// `sync_records` at its newest version.
    pub sync_records: DeltaTable,
    /// Loaded version of `sync_records`.
    pub version: u64,
    /// The maintained state.
    pub state: Option<State>,
    /// Files that the state does not cover (the tail); `None` when these are all files.
    pub tail: Option<BTreeSet<String>>,
}

/// The maintained state at one of its versions.
pub(crate) struct State {
    /// Table `state`.
    pub table: DeltaTable,
    /// Version of `sync_records` that the state covers.
    pub covers: u64,
    /// What has left `sync_records`, if the state serves only for that: then its other rows do not count, and the tail
    /// has all files. `None` if all of its rows count.
    pub only: Option<Expired>,
    change: StateChange,
}

/// What another writer did to the rows of the state since the last refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StateChange {
    None,
    /// It deleted rows.
    Deletion,
    /// Something else, by this operation, or by commits that the log no longer has.
    Other(String),
}

/// What to do without a state that holds the rows which have left.
const RESTORE_STATE: &str = "restore the folder of that table from a backup. To give up the keys whose last change has \
                             left, run `synclake refresh --rebuild --accept-loss`";
/// The answer that needs the state.
const ANSWER: &str = "the current state";

impl Reading {
    /// Loads the newest versions of both tables concurrently. The state never covers more than the loaded
    /// `sync_records`.
    ///
    /// # Errors
    /// There is no lake, it cannot be read, or rows have left by retention that no table `state` holds.
    pub(crate) async fn load(lake: &Store) -> Result<Self, LakeError> {
        if let Some(reading) = Self::load_once(lake).await? {
            return Ok(reading);
        }
        // A refresh and an expiry happened between the two loads, so the state lacked rows that had left.
        let reading = Self::load_once(lake).await?;
        match reading {
            Some(reading) => Ok(reading),
            None => {
                let expired = Expired::read(&Table::SyncRecords.store(lake)).await?;
                let remedy = format!("the table state is older than they were when they left; {RESTORE_STATE}");
                Err(expired.refusal(ANSWER, &remedy))
            }
        }
    }

    /// Loads both tables. Returns `None` if the state lacks rows that have left.
    async fn load_once(lake: &Store) -> Result<Option<Self>, LakeError> {
        let store = Table::SyncRecords.store(lake);
        let (mut records, of_state) = (LogReads::begin(&store), LogReads::begin(&Table::State.store(lake)));
        // Both loads run to their end, because deltalake's threads misbehave when a load is dropped.
        let (state, sync_records) = futures::join!(State::load(&of_state), snapshot::load_among(&records, None));
        let state = match state {
            Err(error @ LakeError::Derived { .. }) => return Err(undamaged(&store, error).await?),
            state => state?,
        };
        let mut reading = Self::of(lake, sync_records?)?;
        if state.as_ref().is_some_and(|state| state.covers > reading.version) {
            // Commits and a refresh happened between the two loads, so the state may cover more than `sync_records`.
            records = LogReads::begin(&store);
            reading = Self::of(lake, snapshot::load_among(&records, None).await?)?;
        }
        Ok(reading.add(state, &records).await?.then_some(reading))
    }

    /// Loads `sync_records` alone, at a version or at the newest one.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub(crate) async fn of_records(lake: &Store, version: Option<u64>) -> Result<Self, LakeError> {
        Self::of(lake, Table::SyncRecords.load(lake, version).await?)
    }

    fn of(lake: &Store, sync_records: Option<DeltaTable>) -> Result<Self, LakeError> {
        let no_lake = || LakeError::NoLake(lake.to_string());
        let sync_records = sync_records.ok_or_else(no_lake)?;
        let version = sync_records.version().ok_or_else(no_lake)?;
        Ok(Self { sync_records, version, state: None, tail: None })
    }

    /// Adds the maintained state, as far as it can be used with this version of `sync_records`, and the tail. Returns
    /// `false` if the state lacks rows that have left.
    async fn add(&mut self, state: Option<State>, records: &LogReads) -> Result<bool, LakeError> {
        let Some(mut state) = state else {
            let expired = Expired::read(records.store()).await?;
            return match expired.is_empty() {
                true => Ok(true),
                false => Err(expired.refusal(ANSWER, &format!("the table state is missing; {RESTORE_STATE}"))),
            };
        };
        let since = match state.covers <= self.version {
            true => since::changes_between(records.store(), state.covers, self.version).await?,
            false => None,
        };
        if since.as_ref().is_some_and(|since| !since.expired_new.is_empty()) {
            return Ok(false);
        }
        let Some(unusable) = Unusable::of(&state, self.version, since.as_ref()) else {
            self.tail = since.map(|since| since.files().into_keys().collect());
            self.state = Some(state);
            return Ok(true);
        };
        let expired = Expired::read(records.store()).await?;
        if expired.is_empty() {
            unusable.warn(&state, self.version);
            return Ok(true);
        }
        if state.covers < expired.covers {
            return Ok(false);
        }
        unusable.check(&state, &expired)?;
        state.only = Some(expired);
        self.state = Some(state);
        Ok(true)
    }

    /// Returns why no query can have the current state until the next refresh; `None` if queries can.
    pub(crate) fn refusal(&self) -> Option<LakeError> {
        // Whether a row that left comes after the removal of its dataset must be found anew, which a refresh does.
        let expired = self.state.as_ref()?.only.as_ref()?;
        let why = "another writer removed or changed rows since the last refresh; run `synclake refresh`";
        Some(expired.refusal(ANSWER, why))
    }

    /// Makes the state serve only for rows that have left; everything else is computed from all rows.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) async fn rebuild(&mut self, lake: &Store) -> Result<(), LakeError> {
        let expired = Expired::read(&Table::SyncRecords.store(lake)).await?;
        self.tail = None;
        self.state = self.state.take().filter(|_| !expired.is_empty());
        if let Some(state) = &mut self.state {
            state.only = Some(expired);
        }
        Ok(())
    }

    /// Returns the files that the state does not cover; `None` when there are none.
    ///
    /// # Errors
    /// The session cannot read the table.
    pub(crate) async fn tail(&self, session: &SessionState) -> Result<Option<Arc<dyn TableProvider>>> {
        match &self.tail {
            Some(files) => files_of(&self.sync_records, session, files).await,
            None => provider(&self.sync_records, session).await.map(Some),
        }
    }
}

impl State {
    /// Loads the newest version; returns `None` before the first refresh.
    ///
    /// # Errors
    /// The table cannot be read.
    async fn load(reads: &LogReads) -> Result<Option<Self>, LakeError> {
        let store = reads.store();
        let load = async {
            let Some(known) = log::read_transactions(store).await? else { return Ok(None) };
            let Some(covers) = known.ids.get(COVERS).and_then(|v| u64::try_from(*v).ok()) else { return Ok(None) };
            let refreshed = known.ids.get(REFRESHED).and_then(|v| u64::try_from(*v).ok());
            let change = match refreshed {
                // Another program wrote the rows and has not recorded their version, so what came after them is unknown.
                None => StateChange::Other("a refresh that recorded no version".to_owned()),
                Some(refreshed) if refreshed < known.version => {
                    StateChange::of(since::changes_between(store, refreshed, known.version).await?.as_ref())
                }
                Some(_) => StateChange::None,
            };
            let table = snapshot::load_among(reads, Some(known.version)).await?;
            Ok(table.map(|table| Self { table, covers, only: None, change }))
        };
        load.await.map_err(|source: LakeError| match source.is_damage() {
            true => LakeError::Derived { table: store.to_string(), source: Box::new(source) },
            false => source,
        })
    }
}

impl StateChange {
    /// Classifies the changes of the state since a refresh; `None` if the log does not have them any more.
    fn of(since: Option<&TableChanges>) -> Self {
        let Some(since) = since else { return Self::Other("commits that its log no longer has".to_owned()) };
        // Another writer may move rows to other files, but not change them.
        if since.removed.is_empty() && since.files().is_empty() {
            return Self::None;
        }
        match since.commits.iter().find(|commit| commit.operation != "DELETE") {
            Some(commit) => Self::Other(format!("{} in version {}", commit.operation, commit.version)),
            None if !since.new.is_empty() => Self::Other("new rows".to_owned()),
            None => Self::Deletion,
        }
    }
}

/// Why the state does not have the rows of the version that it covers.
enum Unusable {
    /// It covers a version that this `sync_records` does not have yet.
    Ahead,
    /// Another writer changed the state.
    Changed,
    /// The log does not reach back to the version that it covers.
    Forgotten,
    /// Another writer removed or changed rows that it covers.
    Removed(Vec<RemovedFile>),
}

impl Unusable {
    fn of(state: &State, version: u64, since: Option<&TableChanges>) -> Option<Self> {
        if state.covers > version {
            return Some(Self::Ahead);
        }
        if state.change != StateChange::None {
            return Some(Self::Changed);
        }
        let Some(since) = since else { return Some(Self::Forgotten) };
        let removed: Vec<RemovedFile> = since.removed_with_rows_of(state.covers).cloned().collect();
        (!removed.is_empty()).then_some(Self::Removed(removed))
    }

    /// Warns that all rows are read.
    fn warn(&self, state: &State, version: u64) {
        match self {
            Self::Ahead => tracing::warn!(
                covers = state.covers,
                version,
                "the table state is ahead of sync_records; queries ignore the state until the next refresh"
            ),
            Self::Changed => tracing::warn!("another writer changed the state; it is ignored until a refresh"),
            Self::Forgotten => {}
            // The state would keep the removed or changed rows forever.
            Self::Removed(files) => tracing::warn!(
                version = files.first().map(|file| file.version),
                "another writer removed or changed rows of sync_records that the state contains; queries compute from \
                 all rows until the next refresh"
            ),
        }
    }

    /// Checks that the state tells which rows it holds of those that have left.
    fn check(&self, state: &State, expired: &Expired) -> Result<(), LakeError> {
        let refuse = |remedy: String| Err(expired.refusal(ANSWER, &remedy));
        match (self, &state.change) {
            (Self::Ahead, _) => refuse(format!(
                "the table state covers version {} of a newer sync_records; {RESTORE_STATE}",
                state.covers
            )),
            (_, StateChange::Other(what)) => {
                refuse(format!("another writer changed the table state, which holds them ({what}); {RESTORE_STATE}"))
            }
            (Self::Removed(files), StateChange::None) => match files.iter().find(|file| file.may_be_of(expired)) {
                Some(file) => refuse(format!(
                    "version {} of sync_records removed rows of these dates, and the table state cannot tell them \
                         from rows that left by retention; DELETE the same rows from the table state",
                    file.version
                )),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Returns the error of a state whose log is damaged. Nobody may be told to delete a state that holds rows which have
/// left.
///
/// # Errors
/// The log of `sync_records` cannot be read.
pub(crate) async fn undamaged(records: &Store, error: LakeError) -> Result<LakeError, LakeError> {
    let expired = Expired::read(records).await?;
    match (expired.is_empty(), error) {
        (false, LakeError::Derived { table, source }) => {
            Ok(expired.refusal(ANSWER, &format!("cannot read the log of {table} ({source}); {RESTORE_STATE}")))
        }
        (_, error) => Ok(error),
    }
}

/// Returns the filter of the rows of the state that may stand for rows which have left.
pub(crate) fn before(expired: &Expired) -> Expr {
    let of_pool = |(pool, boundary): (&String, &NaiveDate)| {
        let at = boundary.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros();
        let at = lit(ScalarValue::TimestampMicrosecond(Some(at), Some("UTC".into())));
        let pool = match pool.is_empty() {
            true => col("pool").is_null(),
            false => col("pool").eq(lit(pool.as_str())),
        };
        // A row of another writer may lack the date.
        pool.and(col("last_modified_date").lt(at).or(col("last_modified_date").is_null()))
    };
    expired.before.iter().map(of_pool).reduce(Expr::or).unwrap_or_else(|| lit(false))
}

/// Returns those rows of a table that a filter selects.
///
/// # Errors
/// The filter does not fit the table (a bug).
pub(crate) fn filtered(table: Arc<dyn TableProvider>, filter: Expr) -> Result<Arc<dyn TableProvider>> {
    let rows = LogicalPlanBuilder::scan("rows", provider_as_source(table), None)?.filter(filter)?.build()?;
    Ok(Arc::new(ViewTable::new(rows, None)))
}

/// Returns a session for tables whose rows are sorted: it reads text as plain arrays, not as views. A sort must count
/// its memory correctly to spill in time. Views keep whole pages alive and count them once per batch.
pub(crate) fn for_sorting(session: &SessionState) -> SessionState {
    let mut plain = session.clone();
    plain.config_mut().options_mut().execution.parquet.schema_force_view_types = false;
    plain
}

/// Returns a table as it was loaded.
///
/// # Errors
/// The session cannot read the table.
pub(crate) async fn provider(table: &DeltaTable, session: &SessionState) -> Result<Arc<dyn TableProvider>> {
    register_store(table, session)?;
    let provider = table.table_provider().with_session(Arc::new(session.clone())).await?;
    Ok(rechecked(session, widened(table, provider)?))
}

/// Returns some files of a table as it was loaded; `None` if there are no files.
///
/// # Errors
/// The session cannot read the table.
pub(crate) async fn files_of(
    table: &DeltaTable,
    session: &SessionState,
    files: &BTreeSet<String>,
) -> Result<Option<Arc<dyn TableProvider>>> {
    if files.is_empty() {
        return Ok(None);
    }
    register_store(table, session)?;
    let provider = table.table_provider().with_session(Arc::new(session.clone()));
    let provider = provider.with_file_paths(files.iter().cloned()).await?;
    Ok(Some(rechecked(session, widened(table, provider)?)))
}

/// Adds the columns that the table lacks because an older version of synclake made it.
fn widened(table: &DeltaTable, provider: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let snapshot = table.snapshot().map_err(|e| DataFusionError::External(Box::new(e)))?;
    let Some(of) = Table::partitioned_by(snapshot.metadata().partition_columns()) else { return Ok(provider) };
    Ok(Widened::over(provider, of))
}

fn rechecked(session: &SessionState, table: Arc<dyn TableProvider>) -> Arc<dyn TableProvider> {
    match session.config().get_extension::<Guards>().is_none_or(|guards| guards.rechecked_filters) {
        true => Arc::new(Rechecked::new(table)),
        false => table,
    }
}

fn register_store(table: &DeltaTable, session: &dyn Session) -> Result<()> {
    table.update_datafusion_session(session).map_err(|e| DataFusionError::External(Box::new(e)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use arrow::array::RecordBatch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::aws::AwsSettings;
    use crate::ingest::{self, IngestOptions, Source};
    use crate::lake::Location;
    use crate::lake::store::tests::{Request, watched};
    use crate::payload::PayloadOptions;
    use crate::query::state::refresh;
    use crate::query::{Engine, Limits, Scope};
    use crate::source::files::expand;

    /// Ingests a file of one event, of this identity.
    async fn ingest(lake: &Store, folder: &std::path::Path, identity: &str) {
        let event = format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{identity}","dataSetName":"d","operation":"replace","lastModifiedDate":1,"syncCount":1,"kinesisSyncRecords":[{{"key":"k","value":"v","op":"replace"}}]}}"#
        );
        let file = folder.join(identity);
        std::fs::write(&file, event + "\n").unwrap();
        let options = IngestOptions {
            memory_bytes: IngestOptions::MEMORY_BYTES_MIN,
            flush_bytes: 1 << 20,
            flush_interval: Duration::from_secs(60),
            payloads: PayloadOptions::default(),
        };
        let source = Source::Files(expand(file.to_str().unwrap()).unwrap());
        ingest::run(source, lake.clone(), options, Arc::default(), CancellationToken::new()).await.unwrap();
    }

    /// The state covers the rows of one file, and the tail has the rows of another file.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_query_lists_logs_and_no_data_folders() {
        let folder = tempfile::tempdir().unwrap();
        let place = Location::Folder(folder.path().join("lake"));
        let lake = Store::create(&place, &AwsSettings::default()).await.unwrap();
        ingest(&lake, folder.path(), "01").await;
        refresh::run(&lake, &Limits::default(), false).await.unwrap();
        ingest(&lake, folder.path(), "02").await;

        let listed = Arc::new(Mutex::new(Vec::new()));
        let before_request = {
            let listed = listed.clone();
            move |request| {
                if let Request::List(prefix) = request {
                    listed.lock().unwrap().push(prefix);
                }
                Box::pin(async {}) as futures::future::BoxFuture<'static, ()>
            }
        };
        let lake = watched(&lake, Box::new(before_request));
        let engine = Engine::open(&lake, &Limits::default(), Scope::default()).unwrap();
        for (sql, rows) in [
            ("select * from sync_records", 2),
            ("select * from sync_records where pool = 'us-east-1_0a' and event_date = '1970-01-01'", 2),
            ("select * from state", 1),
            ("select * from current_state", 2),
            ("select * from quarantine", 0),
        ] {
            let found = engine.sql(sql).await.unwrap().collect().await.unwrap();
            assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), rows, "{sql}");
        }
        let listed = listed.lock().unwrap();
        let is_log = |prefix: &&String| prefix.split('/').any(|part| part == "_delta_log");
        assert!(listed.iter().any(|prefix| is_log(&prefix)), "the listings are seen");
        assert_eq!(listed.iter().filter(|prefix| !is_log(prefix)).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    /// A session keeps its versions until a statement names a table that is not loaded. Then all are loaded anew.
    #[tokio::test(flavor = "multi_thread")]
    async fn tables_of_a_statement_are_loaded_together() {
        let folder = tempfile::tempdir().unwrap();
        let place = Location::Folder(folder.path().join("lake"));
        let lake = Store::create(&place, &AwsSettings::default()).await.unwrap();
        let rows = async |engine: &Engine, sql: &str| {
            let found = engine.sql(sql).await.unwrap().collect().await.unwrap();
            found.iter().map(RecordBatch::num_rows).sum::<usize>()
        };
        let open = || Engine::open(&lake, &Limits::default(), Scope::default()).unwrap();
        let statements = ["select * from cognito_raw_data", "select * from current_state, daily_state"];
        assert!(matches!(open().sql("select 1").await, Err(crate::query::QueryError::Lake(LakeError::NoLake(_)))));
        ingest(&lake, folder.path(), "01").await;
        let (one, all) = (open(), open());
        all.load(&statements.map(str::to_owned)).await.unwrap();
        assert_eq!(rows(&one, statements[0]).await, 1);
        ingest(&lake, folder.path(), "02").await;
        assert_eq!((rows(&one, statements[0]).await, rows(&all, "select * from current_state").await), (1, 1));
        assert_eq!(rows(&one, statements[1]).await, 0);
        assert_eq!((rows(&one, statements[0]).await, rows(&all, statements[0]).await), (2, 1));
        assert_eq!(rows(&one, "select * from current_state").await, 2);
    }
}
