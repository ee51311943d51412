//! Rows of whole files, sorted in memory.
//!
//! The files of a partition are sorted already, so their rows are a few sorted runs. The standard library's stable sort
//! finds such runs and merges them, with far fewer comparisons than a sort of single rows would take. Texts are compared
//! once, to give each distinct text its rank; rows are compared by ranks. It needs all rows
//! in memory: the caller has another way for rows that do not fit. The rows stay in the batches in which they were read.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, Scalar, StringArray};
use arrow::compute::interleave;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::datatypes::Int64Type;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::TryStreamExt;
use hashbrown::HashMap;

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
    heads: Vec<Vec<Head>>,
    counts: Vec<Int64Array>,
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
        Self::of(batches, first, reservation).map(Some)
    }

    /// Sorts the rows of batches, whose memory is reserved.
    pub(super) fn of(batches: Vec<RecordBatch>, first: &[&str], reservation: MemoryReservation) -> Result<Self> {
        let heads = heads(&batches, first)?;
        let counts = batches.iter().map(counts).collect::<Result<Vec<_>>>()?;
        let order = SortColumns { heads: &heads, counts: &counts }.sorted();
        Ok(Self { batches, order, heads, counts, _reservation: reservation })
    }

    /// Returns the columns that order the rows.
    pub(super) fn columns(&self) -> SortColumns<'_> {
        SortColumns { heads: &self.heads, counts: &self.counts }
    }

    /// Returns the values of a column at some places.
    pub(super) fn values(&self, name: &str, places: &[At]) -> Result<ArrayRef> {
        let columns = self.batches.iter().map(|batch| Ok(column(batch, name)?.as_ref())).collect::<Result<Vec<_>>>()?;
        let places: Vec<(usize, usize)> = places.iter().map(|at| (at.batch as usize, at.row as usize)).collect();
        Ok(interleave(&columns, &places)?)
    }
}

/// Bytes of the order, for each row: the place and the head, a copy of both that is sorted, and what finds the ranks of
/// its values if they are distinct. Afterwards, the counts of a reduction take the place of the copy.
const ORDER_BYTES: usize = 128;

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

/// The ranks of a row's values among those of all rows, 32 bits each: the first columns of the order, the identity, the
/// dataset, the key. A null has rank 0. Batches together have fewer than 2³² rows: the memory of a query holds no more.
type Head = u128;

/// The columns that order rows: integers in place of texts.
#[derive(Clone, Copy)]
pub(super) struct SortColumns<'a> {
    heads: &'a [Vec<Head>],
    counts: &'a [Int64Array],
}

impl SortColumns<'_> {
    fn sorted(self) -> Vec<At> {
        let of_batch = |(batch, heads): (u32, &Vec<Head>)| {
            let at = move |(row, head): (u32, Head)| (head, At { batch, row });
            (0..).zip(heads.clone()).map(at).collect::<Vec<_>>()
        };
        let mut order: Vec<(Head, At)> = (0..).zip(self.heads).flat_map(of_batch).collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| self.count(b.1).cmp(&self.count(a.1))));
        order.into_iter().map(|(_, at)| at).collect()
    }

    pub(super) fn count(&self, at: At) -> Option<i64> {
        let counts = &self.counts[at.batch as usize];
        counts.is_valid(at.row as usize).then(|| counts.value(at.row as usize))
    }

    fn head(&self, at: At) -> Head {
        self.heads[at.batch as usize][at.row as usize]
    }

    /// Returns whether two rows agree in the first columns of the order, the identity and the dataset.
    pub(super) fn is_same_dataset(&self, a: At, b: At) -> bool {
        self.head(a) >> 32 == self.head(b) >> 32
    }

    /// Returns whether two rows agree in the first columns of the order, and the identity.
    pub(super) fn is_same_identity(&self, a: At, b: At) -> bool {
        self.head(a) >> 64 == self.head(b) >> 64
    }

    /// Returns whether two rows are of one dataset, and have the same key.
    pub(super) fn is_same_key(&self, a: At, b: At) -> bool {
        self.head(a) == self.head(b)
    }

    /// Returns whether a row has a key.
    pub(super) fn has_key(&self, at: At) -> bool {
        self.head(at) as u32 != 0
    }
}

