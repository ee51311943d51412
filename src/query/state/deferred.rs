//! The state and the tail, combined when the query runs. A plan reads no data, so `EXPLAIN` reads none.
//!
//! **The tail is read once, by the first partition that runs** of all scans that share it ([`SharedTail`]). Whether the tail
//! fits into memory decides how it is combined. If it fits, it is laid over the state ([`Overlay`]); otherwise both are
//! resolved together.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties, ReplaceChildrenOptions, execute_stream,
};
use futures::TryStreamExt;
use futures::stream::select_all;
use tokio::sync::OnceCell;

use super::intake::Intake;
use super::overlay::{Overlay, Sides};
use super::shared::SharedTail;
use super::tail::Tail;
use super::{Resolved, read};

/// The two parts, and how they are read.
#[derive(Debug)]
pub(super) struct Parts {
    /// The maintained state and the tail.
    pub resolved: Resolved,
    /// The tail, which other scans may read too.
    pub shared: Arc<SharedTail>,
    /// A filter on whole datasets, if there is one.
    pub filter: Option<Expr>,
    /// The session that plans and reads.
    pub session: SessionState,
}

/// The combination of state and tail.
pub(super) struct Deferred {
    /// Reads the state for an overlay.
    state: Arc<dyn ExecutionPlan>,
    /// Reads the tail.
    tail: Arc<dyn ExecutionPlan>,
    parts: Arc<Parts>,
    properties: Arc<PlanProperties>,
    combined: Arc<OnceCell<Arc<dyn ExecutionPlan>>>,
}

impl Deferred {
    /// Combines plans that read the state and the tail.
    pub(super) fn new(
        state: Arc<dyn ExecutionPlan>,
        tail: Arc<dyn ExecutionPlan>,
        parts: Arc<Parts>,
        schema: SchemaRef,
    ) -> Self {
        let partitions = Overlay::readers(&state, &parts.session).max(1);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Both,
            Boundedness::Bounded,
        );
        Self { state, tail, parts, properties: Arc::new(properties), combined: Arc::default() }
    }
}

impl Parts {
    async fn combine(
        &self,
        state: Arc<dyn ExecutionPlan>,
        tail: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let has_state = state.output_partitioning().partition_count() > 0;
        if let Some(table) = self.resolved.state.as_ref().filter(|_| has_state)
            && let Some(tail) = self.hold(tail).await?
        {
            let remedy = self.resolved.remedy.clone();
            let sides = Sides { tail, state: table.clone(), remedy, session: self.session.clone() };
            return Ok(Arc::new(Overlay::new(state, Arc::new(sides), schema)));
        }
        let wanted: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        self.resolved.together(&wanted, self.filter.as_ref(), &self.session).await
    }

    /// Returns the tail in memory, or `None` if it does not fit. `own` reads the columns of this scan.
    async fn hold(&self, own: Arc<dyn ExecutionPlan>) -> Result<Option<Arc<Tail>>> {
        let begin = |columns: Vec<String>| {
            let (tail, filter, session) = (self.resolved.tail.clone(), self.filter.clone(), self.session.clone());
            async move {
                let plan = match tail.filter(|_| columns.len() > own.schema().fields().len()) {
                    Some(tail) => {
                        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                        session.create_physical_plan(&read(&tail, &columns, filter.as_ref())?.build()?).await?
                    }
                    None => own,
                };
                hold(plan, session.task_ctx()).await
            }
        };
        self.shared.read(begin).await
    }
}

/// Reads the tail into memory. Returns `None` if it does not fit.
async fn hold(tail: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<Option<Tail>> {
    let mut intake = Intake::new(MemoryConsumer::new("tail").register(context.memory_pool()));
    let mut batches = execute_stream(tail, context)?;
    while let Some(batch) = batches.try_next().await? {
        if !intake.push(batch)? {
            return Ok(None);
        }
    }
    Ok(Some(intake.done()))
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred")
            .field("schema", self.properties.equivalence_properties().schema())
            .finish_non_exhaustive()
    }
}

impl DisplayAs for Deferred {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CurrentState: the state, then the tail")
    }
}

impl ExecutionPlan for Deferred {
    fn name(&self) -> &str {
        "CurrentState"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.state, &self.tail]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false, false]
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
        match (children.pop(), children.pop(), children.is_empty()) {
            (Some(tail), Some(state), true) => Ok(Arc::new(Self::new(state, tail, self.parts.clone(), self.schema()))),
            _ => Err(DataFusionError::Internal("the current state has two inputs".to_owned())),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (combined, parts) = (self.combined.clone(), self.parts.clone());
        let (state, tail, schema) = (self.state.clone(), self.tail.clone(), self.schema());
        let partitions = self.properties.output_partitioning().partition_count();
        let rows = async move {
            let combine = || parts.combine(state, tail, schema.clone());
            let plan = combined.get_or_try_init(combine).await?;
            // The combined plan may have more partitions than this one, or fewer. They are polled together, because one of
            // them may wait until the others are read.
            let count = plan.output_partitioning().partition_count();
            let mine = (partition..count).step_by(partitions);
            let streams = mine.map(|part| plan.execute(part, context.clone())).collect::<Result<Vec<_>>>()?;
            Ok::<_, DataFusionError>(select_all(streams))
        };
        let rows = futures::stream::once(rows).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.combined.get().and_then(|plan| plan.metrics())
    }
}
