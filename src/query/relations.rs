//! The tables and views of a session, loaded when a statement first names them.
//!
//! A statement names tables and views; views build on others ([`closure`]). Only the tables below them are loaded. A
//! statement that names none, such as `select 1`, only checks that the lake exists.
//!
//! **Invariant: all tables that a session has loaded were loaded together.** A statement that names another one loads
//! all of them anew, before it is planned. So no statement sees tables of two moments.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionContext, col, lit};
use datafusion::sql::parser::Statement;
use deltalake::DeltaTable;
use futures::future::join_all;
use tokio::sync::{Mutex, MutexGuard};

use super::changes::{Changes, View};
use super::reading::{self, Reading};
use super::state::{REBUILD, Resolved};
use super::views::{self, VIEWS};
use super::{Limits, Moment, QueryError, Scope, UserError};
use crate::lake::expired::Expired;
use crate::lake::past::{self, Past};
use crate::lake::{LakeError, Store, snapshot};
use crate::schema::Table;

/// The view of the latest change of each key, which no SQL defines.
pub(super) const KEY_STATE: &str = "key_state";
/// The view that compares all rows.
const RESOLVED: &str = "resolved";

/// Names of tables and views.
pub(super) type Names = BTreeSet<&'static str>;

/// What a session has loaded.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    names: Names,
    /// Whether the lake was seen to exist.
    is_lake: bool,
    tables: Vec<(Table, DeltaTable)>,
}

impl Loaded {
    /// Returns those of these tables that were loaded and have been written.
    pub(super) fn of<const N: usize>(&self, wanted: [Table; N]) -> impl Iterator<Item = &(Table, DeltaTable)> {
        self.tables.iter().filter(move |(table, _)| wanted.contains(table))
    }
}

/// The tables and views of one lake, for one session.
pub(super) struct Relations {
    context: SessionContext,
    lake: Store,
    scope: Scope,
    has_shortcuts: bool,
    group_rows: u64,
    loaded: Mutex<Loaded>,
}

/// Tables as they were loaded together.
struct Tables {
    reading: Option<Reading>,
    /// The other tables; `None` if nobody has written the table yet.
    others: Vec<(Table, Option<DeltaTable>)>,
    /// What has left by retention, if a view is named that needs all rows.
    expired: Expired,
}

impl Tables {
    /// Returns the tables that have been written.
    fn known(&self) -> Vec<(Table, DeltaTable)> {
        let others = self.others.iter().filter_map(|(table, loaded)| Some((*table, loaded.clone()?)));
        let records = self.reading.iter().map(|reading| (Table::SyncRecords, reading.sync_records.clone()));
        let state = self.reading.iter().filter_map(|reading| reading.state.as_ref());
        let mut known: Vec<_> = records.chain(state.map(|state| (Table::State, state.table.clone()))).collect();
        for other in others {
            if known.iter().all(|(table, _)| *table != other.0) {
                known.push(other);
            }
        }
        known
    }
}

impl Relations {
    pub(super) fn new(context: SessionContext, lake: &Store, limits: &Limits, scope: Scope) -> Self {
        let (has_shortcuts, group_rows) = (limits.has_shortcuts, limits.group_rows);
        Self { context, lake: lake.clone(), scope, has_shortcuts, group_rows, loaded: Mutex::default() }
    }

    pub(super) fn lake(&self) -> &Store {
        &self.lake
    }

