//! Encodes the sorted rows of a partition as a Parquet file, column by column.
//!
//! The encodings are dictionary and plain, in version 1 data pages. Dates are int64 microseconds in UTC. Every reader
//! in the field understands these, old Spark versions included.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::properties::{DEFAULT_BLOOM_FILTER_FPP, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::SchemaDescriptor;

use super::columns::PartitionKey;
use super::sorted::Sorted;
use crate::schema::Table;

mod chunk;
mod hybrid;
pub(crate) mod stored;

pub(super) use chunk::{Coded, Column, NULL};
use chunk::{Target, Value};

/// Maximum rows of a row group: few enough for a cheap point lookup, enough for a fast scan.
pub(crate) const GROUP_ROWS: usize = 131_072;
/// Maximum bytes of a row group, counted as a reader decodes them. A reader's batch never crosses a row group, and no
/// column of a batch may reach 2 GiB.
pub(crate) const GROUP_BYTES: usize = 256 << 20;
/// Smaller files are not compressed: a reader's zstd setup per column costs more than the saved bytes.
pub(crate) const COMPRESSED_BYTES_MIN: usize = 64 << 10;
/// Level of zstd.
const LEVEL: i32 = 1;

static SCHEMA: LazyLock<Result<SchemaDescriptor, String>> =
    LazyLock::new(|| ArrowSchemaConverter::new().convert(&Table::SyncRecords.file_schema()).map_err(|e| e.to_string()));
/// The columns of a file in which copies were collapsed.
static COLLAPSED_SCHEMA: LazyLock<Result<SchemaDescriptor, String>> = LazyLock::new(|| {
    let schema = Table::SyncRecords.collapsed_file_schema();
    ArrowSchemaConverter::new().convert(&schema).map_err(|e| e.to_string())
});

/// Encodes sorted rows of `sync_records`.
///
/// # Errors
/// The library rejects the columns (a bug, never the data).
pub(super) fn encode(
    key: &PartitionKey,
    sorted: &Sorted<'_>,
    properties: WriterProperties,
) -> Result<Bytes, ParquetError> {
    let schema = SCHEMA.as_ref().map_err(|error| ParquetError::General(error.clone()))?;
    let mut file = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), Arc::new(properties))?;
    let is_small = sorted.bytes() < COMPRESSED_BYTES_MIN;
    let mut zstd = if is_small { None } else { Some(zstd::bulk::Compressor::new(LEVEL)?) };
    let events = EventColumns::new(sorted);
    for rows in sorted.groups(GROUP_ROWS, GROUP_BYTES) {
        let mut group = Group { schema, zstd: zstd.as_mut(), writer: file.next_row_group()?, next: 0 };
        write_group(&mut group, key, sorted, &events, rows)?;
        group.writer.close()?;
    }
    Ok(file.into_inner()?.into())
}

/// Columns that the rows of an event share: a code for each event.
struct EventColumns<'a> {
    operation: Column<&'a str>,
    sync_count: Column<i64>,
    last_modified_date: Column<i64>,
    sequence_numbers: Vec<&'a str>,
    sub_sequence: Column<i64>,
    arrived_at: Column<i64>,
}

impl<'a> EventColumns<'a> {
    fn new(sorted: &Sorted<'a>) -> Self {
        Self {
            operation: sorted.event_texts(|event| event.operation),
            sync_count: sorted.event_numbers(|event| event.sync_count),
            last_modified_date: sorted.event_numbers(|event| event.last_modified_date),
            sequence_numbers: sorted.sequence_numbers(),
            sub_sequence: sorted.event_numbers(|event| event.sub_sequence),
            arrived_at: sorted.event_numbers(|event| Some(event.arrived_at)),
        }
    }
}

