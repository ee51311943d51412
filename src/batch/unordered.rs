//! Files of tables whose rows have no order: reading them back, and writing the rows of several as one file.

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use serde_json::Value;

use super::parquet::{conform, properties, row_count_statistics, writer};
use super::stored::{Unfit, known_columns};
use crate::schema::Table;

/// Bytes of encoded rows that become a row group.
const GROUP_BYTES: usize = 32 << 20;
/// Bytes of decoded rows that are read at a time, if one row has no more.
const BATCH_BYTES: u64 = 4 << 20;
/// Most rows that are read at a time.
const BATCH_ROWS: u64 = 8_192;

/// A file that is read back.
pub(crate) struct UnorderedReader {
    table: Table,
    reader: ParquetRecordBatchReader,
    /// Rows, as the footer states.
    pub rows: u64,
    /// Bytes of the decoded rows, as the footer states.
    pub decoded_bytes: u64,
}

impl UnorderedReader {
    /// Opens a file of a table.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub(crate) fn open(table: Table, file: Bytes) -> Result<Self, Unfit> {
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options)?;
        known_columns(table, metadata.schema())?;
        let footer = metadata.metadata();
        let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
        let decoded = footer.row_groups().iter().map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0));
        let decoded_bytes = decoded.sum::<u64>();
        let row_bytes = decoded_bytes / rows.max(1) + 1;
        let batch_rows = usize::try_from((BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS)).unwrap_or(1);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        Ok(Self { table, reader: builder.with_batch_size(batch_rows).build()?, rows, decoded_bytes })
    }
}

impl Iterator for UnorderedReader {
    type Item = Result<RecordBatch, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        Some(batch.and_then(|batch| conform(&self.table.file_schema(), &batch)).map_err(ParquetError::from))
    }
}

/// Writes one file of a table.
pub(crate) struct UnorderedWriter {
    writer: ArrowWriter<Vec<u8>>,
    rows: usize,
}

impl UnorderedWriter {
    /// Creates a writer without rows.
    ///
    /// # Errors
    /// The library rejects the schema (a bug).
    pub(crate) fn new(table: Table) -> Result<Self, ParquetError> {
        Ok(Self { writer: writer(table.file_schema(), properties().build())?, rows: 0 })
    }

    /// Appends rows.
    ///
    /// # Errors
    /// The library rejects the batch.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.rows += batch.num_rows();
        self.writer.write(batch)?;
        if self.writer.in_progress_size() >= GROUP_BYTES {
            self.writer.flush()?;
        }
        Ok(())
    }

    /// Finishes the file. Returns its bytes, its statistics for the log, and its rows.
    ///
    /// # Errors
    /// The library cannot finish the file.
    pub(crate) fn finish(self) -> Result<(Bytes, Value, u64), ParquetError> {
        Ok((self.writer.into_inner()?.into(), row_count_statistics(self.rows), self.rows as u64))
    }
}
