//! Rows of `sync_records` as they were read back from data files, and their order.
//!
//! The order is that of [`super::sorted`]: identity, dataset, key (nulls first), sync_count and server date descending.
//! Rows that agree in these are ordered by source, shard, sequence number and place in the record. Rows of one shard arrive in
//! that order, so the files of ingest are sorted by it too.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int32Array, Int64Array, RecordBatch, StringViewArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::file::NULL;
use super::sorted::{ROW_BYTES, Ranked};
use crate::schema::{COPIES, Table};

mod window;

use window::{Coder, Window};

/// Positions of the columns in the file schema.
pub(super) mod at {
    pub(in crate::batch) const IDENTITY_POOL_ID: usize = 0;
    pub(in crate::batch) const IDENTITY_ID: usize = 1;
    pub(in crate::batch) const DATASET_NAME: usize = 2;
    pub(in crate::batch) const OPERATION: usize = 3;
    pub(in crate::batch) const KEY: usize = 4;
    pub(in crate::batch) const VALUE: usize = 5;
    pub(in crate::batch) const OP: usize = 6;
    pub(in crate::batch) const SYNC_COUNT: usize = 7;
    pub(in crate::batch) const LAST_MODIFIED_DATE: usize = 8;
    pub(in crate::batch) const DEVICE_LAST_MODIFIED_DATE: usize = 9;
    pub(in crate::batch) const EVENT_SYNC_COUNT: usize = 10;
    pub(in crate::batch) const EVENT_LAST_MODIFIED_DATE: usize = 11;
    pub(in crate::batch) const SHARD_ID: usize = 12;
    pub(in crate::batch) const SEQUENCE_NUMBER: usize = 13;
    pub(in crate::batch) const SUB_SEQUENCE: usize = 14;
    pub(in crate::batch) const RECORD_INDEX: usize = 15;
    pub(in crate::batch) const ARRIVED_AT: usize = 16;
    pub(in crate::batch) const EXTRA: usize = 17;
    pub(in crate::batch) const SOURCE: usize = 18;
}

/// The reason why a file is not read.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// The file has columns that a new file could not hold.
    Foreign(String),
    /// The file is no readable Parquet file.
    Damaged(ParquetError),
}

impl From<ParquetError> for Unfit {
    fn from(error: ParquetError) -> Self {
        Self::Damaged(error)
    }
}

/// The values of a column. Times are microseconds.
#[derive(Debug, Clone)]
enum Cells {
    Text(StringViewArray),
    Long(Int64Array),
    Int(Int32Array),
}

impl Cells {
    fn slice(&self, start: usize, rows: usize) -> Self {
        match self {
            Self::Text(cells) => Self::Text(cells.slice(start, rows)),
            Self::Long(cells) => Self::Long(cells.slice(start, rows)),
            Self::Int(cells) => Self::Int(cells.slice(start, rows)),
        }
    }
}

/// Some rows of a data file.
#[derive(Debug, Clone)]
pub(crate) struct StoredRows {
    cells: Vec<Cells>,
    /// The column `copies`; `None` if the file lacks it.
    copies: Option<Int64Array>,
    rows: usize,
}

