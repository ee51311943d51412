//! The views `changes`, `daily_changes`, `daily_datasets` and `daily_identities`, without a sort of the whole table.
//!
//! A change and its copies have the same pool and date, so they are in one partition of `sync_records`. The scan
//! gathers whole partitions into groups, sorts each group (`group`), and compares neighbours (`runs`). A sort holds one
//! group per thread. A group that is larger than the memory is sorted by a plan that spills, and reduced while its rows
//! arrive (`spilled`).
//!
//! A row of a file in which copies were collapsed stands for as many rows as its column `copies` says.
//!
//! The definitions in `sql/views` have the same rows. They are used where this is not (`--as-of`, other engines). The
//! random queries compare both for the first two views, the files of `tests/it/sql` for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use deltalake::DeltaTable;

use super::reading;
use super::recheck::{is_plain_on, pushed_down};
use super::state::order::ORDER;
use super::state::unqualified;
use crate::lake::snapshot::{self, ActiveFile};
use crate::lake::{LakeError, Store};
use crate::schema::{COPIES, Table};

mod exec;
mod group;
mod runs;
mod spilled;

use exec::{Counted, RunsExec, Shown};
use group::{Files, Group, Scan};
use runs::{Count, Runs};

/// Columns whose values identify a key of a day. Sorted by them, the changes of a key of a day are neighbours.
const KEY_OF_A_DAY: [&str; 5] = ["pool", "event_date", "identity_id", "dataset_name", "key"];
/// Columns in which copies of a change agree, beside those of the key.
const OF_A_COPY: [&str; 3] = ["sync_count", "op", "value"];
/// Rows of a group of partitions, if no test wants fewer.
pub(super) const GROUP_ROWS: u64 = 250_000;
/// Bytes of the files of a group.
const GROUP_BYTES: u64 = 32 << 20;

/// Which of the views a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Each change once.
    Changes,
    /// The last change of each key on each day.
    DailyChanges,
    /// The number of changes of each dataset on each day.
    DailyDatasets,
    /// The number of datasets and changes of each identity on each day.
    DailyIdentities,
}

impl View {
    /// All views.
    pub(crate) const ALL: [Self; 4] = [Self::Changes, Self::DailyChanges, Self::DailyDatasets, Self::DailyIdentities];

    /// Returns the name of the view.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::DailyChanges => "daily_changes",
            Self::DailyDatasets => "daily_datasets",
            Self::DailyIdentities => "daily_identities",
        }
    }

    /// Returns the columns that count.
    fn counted(self) -> &'static [Counted] {
        match self {
            Self::Changes => &[("copies", Count::sum)],
            Self::DailyChanges => &[("changes_in_day", Count::rows)],
            Self::DailyDatasets => &[("changes", Count::rows)],
            Self::DailyIdentities => &[("datasets", Count::rows), ("changes", Count::sum)],
        }
    }

    fn steps(self) -> Vec<Runs> {
        match self {
            Self::Changes => vec![Runs::Copies],
            Self::DailyChanges => vec![Runs::Copies, Runs::OfADay],
            Self::DailyDatasets => vec![Runs::Copies, Runs::OfADataset],
            Self::DailyIdentities => vec![Runs::Copies, Runs::OfADataset, Runs::OfAnIdentity],
        }
    }

    /// Returns whether a filter on this column selects whole groups of copies, or all changes of a key, dataset or
    /// identity.
    fn is_filterable(self, column: &str) -> bool {
        let of_key = KEY_OF_A_DAY.contains(&column) || column == "identity_pool_id";
        of_key || (self == Self::Changes && OF_A_COPY.contains(&column))
    }
}

/// One of the views over `sync_records`.
#[derive(Debug)]
pub(crate) struct Changes {
    view: View,
    records: DeltaTable,
    store: Store,
    schema: SchemaRef,
    group_rows: u64,
}

impl Changes {
    /// Creates the view over a loaded `sync_records`. `schema` is that of its definition in SQL.
    pub(crate) fn new(view: View, records: DeltaTable, lake: &Store, schema: SchemaRef, group_rows: u64) -> Self {
        Self { view, records, store: Table::SyncRecords.store(lake), schema, group_rows }
    }

    /// Returns whether a row may stand for several: only then is the column read that says it.
    fn has_copies(&self) -> Result<bool> {
        let snapshot = self.records.snapshot().map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(snapshot.schema().field(COPIES).is_some())
    }

