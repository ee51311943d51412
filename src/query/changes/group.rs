//! A group of whole partitions: its rows in order, and reduced.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, col};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use deltalake::DeltaTable;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::exec::Shown;
use super::runs::{Compared, Count, Kept, Runs, delivered};
use super::{GROUP_BYTES, GROUP_ROWS, KEY_OF_A_DAY, spilled};
use crate::query::reading;
use crate::query::sorted::{At, SortedRows};
use crate::query::state::counts;

/// A partition of this many groups' rows or bytes is not sorted in memory.
const GROUPS_IN_MEMORY: u64 = 4;

/// Files of whole partitions, and what the log says of their size.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    pub(super) paths: BTreeSet<String>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Files {
    pub(super) fn extend(&mut self, more: Self) {
        self.paths.extend(more.paths);
        self.rows = self.rows.saturating_add(more.rows);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    pub(super) fn has_room_for(&self, more: &Self, rows_max: u64) -> bool {
        self.rows.saturating_add(more.rows) <= rows_max && self.bytes.saturating_add(more.bytes) <= GROUP_BYTES
    }
}

/// The table, the columns and the filter that all groups of a scan read by.
pub(super) struct Scan {
    /// `sync_records`.
    pub(super) records: DeltaTable,
    /// The session that plans and reads, with one partition and plain text.
    pub(super) session: SessionState,
    /// The columns that are read.
    pub(super) names: Vec<String>,
    /// Whether those of the order of changes are among them.
    pub(super) has_order: bool,
    /// A filter that selects whole runs.
    pub(super) filter: Option<Expr>,
}

/// The plans that read a group.
struct Plans {
    /// The rows as they lie in the files; `None` if they are too many to be sorted in memory.
    rows: Option<Arc<dyn ExecutionPlan>>,
    /// The same rows, sorted by a plan that spills, in the order of [`SortedRows`].
    sorted: LogicalPlan,
}

/// Whole partitions. They are planned when they are read: several at a time, and while others are read.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) files: Files,
    pub(super) scan: Arc<Scan>,
}

impl Group {
    async fn plans(&self) -> Result<Option<Plans>> {
        let (scan, files) = (&self.scan, &self.files);
        let fits = files.rows <= GROUPS_IN_MEMORY * GROUP_ROWS && files.bytes <= GROUPS_IN_MEMORY * GROUP_BYTES;
        let Some(files) = reading::files_of(&scan.records, &scan.session, &files.paths).await? else { return Ok(None) };
        let filter = scan.filter.clone().into_iter().fold(counts(), Expr::and);
        let rows = LogicalPlanBuilder::scan("sync_records", provider_as_source(files), None)?
            .filter(filter)?
            .project(scan.names.iter().map(col).collect::<Vec<_>>())?;
        let order = KEY_OF_A_DAY.map(|name| col(name).sort(true, true));
        let order = order.into_iter().chain([col("sync_count").sort(false, true)]);
        let sorted = rows.clone().sort(order.collect::<Vec<_>>())?.build()?;
        let rows = if fits { Some(scan.session.create_physical_plan(&rows.build()?).await?) } else { None };
        Ok(Some(Plans { rows, sorted }))
    }

    /// Returns the rows, sorted, and reduced step by step. Each step but the first counts the rows of the step before it.
    pub(super) fn reduced(
        self,
        steps: &[Runs],
        shown: &Shown,
        context: Arc<TaskContext>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let (steps, shown) = (steps.to_vec(), shown.clone());
        let rows = async move {
            let (scan, group) = (self.scan.clone(), self);
            // A task of its own plans, because deltalake's threads misbehave when a load is dropped.
            let plans = tokio::spawn(async move { group.plans().await });
            let plans = plans.await.map_err(|error| DataFusionError::External(Box::new(error)))?;
            let Some(plans) = plans? else { return Ok(futures::stream::empty().boxed()) };
            if let Some(rows) = &plans.rows
                && let Some(sorted) =
                    SortedRows::read(std::slice::from_ref(rows), &["pool", "event_date"], &context).await?
            {
                let kept = reduced(&sorted, &steps, scan.has_order)?;
                return Ok(batches(sorted, kept, shown, context.session_config().batch_size()));
            }
            let sorted = scan.session.create_physical_plan(&plans.sorted).await?;
            let rows = spilled::reduced(&steps, scan.has_order, execute_stream(sorted, context)?.boxed());
            let show = move |counted: spilled::Counted| shown.of(&counted.rows, &counted.counts);
            Ok::<_, DataFusionError>(rows.and_then(move |counted| std::future::ready(show(counted))).boxed())
        };
        futures::stream::once(rows).try_flatten().boxed()
    }
}

/// Reduces sorted rows without moving them. Each step but the first counts the rows of the step before it.
pub(super) fn reduced(sorted: &SortedRows, steps: &[Runs], has_order: bool) -> Result<Kept> {
    let compared = Compared::of(&sorted.batches, has_order)?;
    let copies = sorted.batches.iter().map(delivered).collect::<Result<Vec<_>>>()?;
    let count = |at: &At| Count::one(copies[at.batch as usize].as_ref().map_or(1, |copies| copies[at.row as usize]));
    let mut kept = Kept { counts: sorted.order.iter().map(count).collect(), rows: sorted.order.clone() };
    for (number, step) in steps.iter().enumerate() {
        if number > 0 {
            kept.counts.iter_mut().for_each(|count| *count = count.next());
        }
        kept = step.reduce(&kept, sorted.columns(), &compared);
    }
    Ok(kept)
}

/// Returns the rows that stay as batches that share no memory with each other.
fn batches(sorted: SortedRows, kept: Kept, shown: Shown, batch_rows: usize) -> BoxStream<'static, Result<RecordBatch>> {
    let starts = (0..kept.rows.len()).step_by(batch_rows);
    let batch = move |start: usize| {
        let chosen = start..kept.rows.len().min(start + batch_rows);
        shown.batch(&kept.counts[chosen.clone()], |name| sorted.values(name, &kept.rows[chosen.clone()]))
    };
    futures::stream::iter(starts).map(batch).boxed()
}
