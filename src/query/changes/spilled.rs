//! Rows that a plan has sorted, reduced while they arrive.

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{concat_batches, take_record_batch};
use datafusion::error::Result;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::KEY_OF_A_DAY;
use super::runs::{Compared, Count, Kept, Runs, delivered};
use crate::query::sorted::At;
use crate::query::state::order::column;

/// Rows of the reduction, with the count of each.
pub(super) struct Counted {
    pub(super) rows: RecordBatch,
    pub(super) counts: Vec<Count>,
}

/// Returns the columns of the sort order in which the rows of a run agree, as in [`Runs::reduce`].
fn compared(runs: Runs) -> impl Iterator<Item = &'static str> {
    let equal = match runs {
        Runs::Copies | Runs::OfADay => KEY_OF_A_DAY.len(),
        Runs::OfADataset => KEY_OF_A_DAY.len() - 1,
        Runs::OfAnIdentity => KEY_OF_A_DAY.len() - 2,
    };
    KEY_OF_A_DAY.into_iter().take(equal).chain((runs == Runs::Copies).then_some("sync_count"))
}

/// Returns whether each row but the first has the same compared columns as the row before it.
fn joined(runs: Runs, rows: &RecordBatch) -> Result<BooleanBuffer> {
    let pairs = rows.num_rows().saturating_sub(1);
    let mut joined = BooleanBuffer::new_set(pairs);
    for name in compared(runs) {
        let values = column(rows, name)?;
        joined = &joined & not_distinct(&values.slice(0, pairs), &values.slice(1, pairs))?.values();
    }
    Ok(joined)
}

/// Reduces a stream of sorted rows. A run may cross batches, so the last run of a batch is held back, reduced.
fn reduce(
    runs: Runs,
    has_order: bool,
    rows: BoxStream<'static, Result<Counted>>,
) -> BoxStream<'static, Result<Counted>> {
    let state = (rows, None::<Counted>);
    futures::stream::try_unfold(state, move |(mut rows, mut held)| async move {
        while let Some(next) = rows.try_next().await? {
            if next.rows.num_rows() == 0 {
                continue;
            }
            let all = match held.take() {
                Some(held) => held.followed_by(next)?,
                None => next,
            };
            let (done, last) = split(runs, has_order, all)?;
            held = Some(last);
            if let Some(done) = done {
                return Ok(Some((done, (rows, held))));
            }
        }
        Ok(held.take().map(|last| (last, (rows, None))))
    })
    .boxed()
}

/// Returns the reduced runs except the last one, and the last one.
fn split(runs: Runs, has_order: bool, all: Counted) -> Result<(Option<Counted>, Counted)> {
    let count = all.rows.num_rows();
    let joined = joined(runs, &all.rows)?;
    let mut starts: Vec<usize> = vec![0];
    starts.extend((0..joined.len()).filter(|pair| !joined.value(*pair)).map(|pair| pair + 1));
    let last = starts.last().copied().unwrap_or(0);
    if starts.len() == count {
        // No run has two rows.
        let done = (last > 0).then(|| all.slice(0, last));
        return Ok((done, all.slice(last, count - last)));
    }
    let compared = Compared::of(std::slice::from_ref(&all.rows), has_order)?;
    // A batch has far fewer rows than 2³².
    let places: Vec<At> = (0..count as u32).map(|row| At { batch: 0, row }).collect();
    let mut kept = Kept::default();
    let mut last_kept = 0;
    starts.push(count);
    for run in starts.windows(2) {
        last_kept = kept.rows.len();
        runs.keep(&places[run[0]..run[1]], &all.counts[run[0]..run[1]], &compared, &mut kept);
    }
    let kept = all.kept(kept)?;
    let count = kept.counts.len();
    let done = (last_kept > 0).then(|| kept.slice(0, last_kept));
    Ok((done, kept.slice(last_kept, count - last_kept)))
}

impl Counted {
    /// Counts each row of `sync_records` as often as it was delivered.
    fn delivered(rows: RecordBatch) -> Result<Self> {
        let counts = match delivered(&rows)? {
            Some(counts) => counts.into_iter().map(Count::one).collect(),
            None => vec![Count::one(1); rows.num_rows()],
        };
        Ok(Self { rows, counts })
    }

