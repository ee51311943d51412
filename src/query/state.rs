//! The state of every key: the latest change of each, and whether a removal of its dataset came at or after it.
//!
//! Resolved when it is asked for, from two parts:
//!
//! ```text
//! state   the maintained table: the latest change of each key, as of a version of sync_records
//! tail    the rows of the files that were added to sync_records since
//!
//! rows = latest(state ∪ tail)
//! ```
//!
//! Without a maintained state the tail is everything. **Invariant: both give the same rows**, because `latest` is idempotent
//! and associative, and because what a row of the state lost to has lost for ever. A tail that memory holds is laid over the
//! state in one pass ([`overlay`]); one that it does not hold is resolved together with it.
//!
//! Filters on pool, identity and dataset select whole datasets, so they go down to all three; a filter on keys does not,
//! because a removal of the dataset has none.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, cast, col, lit,
};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;

use super::recheck::is_plain;
use crate::schema::Table;

mod boundary;
mod intake;
mod latest;
mod names;
mod order;
mod overlay;
pub mod refresh;
mod tail;
#[cfg(test)]
mod tests;

use boundary::Boundary;
use intake::Intake;
use order::{HEAD, ORDER};
use overlay::{Overlay, Sides};
use tail::Tail;

/// What to do when the table `state` cannot be read.
pub const REBUILD: &str = "cannot read the table state; `synclake refresh --rebuild` makes it anew";

/// What a dataset is known by. A pool's id and its partition's value are two spellings of one thing; the id lies in the
/// files, and the value would be made up for every row.
const DATASET: [&str; 3] = ["identity_pool_id", "identity_id", "dataset_name"];
/// What a key is known by.
const KEY: [&str; 4] = ["identity_pool_id", "identity_id", "dataset_name", "key"];
/// What a filter may speak of to be asked of every part.
const OF_A_DATASET: [&str; 4] = ["pool", "identity_pool_id", "identity_id", "dataset_name"];

/// Every key's latest change, the removed ones too, and every dataset's latest removal (a row without a key).
#[derive(Debug)]
pub struct Resolved {
    /// Files of `sync_records` that the state does not cover; `None` when there are none.
    tail: Option<Arc<dyn TableProvider>>,
    /// The maintained state, if there is one.
    state: Option<Arc<dyn TableProvider>>,
    /// What to do when that cannot be read.
    remedy: String,
    schema: SchemaRef,
}

impl Resolved {
    /// From the maintained state and what it does not cover. An error of reading the state begins with `remedy`.
    pub fn new(
        tail: Option<Arc<dyn TableProvider>>,
        state: Option<Arc<dyn TableProvider>>,
        remedy: impl Into<String>,
    ) -> Self {
        let view = |field: &Field| match field.data_type() {
            DataType::Utf8 => field.clone().with_data_type(DataType::Utf8View),
            _ => field.clone(),
        };
        let fields: Vec<Field> = Table::State.schema().fields().iter().map(|field| view(field)).collect();
        Self { tail, state, remedy: remedy.into(), schema: Arc::new(Schema::new(fields)) }
    }

    fn plan(&self, wanted: &[&str], filter: Option<&Expr>) -> Result<LogicalPlan> {
        let state = self.state.as_ref().map(|state| read(state, &needed(wanted), filter)).transpose()?;
        let tail = self.tail.as_ref().map(|tail| tail_rows(tail, &needed(wanted), filter)).transpose()?;
        let plan = match (state, tail) {
            (Some(state), None) => project(state, wanted)?,
            (None, Some(tail)) => resolve(tail, wanted)?,
            (Some(state), Some(tail)) => resolve(state.union(tail.build()?)?, wanted)?,
            (None, None) => LogicalPlanBuilder::empty(false).project(self.nulls(wanted))?,
        };
        plan.build()
    }

    /// The tail laid over the state; `None` when memory does not hold the tail, or there is no state to lay it over.
    async fn overlay(
        &self,
        wanted: &[&str],
        filter: Option<&Expr>,
        session: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(state), Some(tail)) = (&self.state, &self.tail) else { return Ok(None) };
        let input = read(state, &with_order(&ORDER[..HEAD], wanted), filter)?.build()?;
        let tail = hold(read(tail, &of_tail(wanted), filter)?, session);
        let in_small_parts = in_small_parts(session);
        let state_plan = in_small_parts.create_physical_plan(&input);
        let (tail, input) = futures::try_join!(tail, state_plan)?;
        let Some(tail) = tail else { return Ok(None) };
        if input.output_partitioning().partition_count() == 0 {
            return Ok(None);
        }
        let fields: Result<Vec<_>, _> = wanted.iter().map(|name| self.schema.field_with_name(name).cloned()).collect();
        let sides = Sides { tail, state: state.clone(), remedy: self.remedy.clone(), session: session.clone() };
        Ok(Some(Arc::new(Overlay::new(input, Arc::new(sides), Arc::new(Schema::new(fields?))))))
    }

    fn nulls(&self, wanted: &[&str]) -> Vec<Expr> {
        let typed = |name: &&str| {
            let of = self.schema.field_with_name(name).map_or(DataType::Null, |field| field.data_type().clone());
            cast(lit(ScalarValue::Null), of).alias(*name)
        };
        wanted.iter().map(typed).collect()
    }
}

