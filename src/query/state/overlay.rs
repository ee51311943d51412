//! The maintained state with the tail laid over it, in one pass over the state: rows that the tail does not touch go through
//! as they are.
//!
//! ```text
//! a row of the state   its key is in the tail       it stays if it is the later one, and the tail's row is beaten
//!                      its dataset is removed there  it stays, and is removed
//! at the end           the rows of the tail that were not beaten, by the removals of both
//! ```
//!
//! **Every partition of the state is read once, and who ends last gives the rows of the tail**: then, and not before, it is
//! known which of them are beaten. The state comes in more partitions than there are readers, and whoever is done with one
//! goes on with the next that nobody has begun. Nobody waits, so any order of partitions will do, and who stops early loses
//! nothing that they asked for.
//!
//! Of the order of changes the state is asked only for the head. Should heads be equal, the rest is looked up in the end.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering as Memory};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{FilterBuilder, take_arrays};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
    ReplaceChildrenOptions, execute_stream,
};
use futures::{StreamExt, TryStreamExt};

use super::names::Names;
use super::order::{ORDER, Rest};
use super::tail::{IS_AFTER_REMOVAL, Removal, Tail, Walk, column, heads_of, rest_of, with_columns};
use super::{KEY, same, told};

/// Identities that are looked up at a time.
const LOOKUPS: usize = 256;
/// More than these are looked for in one pass over all. (In tests every way is taken.)
const LOOKUPS_MAX: usize = if cfg!(test) { 1 } else { 16 * LOOKUPS };

/// What the two sides are, and how to ask the state again.
#[derive(Debug)]
pub struct Sides {
    /// The latest row of each key of the tail.
    pub tail: Tail,
    /// The state.
    pub state: Arc<dyn TableProvider>,
    /// What to do when it cannot be read.
    pub remedy: String,
    /// The session that reads it.
    pub session: SessionState,
}

