//! The state of every key: its latest change, and whether a removal of its dataset came at or after that change.
//!
//! The state is computed per query, from two parts:
//!
//! ```text
//! state   the maintained state: the latest change of each key, as of a version of sync_records
//! tail    the rows of the files that were added to sync_records since
//!
//! rows = latest(state ∪ tail)
//! ```
//!
//! Without a maintained state, the tail is all of `sync_records`. **Invariant: both ways give the same rows**, because
//! `latest` is idempotent and associative, and because a superseded row stays superseded. A tail that fits into memory
//! is laid over the state in one pass (`overlay`); a larger tail is resolved together with the state.
//!
//! Filters on pool, identity and dataset select whole datasets, so they are pushed down to both parts. A filter on keys
//! is not, because the removal of a dataset has no key.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, cast, col, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::scalar::ScalarValue;

use super::recheck::{is_plain_on, pushed_down};
use crate::schema::Table;

mod boundary;
mod deferred;
mod intake;
mod latest;
mod names;
pub(super) mod order;
mod overlay;
mod parts;
mod ranges;
pub mod refresh;
mod shared;
mod tail;
#[cfg(test)]
mod tests;

use boundary::Boundary;
use deferred::{Deferred, Parts};
use order::{ORDER, PREFIX_COLUMNS};
use shared::Tails;

/// The advice for an unreadable table `state`.
pub const REBUILD: &str = "cannot read the table state; run `synclake refresh --rebuild` to rebuild it";

/// Columns that identify a dataset. The pool's id is used, not the partition column `pool`: both identify the pool, but
/// the id is stored in the files, and the partition value would be materialized for every row.
const DATASET: [&str; 3] = ["identity_pool_id", "identity_id", "dataset_name"];
/// Columns that identify a key.
const KEY: [&str; 4] = ["identity_pool_id", "identity_id", "dataset_name", "key"];

/// Returns whether a filter on a column selects whole datasets, so that it is pushed down to every part.
fn is_of_dataset(column: &str) -> bool {
    column == "pool" || DATASET.contains(&column)
}

/// The latest change of every key, removed keys included, and the latest removal of every dataset (a row without a
/// key).
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Files of `sync_records` that the state does not cover; `None` if there are none.
    tail: Option<Arc<dyn TableProvider>>,
    /// The maintained state, if there is one.
    state: Option<Arc<dyn TableProvider>>,
    /// The advice in errors of reading the maintained state.
    remedy: String,
    schema: SchemaRef,
    /// The tails that plans over this table hold in memory.
    tails: Arc<Tails>,
}

impl Resolved {
    /// Combines the maintained state and the tail. `remedy` becomes the first part of errors of reading the state.
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
        Self { tail, state, remedy: remedy.into(), schema: Arc::new(Schema::new(fields)), tails: Arc::default() }
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

    /// Plans the combination of state and tail, if there are both.
    async fn deferred(
        &self,
        wanted: &[&str],
        filter: Option<&Expr>,
        session: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(state), Some(tail)) = (&self.state, &self.tail) else { return Ok(None) };
        let input = read(state, &with_order(&ORDER[..PREFIX_COLUMNS], wanted), filter)?.build()?;
        let of_tail = of_tail(wanted);
        let rows = read(tail, &of_tail, filter)?.build()?;
        let tail = session.create_physical_plan(&rows);
        let in_small_parts = in_small_parts(session);
        let state = in_small_parts.create_physical_plan(&input);
        let (tail, state) = futures::try_join!(tail, state)?;
        let fields: Result<Vec<_>, _> = wanted.iter().map(|name| self.schema.field_with_name(name).cloned()).collect();
        let shared = self.tails.share(filter, &of_tail);
        let parts = Parts { resolved: self.clone(), shared, filter: filter.cloned(), session: session.clone() };
        Ok(Some(Arc::new(Deferred::new(state, tail, Arc::new(parts), Arc::new(Schema::new(fields?))))))
    }

    /// Plans the resolution of all rows together.
    async fn together(
        &self,
        wanted: &[&str],
        filter: Option<&Expr>,
        session: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // The removals are the small side and are held in memory; the large side is not repartitioned.
        let mut session = session.clone();
        let options = &mut session.config_mut().options_mut().optimizer;
        options.repartition_joins = false;
        // This plan becomes part of another plan, which is optimized again. Joins with dynamic filters reject that.
        options.enable_join_dynamic_filter_pushdown = false;
        // A query of no columns, such as a count, still needs one column to count rows.
        let plan = match wanted.is_empty() {
            true => {
                let counted = self.plan(&["sync_count"], filter)?;
                LogicalPlanBuilder::from(counted).project(Vec::<Expr>::new())?.build()?
            }
            false => self.plan(wanted, filter)?,
        };
        // If state and tail are read together, the error does not say which of them is at fault.
        let remedy = self.tail.is_none().then(|| self.remedy.as_str().into());
        Ok(Arc::new(Boundary::new(session.create_physical_plan(&plan).await?, remedy)))
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
    let filter = filter.cloned().into_iter().fold(counts(), Expr::and);
    let rows = LogicalPlanBuilder::scan("tail", provider_as_source(tail.clone()), None)?.filter(filter)?;
    let typed = names.iter().map(|name| match *name {
        "is_after_removal" => lit(false).alias(*name),
        _ => same(name),
    });
    rows.project(typed.collect::<Vec<_>>())
}