fn tail_rows(tail: &Arc<dyn TableProvider>, names: &[&str], filter: Option<&Expr>) -> Result<LogicalPlanBuilder> {
    // A row without a key that is no removal marks an event without records: it changed nothing.
    let counts = col("key").is_not_null().or(col("op").eq(lit("remove")));
    let filter = filter.cloned().into_iter().fold(counts, Expr::and);
    let rows = LogicalPlanBuilder::scan("tail", provider_as_source(tail.clone()), None)?.filter(filter)?;
    let typed = names.iter().map(|name| match *name {
        "is_after_removal" => lit(false).alias(*name),
        _ => same(name),
    });
    rows.project(typed.collect::<Vec<_>>())
}

fn read(table: &Arc<dyn TableProvider>, names: &[&str], filter: Option<&Expr>) -> Result<LogicalPlanBuilder> {
    let mut rows = LogicalPlanBuilder::scan("rows", provider_as_source(table.clone()), None)?;
    if let Some(filter) = filter {
        rows = rows.filter(filter.clone())?;
    }
    rows.project(names.iter().map(|name| same(name)).collect::<Vec<_>>())
}

/// The tail, in memory; `None` when it does not hold it.
async fn hold(rows: LogicalPlanBuilder, session: &SessionState) -> Result<Option<Tail>> {
    let mut intake = Intake::new(MemoryConsumer::new("tail").register(session.task_ctx().memory_pool()));
    let plan = session.create_physical_plan(&rows.build()?).await?;
    let mut batches = execute_stream(plan, session.task_ctx())?;
    while let Some(batch) = batches.try_next().await? {
        if !intake.push(batch)? {
            return Ok(None);
        }
    }
    Ok(Some(intake.done()))
}

/// What is held of a tail's row: its fate is found out.
fn of_tail<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let mut names: Vec<&str> = needed(wanted).into_iter().filter(|name| *name != "is_after_removal").collect();
    if !names.contains(&"op") {
        names.push("op");
    }
    names
}

/// Into how many parts for each thread the state is cut.
const PARTS_OF_A_THREAD: usize = 8;

/// A session that cuts files into more parts than there are threads: whoever is done with its own reads those of others.
fn in_small_parts(session: &SessionState) -> SessionState {
    let mut session = session.clone();
    let options = session.config_mut().options_mut();
    options.execution.target_partitions *= PARTS_OF_A_THREAD;
    options.optimizer.enable_round_robin_repartition = false;
    session
}

/// A column in the one form in which state and tail meet: text as views, also where it comes as a partition's value.
fn same(name: &str) -> Expr {
    let schema = Table::State.schema();
    match schema.field_with_name(name).map(Field::data_type) {
        Ok(DataType::Utf8) => cast(col(name), DataType::Utf8View).alias(name),
        _ => col(name),
    }
}

/// All columns that a resolution to `wanted` needs.
fn needed<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    with_order(&ORDER, wanted)
}

/// What a key is known by, some columns of the order, and `wanted`; each once.
fn with_order<'a>(order: &[&'a str], wanted: &[&'a str]) -> Vec<&'a str> {
    let mut names = KEY.to_vec();
    names.extend(order);
    names.extend(wanted.iter().filter(|name| !KEY.contains(name) && !order.contains(name)));
    names
}

fn columns(relation: &str, names: &[&str]) -> Vec<Column> {
    names.iter().map(|name| Column::new(Some(relation), *name)).collect()
}

fn project(rows: LogicalPlanBuilder, wanted: &[&str]) -> Result<LogicalPlanBuilder> {
    rows.project(cols(wanted))
}

fn cols(names: &[&str]) -> Vec<Expr> {
    names.iter().map(|name| col(*name)).collect()
}

/// The latest row of each key or dataset: what it is `of`, and the columns that are kept.
fn latest_by(
    rows: LogicalPlanBuilder,
    of: &[&str],
    names: &[&str],
    is_kept: impl Fn(&str) -> bool,
) -> Result<LogicalPlanBuilder> {
    let kept: Vec<usize> = (0..names.len()).filter(|&n| is_kept(names[n])).collect();
    let field = |n: &usize| col("r").field(format!("c{n}")).alias(names[*n]);
    let unfolded: Vec<Expr> = of.iter().map(|name| col(*name)).chain(kept.iter().map(field)).collect();
    let row = latest::latest(kept).call(cols(names)).alias("r");
    rows.aggregate(cols(of), [row])?.project(unfolded)
}

/// What a row has beside its key, and beside its fate, which is found out.
fn payload<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    needed(wanted).into_iter().skip(KEY.len()).filter(|name| *name != "is_after_removal").collect()
}

