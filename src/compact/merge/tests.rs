use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;
use crate::batch::parquet::encode_batches;
use crate::lake::files::open as open_file;
use crate::schema::Table;

/// A row in the types of the file schema, by column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::compact) struct Row {
    pub texts: [Option<String>; 10],
    pub longs: [Option<i64>; 7],
    pub index: Option<i32>,
}

/// Texts of a row: pool, identity, dataset, operation, key, value, op, shard, extra, source. Numbers: sync count, server date,
/// device date, those of the event, sub-sequence, arrival. The sequence number is `number`.
pub(in crate::compact) fn row(number: usize) -> impl Strategy<Value = (usize, Row)> {
    let text = || prop::option::weighted(0.9, prop_oneof!["[ab]", "[a-c]{0,3}", "\\PC{0,40}"]);
    let long = || prop::option::weighted(0.9, prop_oneof![0..3i64, any::<i64>()]);
    let texts = prop::array::uniform10(text());
    (Just(number), texts, prop::array::uniform7(long()), prop::option::of(any::<i32>()))
        .prop_map(|(number, texts, longs, index)| (number, Row { texts, longs, index }))
}

pub(in crate::compact) fn batch(rows: &[(usize, Row)]) -> RecordBatch {
    let text =
        |n: usize| -> ArrayRef { Arc::new(StringArray::from_iter(rows.iter().map(|(_, row)| row.texts[n].clone()))) };
    let long = |n: usize| Int64Array::from_iter(rows.iter().map(|(_, row)| row.longs[n]));
    let date =
        |n: usize| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from_iter(long(n).iter()).with_timezone("UTC")) };
    let numbers = StringArray::from_iter_values(rows.iter().map(|(number, _)| number.to_string()));
    let columns: Vec<ArrayRef> = vec![
        text(0),
        text(1),
        text(2),
        text(3),
        text(4),
        text(5),
        text(6),
        Arc::new(long(0)),
        date(1),
        date(2),
        Arc::new(long(3)),
        date(4),
        text(7),
        Arc::new(numbers),
        Arc::new(long(5)),
        Arc::new(Int32Array::from_iter(rows.iter().map(|(_, row)| row.index))),
        date(6),
        text(8),
        text(9),
    ];
    RecordBatch::try_new(Table::SyncRecords.file_schema(), columns).unwrap()
}

/// Sorts by the definition of the order.
pub(in crate::compact) fn sorted(mut rows: Vec<(usize, Row)>) -> Vec<(usize, Row)> {
    rows.sort_by_cached_key(|(number, row)| {
        let newest = (Reverse(row.longs[0]), Reverse(row.longs[1]));
        let digits = number.to_string();
        let place = (row.texts[1].clone(), row.texts[2].clone(), row.texts[4].clone());
        (place, newest, row.texts[9].clone(), row.texts[7].clone(), digits.len(), digits)
    });
    rows
}

fn input(path: usize, rows: &[(usize, Row)]) -> Input {
    let bytes = encode_batches(Table::SyncRecords.file_schema(), &[batch(rows)]).unwrap();
    Input { path: path.to_string(), bytes, rows: Some(rows.len() as u64), sha256: None }
}