    /// Counts each row as the next step does.
    fn next(self) -> Self {
        Self { rows: self.rows, counts: self.counts.into_iter().map(Count::next).collect() }
    }

    fn slice(&self, from: usize, length: usize) -> Self {
        Self { rows: self.rows.slice(from, length), counts: self.counts[from..from + length].to_vec() }
    }

    fn followed_by(mut self, next: Self) -> Result<Self> {
        self.counts.extend(next.counts);
        Ok(Self { rows: concat_batches(&self.rows.schema(), [&self.rows, &next.rows])?, counts: self.counts })
    }

    fn kept(&self, Kept { rows, counts }: Kept) -> Result<Self> {
        let rows: UInt32Array = rows.into_iter().map(|at| at.row).collect();
        Ok(Self { rows: take_record_batch(&self.rows, &rows)?, counts })
    }
}

/// Reduces rows of `sync_records` step by step. Each step but the first counts the rows of the step before it.
pub(super) fn reduced(
    steps: &[Runs],
    has_order: bool,
    rows: BoxStream<'static, Result<RecordBatch>>,
) -> BoxStream<'static, Result<Counted>> {
    let rows = rows.and_then(|rows| std::future::ready(Counted::delivered(rows))).boxed();
    let mut steps = steps.iter();
    let first = match steps.next() {
        Some(first) => reduce(*first, has_order, rows),
        None => rows,
    };
    steps.fold(first, |rows, step| reduce(*step, has_order, rows.map_ok(Counted::next).boxed()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, AsArray, Date32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
    use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
    use proptest::prelude::*;

    use super::*;
    use crate::query::changes::group;
    use crate::query::sorted::SortedRows;

    /// key, sync_count, op, value, date, index, copies.
    type Change = (Option<String>, i64, String, Option<String>, i64, i32, Option<i64>);

    fn batch(changes: &[Change]) -> RecordBatch {
        let same = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; changes.len()])) };
        let texts =
            |of: fn(&Change) -> Option<&str>| -> ArrayRef { Arc::new(changes.iter().map(of).collect::<StringArray>()) };
        let dates = |of: fn(&Change) -> i64| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_iter_values(changes.iter().map(of)))
        };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("pool", same("p")),
            ("event_date", Arc::new(Date32Array::from(vec![1; changes.len()]))),
            ("identity_id", same("i")),
            ("dataset_name", same("d")),
            ("key", texts(|change| change.0.as_deref())),
            ("sync_count", Arc::new(Int64Array::from_iter_values(changes.iter().map(|change| change.1)))),
            ("op", texts(|change| Some(&change.2))),
            ("value", texts(|change| change.3.as_deref())),
            ("last_modified_date", dates(|change| change.4)),
            ("arrived_at", dates(|_| 0)),
            ("sequence_number", same("1")),
            ("sub_sequence", Arc::new(Int64Array::new_null(changes.len()))),
            ("record_index", Arc::new(Int32Array::from_iter_values(changes.iter().map(|change| change.5)))),
            ("shard_id", same("s")),
            ("copies", Arc::new(changes.iter().map(|change| change.6).collect::<Int64Array>())),
        ];
        let field = |(name, values): &(&str, ArrayRef)| Field::new(*name, values.data_type().clone(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        assert_eq!(schema.field(8).data_type(), &DataType::Timestamp(TimeUnit::Microsecond, None));
        RecordBatch::try_new(schema, columns.into_iter().map(|(_, values)| values).collect()).unwrap()
    }

    /// The kept rows (by index) and their counts, by a reduction of batches.
    fn reduced(runs: &[Runs], batches: Vec<RecordBatch>) -> Vec<(i32, Count)> {
        let rows = futures::stream::iter(batches.into_iter().map(Ok)).boxed();
        let found: Vec<Counted> = futures::executor::block_on(super::reduced(runs, true, rows).try_collect()).unwrap();
        let indexes = |counted: &Counted| -> Vec<i32> {
            let indexes = column(&counted.rows, "record_index").unwrap().as_primitive::<arrow::datatypes::Int32Type>();
            assert_eq!(column(&counted.rows, "sync_count").unwrap().as_primitive::<Int64Type>().null_count(), 0);
            indexes.values().to_vec()
        };
        found.iter().flat_map(|counted| indexes(counted).into_iter().zip(counted.counts.clone())).collect()
    }

    /// The same by the reduction in memory.
    fn reduced_in_memory(runs: &[Runs], batches: Vec<RecordBatch>) -> Vec<(i32, Count)> {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let sorted =
            SortedRows::of(batches, &["pool", "event_date"], MemoryConsumer::new("test").register(&pool)).unwrap();
        let kept = group::reduced(&sorted, runs, true).unwrap();
        let indexes = sorted.values("record_index", &kept.rows).unwrap();
        let indexes = indexes.as_primitive::<arrow::datatypes::Int32Type>().values().to_vec();
        indexes.into_iter().zip(kept.counts).collect()
    }

    proptest! {
        #[test]
        fn runs_are_reduced_wherever_batches_are_cut(
            changes in prop::collection::vec(
                (prop::option::of("[ab]"), 0..3i64, "[rs]", prop::option::of("[xy]"), 0..3i64, Just(0), prop::option::of(1..9i64)),
                1..40,
            ),
            cuts in prop::collection::vec(1..6usize, 0..40),
        ) {
            let mut changes = changes;
            changes.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
            (0..).zip(&mut changes).for_each(|(index, change)| change.5 = index);
            let all = batch(&changes);
            let (mut batches, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let length = cut.min(changes.len() - from);
                batches.push(all.slice(from, length));
                from += length;
            }
            let mut copies: BTreeMap<_, (Vec<_>, i64)> = BTreeMap::new();
            for change in &changes {
                let group = (change.0.clone(), change.1, change.2.clone(), change.3.clone());
                let found = copies.entry(group).or_default();
                found.0.push((change.4, change.5));
                found.1 += change.6.unwrap_or(1);
            }
            let mut expected: Vec<(i32, i64)> =
                copies.values().map(|(places, count)| (places.iter().max().unwrap().1, *count)).collect();
            let sums = |rows: Vec<(i32, Count)>| rows.into_iter().map(|(row, count)| (row, count.sum())).collect::<Vec<_>>();
            let numbers = |rows: Vec<(i32, Count)>| rows.into_iter().map(|(row, count)| (row, count.rows())).collect::<Vec<_>>();
            let mut found = sums(reduced(&[Runs::Copies], batches.clone()));
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
            let mut in_memory = sums(reduced_in_memory(&[Runs::Copies], batches.clone()));
            in_memory.sort_unstable();
            prop_assert_eq!(&in_memory, &expected);
            let mut days: BTreeMap<Option<String>, (Vec<_>, i64)> = BTreeMap::new();
            for (index, _) in &expected {
                let change = &changes[*index as usize];
                let found = days.entry(change.0.clone()).or_default();
                found.0.push((change.1, change.4, change.5));
                found.1 += 1;
            }
            let expected: Vec<(i32, i64)> =
                days.values().map(|(places, count)| (places.iter().max().unwrap().2, *count)).collect();
            prop_assert_eq!(&numbers(reduced(&[Runs::Copies, Runs::OfADay], batches.clone())), &expected);
            prop_assert_eq!(&numbers(reduced_in_memory(&[Runs::Copies, Runs::OfADay], batches.clone())), &expected);
            // All rows are of one dataset.
            let counts = |rows: Vec<(i32, Count)>| rows.into_iter().map(|(_, count)| count).collect::<Vec<_>>();
            let of_identity = [Runs::Copies, Runs::OfADataset, Runs::OfAnIdentity];
            let changes_of_dataset = Count::one(copies.len() as i64);
            for (steps, expected) in [(&of_identity[..2], copies.len() as i64), (&of_identity[..], 1)] {
                let found = [reduced(steps, batches.clone()), reduced_in_memory(steps, batches.clone())].map(counts);
                prop_assert_eq!(found.each_ref().map(|counts| counts[0].rows()), [expected; 2]);
                prop_assert_eq!(found.each_ref().map(Vec::len), [1; 2]);
            }
            prop_assert_eq!(counts(reduced(&of_identity, batches.clone())), vec![changes_of_dataset]);
            prop_assert_eq!(counts(reduced_in_memory(&of_identity, batches)), vec![changes_of_dataset]);
        }
    }
}