/// The rows of the state and of the tail, each key once.
#[derive(Debug)]
pub struct Overlay {
    input: Arc<dyn ExecutionPlan>,
    sides: Arc<Sides>,
    pass: Arc<Pass>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// One pass over the state.
#[derive(Debug)]
struct Pass {
    /// The first partition of the state that nobody has begun.
    next: AtomicUsize,
    /// Readers that have not ended.
    open: AtomicUsize,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// Rows of the tail that are earlier than the state's.
    beaten: Vec<bool>,
    /// Of each of the tail's datasets, the removal that the state has.
    removals: Vec<Option<Removal>>,
    /// Rows of the state that have the head of a row of the tail, with the numbers of those.
    ties: Vec<(Vec<usize>, RecordBatch)>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("ties", &self.ties.len()).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Of `input`, which reads from the state what names a row, the head of the order, and the columns of `schema`.
    pub fn new(input: Arc<dyn ExecutionPlan>, sides: Arc<Sides>, schema: SchemaRef) -> Self {
        let readers = input.output_partitioning().partition_count().min(sides.session.config().target_partitions());
        let (beaten, removals) = (vec![false; sides.tail.len()], vec![None; sides.tail.datasets()]);
        let found = Mutex::new(Found { beaten, removals, ties: Vec::new() });
        let pass = Arc::new(Pass { next: AtomicUsize::new(0), open: AtomicUsize::new(readers), found });
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(readers),
            EmissionType::Both,
            Boundedness::Bounded,
        );
        Self { input, sides, pass, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl Pass {
    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows of the state, without those that the tail replaces.
    fn apply(&self, tail: &Tail, schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
        let (names, heads) = (Names::of(batch)?, heads_of(batch)?);
        let (mut gone, mut removed, mut ties): (Vec<usize>, Vec<usize>, Vec<(usize, u32)>) = Default::default();
        let (mut beaten, mut removals): (Vec<usize>, Vec<(u32, Removal)>) = Default::default();
        let rest = rest_of(batch);
        let (mut walk, mut removal) = (Walk::default(), None);
        for (row, number) in (0..batch.num_rows()).zip(0_u32..) {
            if tail.follow(&mut walk, &names, row) {
                removal = walk.dataset().and_then(|dataset| tail.removal(dataset));
            }
            let Some(dataset) = walk.dataset() else { continue };
            let at = || heads.get(row).moment();
            if !names.has_key(row) {
                removals.push((dataset, at()));
            } else if removal.is_some_and(|removal| at() <= removal) {
                removed.push(row);
            }
            let Some(entry) = tail.find(dataset, &names, row) else { continue };
            match tail.compare(heads.get(row), rest.as_deref().map(Rest), row, entry) {
                Some(Ordering::Less) => gone.push(row),
                // A row may be told twice; once is enough.
                Some(Ordering::Greater | Ordering::Equal) => beaten.push(entry),
                None => {
                    gone.push(row);
                    ties.push((entry, number));
                }
            }
        }
        let rows = project(schema, batch, &removed)?;
        let mut found = self.found();
        beaten.into_iter().for_each(|entry| found.beaten[entry] = true);
        removals.into_iter().for_each(|(dataset, at)| found.removals[dataset as usize] = Some(at));
        if !ties.is_empty() {
            let (entries, numbers): (Vec<usize>, Vec<u32>) = ties.into_iter().unzip();
            let columns = take_arrays(rows.columns(), &UInt32Array::from(numbers), None)?;
            let tied = with_columns(schema, columns, entries.len())?;
            found.ties.push((entries, tied));
        }
        drop(found);
        without(rows, &gone)
    }

    /// The rows of the tail, and those that it could not be told to beat before.
    async fn rest(&self, sides: &Sides, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let Found { mut beaten, removals, ties } = std::mem::take(&mut *self.found());
        let (tail, mut batches) = (&sides.tail, Vec::new());
        settle(sides, &ties, &mut beaten).await?;
        for (entries, rows) in ties {
            let lost: Vec<usize> = (0..entries.len()).filter(|&n| !beaten[entries[n]]).collect();
            batches.push(without(rows, &lost)?);
        }
        batches.extend(tail.left(schema, &beaten, &removals)?);
        Ok(batches)
    }
}

/// Decides the ties: looks up the rest of the order of the state's rows.
async fn settle(sides: &Sides, ties: &[(Vec<usize>, RecordBatch)], beaten: &mut [bool]) -> Result<()> {
    let (tail, open): (_, BTreeSet<usize>) =
        (&sides.tail, ties.iter().flat_map(|(entries, _)| entries.clone()).collect());
    let identities: BTreeSet<Option<&str>> = open.iter().map(|&entry| tail.identity(entry)).collect();
    let identities: Vec<Option<&str>> = identities.into_iter().collect();
    let is_one_of = |identities: &[Option<&str>]| {
        let named = col("identity_id").in_list(identities.iter().flatten().map(|name| lit(*name)).collect(), false);
        if identities.contains(&None) { named.or(col("identity_id").is_null()) } else { named }
    };
    let filters: Vec<Expr> = match identities.len() {
        many if many > LOOKUPS_MAX => vec![lit(true)],
        _ => identities.chunks(LOOKUPS).map(is_one_of).collect(),
    };
    let columns: Vec<_> = KEY.iter().chain(&ORDER).map(|name| same(name)).collect();
    for filter in filters {
        let state = provider_as_source(sides.state.clone());
        let plan = LogicalPlanBuilder::scan("state", state, None)?.filter(filter)?.project(columns.clone())?.build()?;
        let plan = sides.session.create_physical_plan(&plan).await?;
        let mut batches = execute_stream(plan, sides.session.task_ctx())?;
        while let Some(batch) = batches.try_next().await.map_err(|error| told(error, &sides.remedy))? {
            let (names, heads, rest) = (Names::of(&batch)?, heads_of(&batch)?, rest_of(&batch));
            let mut walk = Walk::default();
            for row in 0..batch.num_rows() {
                tail.follow(&mut walk, &names, row);
                let entry = walk.dataset().and_then(|dataset| tail.find(dataset, &names, row));
                if let Some(entry) = entry.filter(|entry| open.contains(entry)) {
                    let order = tail.compare(heads.get(row), rest.as_deref().map(Rest), row, entry);
                    beaten[entry] |= order.is_none_or(Ordering::is_ge);
                }
            }
        }
    }
    Ok(())
}

/// The columns of the schema, with the rows of these numbers marked as removed.
fn project(schema: &SchemaRef, batch: &RecordBatch, removed: &[usize]) -> Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| {
        let values = column(batch, field.name())?;
        if removed.is_empty() || field.name() != IS_AFTER_REMOVAL {
            return Ok(values.clone());
        }
        let mut values: Vec<Option<bool>> = values.as_boolean().iter().collect();
        removed.iter().for_each(|&row| values[row] = Some(false));
        Ok(Arc::new(BooleanArray::from(values)) as ArrayRef)
    });
    with_columns(schema, columns.collect::<Result<_>>()?, batch.num_rows())
}

/// The rows but those of these numbers, which ascend.
fn without(rows: RecordBatch, gone: &[usize]) -> Result<RecordBatch> {
    if gone.is_empty() {
        return Ok(rows);
    }
    let mut stays = vec![true; rows.num_rows()];
    gone.iter().for_each(|&row| stays[row] = false);
    let stays = FilterBuilder::new(&BooleanArray::from(stays)).optimize().build();
    let columns = rows.columns().iter().map(|column| stays.filter(column)).collect::<Result<_, _>>()?;
    with_columns(&rows.schema(), columns, stays.count())
}

impl DisplayAs for Overlay {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Overlay: tail_keys={}", self.sides.tail.len())
    }
}

impl ExecutionPlan for Overlay {
    fn name(&self) -> &str {
        "Overlay"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.sides.clone(), self.schema()))),
            _ => Err(DataFusionError::Internal("an overlay has one input".to_owned())),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
        self.replace_children(children, ReplaceChildrenOptions::new(recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, sides, pass) = (self.schema(), self.sides.clone(), self.pass.clone());
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = {
            let (schema, sides, pass) = (schema.clone(), sides.clone(), pass.clone());
            let (metrics, input, turns) = (metrics.intermediate(), self.input.clone(), pass.clone());
            let count = input.output_partitioning().partition_count();
            let next = move || Some(turns.next.fetch_add(1, Memory::Relaxed)).filter(|&next| next < count);
            let parts = futures::stream::iter(std::iter::from_fn(next));
            parts.map(move |part| input.execute(part, context.clone())).try_flatten().map(move |batch| {
                let _timer = metrics.elapsed_compute().timer();
                pass.apply(&sides.tail, &schema, &batch.map_err(|error| told(error, &sides.remedy))?)
            })
        };
        let of_tail = {
            let schema = schema.clone();
            async move {
                match pass.open.fetch_sub(1, Memory::AcqRel) {
                    1 => pass.rest(&sides, &schema).await,
                    _ => Ok(Vec::new()),
                }
            }
        };
        let of_tail =
            futures::stream::once(of_tail).map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)));
        let all = rows.chain(of_tail.try_flatten()).inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, all)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