impl StoredRows {
    /// Takes the columns of the file schema from a batch. A column that the file lacks is null.
    fn new(batch: &RecordBatch) -> Result<Self, ParquetError> {
        let schema = Table::SyncRecords.file_schema();
        let rows = batch.num_rows();
        let cells = schema.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name()).cloned();
            let column = column.unwrap_or_else(|| new_null_array(&stored_type(field.data_type()), rows));
            let odd = || ParquetError::General(format!("column {} has another type", field.name()));
            Ok(match field.data_type() {
                DataType::Utf8 => Cells::Text(column.as_string_view_opt().ok_or_else(odd)?.clone()),
                DataType::Int32 => Cells::Int(column.as_primitive_opt::<Int32Type>().ok_or_else(odd)?.clone()),
                _ => Cells::Long(cast(&column, &DataType::Int64)?.as_primitive::<Int64Type>().clone()),
            })
        });
        let copies = batch.column_by_name(COPIES).and_then(|column| column.as_primitive_opt::<Int64Type>().cloned());
        Ok(Self { cells: cells.collect::<Result<_, ParquetError>>()?, copies, rows })
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Returns rows, without a copy of their values.
    pub(crate) fn slice(&self, start: usize, rows: usize) -> Self {
        let copies = self.copies.as_ref().map(|copies| copies.slice(start, rows));
        Self { cells: self.cells.iter().map(|cells| cells.slice(start, rows)).collect(), copies, rows }
    }

    /// Returns the bytes that these rows keep in memory. `seen` has the buffers that were counted before.
    pub(crate) fn bytes(&self, seen: &mut HashSet<usize>) -> usize {
        let of_cells = |cells: &Cells| match cells {
            Cells::Text(texts) => {
                let buffers = texts.data_buffers().iter().filter(|buffer| seen.insert(buffer.as_ptr().addr()));
                size_of::<u128>() * self.rows + buffers.map(|buffer| buffer.len()).sum::<usize>()
            }
            Cells::Long(_) => size_of::<i64>() * self.rows,
            Cells::Int(_) => size_of::<i32>() * self.rows,
        };
        let of_copies = self.copies.as_ref().map_or(0, |_| size_of::<i64>() * self.rows);
        self.cells.iter().map(of_cells).sum::<usize>() + of_copies
    }

    /// Returns the text of a row; `None` for null.
    pub(super) fn text(&self, column: usize, row: usize) -> Option<&str> {
        match &self.cells[column] {
            Cells::Text(cells) if cells.is_valid(row) => Some(cells.value(row)),
            _ => None,
        }
    }

    /// Returns the number of a row; `None` for null.
    pub(super) fn long(&self, column: usize, row: usize) -> Option<i64> {
        match &self.cells[column] {
            Cells::Long(cells) if cells.is_valid(row) => Some(cells.value(row)),
            _ => None,
        }
    }

    /// Returns the small number of a row; `None` for null.
    pub(super) fn int(&self, column: usize, row: usize) -> Option<i32> {
        match &self.cells[column] {
            Cells::Int(cells) if cells.is_valid(row) => Some(cells.value(row)),
            _ => None,
        }
    }

    /// Returns the copies that a row stands for, as its file states them; `None` for null, which means one.
    fn copies(&self, row: usize) -> Option<i64> {
        self.copies.as_ref().filter(|copies| copies.is_valid(row)).map(|copies| copies.value(row))
    }

    /// Compares a row with a row of other rows. Rows that compare equal may differ.
    pub(crate) fn compare(&self, row: usize, other: &Self, at: usize) -> Ordering {
        let text = |column| self.text(column, row).cmp(&other.text(column, at));
        let newest = |column| other.long(column, at).cmp(&self.long(column, row));
        text(at::IDENTITY_ID)
            .then_with(|| text(at::DATASET_NAME))
            .then_with(|| text(at::KEY))
            .then_with(|| newest(at::SYNC_COUNT))
            .then_with(|| newest(at::LAST_MODIFIED_DATE))
            .then_with(|| self.compare_ties(row, other, at))
    }

    fn compare_ties(&self, row: usize, other: &Self, at: usize) -> Ordering {
        let digits = |text: Option<&str>| text.map(str::len);
        let (mine, theirs) = (self.text(at::SEQUENCE_NUMBER, row), other.text(at::SEQUENCE_NUMBER, at));
        self.text(at::SOURCE, row)
            .cmp(&other.text(at::SOURCE, at))
            .then_with(|| self.text(at::SHARD_ID, row).cmp(&other.text(at::SHARD_ID, at)))
            .then_with(|| digits(mine).cmp(&digits(theirs)))
            .then_with(|| mine.cmp(&theirs))
            .then_with(|| self.long(at::SUB_SEQUENCE, row).cmp(&other.long(at::SUB_SEQUENCE, at)))
            .then_with(|| self.int(at::RECORD_INDEX, row).cmp(&other.int(at::RECORD_INDEX, at)))
    }

    /// Returns the bytes of a row as a reader gets it.
    fn row_bytes(&self, row: usize) -> usize {
        let length = |column: usize| match &self.cells[column] {
            // The lowest 32 bits of a view are the length of its text.
            Cells::Text(cells) => cells.views()[row] as u32 as usize,
            Cells::Long(_) | Cells::Int(_) => 0,
        };
        let texts = [at::KEY, at::VALUE, at::OP, at::EXTRA, at::DATASET_NAME, at::OPERATION];
        texts.into_iter().map(length).sum::<usize>() + ROW_BYTES
    }
}

/// Checks that a table has all columns of a file.
///
/// # Errors
/// Returns [`Unfit::Foreign`] with the column that it lacks, or has in another type.
pub(super) fn known_columns(table: Table, found: &Schema) -> Result<(), Unfit> {
    let schema = table.collapsed_file_schema();
    for field in found.fields() {
        let (name, found) = (field.name(), field.data_type());
        let Some((_, known)) = schema.column_with_name(name) else {
            return Err(Unfit::Foreign(format!("has the unknown column {name}")));
        };
        if known.data_type() != found {
            return Err(Unfit::Foreign(format!("has a column {name} of type {found}, not {}", known.data_type())));
        }
    }
    Ok(())
}

