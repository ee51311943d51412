//! The latest change of every key, computed by ranges of identities.
//!
//! All changes of a dataset have one pool and one identity, so a range of identities of a pool is resolved alone. Its
//! rows are sorted in memory ([`SortedRows`]), and neighbours are compared: no hash table holds all keys, and the result
//! is sorted. A range that does not fit into memory is resolved by the aggregate.
//!
//! A plan reads no data: the ranges are chosen when it runs, from the identities of the largest file.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{self, Expr, LogicalPlan, LogicalPlanBuilder, col, lit};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use deltalake::DeltaTable;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::boundary::Boundary;
use super::order::{RowOrder, column};
use super::{Resolved, counts, needed};
use crate::lake::snapshot::ActiveFile;
use crate::query::reading;
use crate::query::sorted::{At, SortedRows};
use crate::schema::Table;

/// Rows of a range, as the log counts them.
const RANGE_ROWS: u64 = 200_000;
/// Files that all ranges together open.
const OPENED_MAX: u64 = 20_000;
/// Identities that are looked at for each bound between ranges.
const SAMPLES: u64 = 64;
/// The files with the rows of one pool.
#[derive(Debug)]
pub(super) struct PoolRows {
    records: DeltaTable,
    /// Files of `sync_records`.
    changes: BTreeSet<String>,
    /// The maintained state, and some of its files.
    state: Option<(DeltaTable, BTreeSet<String>)>,
    /// The filter of the rows of the state that count; `None` if all of them count.
    only: Option<Expr>,
    rows: u64,
    /// The file of `sync_records` with the most rows.
    largest: Option<(u64, String)>,
}

impl PoolRows {
    /// Gathers files of one pool.
    pub(super) fn new<'a>(
        records: DeltaTable,
        changes: impl Iterator<Item = &'a ActiveFile>,
        state: Option<(DeltaTable, Vec<&'a ActiveFile>)>,
    ) -> Self {
        let mut made = Self { records, changes: BTreeSet::new(), state: None, only: None, rows: 0, largest: None };
        for file in changes {
            let (rows, _) = file.rows_and_bytes();
            made.rows = made.rows.saturating_add(rows);
            made.largest = made.largest.take().max(Some((rows, file.path.clone())));
            made.changes.insert(file.path.clone());
        }
        if let Some((table, files)) = state.filter(|(_, files)| !files.is_empty()) {
            let rows = files.iter().map(|file| file.rows_and_bytes().0);
            made.rows = rows.fold(made.rows, u64::saturating_add);
            made.state = Some((table, files.into_iter().map(|file| file.path.clone()).collect()));
        }
        made
    }

    /// Takes only some rows of the state.
    pub(super) fn only(self, only: Option<Expr>) -> Self {
        Self { only, ..self }
    }

    /// Returns the rows that a range has so that not too many files are opened.
    fn range_rows(&self) -> u64 {
        (self.rows.saturating_mul(self.changes.len() as u64) / OPENED_MAX).max(RANGE_ROWS)
    }

    /// Chooses ranges of about equal numbers of rows, in order.
    async fn ranges(&self, rows_of_range: u64, session: &SessionState) -> Result<Vec<Range>> {
        let count = self.rows.div_ceil(rows_of_range.max(1));
        let mut found = match &self.largest {
            Some((rows, path)) if count > 1 => self.identities(path, rows / (SAMPLES * count), session).await?,
            _ => Vec::new(),
        };
        found.sort_unstable();
        let bound = |n: u64| found.get((n as usize).saturating_mul(found.len()) / count as usize).cloned();
        let mut bounds: Vec<String> = (1..count).filter_map(bound).collect();
        bounds.dedup();
        let lows = std::iter::once(None).chain(bounds.iter().cloned().map(Some));
        let highs = bounds.iter().cloned().map(Some).chain([None]);
        Ok(lows.zip(highs).map(|(low, high)| Range { low, high }).collect())
    }

    /// Returns identities of a file, some rows apart.
    async fn identities(&self, path: &str, apart: u64, session: &SessionState) -> Result<Vec<String>> {
        let file = BTreeSet::from([path.to_owned()]);
        let Some(file) = reading::files_of(&self.records, session, &file).await? else { return Ok(Vec::new()) };
        let identities = LogicalPlanBuilder::scan("sync_records", provider_as_source(file), None)?
            .project([plain("identity_id")])?
            .build()?;
        let plan = session.create_physical_plan(&identities).await?;
        let mut batches = execute_stream(plan, session.task_ctx())?;
        let (mut found, mut skipped) = (Vec::new(), 0);
        while let Some(batch) = batches.try_next().await? {
            for identity in batch.column(0).as_string::<i32>().iter().flatten() {
                skipped += 1;
                if skipped > apart {
                    found.push(identity.to_owned());
                    skipped = 0;
                }
            }
        }
        Ok(found)
    }
}