    /// Returns the columns that a scan reads: those that it compares, then those that are wanted. Also returns whether it
    /// reads those of the order.
    fn columns(&self, wanted: &Schema, has_copies: bool) -> (Vec<String>, bool) {
        let mut names: Vec<&str> = KEY_OF_A_DAY.into_iter().chain(OF_A_COPY).collect();
        let wanted = wanted.fields().iter().map(|field| field.name().as_str());
        let is_count = |name: &str| self.view.counted().iter().any(|(counted, _)| *counted == name);
        let is_counted = wanted.clone().any(is_count);
        let wanted = wanted.filter(|name| !is_count(name));
        let has_order = match self.view {
            // Copies agree in the compared columns. If nothing else is wanted, it does not matter which of them stays.
            View::Changes => wanted.clone().any(|name| !names.contains(&name)),
            View::DailyChanges => true,
            View::DailyDatasets | View::DailyIdentities => false,
        };
        // Only the first step counts them.
        names.extend((has_copies && is_counted && self.view == View::Changes).then_some(COPIES));
        let order = ORDER.into_iter().filter(|_| has_order);
        for name in order.chain(wanted) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        (names.into_iter().map(str::to_owned).collect(), has_order)
    }
}

/// Gathers the files of whole partitions into groups of at most `rows_max` rows.
fn groups(files: Vec<ActiveFile>, rows_max: u64) -> Vec<Files> {
    let mut partitions: BTreeMap<[Option<String>; 2], Files> = BTreeMap::new();
    for file in files {
        let value = |name: &str| file.partition.get(name).cloned().flatten();
        let (rows, bytes) = file.rows_and_bytes();
        let file = Files { paths: BTreeSet::from([file.path.clone()]), rows, bytes };
        partitions.entry([value("pool"), value("event_date")]).or_default().extend(file);
    }
    let mut groups = Vec::<Files>::new();
    for partition in partitions.into_values() {
        match groups.last_mut().filter(|group| group.has_room_for(&partition, rows_max)) {
            Some(group) => group.extend(partition),
            None => groups.push(partition),
        }
    }
    groups
}

/// Keeps the files whose partition values may pass the filters. A filter that cannot be evaluated here keeps all.
fn pruned(files: Vec<ActiveFile>, filters: &[Expr], session: &SessionState) -> Vec<ActiveFile> {
    let is_of_partition = |filter: &&Expr| {
        let columns = filter.column_refs();
        !columns.is_empty() && columns.iter().all(|column| ["pool", "event_date"].contains(&column.name.as_str()))
    };
    let Some(filter) = filters.iter().filter(is_of_partition).cloned().reduce(Expr::and) else { return files };
    let Ok(kept) = passing(&files, filter, session) else { return files };
    files.into_iter().zip(kept).filter_map(|(file, is_kept)| is_kept.then_some(file)).collect()
}

/// Evaluates a filter on the partition values of files.
fn passing(files: &[ActiveFile], filter: Expr, session: &SessionState) -> Result<Vec<bool>> {
    let value = |file: &ActiveFile, name: &str| file.partition.get(name).cloned().flatten();
    let pools: StringArray = files.iter().map(|file| value(file, "pool")).collect();
    let dates: StringArray = files.iter().map(|file| value(file, "event_date")).collect();
    let dates = cast(&dates, &DataType::Date32)?;
    let schema = Arc::new(Schema::new(vec![
        Field::new("pool", DataType::Utf8, true),
        Field::new("event_date", DataType::Date32, true),
    ]));
    let values = RecordBatch::try_new(schema.clone(), vec![Arc::new(pools) as ArrayRef, dates])?;
    let filter = session.create_physical_expr(filter, &DFSchema::try_from(schema)?)?;
    let kept = filter.evaluate(&values)?.into_array(files.len())?;
    let kept = kept.as_boolean_opt().ok_or_else(|| DataFusionError::Internal("a filter is no condition".to_owned()))?;
    Ok((0..files.len()).map(|row| kept.is_valid(row) && kept.value(row)).collect())
}

#[async_trait::async_trait]
impl TableProvider for Changes {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(pushed_down(filters, |column| self.view.is_filterable(column)))
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => self.schema.clone(),
        };
        let session = session.as_any().downcast_ref::<SessionState>();
        let session = session.ok_or_else(|| DataFusionError::Internal("a session of another kind".to_owned()))?;
        let threads = session.config().target_partitions();
        let mut session = reading::for_sorting(session);
        session.config_mut().options_mut().execution.target_partitions = 1;
        let is_whole = |filter: &&Expr| is_plain_on(filter, |column| self.view.is_filterable(column));
        let filters: Vec<Expr> = filters.iter().filter(is_whole).map(unqualified).collect::<Result<_>>()?;
        let fail = |error: LakeError| DataFusionError::External(Box::new(error));
        let files = snapshot::files(&self.store, &self.records).await.map_err(fail)?;
        let files = pruned(files, &filters, &session);
        let filter = filters.into_iter().reduce(Expr::and);
        let (names, has_order) = self.columns(&schema, self.has_copies()?);
        let scan = Arc::new(Scan { records: self.records.clone(), session, names, has_order, filter });
        let groups = groups(files, self.group_rows).into_iter();
        let inputs = groups.map(|files| Group { files, scan: scan.clone() }).collect();
        let shown = Shown { schema, counted: self.view.counted() };
        Ok(Arc::new(RunsExec::new(inputs, self.view.steps(), shown, threads)))
    }
}
