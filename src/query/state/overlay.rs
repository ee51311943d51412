//! The maintained state with the tail laid over it, in one pass over the state. Rows that the tail does not touch pass
//! through unchanged.
//!
//! ```text
//! state row whose key is in the tail        the later row stays, the other one is superseded
//! state row whose dataset the tail removes  it stays, marked as removed
//! end of the pass                           tail rows that are not superseded, marked by the removals of both
//! ```
//!
//! **Every partition of the state is read once. The last reader to finish emits the rows of the tail**, because only
//! then it is known which of them are superseded. The state has more partitions than readers. A reader that finishes a
//! partition takes the next one that no reader has begun. No reader waits for another, so partitions may be read in any
//! order. A query that stops early loses no row that it asked for.
//!
//! Only the order prefix is read from the state. If order prefixes are equal, the tie-breakers are looked up at the
//! end.

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
use super::order::{ORDER, TieBreakers, column, order_prefixes, tie_breakers};
use super::parts::{IS_AFTER_REMOVAL, with_columns};
use super::tail::{Removal, Tail, Walk};
use super::{KEY, same, told};

/// Identities per lookup.
const LOOKUPS: usize = 256;
/// With more identities than this, the whole state is scanned once instead. (The limit is small in tests, so that they
/// take both ways.)
const LOOKUPS_MAX: usize = if cfg!(test) { 1 } else { 16 * LOOKUPS };

/// The state and the tail, and how to read the state again.
#[derive(Debug)]
pub(super) struct Sides {
    /// The latest row of each key of the tail.
    pub tail: Arc<Tail>,
    /// The maintained state.
    pub state: Arc<dyn TableProvider>,
    /// The advice in errors of reading the state.
    pub remedy: String,
    /// The session that reads the state.
    pub session: SessionState,
}

/// The rows of the state and of the tail, each key once.
#[derive(Debug)]
pub(super) struct Overlay {
    input: Arc<dyn ExecutionPlan>,
    sides: Arc<Sides>,
    pass: Arc<Pass>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// One pass over the state.
#[derive(Debug)]
struct Pass {
    /// The first partition of the state that no reader has begun.
    next: AtomicUsize,
    /// Readers that have not finished.
    open: AtomicUsize,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// Whether each row of the tail is superseded by a row of the state.
    superseded: Vec<bool>,
    /// The state's removal of each dataset of the tail.
    removals: Vec<Option<Removal>>,
    /// Rows of the state whose order prefix equals that of a tail row, with the numbers of these tail rows.
    ties: Vec<(Vec<usize>, RecordBatch)>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("ties", &self.ties.len()).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Returns the number of readers of the state, which is the number of output partitions.
    pub(super) fn readers(input: &Arc<dyn ExecutionPlan>, session: &SessionState) -> usize {
        input.output_partitioning().partition_count().min(session.config().target_partitions())
    }

    /// Creates an overlay. `input` reads from the state the names, the order prefix, and the columns of `schema`.
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, sides: Arc<Sides>, schema: SchemaRef) -> Self {
        let readers = Self::readers(&input, &sides.session);
        let (superseded, removals) = (vec![false; sides.tail.len()], vec![None; sides.tail.datasets()]);
        let found = Mutex::new(Found { superseded, removals, ties: Vec::new() });
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

    /// Returns rows of the state without those that the tail replaces, and notes superseded rows, removals and ties.
    fn apply(&self, tail: &Tail, schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
        let (names, heads) = (Names::of(batch)?, order_prefixes(batch)?);
        let (mut gone, mut removed, mut ties): (Vec<usize>, Vec<usize>, Vec<(usize, u32)>) = Default::default();
        let (mut superseded, mut removals): (Vec<usize>, Vec<(u32, Removal)>) = Default::default();
        let rest = tie_breakers(batch);
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
            match tail.compare(heads.get(row), rest.as_deref().map(TieBreakers), row, entry) {
                Some(Ordering::Less) => gone.push(row),
                // The same row may be in the state and in the tail; the state's row is kept.
                Some(Ordering::Greater | Ordering::Equal) => superseded.push(entry),
                None => {
                    gone.push(row);
                    ties.push((entry, number));
                }
            }
        }
        let rows = project(schema, batch, &removed)?;
        let mut found = self.found();
        superseded.into_iter().for_each(|entry| found.superseded[entry] = true);
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

    /// Returns the rows of the tail that are not superseded, and the tied rows of the state that are later than the
    /// tail's.
    async fn rest(&self, sides: &Sides, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        let Found { mut superseded, removals, ties } = std::mem::take(&mut *self.found());
        let (tail, mut batches) = (&sides.tail, Vec::new());
        settle(sides, &ties, &mut superseded).await?;
        for (entries, rows) in ties {
            let lost: Vec<usize> = (0..entries.len()).filter(|&n| !superseded[entries[n]]).collect();
            batches.push(without(rows, &lost)?);
        }
        batches.extend(tail.left(schema, &superseded, &removals)?);
        Ok(batches)
    }
}

/// Decides the ties: looks up the tie-breakers of the state's rows.
async fn settle(sides: &Sides, ties: &[(Vec<usize>, RecordBatch)], superseded: &mut [bool]) -> Result<()> {
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
            let (names, heads, rest) = (Names::of(&batch)?, order_prefixes(&batch)?, tie_breakers(&batch));
            let mut walk = Walk::default();
            for row in 0..batch.num_rows() {
                tail.follow(&mut walk, &names, row);
                let entry = walk.dataset().and_then(|dataset| tail.find(dataset, &names, row));
                if let Some(entry) = entry.filter(|entry| open.contains(entry)) {
                    let order = tail.compare(heads.get(row), rest.as_deref().map(TieBreakers), row, entry);
                    superseded[entry] |= order.is_none_or(Ordering::is_ge);
                }
            }
        }
    }
    Ok(())
}

/// Returns the columns of the schema, with the rows of these numbers marked as removed.
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

/// Returns the rows except those of these numbers.
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
