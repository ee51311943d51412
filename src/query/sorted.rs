//! Rows of whole files, sorted in memory.
//!
//! The files of a partition are sorted already, so their rows are a few sorted runs. The standard library's stable sort
//! finds such runs and merges them, with far fewer comparisons than a sort of single rows would take. It needs all rows
//! in memory: the caller has another way for rows that do not fit. The rows stay in the batches in which they were read.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::interleave;
use arrow::datatypes::Int64Type;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::TryStreamExt;

use super::state::order::column;

/// The place of a row: the number of its batch, and its number there. Plans make batches of far fewer than 2³² rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) batch: u32,
    pub(super) row: u32,
}

/// Rows in memory, and their order: by some columns that seldom change in a file, then by identity, dataset and key,
/// ascending and nulls first, then by `sync_count`, descending. A file has this order.
#[derive(Debug)]
pub(super) struct SortedRows {
    /// The rows as they were read.
    pub(super) batches: Vec<RecordBatch>,
    /// The places of the rows, in order.
    pub(super) order: Vec<At>,
    /// Counts the rows as memory of the query for as long as they are held.
    _reservation: MemoryReservation,
}

impl SortedRows {
    /// Reads and sorts the rows of plans with the same columns; `None` if there is no memory for them. `first` names the
    /// first columns of the order.
    pub(super) async fn read(
        plans: &[Arc<dyn ExecutionPlan>],
        first: &[&str],
        context: &Arc<TaskContext>,
    ) -> Result<Option<Self>> {
        let reservation = MemoryConsumer::new("sorted rows").register(context.memory_pool());
        let Some(batches) = gathered(plans, context, &reservation).await? else { return Ok(None) };
        let order = SortColumns::of(&batches, first)?.sorted();
        Ok(Some(Self { batches, order, _reservation: reservation }))
    }

    /// Returns the values of a column at some places.
    pub(super) fn values(&self, name: &str, places: &[At]) -> Result<ArrayRef> {
        let columns = self.batches.iter().map(|batch| Ok(column(batch, name)?.as_ref())).collect::<Result<Vec<_>>>()?;
        let places: Vec<(usize, usize)> = places.iter().map(|at| (at.batch as usize, at.row as usize)).collect();
        Ok(interleave(&columns, &places)?)
    }
}

/// Bytes of the order, for each row: the places, and what is sorted.
const ORDER_BYTES: usize = 40;

/// Collects batches that have rows, one file after the other.
async fn gathered(
    plans: &[Arc<dyn ExecutionPlan>],
    context: &Arc<TaskContext>,
    reservation: &MemoryReservation,
) -> Result<Option<Vec<RecordBatch>>> {
    let mut batches = Vec::new();
    let parts = plans.iter().flat_map(|plan| (0..plan.output_partitioning().partition_count()).map(move |n| (plan, n)));
    for (plan, part) in parts {
        let mut rows = plan.execute(part, context.clone())?;
        while let Some(batch) = rows.try_next().await? {
            if batch.num_rows() == 0 {
                continue;
            }
            let bytes = batch.get_array_memory_size() + batch.num_rows() * ORDER_BYTES;
            if reservation.try_grow(bytes).is_err() {
                return Ok(None);
            }
            batches.push(batch);
        }
    }
    Ok(Some(batches))
}

/// The columns of a batch that order rows.
struct OfBatch<'a> {
    identity: &'a StringArray,
    dataset: &'a StringArray,
    key: &'a StringArray,
    count: &'a Int64Array,
}

/// What decides most comparisons: the first columns of the order as a rank, and the bytes of the identity that follow the
/// bytes that all identities begin with.
type Head = (u32, u64);

/// The columns that order rows.
pub(super) struct SortColumns<'a> {
    batches: Vec<OfBatch<'a>>,
    heads: Vec<Vec<Head>>,
}

impl<'a> SortColumns<'a> {
    /// Finds the columns of batches.
    pub(super) fn of(rows: &'a [RecordBatch], first: &[&str]) -> Result<Self> {
        let batches = rows.iter().map(OfBatch::new).collect::<Result<Vec<_>>>()?;
        let common = common_bytes(&batches);
        let ranks = ranks(rows, first)?;
        let heads = batches.iter().zip(ranks).map(|(batch, ranks)| {
            let identities = batch.identity.iter().map(|identity| head(identity, common));
            ranks.into_iter().zip(identities).collect()
        });
        Ok(Self { heads: heads.collect(), batches })
    }

