//! The Parquet encoding of data files, and their statistics in the form of the Delta protocol.
//!
//! `sync_records` has an encoder of its own ([`super::file`]). The other tables use that of the Parquet library, with
//! zstd, dictionary and plain encodings, version 1 data pages, and int64 microseconds in UTC.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use bytes::Bytes;
use chrono::{DateTime, Datelike, SecondsFormat};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::columns::{Partition, PartitionKey};
use super::file;
use super::sorted::{Sorted, Statistics};
use crate::schema::Table;

/// Rows of a row group: few enough for a cheap point lookup, enough for a fast scan.
const ROW_GROUP_ROWS: usize = 131_072;

pub(super) fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(concat!("synclake ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
}

pub(super) fn writer(schema: SchemaRef, properties: WriterProperties) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    // Without the Arrow schema in the footer, readers see only Parquet types, never Arrow dictionaries.
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(Vec::new(), schema, options)
}

/// Encodes the buffers of a partition of `sync_records`, sorted. Returns the file and its statistics.
///
/// # Errors
/// The library rejects the columns (a bug, never the data).
pub(crate) fn encode_partition(key: &PartitionKey, parts: &[Partition]) -> Result<(Bytes, Value), ParquetError> {
    encode_sorted(key, &sort_partition(parts))
}

/// Sorts the buffers of a partition of `sync_records`.
pub(crate) fn sort_partition(parts: &[Partition]) -> Sorted<'_> {
    Sorted::new(parts)
}

/// Encodes sorted rows of a partition of `sync_records`. Returns the file and its statistics.
///
/// # Errors
/// As [`encode_partition`].
pub(crate) fn encode_sorted(key: &PartitionKey, sorted: &Sorted<'_>) -> Result<(Bytes, Value), ParquetError> {
    Ok((file::encode(key, sorted, properties().build())?, delta_statistics(&sorted.statistics())))
}

/// Encodes batches that share a schema.
///
/// # Errors
/// The library rejects a batch.
pub(crate) fn encode_batches(schema: SchemaRef, batches: &[RecordBatch]) -> Result<Bytes, ParquetError> {
    let mut writer = writer(schema, properties().build())?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?.into())
}

/// Encodes one batch. Returns the file and its statistics: the row count alone.
///
/// # Errors
/// As [`encode_batches`].
pub(crate) fn encode_batch(batch: &RecordBatch) -> Result<(Bytes, Value), ParquetError> {
    let bytes = encode_batches(batch.schema(), std::slice::from_ref(batch))?;
    Ok((bytes, row_count_statistics(batch.num_rows())))
}

/// A writer of one file of the maintained state. The rows must arrive sorted by identity, dataset and key.
pub(crate) struct StateWriter {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
    null_keys: usize,
    null_identities: usize,
    identities: Option<(String, String)>,
}

/// Rows of a data page of the maintained state. A point lookup reads one page, so pages are small.
const STATE_PAGE_ROWS: usize = 4_096;

impl StateWriter {
    /// Creates a writer without rows.
    ///
    /// # Errors
    /// The library rejects the schema (a bug).
    pub(crate) fn new() -> Result<Self, ParquetError> {
        let mut properties = properties().set_data_page_row_count_limit(STATE_PAGE_ROWS);
        properties = properties.set_column_statistics_enabled(ColumnPath::from("value"), EnabledStatistics::None);
        let writer = writer(Table::State.file_schema(), properties.build())?;
        Ok(Self { writer, rows: 0, null_keys: 0, null_identities: 0, identities: None })
    }