/// A range of identities, from `low` to below `high`. The first one also has the rows without an identity.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub low: Option<String>,
    pub high: Option<String>,
}

impl Range {
    fn filter(&self) -> Option<Expr> {
        let identity = || col("identity_id");
        let low = self.low.as_ref().map(|low| identity().gt_eq(lit(low.as_str())));
        let high = self.high.as_ref().map(|high| identity().lt(lit(high.as_str())));
        match (low, high) {
            (Some(low), Some(high)) => Some(low.and(high)),
            (None, Some(high)) => Some(high.or(identity().is_null())),
            (low, None) => low,
        }
    }

    /// Resolves the rows of one pool in this range. Returns them sorted by identity, dataset and key, nulls first.
    pub(super) async fn resolved(
        &self,
        parts: Resolved,
        wanted: Arc<Wanted>,
        context: Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let filter = self.filter().into_iter().chain(wanted.filter.clone()).reduce(Expr::and);
        let plans = plans(&parts, &wanted, filter.as_ref()).await?;
        let schema = wanted.schema.clone();
        if let Some(rows) = SortedRows::read(&plans, &[], &context).await? {
            return Ok(Latest::of(&rows)?.batches(rows, schema, context.session_config().batch_size()));
        }
        const ORDER: [&str; 3] = ["identity_id", "dataset_name", "key"];
        let mut names = wanted.names();
        names.extend(ORDER.into_iter().filter(|name| !wanted.names().contains(name)));
        let rows = LogicalPlanBuilder::from(parts.plan(&names, filter.as_ref())?);
        let rows = rows.sort(ORDER.map(|name| col(name).sort(true, true)).to_vec())?.build()?;
        let rows = execute_stream(wanted.session.create_physical_plan(&rows).await?, context)?;
        Ok(rows.and_then(move |rows| std::future::ready(show(&rows, &schema))).boxed())
    }
}

/// Returns a column in the type in which it is sorted: text as plain text.
fn plain(name: &str) -> Expr {
    match Table::State.schema().field_with_name(name).map(Field::data_type) {
        Ok(DataType::Utf8) => logical_expr::cast(col(name), DataType::Utf8).alias(name),
        _ => col(name),
    }
}

/// What is wanted of every range.
#[derive(Debug)]
pub(super) struct Wanted {
    pub schema: SchemaRef,
    /// A filter on pools, if there is one.
    pub filter: Option<Expr>,
    /// The advice in errors of reading the maintained state.
    pub remedy: String,
    /// The session that plans and reads, with one partition and plain text.
    session: SessionState,
}

impl Wanted {
    pub(super) fn new(schema: SchemaRef, filter: Option<Expr>, remedy: String, session: &SessionState) -> Self {
        let mut session = reading::for_sorting(session);
        session.config_mut().options_mut().execution.target_partitions = 1;
        Self { schema, filter, remedy, session }
    }

    fn names(&self) -> Vec<&str> {
        self.schema.fields().iter().map(|field| field.name().as_str()).collect()
    }

    /// Returns the ranges of a pool, in order.
    pub(super) async fn ranges_of(&self, pool: &Arc<PoolRows>) -> Result<Vec<RangeOfPool>> {
        let ranges = pool.ranges(pool.range_rows(), &self.session).await?;
        Ok(ranges.into_iter().map(|range| RangeOfPool { pool: pool.clone(), range }).collect())
    }
}

/// A range of identities of one pool.
#[derive(Debug, Clone)]
pub(super) struct RangeOfPool {
    pool: Arc<PoolRows>,
    range: Range,
}

impl RangeOfPool {
    /// Resolves the rows of the range ([`Range::resolved`]).
    pub(super) async fn resolved(
        self,
        wanted: Arc<Wanted>,
        context: Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let changes = reading::files_of(&self.pool.records, &wanted.session, &self.pool.changes).await?;
        let state = match &self.pool.state {
            Some((table, files)) => reading::files_of(table, &wanted.session, files).await?,
            None => None,
        };
        let state = match (state, &self.pool.only) {
            (Some(state), Some(only)) => Some(reading::filtered(state, only.clone())?),
            (state, _) => state,
        };
        self.range.resolved(Resolved::new(changes, state, wanted.remedy.clone()), wanted, context).await
    }
}