/// Writes the columns of a row group, in the order of the file schema. No more than one of them is held at a time.
fn write_group<'a>(
    group: &mut Group<'_>,
    key: &PartitionKey,
    sorted: &Sorted<'a>,
    events: &EventColumns<'a>,
    rows: Range<usize>,
) -> Result<(), ParquetError> {
    let constant = vec![0; rows.len()];
    group.write(&constant, &[&*key.identity_pool_id], None)?;
    let identities = sorted.identities(rows.clone());
    group.write(&identities.codes, identities.values, Some(filter(&identities.codes, identities.values)?))?;
    group.coded(&sorted.datasets(rows.clone()))?;
    group.coded(&sorted.spread(rows.clone(), &events.operation))?;
    group.coded(&sorted.keys(rows.clone()))?;
    group.long(&sorted.row_texts(rows.clone(), |row| row.value))?;
    group.column(&sorted.ops(rows.clone(), &events.operation))?;
    group.column(&sorted.row_numbers(rows.clone(), |row| Some(row.sync_count)))?;
    group.column(&sorted.row_numbers(rows.clone(), |row| Some(row.last_modified_date)))?;
    group.column(&sorted.row_numbers(rows.clone(), |row| row.device_last_modified_date))?;
    group.coded(&sorted.spread(rows.clone(), &events.sync_count))?;
    group.coded(&sorted.spread(rows.clone(), &events.last_modified_date))?;
    group.write(&constant, &[key.shard.shard()], None)?;
    group.write(&sorted.events(rows.clone()), &events.sequence_numbers, None)?;
    group.coded(&sorted.spread(rows.clone(), &events.sub_sequence))?;
    group.column(&sorted.row_numbers(rows.clone(), |row| Some(row.record_index)))?;
    group.coded(&sorted.spread(rows.clone(), &events.arrived_at))?;
    group.rendered(sorted.rows(rows), |row, text| sorted.extra(row, text))?;
    group.write(&constant, &[key.shard.source()], None)
}

/// Returns a filter that knows the identities of a row group.
fn filter(codes: &[u32], values: &[&str]) -> Result<Sbbf, ParquetError> {
    // The code of a null has no value.
    let distinct: Vec<&str> =
        codes.chunk_by(|a, b| a == b).filter_map(|run| values.get(run[0] as usize).copied()).collect();
    let mut filter = Sbbf::new_with_ndv_fpp(distinct.len().max(1) as u64, DEFAULT_BLOOM_FILTER_FPP)?;
    distinct.iter().for_each(|identity| filter.insert(identity.as_bytes()));
    Ok(filter)
}

/// A row group that is being written.
struct Group<'a> {
    schema: &'a SchemaDescriptor,
    zstd: Option<&'a mut zstd::bulk::Compressor<'static>>,
    writer: SerializedRowGroupWriter<'a, Vec<u8>>,
    next: usize,
}