/// Returns the type in which a column is read: texts as views, which are not copied from their pages.
fn stored_type(of: &DataType) -> DataType {
    if *of == DataType::Utf8 { DataType::Utf8View } else { of.clone() }
}

/// Reads the rows of a data file.
pub(crate) struct StoredReader {
    reader: ParquetRecordBatchReader,
    rows: u64,
    has_copies: bool,
}

/// Fewest and most rows of a batch.
const BATCH_ROWS: (usize, usize) = (64, 8_192);

impl StoredReader {
    /// Opens a file. Batches have about `batch_bytes`.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub(crate) fn open(file: Bytes, batch_bytes: usize) -> Result<Self, Unfit> {
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options.clone())?;
        known_columns(Table::SyncRecords, metadata.schema())?;
        let viewed = |field: &Arc<Field>| Field::new(field.name(), stored_type(field.data_type()), field.is_nullable());
        let fields: Vec<Field> = metadata.schema().fields().iter().map(viewed).collect();
        let footer = metadata.metadata();
        let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
        let bytes: i64 = footer.row_groups().iter().map(|group| group.total_byte_size()).sum();
        let row_bytes = usize::try_from(bytes).unwrap_or(0) / usize::try_from(rows).unwrap_or(1).max(1) + ROW_BYTES;
        let has_copies = fields.iter().any(|field| field.name() == COPIES);
        let options = options.with_schema(Arc::new(Schema::new(fields)));
        let metadata = ArrowReaderMetadata::try_new(footer.clone(), options)?;
        let batch_rows = (batch_bytes / row_bytes).clamp(BATCH_ROWS.0, BATCH_ROWS.1);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        Ok(Self { reader: builder.with_batch_size(batch_rows).build()?, rows, has_copies })
    }

    /// Returns the number of rows that the footer states.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns whether the file has the column `copies`.
    pub(crate) fn has_copies(&self) -> bool {
        self.has_copies
    }
}

/// Returns how many delivered rows the rows of a data file stand for, read from its bytes alone.
///
/// # Errors
/// The file is no readable Parquet file.
pub(crate) fn delivered_rows(file: &Bytes) -> Result<u64, ParquetError> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options)?;
    if builder.schema().column_with_name(COPIES).is_none() {
        return Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0));
    }
    let copies_alone = ProjectionMask::columns(builder.parquet_schema(), [COPIES]);
    let mut delivered: i64 = 0;
    for batch in builder.with_projection(copies_alone).build()? {
        let batch = batch?;
        let odd = || ParquetError::General(format!("column {COPIES} has another type"));
        let copies = batch.column(0).as_primitive_opt::<Int64Type>().ok_or_else(odd)?;
        delivered = copies.iter().fold(delivered, |sum, copies| sum.saturating_add(copies.unwrap_or(1)));
    }
    Ok(u64::try_from(delivered).unwrap_or(0))
}

impl Iterator for StoredReader {
    type Item = Result<StoredRows, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        Some(batch.map_err(ParquetError::from).and_then(|batch| StoredRows::new(&batch)))
    }
}

/// The place of a row before it is sorted.
struct Unsorted {
    dataset: u64,
    key: u32,
    batch: u32,
    row: u32,
    newest: (Reverse<Option<i64>>, Reverse<Option<i64>>),
}

/// A row: the number of its batch, and its number in the batch.
pub(super) type Place = (u32, u32);

/// Rows of several batches in their final order.
pub(crate) struct Ordered<'a> {
    batches: &'a [StoredRows],
    order: Vec<Place>,
    /// Number of the first row of each batch.
    first: Vec<usize>,
    identities: Ranked<'a>,
    datasets: Ranked<'a>,
    keys: Ranked<'a>,
}

