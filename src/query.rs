//! SQL over one lake snapshot: the tables, the views in `sql/views`, and nothing that writes.
//!
//! **Invariants.** All tables of a session are read at versions that were loaded together, before the first query. No
//! statement can create, change, export or configure anything. No local file is a table.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{AggregateUDF, Expr, ScalarUDF, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext, col, lit};

use crate::lake::{LakeError, Store};
use crate::schema::Table;

use changes::{Changes, View};
use reading::Reading;
use rules::{casts, integers, recursive, sums};
use state::Resolved;

mod changes;
mod functions;
pub mod guard;
mod parse;
pub(crate) mod reading;
pub(crate) mod recheck;
mod rules;
mod sorted;
mod spill;
pub mod state;
pub mod views;
mod widened;

/// An error of a query.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Failure to read the lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// Statement that synclake rejects, before or while it is planned or executed.
    #[error("{0}")]
    Refused(String),
    /// More memory needed than allowed.
    #[error("out of memory ({0}); raise --memory, or filter by pool or date")]
    Memory(String),
    /// Failure to keep spilled data on disk.
    #[error("{0}")]
    Disk(String),
    /// Error of DataFusion, from planning or execution.
    #[error("{}", one_line(.0))]
    Sql(#[source] DataFusionError),
    /// Failure to write the result.
    #[error("write {path}")]
    Output {
        /// Destination of the result.
        path: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            // DataFusion's message suggests settings that users cannot change here.
            DataFusionError::ResourcesExhausted(what) => {
                Self::Memory(what.split(" with ").next().unwrap_or(what).to_owned())
            }
            DataFusionError::External(told) if told.is::<UserError>() => Self::Refused(told.to_string()),
            root => match spill::told(root) {
                Some(what) => Self::Disk(what),
                None => Self::Sql(error),
            },
        }
    }
}

impl QueryError {
    /// Returns whether the reader of the output is gone. Then nobody is left to read an error message.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Formats an error without hints, line breaks and secrets.
fn one_line(error: &DataFusionError) -> String {
    let text = crate::text::joined(&error.strip_backtrace());
    let limited: String = text.chars().take(2_000).collect();
    crate::redact::redact(&limited)
}

/// A complete message for the user, passed through DataFusion.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UserError(pub String);

impl From<UserError> for DataFusionError {
    fn from(told: UserError) -> Self {
        Self::External(Box::new(told))
    }
}

/// Rows of a batch when rows are small.
const BATCH_ROWS: usize = 8_192;
/// Fewest rows of a batch, however large the rows are.
const BATCH_ROWS_MIN: usize = 16;
/// A batch takes at most `1 / BATCHES_HELD` of the memory.
const BATCHES_HELD: u64 = 64;
/// Approximate size of decoded rows, as a multiple of the file's size.
const PACKED: u64 = 8;

/// Resources and guards of a session.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes for sorts, joins and aggregates; beyond this limit they spill to disk.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
    /// Rows of a batch.
    pub batch_rows: usize,
    /// Rows of the partitions that `changes` and `daily_changes` sort together.
    pub group_rows: u64,
    /// Whether the optimizer may skip files, pages and rows, and use statistics. Tests compare both settings.
    pub has_shortcuts: bool,
    /// Guards against wrong answers.
    pub guards: Guards,
}

/// Guards against wrong answers of the libraries. All are on, except in tests that show that a missing guard is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guards {
    /// Filters found at run time, or moved through joins, are not passed to other operators by column name.
    pub fixed_filters: bool,
    /// Every filter that a table scan received is evaluated again.
    pub rechecked_filters: bool,
    /// Integers are signed, and their arithmetic fails on overflow.
    pub checked_integers: bool,
    /// An expression that a condition, a CASE or a filter guards is evaluated only where the guard holds.
    pub ordered_conditions: bool,
    /// Subqueries used as conditions know true, false and unknown, wherever they stand.
    pub subqueries: bool,
    /// The build side of a join, held in memory, contributes no order to the output.
    pub unordered_builds: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            fixed_filters: true,
            rechecked_filters: true,
            checked_integers: true,
            ordered_conditions: true,
            subqueries: true,
            unordered_builds: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            memory_bytes: memory_default(),
            threads,
            batch_rows: BATCH_ROWS,
            group_rows: changes::GROUP_ROWS,
            has_shortcuts: true,
            guards: Guards::default(),
        }
    }
}