/// The latest row of each key, and its fate.
fn resolve(rows: LogicalPlanBuilder, wanted: &[&str]) -> Result<LogicalPlanBuilder> {
    let decides = wanted.contains(&"is_after_removal");
    let is_kept = |name: &str| wanted.contains(&name) || (decides && ORDER[..2].contains(&name));
    let keys = latest_by(rows.clone(), &KEY, &payload(wanted), is_kept)?;
    if !decides {
        return project(keys, wanted);
    }
    // Few, so the side of the join that is held.
    let removals = rows.filter(col("key").is_null())?;
    let removals = latest_by(removals, &DATASET, &ORDER, |name| ORDER[..2].contains(&name))?.alias("removals")?;
    let on = (columns("removals", &DATASET), columns("keys", &DATASET));
    // What has no identity is of one dataset too, as it is to the aggregate.
    let nulls = NullEquality::NullEqualsNull;
    let joined = removals.join_detailed(keys.alias("keys")?.build()?, JoinType::Right, on, None, nulls)?;
    let (mine, removal) =
        (|name: &str| col(Column::new(Some("keys"), name)), |name: &str| col(Column::new(Some("removals"), name)));
    let after = mine("sync_count").gt(removal("sync_count")).or(mine("sync_count")
        .eq(removal("sync_count"))
        .and(mine("last_modified_date").gt(removal("last_modified_date"))));
    let after = mine("key").is_not_null().and(removal("sync_count").is_null().or(after));
    let typed = wanted.iter().map(|name| match *name {
        "is_after_removal" => after.clone().alias(*name),
        name => mine(name).alias(name),
    });
    joined.project(typed.collect::<Vec<_>>())
}

#[async_trait::async_trait]
impl TableProvider for Resolved {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // A filter without columns selects no datasets; whatever is used here is evaluated again above.
        let whole = |filter: &&Expr| {
            let mut columns = filter.column_refs().into_iter().peekable();
            let of_dataset = columns.peek().is_some() && columns.all(|c| OF_A_DATASET.contains(&c.name.as_str()));
            match of_dataset && is_plain(filter) {
                true => TableProviderFilterPushDown::Inexact,
                false => TableProviderFilterPushDown::Unsupported,
            }
        };
        Ok(filters.iter().map(whole).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let names = projection.unwrap_or(&all).iter().map(|&n| self.schema.field(n).name().as_str());
        let wanted: Vec<&str> = names.collect();
        let filters: Vec<Expr> = filters.iter().filter(|f| is_plain(f)).map(unqualified).collect::<Result<_>>()?;
        let filter = filters.into_iter().reduce(Expr::and);
        let session = session.as_any().downcast_ref::<SessionState>();
        let session = session.ok_or_else(|| DataFusionError::Internal("a session of another kind".to_owned()))?;
        if let Some(overlay) = self.overlay(&wanted, filter.as_ref(), session).await? {
            return Ok(overlay);
        }
        // The removals are the small side, and are held; the large one stays where it is.
        let mut session = session.clone();
        let options = &mut session.config_mut().options_mut().optimizer;
        options.repartition_joins = false;
        // The plan becomes part of another one, which is optimized again: joins with dynamic filters refuse that.
        options.enable_join_dynamic_filter_pushdown = false;
        // What is asked about no column at all still needs one to be counted by.
        let plan = match wanted.is_empty() {
            true => {
                let counted = self.plan(&["sync_count"], filter.as_ref())?;
                LogicalPlanBuilder::from(counted).project(Vec::<Expr>::new())?.build()?
            }
            false => self.plan(&wanted, filter.as_ref())?,
        };
        // Of the two together it cannot be told which one is at fault.
        let remedy = self.tail.is_none().then(|| self.remedy.as_str().into());
        Ok(Arc::new(Boundary::new(session.create_physical_plan(&plan).await?, remedy)))
    }
}

/// An error of reading the state, with its remedy if there is damage.
fn told(error: DataFusionError, remedy: &str) -> DataFusionError {
    if is_damage(&error) { error.context(remedy) } else { error }
}

/// Whether a file is gone or is not what it should be; not whether the store refuses it, or memory does not suffice.
pub(crate) fn is_damage(error: &DataFusionError) -> bool {
    let root = error.find_root();
    let text = root.strip_backtrace().to_lowercase();
    match root {
        // What the store said is text by now.
        _ if text.contains("object store error") => ["not found", "range was invalid"].iter().any(|t| text.contains(t)),
        DataFusionError::ParquetError(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(**error, arrow::error::ArrowError::ParquetError(_)),
        _ => false,
    }
}

/// A filter as it is written for the parts: comparisons of columns with constants.
///
/// A pool is a partition's value there, and comes as a dictionary: compared with a view it would be cast, and choose no files.
fn unqualified(filter: &Expr) -> Result<Expr> {
    let bare = filter.clone().transform(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        Expr::Literal(ScalarValue::Utf8View(text), _) => Ok(Transformed::yes(lit(ScalarValue::Utf8(text)))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(bare.data)
}
