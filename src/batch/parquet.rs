//! The encoding of data files, and their statistics as the Delta protocol writes them.
//!
//! zstd (small files of rows are not compressed), dictionary and plain encodings, data pages of version 1, int64
//! microseconds in UTC: what every reader in the field understands, the old Sparks included.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::columns::{Partition, PartitionKey, Sorted, Statistics};
use crate::schema::Table;

/// Rows that are turned into Arrow at a time.
const BATCH_ROWS: usize = 8_192;
/// Bytes of them, as a reader gets them.
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of a row group, as a reader gets them. A reader's batch does not reach over the end of one, and no column of a batch
/// may have 2 GiB.
const ROW_GROUP_BYTES: usize = 256 << 20;
/// A file of fewer bytes is not compressed: to set up zstd for each of its columns costs every reader more than the bytes.
const COMPRESSED_BYTES_MIN: usize = 64 << 10;
/// Small enough that a point lookup reads little, large enough that a scan does not notice.
const ROW_GROUP_ROWS: usize = 131_072;

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(concat!("synclake ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
}

fn writer(schema: SchemaRef, properties: WriterProperties) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    // Without the Arrow schema in the footer a file says only what Parquet says: no reader sees our dictionaries.
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(Vec::new(), schema, options)
}

/// Encodes a partition of `sync_records`, sorted. Returns the file and its statistics.
///
/// # Errors
/// The library refuses the batch (a bug, never the data).
pub fn encode_partition(key: PartitionKey, partition: Partition) -> Result<(Bytes, Value), ParquetError> {
    let sorted = Sorted::new(key, partition);
    Ok((encode_sorted(&sorted)?, delta_statistics(&sorted.statistics())))
}

fn encode_sorted(sorted: &Sorted) -> Result<Bytes, ParquetError> {
    let identity = ColumnPath::from("identity_id");
    let mut properties = properties()
        .set_column_bloom_filter_enabled(identity.clone(), true)
        // The default sizes the filter for a million values, a megabyte in every file.
        .set_column_bloom_filter_max_ndv(identity, sorted.identities().max(1) as u64);
    if sorted.bytes() < COMPRESSED_BYTES_MIN {
        properties = properties.set_compression(Compression::UNCOMPRESSED);
    }
    for wide in ["value", "extra"] {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(wide), EnabledStatistics::None);
    }
    let mut writer = writer(sorted.batch(0..0)?.schema(), properties.build())?;
    let mut group_bytes = 0;
    for (rows, bytes) in sorted.stretches(BATCH_ROWS, BATCH_BYTES) {
        if writer.in_progress_rows() == 0 {
            group_bytes = 0;
        } else if group_bytes + bytes > ROW_GROUP_BYTES {
            writer.flush()?;
            group_bytes = 0;
        }
        writer.write(&sorted.batch(rows)?)?;
        group_bytes += bytes;
    }
    Ok(writer.into_inner()?.into())
}

/// Encodes batches that share a schema.
///
/// # Errors
/// The library refuses a batch.
pub fn encode_batches(schema: SchemaRef, batches: &[RecordBatch]) -> Result<Bytes, ParquetError> {
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
pub fn encode_batch(batch: &RecordBatch) -> Result<(Bytes, Value), ParquetError> {
    let bytes = encode_batches(batch.schema(), std::slice::from_ref(batch))?;
    Ok((bytes, row_count_statistics(batch.num_rows())))
}

/// Writes one file of the maintained state, whose rows come sorted by identity, dataset and key.
pub struct StateWriter {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
    null_keys: usize,
    null_identities: usize,
    identities: Option<(String, String)>,
}

/// Rows of a data page of the state: what a point lookup reads, and no more.
const STATE_PAGE_ROWS: usize = 4_096;

impl StateWriter {
    /// An empty file.
    ///
    /// # Errors
    /// The library refuses the schema (a bug).
    pub fn new() -> Result<Self, ParquetError> {
        let mut properties = properties().set_data_page_row_count_limit(STATE_PAGE_ROWS);
        properties = properties.set_column_statistics_enabled(ColumnPath::from("value"), EnabledStatistics::None);
        let writer = writer(Table::State.file_schema(), properties.build())?;
        Ok(Self { writer, rows: 0, null_keys: 0, null_identities: 0, identities: None })
    }

    /// Appends rows; none of their identities is below the last one.
    ///
    /// # Errors
    /// The library refuses the batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
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

    /// The last identity that was written.
    pub fn last_identity(&self) -> Option<&str> {
        self.identities.as_ref().map(|(_, last)| last.as_str())
    }

    /// About how large the file would be if it ended here.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// The file, and its statistics for the log.
    ///
    /// # Errors
    /// The library refuses to end it.
    pub fn finish(self) -> Result<(Bytes, Value), ParquetError> {
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

/// The columns of a batch that `schema` names, in its order and types.
///
/// # Errors
/// One is missing, or of a type that cannot be turned into that of the schema.
pub fn conform(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| {
        let index = batch.schema().index_of(field.name())?;
        arrow::compute::cast(batch.column(index), field.data_type())
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
}

/// Statistics of a file whose rows are all of one kind.
pub fn kind_statistics(rows: usize, kind: Option<&str>) -> Value {
    match kind {
        Some(kind) => json!({
            "numRecords": rows, "minValues": { "kind": kind }, "maxValues": { "kind": kind }, "nullCount": { "kind": 0 },
        }),
        None => row_count_statistics(rows),
    }
}

/// Statistics of a file of which only the row count is worth telling.
pub fn row_count_statistics(rows: usize) -> Value {
    json!({ "numRecords": rows })
}

/// Statistics of a partition of `sync_records`, as the Delta protocol writes them.
fn delta_statistics(statistics: &Statistics) -> Value {
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
    let instants = |range: Option<(i64, i64)>| Some((instant(range?.0)?, instant(range?.1)?));
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
            "identity_id": 0,
            "dataset_name": 0,
            "key": statistics.null_keys,
            "value": statistics.null_values,
            "sync_count": 0,
            "last_modified_date": 0,
            "device_last_modified_date": statistics.null_device_dates,
        },
    })
}

/// The protocol writes milliseconds; every date of ours is a whole number of them, so nothing is cut off.
fn instant(micros: i64) -> Option<Value> {
    let instant = DateTime::from_timestamp_micros(micros)?;
    Some(Value::from(instant.to_rfc3339_opts(SecondsFormat::Millis, true)))
}