impl Group<'_> {
    fn column<V: Value>(&mut self, column: &Column<V>) -> Result<(), ParquetError> {
        self.write(&column.codes, &column.values, None)
    }

    fn coded<V: Value>(&mut self, column: &Coded<'_, V>) -> Result<(), ParquetError> {
        self.write(&column.codes, column.values, None)
    }

    fn write<V: Value>(&mut self, codes: &[u32], values: &[V], filter: Option<Sbbf>) -> Result<(), ParquetError> {
        let encoded = chunk::encode(self.target(), codes, values, filter)?;
        self.append(encoded)
    }

    /// Writes a column of texts that may be too long for statistics.
    fn long(&mut self, column: &Column<&str>) -> Result<(), ParquetError> {
        let encoded = chunk::encode(self.target().without_statistics(), &column.codes, &column.values, None)?;
        self.append(encoded)
    }

    fn rendered<R>(
        &mut self,
        rows: impl ExactSizeIterator<Item = R>,
        text: impl FnMut(R, &mut String) -> bool,
    ) -> Result<(), ParquetError> {
        let encoded = chunk::encode_rendered(self.target(), rows, text)?;
        self.append(encoded)
    }

    fn target(&mut self) -> Target<'_> {
        Target::new(self.schema.column(self.next), self.zstd.as_deref_mut())
    }

    fn append(&mut self, encoded: chunk::Encoded) -> Result<(), ParquetError> {
        self.next += 1;
        self.writer.append_column(&encoded.bytes, encoded.close)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::Int64Type;
    use chrono::NaiveDate;
    use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
    use parquet::file::metadata::PageIndexPolicy;
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Meta;
    use crate::batch::columns::{EventEntry, Partition, RowEntry};
    use crate::batch::parquet::encode_partition;
    use crate::decode::decode;
    use crate::decode::write_extra;
    use crate::ids::{SequenceNumber, ShardKey};

    fn key() -> PartitionKey {
        PartitionKey {
            shard: ShardKey::new("s", "shardId-0").unwrap(),
            identity_pool_id: "us-east-1:0a".into(),
            event_date: NaiveDate::from_ymd_opt(1970, 1, 1).unwrap(),
        }
    }

    fn event(identity: &str, records: &str) -> String {
        format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{identity}","dataSetName":"d","operation":"replace","kinesisSyncRecords":{records},"lastModifiedDate":5,"syncCount":9}}"#
        )
    }

    fn push(partition: &mut Partition, number: u64, json: &str) {
        let sequence_number = SequenceNumber::from_u64(number);
        let meta = Meta { sequence_number: &sequence_number, sub_sequence: None, arrived_at: 7 };
        let event = decode(json.as_bytes()).unwrap();
        partition.push(&meta, &event, &event.rows);
    }

    fn read(file: Bytes) -> RecordBatch {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).unwrap();
        let schema = reader.schema().clone();
        let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        arrow::compute::concat_batches(&schema, &batches).unwrap()
    }

    #[test]
    fn rows_come_out_sorted_and_whole_after_merging() {
        let mut first = Partition::default();
        let two = r#"[{"key":"k","value":"1","syncCount":1,"op":"replace"},{"key":"a","value":"","op":"replace"}]"#;
        push(&mut first, 42, &event("b", two));
        let mut second = Partition::default();
        push(&mut second, 42, &event("a", r#"[{"key":"z","op":"remove"}]"#));
        push(&mut second, 42, &event("b", r#"[{"key":"k","value":"2","syncCount":2,"op":"replace"}]"#));
        let (file, statistics) = encode_partition(&key(), &[first, second]).unwrap();
        let batch = read(file);
        let text = |name: &str| -> Vec<Option<String>> {
            let column = batch.column_by_name(name).unwrap();
            column.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect()
        };
        let some = |v: [&str; 4]| v.map(|s| Some(s.to_owned())).to_vec();
        assert_eq!(text("identity_id"), some(["us-east-1:a", "us-east-1:b", "us-east-1:b", "us-east-1:b"]));
        assert_eq!(text("key"), some(["z", "a", "k", "k"]));
        assert_eq!(text("value"), vec![None, Some(String::new()), Some("2".into()), Some("1".into())]);
        assert_eq!(text("sequence_number"), some(["42"; 4]));
        let counts = batch.column_by_name("sync_count").unwrap();
        assert_eq!(counts.as_primitive::<Int64Type>().values(), &[9, 9, 2, 1]);
        assert_eq!(batch.schema().fields(), Table::SyncRecords.file_schema().fields());
        assert_eq!(statistics["minValues"]["identity_id"], "us-east-1:a");
        assert_eq!(statistics["maxValues"]["sync_count"], 9);
        assert_eq!((&statistics["nullCount"]["value"], &statistics["numRecords"]), (&1.into(), &4.into()));
    }

    fn record() -> impl Strategy<Value = serde_json::Value> {
        let text = prop_oneof![Just(String::new()), "[abc]", "\\PC{0,80}"];
        let date = prop_oneof![Just(5i64), 0..86_400_000i64];
        (
            text.clone(),
            prop::option::of(text),
            prop::option::of(0..3i64),
            date,
            prop::option::of(any::<i32>()),
            any::<bool>(),
        )
            .prop_map(|(key, value, count, date, device, odd)| {
                let mut record =
                    serde_json::json!({"key": format!("k{key}"), "value": value, "lastModifiedDate": date});
                count.into_iter().for_each(|count| record["syncCount"] = count.into());
                device.into_iter().for_each(|device| record["deviceLastModifiedDate"] = device.into());
                if odd {
                    record["x"] = "y".into();
                    record["op"] = "remove".into();
                }
                record
            })
    }

    /// The rows of a partition as the definition of the order and of the columns says.
    fn expected(partition: &Partition) -> RecordBatch {
        let get = |span| partition.get(span).map(str::to_owned);
        let mut rows: Vec<(&RowEntry, &EventEntry)> =
            partition.rows().iter().map(|row| (row, &partition.events()[row.event as usize])).collect();
        rows.sort_by(|(a, x), (b, y)| {
            let place =
                |row: &RowEntry, event: &EventEntry| (get(event.identity_id), get(event.dataset_name), get(row.key));
            let newest = (b.sync_count, b.last_modified_date).cmp(&(a.sync_count, a.last_modified_date));
            place(a, x).cmp(&place(b, y)).then(newest)
        });
        let text = |of: &dyn Fn(&RowEntry, &EventEntry) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|(row, event)| of(row, event))))
        };
        let long = |of: &dyn Fn(&RowEntry, &EventEntry) -> Option<i64>| {
            Int64Array::from_iter(rows.iter().map(|(row, event)| of(row, event)))
        };
        let date = |of: &dyn Fn(&RowEntry, &EventEntry) -> Option<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_iter(long(of).iter()).with_timezone("UTC"))
        };
        let extra = |row: &RowEntry, event: &EventEntry| {
            let mut text = String::new();
            write_extra(&mut text, get(row.extra).as_deref(), event.extra.as_deref(), row.flags).then_some(text)
        };
        let columns: Vec<ArrayRef> = vec![
            text(&|_, _| Some("us-east-1:0a".to_owned())),
            text(&|_, event| get(event.identity_id)),
            text(&|_, event| get(event.dataset_name)),
            text(&|_, event| get(event.operation)),
            text(&|row, _| get(row.key)),
            text(&|row, _| get(row.value)),
            text(&|row, _| get(row.op)),
            Arc::new(long(&|row, _| Some(row.sync_count))),
            date(&|row, _| Some(row.last_modified_date)),
            date(&|row, _| row.device_last_modified_date),
            Arc::new(long(&|_, event| event.sync_count)),
            date(&|_, event| event.last_modified_date),
            text(&|_, _| Some("shardId-0".to_owned())),
            text(&|_, event| get(event.sequence_number)),
            Arc::new(long(&|_, event| event.sub_sequence)),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|(row, _)| row.record_index))),
            date(&|_, event| Some(event.arrived_at)),
            text(&extra),
            text(&|_, _| Some("s".to_owned())),
        ];
        RecordBatch::try_new(Table::SyncRecords.file_schema(), columns).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_file_holds_the_rows_of_its_partition(
            events in prop::collection::vec(("[0-3]", prop::collection::vec(record(), 1..8)), 1..60),
            copies in prop_oneof![Just(1u64), Just(30)],
        ) {
            let (mut whole, mut parts) = (Partition::default(), Vec::new());
            for (number, (identity, records)) in (1..).zip(&events) {
                for copy in 0..copies {
                    let json = event(identity, &serde_json::json!(records).to_string());
                    push(&mut whole, number * 100 + copy, &json);
                    if (number + copy) % 3 == 0 || parts.is_empty() {
                        parts.push(Partition::default());
                    }
                    push(parts.last_mut().unwrap(), number * 100 + copy, &json);
                }
            }
            let (file, statistics) = encode_partition(&key(), &parts).unwrap();
            prop_assert_eq!(read(file.clone()), expected(&whole));
            prop_assert_eq!((file, statistics), encode_partition(&key(), &[whole]).unwrap());
        }
    }

    #[test]
    fn large_partitions_have_many_pages_and_groups() {
        let mut partition = Partition::default();
        let value = "v".repeat(150);
        for number in 0..14_000u64 {
            let records: Vec<_> = (0..10)
                .map(|n| serde_json::json!({"key": format!("k{n}"), "value": format!("{value}{number}{n}"), "syncCount": number}))
                .collect();
            push(
                &mut partition,
                number,
                &event(&format!("{:x}", number % 997), &serde_json::json!(records).to_string()),
            );
        }
        let (file, _) = encode_partition(&key(), std::slice::from_ref(&partition)).unwrap();
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options).unwrap();
        let metadata = reader.metadata().clone();
        let rows: Vec<i64> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(rows, [131_072, 8_928]);
        let pages = |column: usize| metadata.offset_index().unwrap()[0][column].page_locations().len();
        assert_eq!((pages(1), pages(5)), (7, 20), "pages by rows, pages by bytes");
        assert_eq!(read(file), expected(&partition));
    }
}