fn counts(rows: &RecordBatch) -> Result<Int64Array> {
    let counts = column(rows, "sync_count")?.as_primitive_opt::<Int64Type>();
    counts.cloned().ok_or_else(|| DataFusionError::Internal("sync_count is no integer".to_owned()))
}

/// Returns the heads of the rows of batches. `first` names the first columns of the order.
fn heads(rows: &[RecordBatch], first: &[&str]) -> Result<Vec<Vec<Head>>> {
    let widened = |ranks: Vec<u32>| ranks.into_iter().map(Head::from).collect();
    let mut heads: Vec<Vec<Head>> = ranks(rows, first)?.into_iter().map(widened).collect();
    for name in ["identity_id", "dataset_name", "key"] {
        let missing = || DataFusionError::Internal(format!("the column {name} is no plain text"));
        let text = |batch| column(batch, name)?.as_string_opt::<i32>().ok_or_else(missing);
        let texts = rows.iter().map(text).collect::<Result<Vec<_>>>()?;
        let codes = Codes::of(&texts);
        for (heads, texts) in heads.iter_mut().zip(&codes.of_rows) {
            for (head, code) in heads.iter_mut().zip(texts) {
                *head = *head << 32 | Head::from(codes.ranks[*code as usize]);
            }
        }
    }
    Ok(heads)
}

/// Distinct texts, numbered as they were met. Number 0 is the null.
struct Codes {
    of_rows: Vec<Vec<u32>>,
    /// The rank of each number's text.
    ranks: Vec<u32>,
}

impl Codes {
    fn of(texts: &[&StringArray]) -> Self {
        let mut known: HashMap<&str, u32> = HashMap::new();
        let mut of_rows = Vec::with_capacity(texts.len());
        for texts in texts {
            // Rows of a file are sorted, so most rows repeat the text of the row before.
            let mut last: Option<(&str, u32)> = None;
            let codes = texts.iter().map(|text| {
                let Some(text) = text else { return 0 };
                match last {
                    Some((before, code)) if before == text => code,
                    _ => {
                        let next = known.len() as u32 + 1;
                        let code = *known.entry(text).or_insert(next);
                        last = Some((text, code));
                        code
                    }
                }
            });
            of_rows.push(codes.collect());
        }
        let mut sorted: Vec<(&str, u32)> = known.into_iter().collect();
        sorted.sort_unstable();
        let mut ranks = vec![0; sorted.len() + 1];
        for (rank, (_, code)) in (1..).zip(sorted) {
            ranks[code as usize] = rank;
        }
        Self { of_rows, ranks }
    }
}

/// Returns for each row the rank of its values of some columns among those of all rows.
fn ranks(rows: &[RecordBatch], names: &[&str]) -> Result<Vec<Vec<u32>>> {
    let none = || rows.iter().map(|batch| vec![0; batch.num_rows()]).collect();
    let (Some(first), false) = (rows.first(), names.is_empty()) else { return Ok(none()) };
    let fields = names.iter().map(|name| Ok(SortField::new(column(first, name)?.data_type().clone())));
    let converter = RowConverter::new(fields.collect::<Result<_>>()?)?;
    // The rows of a file share their partition values, so most batches have one value of each column.
    let of_batch = |batch: &RecordBatch| -> Result<Rows> {
        let mut columns: Vec<ArrayRef> =
            names.iter().map(|name| column(batch, name).cloned()).collect::<Result<_>>()?;
        if batch.num_rows() > 0 && is_constant(&columns)? {
            columns.iter_mut().for_each(|values| *values = values.slice(0, 1));
        }
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
    let mut ranks = Vec::with_capacity(rows.len());
    for (batch, values) in rows.iter().zip(&values) {
        ranks.push(match values.num_rows() {
            1 => vec![rank(values.row(0)); batch.num_rows()],
            _ => values.iter().map(&mut rank).collect(),
        });
    }
    Ok(ranks)
}

/// Returns whether all rows of non-empty columns are equal.
fn is_constant(columns: &[ArrayRef]) -> Result<bool> {
    for values in columns {
        let first = Scalar::new(values.slice(0, 1));
        if not_distinct(values, &first)?.has_false() {
            return Ok(false);
        }
    }
    Ok(true)
}
