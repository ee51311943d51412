//! Runs of neighbouring rows with equal columns, each reduced to its latest row and a count.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use hashbrown::HashMap;

use super::group::Group;
use super::{KEY_OF_A_DAY, OF_A_COPY};
use crate::query::state::order::{RowOrder, column};
use crate::schema::COPIES;

/// Rows, and how many rows of the input each of them stands for.
struct Counted {
    rows: RecordBatch,
    counts: Vec<i64>,
}

/// A reduction of runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    /// Number of the first columns of the sort order that are equal in a run.
    compared: usize,
    /// Whether rows of a run with different `op` or `value` stay apart.
    splits: bool,
}

/// Columns of the sort order.
fn sorted() -> impl Iterator<Item = &'static str> {
    KEY_OF_A_DAY.into_iter().chain(["sync_count"])
}

impl Runs {
    /// Copies of one change.
    pub(super) fn copies() -> Self {
        Self { compared: KEY_OF_A_DAY.len() + 1, splits: true }
    }

    /// Changes of one key on one day.
    pub(super) fn of_a_day() -> Self {
        Self { compared: KEY_OF_A_DAY.len(), splits: false }
    }

    /// Returns whether each row but the first has the same compared columns as the row before it.
    fn joined(self, rows: &RecordBatch) -> Result<BooleanBuffer> {
        let pairs = rows.num_rows().saturating_sub(1);
        let mut joined = BooleanBuffer::new_set(pairs);
        for name in sorted().take(self.compared) {
            let values = column(rows, name)?;
            joined = &joined & not_distinct(&values.slice(0, pairs), &values.slice(1, pairs))?.values();
        }
        Ok(joined)
    }