    /// Loads what is named and not loaded yet. As long as the answer is held, nobody loads anything else.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub(super) async fn ensure(
        &self,
        names: Names,
        session: &SessionState,
    ) -> Result<MutexGuard<'_, Loaded>, QueryError> {
        let mut loaded = self.loaded.lock().await;
        let wanted = closure(names, session)?;
        if !wanted.is_subset(&loaded.names) {
            let together: Names = wanted.union(&loaded.names).copied().collect();
            let tables = self.load(&together).await?;
            // A failure leaves nothing that counts as loaded.
            *loaded = Loaded::default();
            for name in all() {
                self.context.deregister_table(name)?;
            }
            let known = tables.known();
            self.register(&together, tables).await?;
            *loaded = Loaded { names: together, is_lake: true, tables: known };
        } else if !loaded.is_lake {
            self.check_that_lake_exists().await?;
            loaded.is_lake = true;
        }
        Ok(loaded)
    }

    /// Returns the number of files below these tables and views, and their bytes.
    ///
    /// # Errors
    /// The log of a table cannot be read.
    pub(super) async fn files(&self, names: Names, session: &SessionState) -> Result<(u64, u64), QueryError> {
        let loaded = self.ensure(names.clone(), session).await?;
        let below = closure(names, session)?;
        let (mut files, mut bytes) = (0, 0);
        for (table, known) in &loaded.tables {
            let is_below = below.contains(table.name()) || (*table == Table::State && below.contains(KEY_STATE));
            if is_below {
                let add = |file: snapshot::ListedFile| {
                    files += 1;
                    bytes += file.size;
                };
                snapshot::visit_files(&table.store(&self.lake), known, add).await?;
            }
        }
        Ok((files, bytes))
    }

    async fn check_that_lake_exists(&self) -> Result<(), LakeError> {
        match Table::SyncRecords.exists(&self.lake).await? {
            true => Ok(()),
            false => Err(LakeError::NoLake(self.lake.to_string())),
        }
    }

    /// Loads the newest versions of the tables among these names, concurrently.
    async fn load(&self, names: &Names) -> Result<Tables, LakeError> {
        let wants = |table: Table| names.contains(table.name());
        let versions = Versions::read(&self.lake, self.scope.at).await?;
        let is_all = self.scope.as_of.is_none();
        // The maintained state is that of now.
        let is_now = is_all && self.scope.at.is_none();
        // `sync_records` and the state must fit each other wherever both are read.
        let is_paired = is_now && (names.contains(KEY_STATE) || (wants(Table::State) && wants(Table::SyncRecords)));
        let reading = async {
            match (wants(Table::SyncRecords), is_paired) {
                (true, true) => Reading::load(&self.lake).await.map(Some),
                (true, false) => Reading::of_records(&self.lake, versions.of(Table::SyncRecords)).await.map(Some),
                (false, _) => self.check_that_lake_exists().await.map(|()| None),
            }
        };
        let is_alone = |table: Table| match table {
            Table::SyncRecords => false,
            Table::State => is_all && !is_paired,
            Table::DailyState => true,
            // They do not know `--as-of`.
            Table::Quarantine | Table::Gaps => is_all,
        };
        let others = Table::ALL.into_iter().filter(|table| wants(*table) && is_alone(*table));
        let versions = &versions;
        let others = others.map(|table| async move {
            match versions.is_absent(table) {
                true => (table, Ok(None)),
                false => (table, table.load(&self.lake, versions.of(table)).await),
            }
        });
        // All loads run to their end, because deltalake's threads misbehave when a load is dropped.
        let (reading, others) = futures::join!(reading, join_all(others));
        let reading = reading?;
        // Neither the view of all rows nor the state of an earlier day can use the maintained state.
        let expired = match names.contains(RESOLVED) || (!is_now && names.contains(KEY_STATE)) {
            true => Expired::read(&Table::SyncRecords.store(&self.lake)).await?,
            false => Expired::default(),
        };
        let others = others.into_iter().map(|(table, loaded)| loaded.map(|loaded| (table, loaded)));
        let mut others = others.collect::<Result<Vec<_>, _>>()?;
        if is_paired && wants(Table::State) {
            let read = reading.as_ref().and_then(|reading| reading.state.as_ref());
            others.push(match read {
                // `key_state` reads this version; a second load could return a newer one.
                Some(state) => (Table::State, Some(state.table.clone())),
                None => (Table::State, Table::State.load(&self.lake, None).await?),
            });
        }
        Ok(Tables { reading, others, expired })
    }

    async fn register(&self, names: &Names, tables: Tables) -> Result<(), QueryError> {
        let context = &self.context;
        let plain = reading::for_sorting(&context.state());
        if let Some(reading) = &tables.reading {
            self.register_records(names, reading, &tables.expired).await?;
        }
        for (table, loaded) in tables.others {
            let mut provider: Arc<dyn TableProvider> = match loaded {
                Some(loaded) => reading::provider(&loaded, &plain).await?,
                // A table that nobody has written yet is empty, not missing.
                None => Arc::new(MemTable::try_new(table.query_schema(), vec![Vec::new()])?),
            };
            if let (Table::DailyState, Some(day)) = (table, self.scope.as_of) {
                let known = context.read_table(provider)?.filter(col("extract_date").lt_eq(lit(day_literal(day))))?;
                provider = known.into_view();
            }
            context.register_table(table.name(), provider)?;
        }
        if self.scope.as_of.is_some() {
            for table in Table::ALL.into_iter().filter(|table| names.contains(table.name())) {
                if let Some(remedy) = as_of_remedy(table) {
                    let message = format!("--as-of does not apply to {}; {remedy}", table.name());
                    let missing = Refused { schema: table.schema(), message };
                    context.register_table(table.name(), Arc::new(missing))?;
                }
            }
        }
        let shortcuts = tables.reading.as_ref().filter(|_| self.has_shortcuts && self.scope.as_of.is_none());
        for (name, ..) in VIEWS.into_iter().filter(|(name, ..)| names.contains(name)) {
            views::register(context, &[name]).await?;
            // At once, because views that build on this one keep the relation that they find.
            let shortcut = View::ALL.into_iter().find(|view| view.name() == name);
            if let (Some(reading), Some(view)) = (shortcuts, shortcut)
                && let Some(defined) = context.deregister_table(name)?
            {
                // The schema is that of the definition in SQL.
                let (records, schema) = (reading.sync_records.clone(), defined.schema());
                let table = Changes::new(view, records, &self.lake, schema, self.group_rows);
                context.register_table(name, Arc::new(table))?;
            }
        }
        if !tables.expired.is_empty()
            && let Some(defined) = context.deregister_table(RESOLVED)?
        {
            let remedy = "query key_state for the latest change of each key, or changes for the changes that are left";
            self.refuse(RESOLVED, defined.schema(), &tables.expired.refusal("the view resolved", remedy))?;
        }
        Ok(())
    }

    /// Registers `sync_records`, and `key_state` if it is named.
    async fn register_records(&self, names: &Names, reading: &Reading, expired: &Expired) -> Result<(), QueryError> {
        let context = &self.context;
        let state = context.state();
        let mut records = reading::provider(&reading.sync_records, &reading::for_sorting(&state)).await?;
        if let Some(day) = self.scope.as_of {
            let known = context.read_table(records)?.filter(col("event_date").lt_eq(lit(day_literal(day))))?;
            records = known.into_view();
        }
        context.register_table(Table::SyncRecords.name(), records.clone())?;
        if !names.contains(KEY_STATE) {
            return Ok(());
        }
        let past = match self.scope {
            Scope { as_of: Some(day), .. } => Some((format!("the state of {day}"), "--as-of")),
            Scope { at: Some(at), .. } => Some((format!("the state at {at}"), "--at")),
            Scope { at: None, as_of: None } => None,
        };
        if let Some((answer, flag)) = past.filter(|_| !expired.is_empty()) {
            let remedy = format!("leave {flag} out, or query daily_extract, which has the state of each extracted day");
            let schema = Resolved::new(None, None, REBUILD).schema();
            return self.refuse(KEY_STATE, schema, &expired.refusal(&answer, &remedy));
        }
        let tail = match self.scope.as_of {
            Some(_) => Some(records),
            None => reading.tail(&state).await?,
        };
        if let Some(why) = reading.refusal() {
            let schema = Resolved::new(None, None, REBUILD).schema();
            return self.refuse(KEY_STATE, schema, &why);
        }
        let maintained = match &reading.state {
            Some(maintained) => Some(reading::provider(&maintained.table, &state).await?),
            None => None,
        };
        context.register_table(KEY_STATE, Arc::new(Resolved::new(tail, maintained, REBUILD)))?;
        Ok(())
    }

    /// Registers a relation that has no right answer.
    fn refuse(&self, name: &str, schema: SchemaRef, why: &LakeError) -> Result<(), QueryError> {
        self.context.register_table(name, Arc::new(Refused { schema, message: why.to_string() }))?;
        Ok(())
    }
}

