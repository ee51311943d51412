//! Tables that a session reads, at versions that are consistent with each other.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use deltalake::DeltaTable;

use super::Guards;
use super::recheck::Rechecked;
use super::widened::Widened;
use crate::lake::remember::LogReads;
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
}

impl Reading {
    /// Loads the newest versions of both tables concurrently. The state never covers more than the loaded
    /// `sync_records`.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub(crate) async fn load(lake: &Store) -> Result<Self, LakeError> {
        let store = Table::SyncRecords.store(lake);
        let (records, of_state) = (LogReads::begin(&store), LogReads::begin(&Table::State.store(lake)));
        // Both loads run to their end, because deltalake's threads misbehave when a load is dropped.
        let (state, sync_records) = futures::join!(State::load(&of_state), snapshot::load_among(&records, None));
        let (state, sync_records) = (state?, sync_records?);
        let mut reading = Self::of(lake, sync_records)?;
        if state.as_ref().is_none_or(|state| state.covers <= reading.version) {
            reading.add(state, &records).await?;
            return Ok(reading);
        }
        // Commits and a refresh happened between the two loads, so the state may cover more than `sync_records`.
        let records = LogReads::begin(&store);
        reading = Self::of(lake, snapshot::load_among(&records, None).await?)?;
        reading.add(state, &records).await?;
        Ok(reading)
    }

    /// Loads the newest version of `sync_records` alone.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub(crate) async fn of_records(lake: &Store) -> Result<Self, LakeError> {
        Self::of(lake, Table::SyncRecords.load(lake, None).await?)
    }

    fn of(lake: &Store, sync_records: Option<DeltaTable>) -> Result<Self, LakeError> {
        let no_lake = || LakeError::NoLake(lake.to_string());
        let sync_records = sync_records.ok_or_else(no_lake)?;
        let version = sync_records.version().ok_or_else(no_lake)?;
        Ok(Self { sync_records, version, state: None, tail: None })
    }

    /// Adds the maintained state, if it can be used with this version of `sync_records`, and the tail.
    async fn add(&mut self, state: Option<State>, records: &LogReads) -> Result<(), LakeError> {
        let version = self.version;
        if let Some(state) = &state
            && state.covers > version
        {
            tracing::warn!(
                covers = state.covers,
                version,
                "the table state is ahead of sync_records; queries ignore the state until the next refresh"
            );
        }
        if let Some(state) = state.filter(|state| state.covers <= version)
            && let Some(since) = since::changes_between(records.store(), state.covers, version).await?
        {
            match since.removed_with_rows_of(state.covers).next() {
                // The state would keep the removed or changed rows forever.
                Some(lost) => tracing::warn!(
                    version = lost.version,
                    "another writer removed or changed rows of sync_records that the state contains; queries compute \
                     from all rows until the next refresh"
                ),
                None => {
                    self.tail = Some(since.files().into_keys().collect());
                    self.state = Some(state);
                }
            }
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
            if let Some(refreshed) = refreshed.filter(|refreshed| *refreshed < known.version) {
                // Another writer may move rows to other files, but not change them.
                let since = since::changes_between(store, refreshed, known.version).await?;
                if since.is_none_or(|since| !(since.removed.is_empty() && since.files().is_empty())) {
                    tracing::warn!(table = %store, "another writer changed the state; it is ignored until a refresh");
                    return Ok(None);
                }
            }
            let table = snapshot::load_among(reads, Some(known.version)).await?;
            Ok(table.map(|table| Self { table, covers }))
        };
        load.await.map_err(|source: LakeError| match source.is_damage() {
            true => LakeError::Derived { table: store.to_string(), source: Box::new(source) },
            false => source,
        })
    }
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