    /// Reduces a stream of sorted rows. A run may cross batches, so the last run of a batch is held back, reduced.
    fn reduce(self, rows: BoxStream<'static, Result<Counted>>) -> BoxStream<'static, Result<Counted>> {
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
                let (done, last) = self.split(all)?;
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
    fn split(self, all: Counted) -> Result<(Option<Counted>, Counted)> {
        let count = all.rows.num_rows();
        let joined = self.joined(&all.rows)?;
        let mut starts: Vec<usize> = vec![0];
        starts.extend((0..joined.len()).filter(|pair| !joined.value(*pair)).map(|pair| pair + 1));
        let last = starts.last().copied().unwrap_or(0);
        if starts.len() == count {
            // No run has two rows.
            let done = (last > 0).then(|| all.slice(0, last));
            return Ok((done, all.slice(last, count - last)));
        }
        let order = RowOrder::of(&all.rows)?;
        let mut kept = Kept::default();
        let mut last_kept = 0;
        starts.push(count);
        for run in starts.windows(2) {
            last_kept = kept.rows.len();
            match run[1] - run[0] {
                1 => kept.push(run[0], all.counts[run[0]]),
                _ if self.splits => kept.push_apart(run[0]..run[1], &all, &order)?,
                _ => kept.push_latest(run[0]..run[1], &all, &order),
            }
        }
        let kept = kept.take(&all.rows)?;
        let count = kept.counts.len();
        let done = (last_kept > 0).then(|| kept.slice(0, last_kept));
        Ok((done, kept.slice(last_kept, count - last_kept)))
    }
}

impl Counted {
    /// Counts each row once.
    fn once(rows: RecordBatch) -> Self {
        Self { counts: vec![1; rows.num_rows()], rows }
    }

    /// Counts each row of `sync_records` as often as it was delivered.
    fn delivered(rows: RecordBatch) -> Result<Self> {
        let Some(copies) = rows.column_by_name(COPIES) else { return Ok(Self::once(rows)) };
        let copies = cast(copies, &DataType::Int64)?;
        let counts = copies.as_primitive::<Int64Type>().iter().map(|copies| copies.unwrap_or(1)).collect();
        Ok(Self { rows, counts })
    }

    fn slice(&self, from: usize, length: usize) -> Self {
        Self { rows: self.rows.slice(from, length), counts: self.counts[from..from + length].to_vec() }
    }

    fn followed_by(mut self, next: Self) -> Result<Self> {
        self.counts.extend(next.counts);
        Ok(Self { rows: concat_batches(&self.rows.schema(), [&self.rows, &next.rows])?, counts: self.counts })
    }
}

/// The rows that stay, and their counts.
#[derive(Default)]
struct Kept {
    rows: Vec<u32>,
    counts: Vec<i64>,
}

impl Kept {
    fn push(&mut self, row: usize, count: i64) {
        // A batch has far fewer rows than 2³².
        self.rows.push(row as u32);
        self.counts.push(count);
    }

    /// Keeps the latest row of a run.
    fn push_latest(&mut self, run: std::ops::Range<usize>, all: &Counted, order: &RowOrder) {
        let count = all.counts[run.clone()].iter().sum();
        if let Some(latest) = run.max_by(|a, b| order.compare(*a, order, *b)) {
            self.push(latest, count);
        }
    }

    /// Keeps the latest row of each `op` and `value` of a run.
    fn push_apart(&mut self, run: std::ops::Range<usize>, all: &Counted, order: &RowOrder) -> Result<()> {
        let texts = OF_A_COPY[1..].iter().map(|name| Ok(column(&all.rows, name)?.slice(run.start, run.len())));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let converter = arrow::row::RowConverter::new(
            texts.iter().map(|text| arrow::row::SortField::new(text.data_type().clone())).collect(),
        )?;
        let keys = converter.convert_columns(&texts)?;
        let mut places: HashMap<_, usize> = HashMap::new();
        for row in run.clone() {
            let place = *places.entry(keys.row(row - run.start)).or_insert(self.rows.len());
            match self.rows.get(place).map(|known| *known as usize) {
                None => self.push(row, all.counts[row]),
                Some(known) => {
                    self.counts[place] += all.counts[row];
                    if order.compare(row, order, known) == Ordering::Greater {
                        self.rows[place] = row as u32;
                    }
                }
            }
        }
        Ok(())
    }

    fn take(self, rows: &RecordBatch) -> Result<Counted> {
        Ok(Counted { rows: take_record_batch(rows, &UInt32Array::from(self.rows))?, counts: self.counts })
    }
}

/// The plan node that reduces the rows of its inputs. Every input is sorted, and no run crosses two inputs.
pub(super) struct RunsExec {
    inputs: Vec<Group>,
    steps: Vec<Runs>,
    /// Name of the column with the counts.
    count: &'static str,
    properties: Arc<PlanProperties>,
}

impl RunsExec {
    /// Creates a node with the columns of `schema`, which reads at most `threads` inputs at a time.
    pub(super) fn new(
        inputs: Vec<Group>,
        steps: Vec<Runs>,
        count: &'static str,
        schema: SchemaRef,
        threads: usize,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(threads.min(inputs.len()).max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { inputs, steps, count, properties: Arc::new(properties) }
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

    /// Returns no inputs: the optimizer of the outer plan would remove their sorts, which nothing it knows requires, and
    /// would read them in parts. The inputs are optimized already.
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
        let (steps, count, schema) = (self.steps.clone(), self.count, self.schema());
        let of_input = move |input: Group| {
            let rows = input.execute(context.clone()).and_then(|rows| std::future::ready(Counted::delivered(rows)));
            Ok::<_, DataFusionError>(reduced_by(&steps, rows.boxed()))
        };
        let shown = schema.clone();
        let rows = futures::stream::iter(mine.into_iter().map(of_input)).try_flatten();
        let rows = rows.and_then(move |rows| std::future::ready(show(rows, count, &shown)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Reduces rows step by step. Each step but the first counts the rows of the step before it.
fn reduced_by(steps: &[Runs], rows: BoxStream<'static, Result<Counted>>) -> BoxStream<'static, Result<Counted>> {
    let mut steps = steps.iter();
    let reduced = match steps.next() {
        Some(first) => first.reduce(rows),
        None => rows,
    };
    steps.fold(reduced, |rows, step| step.reduce(rows.map_ok(|counted| Counted::once(counted.rows)).boxed()))
}

/// Returns the columns of `schema`.
fn show(counted: Counted, count: &str, schema: &SchemaRef) -> Result<RecordBatch> {
    let Counted { rows, counts } = counted;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let counts: ArrayRef = Arc::new(Int64Array::from(counts));
    let columns = schema.fields().iter().map(|field| {
        let values = if field.name() == count { &counts } else { column(&rows, field.name())? };
        Ok(cast(values, field.data_type())?)
    });
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect::<Result<Vec<_>>>()?, &options)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{Date32Array, Int32Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Schema, TimeUnit};
    use proptest::prelude::*;

    use super::*;

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
    fn reduced(runs: &[Runs], batches: Vec<RecordBatch>) -> Vec<(i32, i64)> {
        let rows = futures::stream::iter(batches.into_iter().map(Counted::delivered)).boxed();
        let found: Vec<Counted> = futures::executor::block_on(reduced_by(runs, rows).try_collect()).unwrap();
        let indexes = |counted: &Counted| -> Vec<i32> {
            let indexes = column(&counted.rows, "record_index").unwrap().as_primitive::<arrow::datatypes::Int32Type>();
            assert_eq!(column(&counted.rows, "sync_count").unwrap().as_primitive::<Int64Type>().null_count(), 0);
            indexes.values().to_vec()
        };
        found.iter().flat_map(|counted| indexes(counted).into_iter().zip(counted.counts.clone())).collect()
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
            let mut found = reduced(&[Runs::copies()], batches.clone());
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
            let mut days: BTreeMap<Option<String>, (Vec<_>, i64)> = BTreeMap::new();
            for (index, _) in &expected {
                let change = &changes[*index as usize];
                let found = days.entry(change.0.clone()).or_default();
                found.0.push((change.1, change.4, change.5));
                found.1 += 1;
            }
            let expected: Vec<(i32, i64)> =
                days.values().map(|(places, count)| (places.iter().max().unwrap().2, *count)).collect();
            prop_assert_eq!(reduced(&[Runs::copies(), Runs::of_a_day()], batches), expected);
        }
    }
}
