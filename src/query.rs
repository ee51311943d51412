//! SQL over one lake snapshot: the tables, the views in `sql/views`, and nothing that writes.
//!
//! **Invariants.** All tables of a statement are read at versions that were loaded together. No statement can create,
//! change, export or configure anything. No local file is a table.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;

use crate::lake::Store;
use crate::lake::counted::Reads;

use parse::Request;
use relations::{Names, Relations};
use rules::{casts, integers, recursive, sums};

mod analyzed;
pub mod catalog;
mod changes;
mod error;
mod functions;
pub mod guard;
mod parse;
pub(crate) mod reading;
pub(crate) mod recheck;
mod relations;
mod rules;
mod sorted;
mod spill;
pub mod state;
mod statements;
mod teach;
pub mod views;
mod vocabulary;
mod widened;

pub use analyzed::Scan;
pub use error::QueryError;
pub(crate) use error::UserError;
pub use parse::Parameters;
pub use teach::Place;
pub(crate) use teach::unknown_relation;
use teach::{Planned, Written};
pub use vocabulary::Vocabulary;

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
    /// Rows of the partitions that the views of `changes.rs` sort together.
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

/// A moment of the past of a lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The commit of a version of `sync_records`.
    Version(u64),
    /// A time.
    Time(DateTime<Utc>),
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::Time(time) => write!(f, "{}", time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
        }
    }
}

impl std::str::FromStr for Moment {
    type Err = String;

    /// Reads a version or a time. A time without a zone is of UTC, and a date is its beginning.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(version) = text.parse() {
            return Ok(Self::Version(version));
        }
        let zoned = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).ok();
        let forms = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
        let plain = || forms.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
        let date = || Some(text.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN));
        let found = zoned.or_else(|| plain().or_else(date).map(|at| at.and_utc()));
        found.map(Self::Time).ok_or_else(|| {
            format!("{text:?} is no version and no time; give a number, or a time such as 2026-11-20T15:04:05Z")
        })
    }
}

/// Rows that a session sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// The lake as it was committed at this moment; `None` for its newest versions.
    pub at: Option<Moment>,
    /// Only rows that the server had seen by the end of this day (UTC).
    pub as_of: Option<NaiveDate>,
}

/// A session over one lake snapshot.
pub struct Engine {
    context: SessionContext,
    relations: Relations,
    parameters: Parameters,
    reads: Reads,
}

impl Engine {
    /// Creates a session. Tables are loaded when [`Engine::load`] or a statement first names them.
    ///
    /// # Errors
    /// DataFusion rejects the settings (never in practice).
    pub fn open(lake: &Store, limits: &Limits, scope: Scope) -> Result<Self, QueryError> {
        let context = session(limits)?;
        let (lake, reads) = Reads::of(lake);
        let relations = Relations::new(context.clone(), &lake, limits, scope);
        Ok(Self { context, relations, parameters: Parameters::default(), reads })
    }

    /// Sets the values of `$name` in all statements of this session.
    pub fn with_parameters(self, parameters: Parameters) -> Self {
        Self { parameters, ..self }
    }

    /// Loads the newest versions of all tables that these statements name, and the views over them. The statements then
    /// see the same versions. Without it, a statement that names another table loads the newest versions again.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read. A statement that cannot be parsed is left to [`Engine::sql`].
    pub async fn load(&self, statements: &[String]) -> Result<(), QueryError> {
        let state = self.context.state();
        let requests = statements.iter().filter_map(|statement| {
            guard::check(statement).ok()?;
            parse::request(statement, &state, &self.parameters).ok()
        });
        let names = requests.flat_map(|request| match request {
            Request::Rows(parsed, _) | Request::Summary(parsed) | Request::ColumnsOf(parsed) => {
                relations::named(&parsed, &state)
            }
            Request::Columns(name) => relations::known(&name).into_iter().collect(),
            Request::Tables(_) => Names::new(),
        });
        self.relations.ensure(names.collect(), &state).await.map(drop)
    }

    /// Returns the columns of a table or view, or `None` if there is none of this name.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub async fn columns(&self, name: &str) -> Result<Option<SchemaRef>, QueryError> {
        let Some(name) = relations::known(name) else { return Ok(None) };
        let _loaded = self.relations.ensure([name].into(), &self.context.state()).await?;
        let table = self.context.table_provider(name).await?;
        Ok(Some(table.schema()))
    }

    /// Plans one statement.
    ///
    /// # Errors
    /// The statement is refused (not read-only, too deep, more than one) or invalid, or a table that it names cannot be
    /// read.
    pub async fn sql(&self, statement: &str) -> Result<DataFrame, QueryError> {
        guard::check(statement)?;
        self.reads.reset();
        self.planned(statement).await.map_err(|error| teach::pointed(error, statement))
    }

    async fn planned(&self, statement: &str) -> Result<DataFrame, QueryError> {
        let state = self.context.state();
        let written = |planned| Written { statement, planned };
        match parse::request(statement, &state, &self.parameters)? {
            Request::Rows(parsed, added) => self.rows(*parsed, written(Planned::Behind(added))).await,
            Request::Summary(parsed) => {
                let rows = self.rows(*parsed, written(Planned::Other)).await?;
                Ok(statements::summary(rows)?)
            }
            Request::ColumnsOf(parsed) => {
                let frame = self.rows(*parsed, written(Planned::Behind(0))).await?;
                Ok(statements::columns(&self.context, frame.schema().as_arrow(), None)?)
            }
            Request::Columns(name) => {
                let unknown = || unknown_relation(&name, statement);
                let schema = self.columns(&name).await?.ok_or_else(unknown)?;
                Ok(statements::columns(&self.context, &schema, Some(&name))?)
            }
            Request::Tables(kind) => {
                let _loaded = self.relations.ensure(Names::new(), &state).await?;
                Ok(statements::tables(&self.context, kind)?)
            }
        }
    }

    /// Plans a query.
    async fn rows(&self, parsed: Statement, written: Written<'_>) -> Result<DataFrame, QueryError> {
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let state = self.context.state();
        let _loaded = self.relations.ensure(relations::named(&parsed, &state), &state).await?;
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
            _ => teach::told(&error, &written).unwrap_or_else(|| QueryError::from(error)),
        })
    }
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
        .set_bool("datafusion.sql_parser.collect_spans", true)
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
    FunctionRegistry::register_expr_planner(&mut context, Arc::new(functions::json::Operators))?;
    context.register_udf(recursive::mark());
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_version_or_a_time() {
        let time = |text: &str| Moment::Time(DateTime::parse_from_rfc3339(text).unwrap().to_utc());
        for (text, moment) in [
            ("0", Moment::Version(0)),
            ("2026-11-20", time("2026-11-20T00:00:00Z")),
            ("2026-11-20 15:04", time("2026-11-20T15:04:00Z")),
            ("2026-11-20T15:04:05.5", time("2026-11-20T15:04:05.500Z")),
            ("2026-11-20T15:04:05+02:00", time("2026-11-20T13:04:05Z")),
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        for wrong in ["", "-1", "yesterday", "2026-13-01", "99999999999999999999"] {
            assert!(wrong.parse::<Moment>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rows_that_a_foreign_log_states_do_not_overflow() {
        let limits = Limits::default().for_rows_of([(u64::MAX, 1), (u64::MAX, u64::MAX)]);
        assert_eq!(limits.batch_rows, BATCH_ROWS);
        let limits = Limits::default().for_rows_of([(1, u64::MAX), (0, u64::MAX)]);
        assert_eq!(limits.batch_rows, BATCH_ROWS_MIN);
    }
}