impl Limits {
    /// Returns limits for the rows of some files, given as numbers of rows and bytes. A sort or a merge holds several
    /// batches at a time, and DataFusion bounds a batch by its rows alone.
    pub fn for_rows_of(&self, files: impl IntoIterator<Item = (u64, u64)>) -> Self {
        // The log of a foreign writer may state any number.
        let add = |sum: (u64, u64), file: (u64, u64)| (sum.0.saturating_add(file.0), sum.1.saturating_add(file.1));
        let (rows, bytes) = files.into_iter().fold((0, 0), add);
        let row_bytes = (bytes / rows.max(1)).saturating_mul(PACKED).max(1);
        let fit = self.memory_bytes as u64 / BATCHES_HELD / row_bytes;
        let batch_rows = fit.clamp(BATCH_ROWS_MIN as u64, BATCH_ROWS as u64) as usize;
        Self { batch_rows, ..self.clone() }
    }
}

/// Returns a quarter of the memory of this machine or container, at least 1 GiB.
fn memory_default() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<usize>().ok())
        .map(|kib| kib * 1024);
    let container = read("/sys/fs/cgroup/memory.max").trim().parse::<usize>().ok();
    let all = machine.into_iter().chain(container).min();
    all.map_or(0, |all| all / 4).max(1 << 30)
}

/// Rows that a session sees.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope {
    /// Only rows that the server had seen by the end of this day (UTC).
    pub as_of: Option<NaiveDate>,
}

/// A session over one lake snapshot.
pub struct Engine {
    context: SessionContext,
}

impl Engine {
    /// Loads the newest version of each table, and the views over them.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub async fn open(lake: &Store, limits: &Limits, scope: Scope) -> Result<Self, QueryError> {
        let context = session(limits)?;
        let others = Table::ALL.into_iter().filter(|table| !matches!(table, Table::SyncRecords | Table::State));
        let others = others.map(|table| async move { (table, table.load(lake, None).await) });
        let (reading, others) = futures::join!(Reading::load(lake), futures::future::join_all(others));
        let mut reading = reading?;
        if scope.as_of.is_some() {
            (reading.state, reading.tail) = (None, None);
        }
        let state = context.state();
        let plain = reading::for_sorting(&state);
        let mut records = reading::provider(&reading.sync_records, &plain).await?;
        let mut tail = reading.tail(&state).await?;
        if let Some(day) = scope.as_of {
            let known = context.read_table(records)?.filter(col("event_date").lt_eq(lit(day_literal(day))))?;
            records = known.into_view();
            tail = Some(records.clone());
        }
        context.register_table(Table::SyncRecords.name(), records)?;
        let maintained = match &reading.state {
            Some(maintained) => Some(reading::provider(&maintained.table, &state).await?),
            None => None,
        };
        context.register_table("key_state", Arc::new(Resolved::new(tail, maintained, state::REBUILD)))?;
        let state_table = match &reading.state {
            // `key_state` reads this version; a second load could return a newer one.
            Some(maintained) => Ok(Some(maintained.table.clone())),
            None => Table::State.load(lake, None).await,
        };
        for (table, loaded) in others.into_iter().chain([(Table::State, state_table)]) {
            let provider: Arc<dyn TableProvider> = match loaded? {
                Some(loaded) => reading::provider(&loaded, &plain).await?,
                // A table that nobody has written yet is empty, not missing.
                None => Arc::new(MemTable::try_new(table.schema(), vec![Vec::new()])?),
            };
            let provider = match scope.as_of {
                None => provider,
                Some(day) => as_of(&context, table, provider, day)?,
            };
            context.register_table(table.name(), provider)?;
        }
        views::register(&context, &views::VIEWS.map(|(name, ..)| name)).await?;
        if scope.as_of.is_none() && limits.has_shortcuts {
            for view in [View::Changes, View::DailyChanges] {
                // The schema is that of the definition in SQL.
                if let Some(defined) = context.deregister_table(view.name())? {
                    let (records, schema) = (reading.sync_records.clone(), defined.schema());
                    let table = Changes::new(view, records, lake, schema, limits.group_rows);
                    context.register_table(view.name(), Arc::new(table))?;
                }
            }
        }
        Ok(Self { context })
    }

    /// Plans one statement.
    ///
    /// # Errors
    /// The statement is refused (not read-only, too deep, more than one) or invalid.
    pub async fn sql(&self, statement: &str) -> Result<DataFrame, QueryError> {
        guard::check(statement)?;
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let state = self.context.state();
        let parsed = parse::statement(statement, &state)?;
        let planned = async {
            let plan = state.statement_to_plan(parsed).await?;
            read_only.verify_plan(&plan)?;
            self.context.execute_logical_plan(plan).await
        };
        planned.await.map_err(|error| match &error {
            DataFusionError::Plan(message) if message.contains("not supported: ") => QueryError::Refused(format!(
                "this lake is read-only here: {}",
                message.trim_end_matches('.').replace(" not supported", "")
            )),
            _ => QueryError::from(error),
        })
    }

    /// Returns the session, for uses that SQL does not cover.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }
}

