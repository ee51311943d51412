//! The order of changes, and its only definition in Rust: `sync_count`, then server date, then arrival, then the
//! sequence number as an integer (by length, then by digits), then the place inside the record. The clock of a device
//! never counts.
//!
//! `sql/views/resolved.sql` is the same order in SQL, and a test compares the two. The order prefix, three integers,
//! decides nearly always. The tie-breakers are text, and are read only if order prefixes are equal.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::error::ArrowError;
use datafusion::error::{DataFusionError, Result};

/// Columns that order changes, most significant first.
pub(in crate::query) const ORDER: [&str; 7] =
    ["sync_count", "last_modified_date", "arrived_at", "sequence_number", "sub_sequence", "record_index", "shard_id"];
/// Number of columns in the order prefix.
pub(super) const PREFIX_COLUMNS: usize = 3;

/// The order prefix of a row.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::query) struct OrderPrefix {
    pub sync_count: i64,
    pub modified: i64,
    pub arrived: i64,
}

impl OrderPrefix {
    /// Returns the part that is compared with the removal of a dataset.
    pub(super) fn moment(self) -> (i64, i64) {
        (self.sync_count, self.modified)
    }
}

/// The order prefixes of rows.
#[derive(Debug)]
pub(in crate::query) struct OrderPrefixes([Int64Array; PREFIX_COLUMNS]);

impl OrderPrefixes {
    /// Reads the order prefixes from the first columns of the order.
    pub(super) fn of([sync_count, modified, arrived]: [&ArrayRef; PREFIX_COLUMNS]) -> Result<Self, ArrowError> {
        let number = |column| Ok::<_, ArrowError>(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone());
        Ok(Self([number(sync_count)?, number(modified)?, number(arrived)?]))
    }

    /// Returns the order prefix of a row.
    pub(in crate::query) fn get(&self, row: usize) -> OrderPrefix {
        let [sync_count, modified, arrived] = &self.0;
        OrderPrefix {
            sync_count: sync_count.values()[row],
            modified: modified.values()[row],
            arrived: arrived.values()[row],
        }
    }
}

/// The tie-breaker columns. Text may have any string type.
#[derive(Clone, Copy)]
pub(in crate::query) struct TieBreakers<'a>(pub &'a [ArrayRef]);

impl TieBreakers<'_> {
    fn text(&self, column: usize, row: usize) -> &str {
        let column = &self.0[column];
        match column.data_type() {
            DataType::Utf8View => column.as_string_view().value(row),
            DataType::LargeUtf8 => column.as_string::<i64>().value(row),
            _ => column.as_string::<i32>().value(row),
        }
    }

    /// Compares two rows of equal order prefixes; the greater row is the later one.
    pub(in crate::query) fn compare(&self, row: usize, other: &Self, at: usize) -> Ordering {
        let sub = |rest: &Self, row: usize| {
            let values = rest.0[1].as_primitive::<Int64Type>();
            if values.is_null(row) { -1 } else { values.value(row) }
        };
        let index = |rest: &Self, row: usize| rest.0[2].as_primitive::<Int32Type>().value(row);
        let (digits, others) = (self.text(0, row), other.text(0, at));
        (digits.len(), digits)
            .cmp(&(others.len(), others))
            .then_with(|| sub(self, row).cmp(&sub(other, at)))
            .then_with(|| index(self, row).cmp(&index(other, at)))
            .then_with(|| self.text(3, row).cmp(other.text(3, at)))
    }
}

/// Returns the column of a batch with that name.
pub(in crate::query) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| DataFusionError::Internal(format!("there is no column {name}")))
}

/// Reads the order prefixes of the rows of a batch.
pub(in crate::query) fn order_prefixes(batch: &RecordBatch) -> Result<OrderPrefixes> {
    let [sync_count, modified, arrived, ..] = ORDER;
    Ok(OrderPrefixes::of([column(batch, sync_count)?, column(batch, modified)?, column(batch, arrived)?])?)
}

/// Returns the tie-breaker columns; `None` if the batch lacks one of them.
pub(in crate::query) fn tie_breakers(batch: &RecordBatch) -> Option<Vec<ArrayRef>> {
    ORDER[PREFIX_COLUMNS..].iter().map(|name| batch.column_by_name(name).cloned()).collect()
}

/// The order of the rows of a batch.
pub(in crate::query) struct RowOrder {
    prefixes: OrderPrefixes,
    rest: Vec<ArrayRef>,
}

impl RowOrder {
    /// Finds the columns of the order.
    pub(in crate::query) fn of(rows: &RecordBatch) -> Result<Self> {
        let rest = tie_breakers(rows);
        let rest = rest.ok_or_else(|| DataFusionError::Internal("a column of the order is missing".to_owned()))?;
        Ok(Self { prefixes: order_prefixes(rows)?, rest })
    }

    /// Returns the order prefix of a row.
    pub(super) fn prefix(&self, row: usize) -> OrderPrefix {
        self.prefixes.get(row)
    }

    /// Compares a row with a row of another batch, or of this one; the greater row is the later one.
    pub(in crate::query) fn compare(&self, row: usize, other: &Self, at: usize) -> Ordering {
        let rest = || TieBreakers(&self.rest).compare(row, &TieBreakers(&other.rest), at);
        self.prefixes.get(row).cmp(&other.prefixes.get(at)).then_with(rest)
    }
}
