//! Rows of whole files, sorted in memory.
//!
//! The files of a partition are sorted already, so their rows are a few sorted runs. The standard library's stable sort
//! finds such runs and merges them, with far fewer comparisons than a sort of single rows. It needs all rows in memory:
//! the caller has another way for rows that do not fit.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, UInt32Array, new_empty_array,
};
use arrow::compute::{concat, partition, take};
use arrow::datatypes::{FieldRef, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::TryStreamExt;

use super::state::order::column;

/// Bytes of rows in memory. The offsets of a column of text have 32 bits.
const BYTES_MAX: usize = 1 << 30;

/// Rows in memory, and their order: by some columns that are constant in a file, then by identity, dataset and key,
/// ascending and nulls first, then by `sync_count`, descending. A file has this order.
#[derive(Debug)]
pub(super) struct SortedRows {
    /// The rows as they lie in the files.
    pub(super) rows: RecordBatch,
    /// The numbers of the rows, in order.
    pub(super) order: Vec<u32>,
    /// Counts the rows as memory of the query for as long as they are held.
    _reservation: MemoryReservation,
}

impl SortedRows {
    /// Reads and sorts the rows of plans with the same columns; `None` if there is no memory for them. `constant` names
    /// the first columns of the order.
    pub(super) async fn read(
        plans: &[Arc<dyn ExecutionPlan>],
        constant: &[&str],
        context: &Arc<TaskContext>,
    ) -> Result<Option<Self>> {
        let reservation = MemoryConsumer::new("sorted rows").register(context.memory_pool());
        let Some(batches) = gathered(plans, context, &reservation).await? else { return Ok(None) };
        let schema = plans.first().map_or_else(|| Arc::new(Schema::empty()), |plan| plan.schema());
        let rows = joined(&schema, batches)?;
        let order = SortColumns::of(&rows, constant)?.sorted();
        reservation.resize(rows.get_array_memory_size() + size_of_val(order.as_slice()));
        Ok(Some(Self { rows, order, _reservation: reservation }))
    }
}

/// Joins batches column by column, so that only one column exists twice at a time.
fn joined(schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut columns: Vec<Vec<ArrayRef>> = vec![Vec::with_capacity(batches.len()); schema.fields().len()];
    for batch in batches {
        let (_, of_batch, _) = batch.into_parts();
        columns.iter_mut().zip(of_batch).for_each(|(column, part)| column.push(part));
    }
    let join = |(field, parts): (&FieldRef, Vec<ArrayRef>)| match parts.is_empty() {
        true => Ok(new_empty_array(field.data_type())),
        false => concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
    };
    let columns = schema.fields().iter().zip(columns).map(join).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// Collects batches, one file after the other. Half of their bytes is room to join them.
async fn gathered(
    plans: &[Arc<dyn ExecutionPlan>],
    context: &Arc<TaskContext>,
    reservation: &MemoryReservation,
) -> Result<Option<Vec<RecordBatch>>> {
    let (mut batches, mut bytes) = (Vec::new(), 0usize);
    let parts = plans.iter().flat_map(|plan| (0..plan.output_partitioning().partition_count()).map(move |n| (plan, n)));
    for (plan, part) in parts {
        let mut rows = plan.execute(part, context.clone())?;
        while let Some(batch) = rows.try_next().await? {
            let more = batch.get_array_memory_size();
            bytes = bytes.saturating_add(more);
            if bytes > BYTES_MAX || reservation.try_grow(more + more / 2).is_err() {
                return Ok(None);
            }
            batches.push(batch);
        }
    }
    Ok(Some(batches))
}

/// The columns that order rows.
pub(super) struct SortColumns<'a> {
    /// For each row the rank of its constant columns, and the bytes of its identity that follow the bytes that all
    /// identities begin with. They decide most comparisons.
    heads: Vec<(u32, u64)>,
    identity: &'a StringArray,
    dataset: &'a StringArray,
    key: &'a StringArray,
    count: &'a Int64Array,
}

impl<'a> SortColumns<'a> {
    /// Finds the columns of rows.
    pub(super) fn of(rows: &'a RecordBatch, constant: &[&str]) -> Result<Self> {
        let text = |name: &str| {
            let missing = || DataFusionError::Internal(format!("the column {name} is no plain text"));
            column(rows, name)?.as_string_opt::<i32>().ok_or_else(missing)
        };
        let count = column(rows, "sync_count")?.as_primitive_opt::<Int64Type>();
        let identity = text("identity_id")?;
        Ok(Self {
            heads: ranks(rows, constant)?.into_iter().zip(heads(identity)).collect(),
            identity,
            dataset: text("dataset_name")?,
            key: text("key")?,
            count: count.ok_or_else(|| DataFusionError::Internal("sync_count is no integer".to_owned()))?,
        })
    }

    fn sorted(&self) -> Vec<u32> {
        let mut order: Vec<((u32, u64), u32)> = self.heads.iter().copied().zip(0..).collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| self.compare(a.1 as usize, b.1 as usize)));
        order.into_iter().map(|(_, row)| row).collect()
    }

    /// Compares two rows with equal heads.
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let texts = |column: &StringArray| text(column, a).cmp(&text(column, b));
        texts(self.identity)
            .then_with(|| texts(self.dataset))
            .then_with(|| texts(self.key))
            .then_with(|| number(self.count, b).cmp(&number(self.count, a)))
    }

    /// Returns whether two rows are of one dataset.
    pub(super) fn is_same_dataset(&self, a: usize, b: usize) -> bool {
        let same = |column: &StringArray| text(column, a) == text(column, b);
        self.heads[a] == self.heads[b] && same(self.dataset) && same(self.identity)
    }

    /// Returns whether two rows of one dataset have the same key.
    pub(super) fn is_same_key(&self, a: usize, b: usize) -> bool {
        text(self.key, a) == text(self.key, b)
    }

    /// Returns whether a row has a key.
    pub(super) fn has_key(&self, row: usize) -> bool {
        self.key.is_valid(row)
    }
}