/// Versions of the tables at one moment.
#[derive(Debug, Default)]
struct Versions(Vec<(Table, Past)>);

impl Versions {
    /// Finds the versions at a moment; `None` stands for the newest ones.
    ///
    /// # Errors
    /// A log cannot be read, or does not reach back to that moment; or there was no lake.
    async fn read(lake: &Store, at: Option<Moment>) -> Result<Self, LakeError> {
        let Some(at) = at else { return Ok(Self::default()) };
        let records = Table::SyncRecords.store(lake);
        let no_lake = || LakeError::NoLake(lake.to_string());
        let time = match at {
            Moment::Time(time) => time,
            Moment::Version(version) => past::time_at(&records, version).await?.ok_or_else(no_lake)?,
        };
        let mut found = Vec::new();
        for table in Table::ALL {
            let past = match (table, at) {
                (Table::SyncRecords, Moment::Version(version)) => Some(Past::Version(version)),
                _ => past::version_at(&table.store(lake), time).await?,
            };
            found.extend(past.map(|past| (table, past)));
        }
        let versions = Self(found);
        match versions.is_absent(Table::SyncRecords) {
            true => Err(LakeError::Invalid(format!("there was no lake at {at}: {records} was created later"))),
            false => Ok(versions),
        }
    }

    /// Returns the version of a table; `None` for the newest one.
    fn of(&self, table: Table) -> Option<u64> {
        self.0.iter().find_map(|(of, past)| match past {
            Past::Version(version) if *of == table => Some(*version),
            _ => None,
        })
    }