pub(in crate::compact) fn read(file: Bytes) -> RecordBatch {
    let reader = open_file(file).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

/// Limits under which a merge takes one chunk, or many runs in tiers.
pub(in crate::compact) fn limits() -> impl Strategy<Value = MergeLimits> {
    let sizes = prop_oneof![Just(1usize), Just(20_000), Just(usize::MAX)];
    let bytes = (sizes.clone(), sizes.clone(), sizes);
    (bytes, 2..4usize, prop_oneof![1..9usize, Just(GROUP_ROWS)]).prop_map(
        |((chunk_bytes, rows_bytes, large_bytes), fan_in, group_rows)| MergeLimits {
            chunk_bytes,
            rows_bytes,
            large_bytes,
            fan_in,
            group_rows,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    /// However rows are split into files, sorted or not, the merged file holds the same rows in their order.
    #[test]
    fn any_split_of_rows_merges_to_the_same_rows_in_order(
        rows in prop::collection::vec((row(0), 0..6usize), 2..120),
        are_sorted in prop::array::uniform6(prop::bool::weighted(0.8)),
        limits in limits(),
    ) {
        let mut files = vec![Vec::new(); 6];
        let mut all = Vec::new();
        for (number, ((_, row), file)) in rows.into_iter().enumerate() {
            all.push((number, row.clone()));
            files[file].push((number, row));
        }
        let files: Vec<_> = files.into_iter().zip(are_sorted).map(|(rows, is_sorted)| if is_sorted { sorted(rows) } else { rows }).collect();
        let inputs: Vec<Input> = files.iter().enumerate().map(|(path, rows)| input(path, rows)).collect();
        let merged = merge(inputs, limits).unwrap();
        let file = merged.file.unwrap();
        prop_assert_eq!((file.rows, merged.paths.len(), merged.left.len()), (all.len() as u64, 6, 0));
        let (found, expected) = (read(file.bytes), batch(&sorted(all)));
        check_statistics(&file.statistics, &expected);
        prop_assert_eq!(found, expected);
    }
}

/// The statistics for the log are exact: counts of nulls, and bounds that hold every value.
fn check_statistics(statistics: &Value, rows: &RecordBatch) {
    assert_eq!(statistics["numRecords"], rows.num_rows());
    for name in ["identity_id", "dataset_name", "key", "value", "sync_count", "last_modified_date"] {
        assert_eq!(statistics["nullCount"][name], rows.column_by_name(name).unwrap().null_count(), "{name}");
    }
    let identities = rows.column_by_name("identity_id").unwrap().as_string::<i32>();
    assert_eq!(statistics["minValues"]["identity_id"].as_str(), identities.iter().flatten().min());
    assert_eq!(statistics["maxValues"]["identity_id"].as_str(), identities.iter().flatten().max());
    let counts = rows.column_by_name("sync_count").unwrap().as_primitive::<Int64Type>();
    assert_eq!(statistics["maxValues"]["sync_count"].as_i64(), counts.iter().flatten().max());
    let dates = rows.column_by_name("last_modified_date").unwrap().as_primitive::<TimestampMicrosecondType>();
    if let Some(high) = statistics["maxValues"]["last_modified_date"].as_str() {
        let high = chrono::DateTime::parse_from_rfc3339(high).unwrap().timestamp_micros();
        assert!(dates.iter().flatten().all(|date| date <= high));
    }
}

fn some_rows(numbers: std::ops::Range<usize>) -> Vec<(usize, Row)> {
    let row = |number: usize| Row {
        texts: std::array::from_fn(|n| Some(format!("{n}-{:03}", number % 97))),
        longs: [Some(number as i64); 7],
        index: Some(1),
    };
    sorted(numbers.map(|number| (number, row(number))).collect())
}

const LIMITS: MergeLimits =
    MergeLimits { chunk_bytes: 1 << 20, rows_bytes: 1 << 20, large_bytes: 1 << 20, fan_in: 16, group_rows: GROUP_ROWS };

#[test]
fn a_file_with_columns_of_others_stays_as_it_is() {
    let schema = Table::SyncRecords.file_schema();
    let rows = batch(&some_rows(0..10));
    let mut fields: Vec<Field> = schema.fields().iter().map(|field| (**field).clone()).collect();
    let mut columns = rows.columns().to_vec();
    fields.push(Field::new("note", DataType::Utf8, true));
    columns.push(Arc::new(StringArray::from(vec!["kept"; 10])));
    let foreign = RecordBatch::try_new(Arc::new(Schema::new(fields.clone())), columns.clone()).unwrap();
    let noted = encode_batches(foreign.schema(), &[foreign]).unwrap();
    fields.pop();
    columns.pop();
    // A column of another type, and a file without the last column.
    fields[7] = Field::new("sync_count", DataType::Int32, true);
    columns[7] = Arc::new(Int32Array::from(vec![1; 10]));
    let retyped = RecordBatch::try_new(Arc::new(Schema::new(fields.clone())), columns).unwrap();
    let retyped = encode_batches(retyped.schema(), &[retyped]).unwrap();
    let fewer = rows.project(&(0..17).collect::<Vec<_>>()).unwrap();
    let fewer = encode_batches(fewer.schema(), &[fewer]).unwrap();
    let other =
        |path: &str, bytes: &Bytes| Input { path: path.to_owned(), bytes: bytes.clone(), rows: None, sha256: None };
    let merged =
        merge(vec![input(0, &some_rows(10..20)), other("noted", &noted), other("retyped", &retyped)], LIMITS).unwrap();
    assert!(merged.file.is_none(), "one file is not merged with itself");
    let reasons: Vec<&str> = merged.left.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(reasons, ["has the unknown column note", "has a column sync_count of type Int32, not Int64"]);
    let merged = merge(vec![input(0, &some_rows(10..20)), other("fewer", &fewer)], LIMITS).unwrap();
    let found = read(merged.file.unwrap().bytes);
    assert_eq!((found.num_rows(), found.column_by_name("extra").unwrap().null_count()), (20, 10));
}

#[test]
fn a_file_with_other_rows_than_the_log_claims_is_not_merged() {
    let mut wrong = input(1, &some_rows(0..10));
    wrong.rows = Some(9);
    let error = merge(vec![input(0, &some_rows(10..20)), wrong], LIMITS).unwrap_err().to_string();
    assert_eq!(error, "1 holds 10 rows, the log claims 9; run `synclake verify`");
    let torn = Input { bytes: Bytes::from_static(b"PAR1"), ..input(2, &some_rows(0..1)) };
    let error = merge(vec![input(0, &some_rows(10..20)), torn], LIMITS).unwrap_err().to_string();
    assert!(error.starts_with("2 is no readable Parquet file"), "{error}");
}

/// A merged file equals a file that ingest would have written with these rows: row groups, filters, encodings, footer.
#[test]
fn a_merged_file_is_like_one_of_ingest() {
    let files: Vec<Input> = (0..40).map(|n| input(n, &some_rows(n * 1_000..(n + 1) * 1_000))).collect();
    let limits = MergeLimits { large_bytes: 30_000, rows_bytes: usize::MAX, fan_in: 4, group_rows: 16_000, ..LIMITS };
    let file = merge(files, limits).unwrap().file.unwrap();
    let builder = open_file(file.bytes).unwrap();
    let metadata = builder.metadata();
    let rows: Vec<i64> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(rows, [16_000, 16_000, 8_000]);
    assert!(metadata.file_metadata().created_by().unwrap().starts_with("synclake "));
    for group in metadata.row_groups() {
        assert!(group.column(1).bloom_filter_offset().is_some() && group.column(2).bloom_filter_offset().is_none());
        assert!(group.column(1).statistics().is_some() && group.column(5).statistics().is_none());
    }
}