/// Plans the reading of the rows of a range, as they lie in the files. Only errors of reading the state get the advice to
/// rebuild it.
async fn plans(parts: &Resolved, wanted: &Wanted, filter: Option<&Expr>) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
    let names = wanted.names();
    let columns = needed(&names).into_iter().filter(|name| *name != "is_after_removal");
    let columns: Vec<Expr> = columns.map(plain).collect();
    let of_state = parts.state.as_ref().map(|state| (state, None, Some(Arc::from(wanted.remedy.as_str()))));
    let of_tail = parts.tail.as_ref().map(|tail| (tail, Some(counts()), None));
    let mut plans = Vec::new();
    for (table, counts, remedy) in of_state.into_iter().chain(of_tail) {
        let mut rows = LogicalPlanBuilder::scan("rows", provider_as_source(table.clone()), None)?;
        if let Some(filter) = counts.into_iter().chain(filter.cloned()).reduce(Expr::and) {
            rows = rows.filter(filter)?;
        }
        let rows: LogicalPlan = rows.project(columns.clone())?.build()?;
        let rows = wanted.session.create_physical_plan(&rows).await?;
        plans.push(if remedy.is_some() { Arc::new(Boundary::new(rows, remedy)) } else { rows });
    }
    Ok(plans)
}

/// The latest row of each key of sorted rows, and of the removals of each dataset.
struct Latest {
    rows: Vec<At>,
    /// Whether the row comes after the removals of its dataset.
    is_after_removal: Vec<bool>,
}

impl Latest {
    fn of(sorted: &SortedRows) -> Result<Self> {
        let columns = sorted.columns();
        let orders = sorted.batches.iter().map(RowOrder::of).collect::<Result<Vec<_>>>()?;
        let order = |at: &At| (&orders[at.batch as usize], at.row as usize);
        let later = |a: &&At, b: &&At| {
            let ((of_a, a), (of_b, b)) = (order(a), order(b));
            of_a.compare(a, of_b, b)
        };
        let (mut rows, mut is_after_removal) = (Vec::new(), Vec::new());
        let mut removal = None;
        let mut rest = sorted.order.as_slice();
        let mut before: Option<At> = None;
        while let Some(&first) = rest.first() {
            if before.is_none_or(|before| !columns.is_same_dataset(before, first)) {
                removal = None;
            }
            let is_same = |row: &&At| columns.is_same_key(first, **row);
            let (run, others) = rest.split_at(1 + rest[1..].iter().take_while(is_same).count());
            let latest = run.iter().max_by(later).copied().unwrap_or(first);
            let (of_latest, row) = order(&latest);
            let moment = of_latest.prefix(row).moment();
            // The removals have no key, so they come first.
            if columns.has_key(first) {
                is_after_removal.push(removal.is_none_or(|removal| moment > removal));
            } else {
                removal = Some(moment);
                is_after_removal.push(false);
            }
            rows.push(latest);
            (rest, before) = (others, Some(first));
        }
        Ok(Self { rows, is_after_removal })
    }

    /// Returns the rows as batches that share no memory with each other.
    fn batches(
        self,
        sorted: SortedRows,
        schema: SchemaRef,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let starts = (0..self.rows.len()).step_by(batch_rows);
        let batch = move |start: usize| {
            let chosen = start..self.rows.len().min(start + batch_rows);
            let rows = &self.rows[chosen.clone()];
            let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
            let columns = schema.fields().iter().map(|field| -> Result<ArrayRef> {
                if field.name() == "is_after_removal" {
                    return Ok(Arc::new(BooleanArray::from(self.is_after_removal[chosen.clone()].to_vec())));
                }
                Ok(cast(&sorted.values(field.name(), rows)?, field.data_type())?)
            });
            Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect::<Result<Vec<_>>>()?, &options)?)
        };
        futures::stream::iter(starts).map(batch).boxed()
    }
}

/// Returns the columns of `schema`.
fn show(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let columns = schema.fields().iter().map(|field| Ok(cast(column(rows, field.name())?, field.data_type())?));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect::<Result<Vec<_>>>()?, &options)?)
}

/// Batches of a range that wait for the reader.
const BATCHES_AHEAD: usize = 2;

/// Resolves a pool range by range, several at a time. Returns the rows sorted by identity, dataset and key. Rows are put
/// together on the threads that resolve, while the reader works.
pub(super) async fn in_order(
    pool: PoolRows,
    wanted: Wanted,
    context: Arc<TaskContext>,
    threads: usize,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let wanted = Arc::new(wanted);
    let ranges = wanted.ranges_of(&Arc::new(pool)).await?;
    let resolved = move |range: RangeOfPool| {
        let mut ahead = RecordBatchReceiverStream::builder(wanted.schema.clone(), BATCHES_AHEAD);
        let (sender, wanted, context) = (ahead.tx(), wanted.clone(), context.clone());
        ahead.spawn(async move {
            let mut rows = range.resolved(wanted, context).await?;
            while let Some(batch) = rows.next().await {
                // A reader that is gone wants no more.
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        std::future::ready(ahead.build())
    };
    Ok(futures::stream::iter(ranges).map(resolved).buffered(threads).flatten().boxed())
}