    /// Returns whether a table did not exist yet.
    fn is_absent(&self, table: Table) -> bool {
        self.0.contains(&(table, Past::Before))
    }
}

/// Returns the names of all tables and views.
pub(super) fn all() -> Names {
    let tables = Table::ALL.map(Table::name);
    tables.into_iter().chain([KEY_STATE]).chain(VIEWS.map(|(name, ..)| name)).collect()
}

/// Returns the table or view of this name.
pub(super) fn known(name: &str) -> Option<&'static str> {
    all().into_iter().find(|known| *known == name)
}

/// Returns the tables and views that a statement names. The information schema names all of them.
pub(super) fn named(statement: &Statement, session: &SessionState) -> Names {
    // A name that cannot be resolved is reported by the planner.
    let references = session.resolve_table_references(statement).unwrap_or_default();
    if references.is_empty() {
        return Names::new();
    }
    if references.iter().any(|reference| reference.schema() == Some("information_schema")) {
        return all();
    }
    all().into_iter().filter(|name| references.iter().any(|reference| reference.table() == *name)).collect()
}

/// Adds the tables and views on which the named ones build.
fn closure(names: Names, session: &SessionState) -> Result<Names, DataFusionError> {
    let mut found = Names::new();
    let mut waiting: Vec<&'static str> = names.into_iter().collect();
    while let Some(name) = waiting.pop() {
        if !found.insert(name) {
            continue;
        }
        if name == KEY_STATE {
            waiting.push(Table::SyncRecords.name());
        }
        if let Some((_, definition, _)) = VIEWS.into_iter().find(|(view, ..)| *view == name) {
            let dialect = session.config_options().sql_parser.dialect;
            waiting.extend(named(&session.sql_to_statement(definition, &dialect)?, session));
        }
    }
    Ok(found)
}

/// Returns what to do in place of a query of this table with `--as-of`, or `None` if the table has the server's dates.
fn as_of_remedy(table: Table) -> Option<&'static str> {
    match table {
        Table::SyncRecords | Table::DailyState => None,
        Table::State => Some("query key_state, which is computed for that day"),
        Table::Quarantine => Some("its records have no server date; leave --as-of out, and filter by arrived_date"),
        Table::Gaps => Some("leave --as-of out, and filter by arrived_from"),
    }
}

/// A relation that has no right answer. Only a statement that reads it fails.
#[derive(Debug)]
struct Refused {
    schema: SchemaRef,
    message: String,
}

#[async_trait::async_trait]
impl TableProvider for Refused {
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
        Err(UserError(self.message.clone()).into())
    }
}

fn day_literal(day: NaiveDate) -> datafusion::scalar::ScalarValue {
    let days = day.signed_duration_since(NaiveDate::default()).num_days();
    datafusion::scalar::ScalarValue::Date32(i32::try_from(days).ok())
}