    /// Appends rows. No identity may sort before the last written one.
    ///
    /// # Errors
    /// The library rejects the batch.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        let identities = batch.column_by_name("identity_id").and_then(|c| c.as_string_opt::<i32>());
        let ends = identities.filter(|c| !c.is_empty()).map(|c| (c.value(0), c.value(c.len() - 1)));
        if let Some((first, last)) = ends {
            let first = self.identities.take().map_or_else(|| first.to_owned(), |known| known.0);
            self.identities = Some((first, last.to_owned()));
        }
        self.null_keys += batch.column_by_name("key").map_or(0, |c| c.null_count());
        self.null_identities += batch.column_by_name("identity_id").map_or(0, |c| c.null_count());
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch)
    }

    /// Returns the last written identity.
    pub(crate) fn last_identity(&self) -> Option<&str> {
        self.identities.as_ref().map(|(_, last)| last.as_str())
    }

    /// Returns the approximate size of the file if it ended here, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Finishes the file. Returns its bytes and its statistics for the log.
    ///
    /// # Errors
    /// The library cannot finish the file.
    pub(crate) fn finish(self) -> Result<(Bytes, Value), ParquetError> {
        let range = self.identities.filter(|(low, high)| low.len() <= 256 && high.len() <= 256);
        let side = |value: Option<&String>| value.map_or_else(|| json!({}), |v| json!({ "identity_id": v }));
        let statistics = json!({
            "numRecords": self.rows,
            "minValues": side(range.as_ref().map(|r| &r.0)),
            "maxValues": side(range.as_ref().map(|r| &r.1)),
            "nullCount": { "identity_id": self.null_identities, "key": self.null_keys },
        });
        Ok((self.writer.into_inner()?.into(), statistics))
    }
}

/// Selects the columns of `schema` from a batch and casts them, in the order and types of `schema`.
///
/// # Errors
/// A column is missing, or its type cannot be cast to the type in `schema`.
pub(crate) fn conform(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| {
        let index = batch.schema().index_of(field.name())?;
        arrow::compute::cast(batch.column(index), field.data_type())
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
}

/// Returns statistics of a file. If all rows have one `kind`, the statistics include that kind.
pub(crate) fn kind_statistics(rows: usize, kind: Option<&str>) -> Value {
    match kind {
        Some(kind) => json!({
            "numRecords": rows, "minValues": { "kind": kind }, "maxValues": { "kind": kind }, "nullCount": { "kind": 0 },
        }),
        None => row_count_statistics(rows),
    }
}

/// Returns statistics that hold the row count only.
pub(crate) fn row_count_statistics(rows: usize) -> Value {
    json!({ "numRecords": rows })
}

/// Converts statistics of a partition of `sync_records` to the form of the Delta protocol.
pub(super) fn delta_statistics(statistics: &Statistics) -> Value {
    let (mut low, mut high) = (Map::new(), Map::new());
    let mut put = |name: &str, range: Option<(Value, Value)>| {
        if let Some((min, max)) = range {
            low.insert(name.to_owned(), min);
            high.insert(name.to_owned(), max);
        }
    };
    let texts = |range: &Option<(String, String)>| {
        let range = range.as_ref().filter(|(a, b)| a.len() <= 256 && b.len() <= 256)?;
        Some((Value::from(range.0.as_str()), Value::from(range.1.as_str())))
    };
    // The log has whole milliseconds. Rows of other writers may have more digits, which the bounds must include.
    let instants = |range: Option<(i64, i64)>| Some((instant(range?.0)?, instant(range?.1.checked_add(999)?)?));
    put("identity_id", texts(&statistics.identity_id));
    put("dataset_name", texts(&statistics.dataset_name));
    put("sync_count", statistics.sync_count.map(|(a, b)| (a.into(), b.into())));
    put("last_modified_date", instants(statistics.last_modified_date));
    put("device_last_modified_date", instants(statistics.device_last_modified_date));
    json!({
        "numRecords": statistics.rows,
        "minValues": low,
        "maxValues": high,
        "nullCount": {
            "identity_id": statistics.null_identities,
            "dataset_name": statistics.null_datasets,
            "key": statistics.null_keys,
            "value": statistics.null_values,
            "sync_count": statistics.null_sync_counts,
            "last_modified_date": statistics.null_dates,
            "device_last_modified_date": statistics.null_device_dates,
        },
    })
}

/// Formats a timestamp for the log, rounded down to milliseconds. All dates of ingest are whole milliseconds. A year that
/// other readers could not parse has no form.
fn instant(micros: i64) -> Option<Value> {
    let instant = DateTime::from_timestamp_micros(micros).filter(|instant| (0..=9_999).contains(&instant.year()))?;
    Some(Value::from(instant.to_rfc3339_opts(SecondsFormat::Millis, true)))
}
