//! A group of whole partitions, in order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::query::sorted::SortedRows;

/// The plans that read a group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The rows as they lie in the files; `None` if they are too many to be sorted in memory.
    pub(super) rows: Option<Arc<dyn ExecutionPlan>>,
    /// The same rows, sorted by a plan that spills, in the order of [`SortedRows`].
    pub(super) sorted: Arc<dyn ExecutionPlan>,
}

impl Group {
    /// Returns the rows, sorted.
    pub(super) fn execute(self, context: Arc<TaskContext>) -> BoxStream<'static, Result<RecordBatch>> {
        let rows = async move {
            if let Some(rows) = &self.rows
                && let Some(rows) =
                    SortedRows::read(std::slice::from_ref(rows), &["pool", "event_date"], &context).await?
            {
                return Ok(batches(rows, context.session_config().batch_size()));
            }
            Ok::<_, DataFusionError>(execute_stream(self.sorted, context)?.boxed())
        };
        futures::stream::once(rows).try_flatten().boxed()
    }
}

/// Returns sorted rows as batches that share no memory with each other.
fn batches(sorted: SortedRows, batch_rows: usize) -> BoxStream<'static, Result<RecordBatch>> {
    let Some(schema) = sorted.batches.first().map(RecordBatch::schema) else { return futures::stream::empty().boxed() };
    let starts = (0..sorted.order.len()).step_by(batch_rows);
    let batch = move |start: usize| {
        let places = &sorted.order[start..sorted.order.len().min(start + batch_rows)];
        let columns = schema.fields().iter().map(|field| sorted.values(field.name(), places));
        Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
    };
    futures::stream::iter(starts).map(batch).boxed()
}