fn text(column: &StringArray, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.value(row).as_bytes())
}

fn number(column: &Int64Array, row: usize) -> Option<i64> {
    column.is_valid(row).then(|| column.value(row))
}

/// Returns for each text the eight bytes after the bytes that all texts begin with, so that different results are in the
/// order of the texts. A null counts as an empty text.
fn heads(texts: &StringArray) -> impl Iterator<Item = u64> {
    let mut present = texts.iter().flatten().map(str::as_bytes);
    let first = present.next().unwrap_or_default();
    let equal = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let common = present.fold(first.len(), |common, text| equal(&first[..common], text));
    texts.iter().map(move |text| {
        let rest = text.map_or(&[][..], |text| &text.as_bytes()[common..]);
        let mut head = [0; 8];
        let length = rest.len().min(head.len());
        head[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(head)
    })
}

/// Returns for each row the rank of its values of some columns among those of all rows. The columns change seldom.
fn ranks(rows: &RecordBatch, names: &[&str]) -> Result<Vec<u32>> {
    let columns: Vec<ArrayRef> = names.iter().map(|name| column(rows, name).cloned()).collect::<Result<_>>()?;
    let fields = columns.iter().map(|values| SortField::new(values.data_type().clone())).collect();
    let mut ranks = vec![0u32; rows.num_rows()];
    if rows.num_rows() == 0 {
        return Ok(ranks);
    }
    if columns.is_empty() {
        return Ok(ranks);
    }
    let ranges = partition(&columns)?.ranges();
    let starts: UInt32Array = ranges.iter().map(|range| range.start as u32).collect();
    let firsts = columns.iter().map(|values| take(values, &starts, None)).collect::<Result<Vec<_>, _>>()?;
    let firsts = RowConverter::new(fields)?.convert_columns(&firsts)?;
    let mut places: Vec<usize> = (0..ranges.len()).collect();
    places.sort_by(|a, b| firsts.row(*a).cmp(&firsts.row(*b)));
    let mut rank = 0u32;
    for (n, place) in places.iter().enumerate() {
        rank += u32::from(n > 0 && firsts.row(places[n - 1]) != firsts.row(*place));
        ranks[ranges[*place].clone()].fill(rank);
    }
    Ok(ranks)
}
