//! Encodes rows that were read back from data files: the same columns, encodings, filters and statistics as a file of
//! ingest.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::SchemaDescriptor;

use super::{COLLAPSED_SCHEMA, Coded, Column, Group, LEVEL, NULL, SCHEMA, filter};
use crate::batch::parquet::{delta_statistics, properties};
use crate::batch::sorted::Statistics;
use crate::batch::stored::{Ordered, at};

/// A data file that is being encoded.
pub(crate) struct StoredWriter {
    file: SerializedFileWriter<Vec<u8>>,
    schema: &'static SchemaDescriptor,
    has_copies: bool,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    statistics: Statistics,
}

impl StoredWriter {
    /// Creates a file without rows. `capacity` is its expected size. `has_copies` says whether it has the column `copies`.
    ///
    /// # Errors
    /// The library rejects the schema (a bug).
    pub(crate) fn new(capacity: usize, is_compressed: bool, has_copies: bool) -> Result<Self, ParquetError> {
        let schema = if has_copies { &COLLAPSED_SCHEMA } else { &SCHEMA };
        let schema = schema.as_ref().map_err(|error| ParquetError::General(error.clone()))?;
        let properties = Arc::new(properties().build());
        let file = SerializedFileWriter::new(Vec::with_capacity(capacity), schema.root_schema_ptr(), properties)?;
        let zstd = if is_compressed { Some(zstd::bulk::Compressor::new(LEVEL)?) } else { None };
        Ok(Self { file, schema, has_copies, zstd, statistics: Statistics::default() })
    }

    /// Writes rows as one row group. They must not sort before the rows that were written.
    ///
    /// # Errors
    /// The library rejects the columns (a bug, never the data).
    pub(crate) fn write(&mut self, rows: &Ordered<'_>, range: Range<usize>) -> Result<(), ParquetError> {
        let mut group =
            Group { schema: self.schema, zstd: self.zstd.as_mut(), writer: self.file.next_row_group()?, next: 0 };
        let statistics = &mut self.statistics;
        let window = rows.window(range.clone());
        group.column(&window.texts(at::IDENTITY_POOL_ID))?;
        let identities = window.identities();
        note_ranked(&identities, &mut statistics.identity_id, &mut statistics.null_identities);
        group.write(&identities.codes, identities.values, Some(filter(&identities.codes, identities.values)?))?;
        let datasets = window.datasets();
        note_ranked(&datasets, &mut statistics.dataset_name, &mut statistics.null_datasets);
        group.coded(&datasets)?;
        group.column(&window.texts(at::OPERATION))?;
        let keys = window.keys();
        statistics.null_keys += nulls(&keys.codes);
        group.coded(&keys)?;
        let values = window.long_texts(at::VALUE);
        statistics.null_values += nulls(&values.codes);
        group.long(&values)?;
        group.column(&window.texts(at::OP))?;
        let counts = window.longs(at::SYNC_COUNT);
        note(&counts, &mut statistics.sync_count, &mut statistics.null_sync_counts);
        group.column(&counts)?;
        let dates = window.longs(at::LAST_MODIFIED_DATE);
        note(&dates, &mut statistics.last_modified_date, &mut statistics.null_dates);
        group.column(&dates)?;
        let dates = window.longs(at::DEVICE_LAST_MODIFIED_DATE);
        note(&dates, &mut statistics.device_last_modified_date, &mut statistics.null_device_dates);
        group.column(&dates)?;
        group.column(&window.longs(at::EVENT_SYNC_COUNT))?;
        group.column(&window.longs(at::EVENT_LAST_MODIFIED_DATE))?;
        group.column(&window.texts(at::SHARD_ID))?;
        group.column(&window.texts(at::SEQUENCE_NUMBER))?;
        group.column(&window.longs(at::SUB_SEQUENCE))?;
        group.column(&window.ints(at::RECORD_INDEX))?;
        group.column(&window.longs(at::ARRIVED_AT))?;
        group.rendered(rows.places(range), |place, text| {
            let extra = rows.text(at::EXTRA, *place);
            text.push_str(extra.unwrap_or_default());
            extra.is_some()
        })?;
        group.column(&window.texts(at::SOURCE))?;
        if self.has_copies {
            group.column(&window.copies())?;
        }
        group.writer.close()?;
        Ok(())
    }

    /// Finishes the file. Returns its bytes, its statistics for the log, and the number of its rows.
    ///
    /// # Errors
    /// The library cannot finish the file.
    pub(crate) fn finish(mut self) -> Result<(Bytes, serde_json::Value, u64), ParquetError> {
        let rows: i64 = self.file.flushed_row_groups().iter().map(|group| group.num_rows()).sum();
        let rows = u64::try_from(rows).unwrap_or(0);
        self.statistics.rows = usize::try_from(rows).unwrap_or(0);
        Ok((self.file.into_inner()?.into(), delta_statistics(&self.statistics), rows))
    }
}

fn nulls(codes: &[u32]) -> usize {
    codes.iter().filter(|code| **code == NULL).count()
}

/// Adds the values of a column to its range, and its nulls to their count.
fn note(column: &Column<i64>, range: &mut Option<(i64, i64)>, null_count: &mut usize) {
    *null_count += nulls(&column.codes);
    if let (Some(low), Some(high)) = (column.values.iter().min(), column.values.iter().max()) {
        let known = range.get_or_insert((*low, *high));
        *known = (known.0.min(*low), known.1.max(*high));
    }
}

/// Adds the texts of a column to its range, and its nulls to their count. The codes of the texts have their order.
fn note_ranked(column: &Coded<'_, &str>, range: &mut Option<(String, String)>, null_count: &mut usize) {
    *null_count += nulls(&column.codes);
    let present = || column.codes.iter().copied().filter(|code| *code != NULL);
    let text = |code: u32| column.values.get(code as usize).map(|text| (*text).to_owned());
    if let (Some(low), Some(high)) = (present().min().and_then(text), present().max().and_then(text)) {
        *range = Some(match range.take() {
            None => (low, high),
            Some(known) => (known.0.min(low), known.1.max(high)),
        });
    }
}
