//! Runs of neighbouring rows with equal columns, each reduced to its latest row and a count.

use std::cmp::Ordering;
use std::ops::AddAssign;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use datafusion::error::{DataFusionError, Result};
use hashbrown::HashMap;

use super::OF_A_COPY;
use crate::query::sorted::{At, SortColumns};
use crate::query::state::order::{RowOrder, column};
use crate::schema::COPIES;

/// A reduction of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runs {
    /// Copies of one change: rows with one key of a day, one `sync_count`, one `op` and one `value`. The last two are no
    /// columns of the sort order.
    Copies,
    /// Changes of one key on one day.
    OfADay,
    /// Changes of one dataset on one day.
    OfADataset,
    /// Datasets of one identity on one day.
    OfAnIdentity,
}

/// How many rows one row of a reduction replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    rows: i64,
    sum: i64,
}

impl Count {
    /// Returns the count of a single row that stands for so many.
    pub(super) fn one(sum: i64) -> Self {
        Self { rows: 1, sum }
    }

    /// Returns the number of rows of the step before, or of the input.
    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    /// Returns the sum of what these rows counted: of the input, its deliveries.
    pub(super) fn sum(&self) -> i64 {
        self.sum
    }

    /// Returns the count with which the next step begins.
    pub(super) fn next(self) -> Self {
        Self::one(self.rows)
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum += other.sum;
    }
}

/// The places of rows that stay, in order, with the count of each.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) rows: Vec<At>,
    pub(super) counts: Vec<Count>,
}

/// The columns of some batches that decide which row of a run stays.
pub(super) struct Compared<'a> {
    texts: Vec<[&'a StringArray; 2]>,
    /// `None` if it does not matter which row of a run stays.
    orders: Option<Vec<RowOrder>>,
}

/// Returns how often each row of `sync_records` was delivered; `None` if each one was delivered once.
pub(super) fn delivered(rows: &RecordBatch) -> Result<Option<Vec<i64>>> {
    let Some(copies) = rows.column_by_name(COPIES) else { return Ok(None) };
    let copies = arrow::compute::cast(copies, &arrow::datatypes::DataType::Int64)?;
    Ok(Some(copies.as_primitive::<Int64Type>().iter().map(|copies| copies.unwrap_or(1)).collect()))
}

impl<'a> Compared<'a> {
    /// `has_order` tells whether the order of changes decides which row of a run stays; then the batches have its columns.
    pub(super) fn of(batches: &'a [RecordBatch], has_order: bool) -> Result<Self> {
        let text = |batch: &'a RecordBatch, name| {
            let missing = || DataFusionError::Internal(format!("the column {name} is no plain text"));
            column(batch, name)?.as_string_opt::<i32>().ok_or_else(missing)
        };
        let [_, op, value] = OF_A_COPY;
        let texts = batches.iter().map(|batch| Ok([text(batch, op)?, text(batch, value)?]));
        let orders = has_order.then(|| batches.iter().map(RowOrder::of).collect::<Result<_>>());
        Ok(Self { texts: texts.collect::<Result<_>>()?, orders: orders.transpose()? })
    }

    /// Compares two rows; the greater row is the later one.
    fn compare(&self, a: At, b: At) -> Ordering {
        let Some(orders) = &self.orders else { return Ordering::Equal };
        orders[a.batch as usize].compare(a.row as usize, &orders[b.batch as usize], b.row as usize)
    }

    fn op_and_value(&self, at: At) -> [Option<&'a str>; 2] {
        let row = at.row as usize;
        self.texts[at.batch as usize].map(|texts| texts.is_valid(row).then(|| texts.value(row)))
    }
}

impl Runs {
    /// Reduces sorted rows. The condition on neighbours is that of `spilled::compared`.
    pub(super) fn reduce(self, all: &Kept, columns: SortColumns<'_>, compared: &Compared<'_>) -> Kept {
        let is_joined = |a: At, b: At| match self {
            Self::Copies => columns.is_same_key(a, b) && columns.count(a) == columns.count(b),
            Self::OfADay => columns.is_same_key(a, b),
            Self::OfADataset => columns.is_same_dataset(a, b),
            Self::OfAnIdentity => columns.is_same_identity(a, b),
        };
        let mut kept = Kept::default();
        let mut from = 0;
        for to in 1..=all.rows.len() {
            if to == all.rows.len() || !is_joined(all.rows[to - 1], all.rows[to]) {
                self.keep(&all.rows[from..to], &all.counts[from..to], compared, &mut kept);
                from = to;
            }
        }
        kept
    }

    /// Reduces one run, or the rows that would be one if `op` and `value` were equal.
    pub(super) fn keep(self, run: &[At], counts: &[Count], compared: &Compared<'_>, kept: &mut Kept) {
        match run {
            [] => {}
            [row] => kept.push(*row, counts[0]),
            [first, others @ ..] => {
                let of_first = compared.op_and_value(*first);
                match self != Self::Copies || others.iter().all(|row| compared.op_and_value(*row) == of_first) {
                    true => kept.push_latest(run, counts, compared),
                    false => kept.push_apart(run, counts, compared),
                }
            }
        }
    }
}

impl Kept {
    fn push(&mut self, row: At, count: Count) {
        self.rows.push(row);
        self.counts.push(count);
    }

    /// Keeps the latest row of a run.
    fn push_latest(&mut self, run: &[At], counts: &[Count], compared: &Compared<'_>) {
        if let Some(latest) = run.iter().max_by(|a, b| compared.compare(**a, **b)) {
            let mut all = Count { rows: 0, sum: 0 };
            counts.iter().for_each(|count| all += *count);
            self.push(*latest, all);
        }
    }

    /// Keeps the latest row of each `op` and `value` of a run.
    fn push_apart(&mut self, run: &[At], counts: &[Count], compared: &Compared<'_>) {
        let mut places: HashMap<_, usize> = HashMap::new();
        for (row, count) in run.iter().zip(counts) {
            let place = *places.entry(compared.op_and_value(*row)).or_insert(self.rows.len());
            match self.rows.get(place) {
                None => self.push(*row, *count),
                Some(known) => {
                    self.counts[place] += *count;
                    if compared.compare(*row, *known) == Ordering::Greater {
                        self.rows[place] = *row;
                    }
                }
            }
        }
    }
}
