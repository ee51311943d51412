//! The plan node of the views.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use futures::StreamExt;

use super::group::Group;
use super::runs::{Count, Runs};
use crate::query::state::order::column;

/// A column that counts: its name, and what it counts.
pub(super) type Counted = (&'static str, fn(&Count) -> i64);

/// The columns of the result.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) schema: SchemaRef,
    /// The columns that count.
    pub(super) counted: &'static [Counted],
}

impl Shown {
    /// Returns a batch of the result from counted rows that have its other columns.
    pub(super) fn of(&self, rows: &RecordBatch, counts: &[Count]) -> Result<RecordBatch> {
        self.batch(counts, |name| column(rows, name).cloned())
    }

    /// Returns a batch of the result: the counts, and values of the other columns by their names.
    pub(super) fn batch(&self, counts: &[Count], values: impl Fn(&str) -> Result<ArrayRef>) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(counts.len()));
        let columns = self.schema.fields().iter().map(|field| {
            let values = match self.counted.iter().find(|(name, _)| name == field.name()) {
                Some((_, of)) => Arc::new(counts.iter().map(of).collect::<Int64Array>()),
                None => values(field.name())?,
            };
            Ok(cast(&values, field.data_type())?)
        });
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns.collect::<Result<Vec<_>>>()?, &options)?)
    }
}

/// The plan node that reduces the rows of its inputs. Every input is sorted, and no run crosses two inputs.
pub(super) struct RunsExec {
    inputs: Vec<Group>,
    steps: Vec<Runs>,
    shown: Shown,
    properties: Arc<PlanProperties>,
}

impl RunsExec {
    /// Creates a node that reads at most `threads` inputs at a time. It states no order, though the rows of each thread
    /// have one: to keep that order, an aggregate over them would make the threads wait for each other.
    pub(super) fn new(inputs: Vec<Group>, steps: Vec<Runs>, shown: Shown, threads: usize) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(shown.schema.clone()),
            Partitioning::UnknownPartitioning(threads.min(inputs.len()).max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { inputs, steps, shown, properties: Arc::new(properties) }
    }

    fn partitions(&self) -> usize {
        self.properties.output_partitioning().partition_count()
    }
}

impl fmt::Debug for RunsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunsExec").field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl DisplayAs for RunsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Changes: sorted groups of partitions={}", self.inputs.len())
    }
}

impl ExecutionPlan for RunsExec {
    fn name(&self) -> &str {
        "Changes"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// Returns no inputs: groups are planned when they are read, by a session of their own.
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mine: Vec<_> = self.inputs.iter().skip(partition).step_by(self.partitions()).cloned().collect();
        let (steps, shown, schema) = (self.steps.clone(), self.shown.clone(), self.schema());
        let of_input = move |input: Group| input.reduced(&steps, &shown, context.clone());
        let rows = futures::stream::iter(mine).flat_map(of_input);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