    fn sorted(&self) -> Vec<At> {
        let of_batch = |(batch, heads): (u32, &Vec<Head>)| {
            let at = move |(row, head): (u32, Head)| (head, At { batch, row });
            (0..).zip(heads.clone()).map(at).collect::<Vec<_>>()
        };
        let mut order: Vec<(Head, At)> = (0..).zip(&self.heads).flat_map(of_batch).collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| self.compare(a.1, b.1)));
        order.into_iter().map(|(_, at)| at).collect()
    }

    fn get(&self, at: At) -> (&OfBatch<'a>, usize) {
        (&self.batches[at.batch as usize], at.row as usize)
    }

    /// Compares two rows with equal heads.
    fn compare(&self, a: At, b: At) -> Ordering {
        let ((of_a, a), (of_b, b)) = (self.get(a), self.get(b));
        let texts = |x: &StringArray, y: &StringArray| text(x, a).cmp(&text(y, b));
        texts(of_a.identity, of_b.identity)
            .then_with(|| texts(of_a.dataset, of_b.dataset))
            .then_with(|| texts(of_a.key, of_b.key))
            .then_with(|| number(of_b.count, b).cmp(&number(of_a.count, a)))
    }

    /// Returns whether two rows agree in the first columns of the order, the identity and the dataset.
    pub(super) fn is_same_dataset(&self, a: At, b: At) -> bool {
        let head = |at: At| self.heads[at.batch as usize][at.row as usize];
        let is_same_head = head(a) == head(b);
        let ((of_a, a), (of_b, b)) = (self.get(a), self.get(b));
        let same = |x: &StringArray, y: &StringArray| text(x, a) == text(y, b);
        is_same_head && same(of_a.dataset, of_b.dataset) && same(of_a.identity, of_b.identity)
    }

    /// Returns whether two rows of one dataset have the same key.
    pub(super) fn is_same_key(&self, a: At, b: At) -> bool {
        let ((of_a, a), (of_b, b)) = (self.get(a), self.get(b));
        text(of_a.key, a) == text(of_b.key, b)
    }

    /// Returns whether a row has a key.
    pub(super) fn has_key(&self, at: At) -> bool {
        let (of_batch, row) = self.get(at);
        of_batch.key.is_valid(row)
    }
}

impl<'a> OfBatch<'a> {
    fn new(rows: &'a RecordBatch) -> Result<Self> {
        let text = |name: &str| {
            let missing = || DataFusionError::Internal(format!("the column {name} is no plain text"));
            column(rows, name)?.as_string_opt::<i32>().ok_or_else(missing)
        };
        let count = column(rows, "sync_count")?.as_primitive_opt::<Int64Type>();
        let count = count.ok_or_else(|| DataFusionError::Internal("sync_count is no integer".to_owned()))?;
        Ok(Self { identity: text("identity_id")?, dataset: text("dataset_name")?, key: text("key")?, count })
    }
}

fn text(column: &StringArray, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.value(row).as_bytes())
}

fn number(column: &Int64Array, row: usize) -> Option<i64> {
    column.is_valid(row).then(|| column.value(row))
}

/// Returns how many first bytes all identities share.
fn common_bytes(batches: &[OfBatch<'_>]) -> usize {
    let mut present = batches.iter().flat_map(|batch| batch.identity.iter().flatten()).map(str::as_bytes);
    let first = present.next().unwrap_or_default();
    let equal = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    present.fold(first.len(), |common, text| equal(&first[..common], text))
}

/// Returns the eight bytes of a text after those that all texts share. Where they differ, they have the order of the
/// texts; a null counts as the least.
fn head(text: Option<&str>, common: usize) -> u64 {
    let rest = text.map_or(&[][..], |text| &text.as_bytes()[common..]);
    let mut head = [0; 8];
    let length = rest.len().min(head.len());
    head[..length].copy_from_slice(&rest[..length]);
    u64::from_be_bytes(head)
}

/// Returns for each row the rank of its values of some columns among those of all rows.
fn ranks(rows: &[RecordBatch], names: &[&str]) -> Result<Vec<Vec<u32>>> {
    let none = || rows.iter().map(|batch| vec![0; batch.num_rows()]).collect();
    let (Some(first), false) = (rows.first(), names.is_empty()) else { return Ok(none()) };
    let fields = names.iter().map(|name| Ok(SortField::new(column(first, name)?.data_type().clone())));
    let converter = RowConverter::new(fields.collect::<Result<_>>()?)?;
    let of_batch = |batch: &RecordBatch| -> Result<Rows> {
        let columns: Vec<ArrayRef> = names.iter().map(|name| column(batch, name).cloned()).collect::<Result<_>>()?;
        Ok(converter.convert_columns(&columns)?)
    };
    let values = rows.iter().map(of_batch).collect::<Result<Vec<_>>>()?;
    let mut distinct: Vec<_> = Vec::new();
    for value in values.iter().flat_map(Rows::iter) {
        if distinct.last() != Some(&value) {
            distinct.push(value);
        }
    }
    distinct.sort();
    distinct.dedup();
    let mut last = (None, 0);
    let mut rank = |value| {
        if last.0 != Some(value) {
            last = (Some(value), distinct.partition_point(|known| *known < value) as u32);
        }
        last.1
    };
    Ok(values.iter().map(|values| values.iter().map(&mut rank).collect()).collect())
}