/// Restricts a table to the rows up to a day, by the server's dates. A table without such dates fails when read.
fn as_of(
    context: &SessionContext,
    table: Table,
    provider: Arc<dyn TableProvider>,
    day: NaiveDate,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let remedy = match table {
        Table::DailyState => {
            let known = context.read_table(provider)?.filter(col("extract_date").lt_eq(lit(day_literal(day))))?;
            return Ok(known.into_view());
        }
        Table::SyncRecords => return Ok(provider),
        Table::State => "query key_state, which is computed for that day",
        Table::Quarantine => "its records have no server date; leave --as-of out, and filter by arrived_date",
        Table::Gaps => "leave --as-of out, and filter by arrived_from",
    };
    Ok(Arc::new(NotAsOf { schema: table.schema(), table: table.name(), remedy }))
}

/// A table that does not support `--as-of`.
#[derive(Debug)]
struct NotAsOf {
    schema: SchemaRef,
    table: &'static str,
    remedy: &'static str,
}

#[async_trait::async_trait]
impl TableProvider for NotAsOf {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        Err(UserError(format!("--as-of does not apply to {}; {}", self.table, self.remedy)).into())
    }
}

fn day_literal(day: NaiveDate) -> datafusion::scalar::ScalarValue {
    let days = day.signed_duration_since(NaiveDate::default()).num_days();
    datafusion::scalar::ScalarValue::Date32(i32::try_from(days).ok())
}

/// Creates a session without tables.
///
/// # Errors
/// DataFusion rejects the settings (never in practice).
pub fn session(limits: &Limits) -> Result<SessionContext, QueryError> {
    let disk = DiskManagerBuilder::default().with_temp_file_factory(Arc::new(spill::Spills::default()));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(limits.memory_bytes)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    // Only the lake's own store reads local files, on its own threads. So no log can make a lake in S3 read them.
    if let Ok(local) = url::Url::parse("file:///") {
        let _ = runtime.deregister_object_store(&local);
    }
    let mut config = SessionConfig::new()
        .with_extension(Arc::new(limits.guards))
        .with_information_schema(true)
        .with_target_partitions(limits.threads)
        .with_batch_size(limits.batch_rows)
        .set_usize("datafusion.sql_parser.recursion_limit", guard::DEPTH_MAX)
        .set_usize(spill::FILE_BYTES_MAX.0, spill::FILE_BYTES_MAX.1);
    let options = config.options_mut();
    options.execution.parquet.pushdown_filters = limits.has_shortcuts;
    options.execution.time_zone = Some("UTC".to_owned());
    // A LIMIT outside a subquery must see the subquery's order.
    options.sql_parser.enable_subquery_sort_elimination = false;
    rules::settings(limits.guards, options);
    // A first aggregation stage that keeps more than 40% of its rows only holds what the second stage must hold again.
    options.execution.skip_partial_aggregation_probe_ratio_threshold = 0.4;
    if !limits.has_shortcuts {
        options.execution.parquet.pruning = false;
        options.execution.parquet.enable_page_index = false;
        options.execution.parquet.bloom_filter_on_read = false;
        options.execution.collect_statistics = false;
        options.optimizer.enable_topk_aggregation = false;
        options.optimizer.enable_sort_pushdown = false;
        options.optimizer.enable_distinct_aggregation_soft_limit = false;
        options.optimizer.enable_window_limits = false;
    }
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_analyzer_rules(rules::analyzer(limits.guards))
        .with_optimizer_rules(rules::logical(limits.guards))
        .with_physical_optimizer_rules(rules::physical(limits.guards))
        .build();
    let mut context = SessionContext::new_with_state(state);
    // This planner is registered first, so that the later planners see its names.
    FunctionRegistry::register_expr_planner(&mut context, Arc::new(casts::NamedCasts))?;
    if limits.guards.checked_integers {
        context.register_udaf(AggregateUDF::new_from_impl(sums::CheckedSum::default()));
        FunctionRegistry::register_expr_planner(&mut context, Arc::new(integers::SignedCounts))?;
        for name in integers::UNSIGNED {
            let unsigned = FunctionRegistry::udf(&context, name)?;
            context.register_udf(ScalarUDF::new_from_impl(integers::Signed::new(unsigned)));
        }
    }
    functions::register(&context)?;
    context.register_udf(recursive::mark());
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_a_foreign_log_states_do_not_overflow() {
        let limits = Limits::default().for_rows_of([(u64::MAX, 1), (u64::MAX, u64::MAX)]);
        assert_eq!(limits.batch_rows, BATCH_ROWS);
        let limits = Limits::default().for_rows_of([(1, u64::MAX), (0, u64::MAX)]);
        assert_eq!(limits.batch_rows, BATCH_ROWS_MIN);
    }
}