/// Returns the filter of the rows that change something. A row without a key that is no removal marks an event without
/// records.
pub(super) fn counts() -> Expr {
    col("key").is_not_null().or(col("op").eq(lit("remove")))
}

fn read(table: &Arc<dyn TableProvider>, names: &[&str], filter: Option<&Expr>) -> Result<LogicalPlanBuilder> {
    let mut rows = LogicalPlanBuilder::scan("rows", provider_as_source(table.clone()), None)?;
    if let Some(filter) = filter {
        rows = rows.filter(filter.clone())?;
    }
    rows.project(names.iter().map(|name| same(name)).collect::<Vec<_>>())
}

/// Returns the columns to hold of a tail row. `is_after_removal` is computed, so it is not among them.
fn of_tail<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let mut names: Vec<&str> = needed(wanted).into_iter().filter(|name| *name != "is_after_removal").collect();
    if !names.contains(&"op") {
        names.push("op");
    }
    names
}

/// Partitions of the state per thread.
const PARTS_OF_A_THREAD: usize = 8;

/// Returns a session that cuts files into more partitions than there are threads. A thread that finishes early can then
/// read partitions meant for others.
fn in_small_parts(session: &SessionState) -> SessionState {
    let mut session = session.clone();
    let options = session.config_mut().options_mut();
    options.execution.target_partitions *= PARTS_OF_A_THREAD;
    options.optimizer.enable_round_robin_repartition = false;
    session
}

/// Returns a column in the type that state and tail share: text as `Utf8View`, also text from a partition value.
fn same(name: &str) -> Expr {
    let schema = Table::State.schema();
    match schema.field_with_name(name).map(Field::data_type) {
        Ok(DataType::Utf8) => cast(col(name), DataType::Utf8View).alias(name),
        _ => col(name),
    }
}

/// Returns all columns that a resolution to `wanted` needs.
fn needed<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    with_order(&ORDER, wanted)
}

/// Returns the key columns, the given order columns, and `wanted`; each column once.
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

/// Computes the latest row of each key or dataset: the columns `of`, which identify it, and the columns that `is_kept`
/// selects.
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

/// Returns the needed columns except those of the key and `is_after_removal`, which is computed.
fn payload<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    needed(wanted).into_iter().skip(KEY.len()).filter(|name| *name != "is_after_removal").collect()
}

/// Computes the latest row of each key, and whether it comes after the removals of its dataset.
fn resolve(rows: LogicalPlanBuilder, wanted: &[&str]) -> Result<LogicalPlanBuilder> {
    let decides = wanted.contains(&"is_after_removal");
    let is_kept = |name: &str| wanted.contains(&name) || (decides && ORDER[..2].contains(&name));
    let keys = latest_by(rows.clone(), &KEY, &payload(wanted), is_kept)?;
    if !decides {
        return project(keys, wanted);
    }
    // Removals are few, so they are the side of the join that is held in memory.
    let removals = rows.filter(col("key").is_null())?;
    let removals = latest_by(removals, &DATASET, &ORDER, |name| ORDER[..2].contains(&name))?.alias("removals")?;
    let on = (columns("removals", &DATASET), columns("keys", &DATASET));
    // Rows without an identity form a dataset too, as they form a group in the aggregate.
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
        Ok(pushed_down(filters, is_of_dataset))
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
        let is_whole = |filter: &&Expr| is_plain_on(filter, is_of_dataset);
        let filters: Vec<Expr> = filters.iter().filter(is_whole).map(unqualified).collect::<Result<_>>()?;
        let filter = filters.into_iter().reduce(Expr::and);
        let session = session.as_any().downcast_ref::<SessionState>();
        let session = session.ok_or_else(|| DataFusionError::Internal("a session of another kind".to_owned()))?;
        match self.deferred(&wanted, filter.as_ref(), session).await? {
            Some(deferred) => Ok(deferred),
            None => self.together(&wanted, filter.as_ref(), session).await,
        }
    }
}

/// Adds the remedy to an error of reading the state if the error means damage.
fn told(error: DataFusionError, remedy: &str) -> DataFusionError {
    if is_damage(&error) { error.context(remedy) } else { error }
}

/// Returns whether an error means that a file is missing or corrupt. It is `false` if the store denies access or memory
/// runs out.
pub(crate) fn is_damage(error: &DataFusionError) -> bool {
    let root = error.find_root();
    let text = root.strip_backtrace().to_lowercase();
    match root {
        // The store's error has become text at this point, so only its text can be matched.
        _ if text.contains("object store error") => ["not found", "range was invalid"].iter().any(|t| text.contains(t)),
        DataFusionError::ParquetError(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(**error, arrow::error::ArrowError::ParquetError(_)),
        _ => false,
    }
}

/// Rewrites a filter for the parts, as comparisons of columns with constants.
///
/// The pool is a partition value there, with a dictionary type. Compared with a string view it would be cast, and then
/// no files could be pruned.
pub(super) fn unqualified(filter: &Expr) -> Result<Expr> {
    let bare = filter.clone().transform(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        Expr::Literal(ScalarValue::Utf8View(text), _) => Ok(Transformed::yes(lit(ScalarValue::Utf8(text)))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(bare.data)
}
