//! A plan node that hides everything about an inner plan from the outer plan, except its columns.
//!
//! The outer plan is optimized with the inner plan inside. The inner plan's properties (a constant pool, an order) come
//! from optimizer rules. These rules run again, and do not always derive the same properties. A sort that relied on a
//! lost property is then rejected as a planner bug. A boundary claims no properties, so none can be lost.

use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{FilterDescription, FilterPushdownPhase};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties, ReplaceChildrenOptions, Statistics,
};
use futures::TryStreamExt;

use super::told;

/// The inner plan behind a boundary.
#[derive(Debug)]
pub(super) struct Boundary {
    input: Arc<dyn ExecutionPlan>,
    remedy: Option<Arc<str>>,
    properties: Arc<PlanProperties>,
}

impl Boundary {
    /// Wraps a plan. Its errors get the remedy, if there is one.
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, remedy: Option<Arc<str>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { input, remedy, properties: Arc::new(properties) }
    }
}

impl DisplayAs for Boundary {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Boundary")
    }
}

impl ExecutionPlan for Boundary {
    fn name(&self) -> &str {
        "Boundary"
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
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.remedy.clone()))),
            _ => Err(DataFusionError::Internal("a boundary has one input".to_owned())),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        let Some(remedy) = self.remedy.clone() else { return Ok(rows) };
        let told = rows.map_err(move |error| told(error, &remedy));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), told)))
    }

    /// Pushes filters on the columns down into the inner plan.
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        FilterDescription::from_children(filters, &self.children())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        #[expect(deprecated)]
        self.input.partition_statistics(partition)
    }
}