impl<'a> Ordered<'a> {
    /// Sorts rows. The sort is stable, and fast where batches are sorted already.
    pub(crate) fn new(batches: &'a [StoredRows]) -> Self {
        let counts = batches.iter().map(StoredRows::len);
        let first = counts.scan(0, |next, rows| Some(std::mem::replace(next, *next + rows))).collect();
        let [identities, datasets, keys] =
            [at::IDENTITY_ID, at::DATASET_NAME, at::KEY].map(|column| ranked(batches, column));
        let mut places = Vec::with_capacity(keys.ranks.len());
        for (batch, rows) in (0..).zip(batches) {
            for (row, number) in (0..).zip(0..rows.len()) {
                let next = places.len();
                // Null is the largest code, and sorts first.
                let rank = |ranked: &Ranked<'_>| ranked.ranks[next].wrapping_add(1);
                places.push(Unsorted {
                    dataset: u64::from(rank(&identities)) << 32 | u64::from(rank(&datasets)),
                    key: rank(&keys),
                    batch,
                    row,
                    newest: (
                        Reverse(rows.long(at::SYNC_COUNT, number)),
                        Reverse(rows.long(at::LAST_MODIFIED_DATE, number)),
                    ),
                });
            }
        }
        places.sort_by(|a, b| {
            (a.dataset, a.key, a.newest).cmp(&(b.dataset, b.key, b.newest)).then_with(|| {
                let (mine, theirs) = (&batches[a.batch as usize], &batches[b.batch as usize]);
                mine.compare_ties(a.row as usize, theirs, b.row as usize)
            })
        });
        let order = places.iter().map(|place| (place.batch, place.row)).collect();
        Self { batches, order, first, identities, datasets, keys }
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the end of the row group that begins at `start`, and whether the group is full. A group has at most
    /// `rows_max` rows, and at most `bytes_max` bytes as a reader decodes them, or one row.
    pub(crate) fn group(&self, start: usize, rows_max: usize, bytes_max: usize) -> (usize, bool) {
        let (mut end, mut bytes) = (start, 0);
        for (batch, row) in self.order[start..].iter().take(rows_max) {
            bytes += self.batches[*batch as usize].row_bytes(*row as usize);
            if end > start && bytes > bytes_max {
                return (end, true);
            }
            end += 1;
        }
        (end, end - start == rows_max)
    }

    /// Returns the number of rows of each batch in a range of the final order.
    pub(crate) fn rows_of_batches(&self, range: Range<usize>) -> Vec<usize> {
        let mut rows = vec![0; self.batches.len()];
        self.order[range].iter().for_each(|(batch, _)| rows[*batch as usize] += 1);
        rows
    }

    /// Returns the places of rows.
    pub(super) fn places(&self, range: Range<usize>) -> std::slice::Iter<'_, Place> {
        self.order[range].iter()
    }

    fn of(&self, (batch, row): Place) -> (&'a StoredRows, usize) {
        (&self.batches[batch as usize], row as usize)
    }

    /// Returns the text of a row; `None` for null.
    pub(super) fn text(&self, column: usize, place: Place) -> Option<&'a str> {
        let (rows, row) = self.of(place);
        rows.text(column, row)
    }

    /// Returns the columns of rows.
    pub(super) fn window(&'a self, range: Range<usize>) -> Window<'a> {
        Window::new(self, range)
    }
}

/// Ranks the texts of a column.
fn ranked(batches: &[StoredRows], column: usize) -> Ranked<'_> {
    let mut coder = Coder::new();
    let mut codes = Vec::with_capacity(batches.iter().map(StoredRows::len).sum());
    for rows in batches {
        let begin = codes.len();
        codes.resize(begin + rows.len(), NULL);
        if let Cells::Text(cells) = &rows.cells[column] {
            coder.texts(cells, 0..rows.len(), |row, code| codes[begin + row] = code);
        }
    }
    Ranked::of(coder.column(codes))
}

pub(crate) mod copies;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_positions_are_those_of_the_file_schema() {
        let schema = Table::SyncRecords.file_schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let known = [
            (at::IDENTITY_POOL_ID, "identity_pool_id"),
            (at::IDENTITY_ID, "identity_id"),
            (at::DATASET_NAME, "dataset_name"),
            (at::OPERATION, "operation"),
            (at::KEY, "key"),
            (at::VALUE, "value"),
            (at::OP, "op"),
            (at::SYNC_COUNT, "sync_count"),
            (at::LAST_MODIFIED_DATE, "last_modified_date"),
            (at::DEVICE_LAST_MODIFIED_DATE, "device_last_modified_date"),
            (at::EVENT_SYNC_COUNT, "event_sync_count"),
            (at::EVENT_LAST_MODIFIED_DATE, "event_last_modified_date"),
            (at::SHARD_ID, "shard_id"),
            (at::SEQUENCE_NUMBER, "sequence_number"),
            (at::SUB_SEQUENCE, "sub_sequence"),
            (at::RECORD_INDEX, "record_index"),
            (at::ARRIVED_AT, "arrived_at"),
            (at::EXTRA, "extra"),
            (at::SOURCE, "source"),
        ];
        assert_eq!(names.len(), known.len());
        known.iter().for_each(|(column, name)| assert_eq!(names[*column], *name));
    }
}
