//! Merges files of a table whose rows have no order into one: the rows of one file after those of another. Pure: bytes
//! in, bytes out.

use crate::batch::stored::Unfit;
use crate::batch::unordered::{UnorderedReader, UnorderedWriter};
use crate::schema::Table;

use super::merge::{Input, MergeError, Merged, MergedFile, damaged};

/// Most bytes of decoded rows of a new file. A redrive holds a file of the quarantine in memory.
pub(super) const DECODED_BYTES_MAX: u64 = 64 << 20;

/// Appends files of a table, as many of them as have no more than `decoded_max` bytes of decoded rows together. The paths
/// of the result say which.
///
/// **Invariant: the new file has exactly as many rows as the old ones have by their own count and by the log's.**
///
/// # Errors
/// See [`MergeError`].
pub(super) fn append(table: Table, inputs: Vec<Input>, decoded_max: u64) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    let mut readers = Vec::new();
    let (mut expected, mut decoded) = (0, 0_u64);
    for input in inputs {
        input.check_digest()?;
        let reader = match UnorderedReader::open(table, input.bytes.clone()) {
            Ok(reader) => reader,
            Err(Unfit::Foreign(reason)) => {
                merged.left.push((input.path, reason));
                continue;
            }
            Err(Unfit::Damaged(error)) => return Err(damaged(&input.path, &error)),
        };
        input.check_rows(reader.rows)?;
        if decoded.saturating_add(reader.decoded_bytes) > decoded_max {
            continue;
        }
        decoded += reader.decoded_bytes;
        expected += reader.rows;
        merged.paths.push(input.path.clone());
        readers.push((input.path, reader));
    }
    if readers.len() < 2 {
        return Ok(merged);
    }
    let mut writer = UnorderedWriter::new(table)?;
    for (path, reader) in readers {
        for batch in reader {
            writer.write(&batch.map_err(|error| damaged(&path, &error))?)?;
        }
    }
    let (bytes, statistics, rows) = writer.finish()?;
    if rows != expected {
        return Err(MergeError::Lost { read: expected, written: rows });
    }
    merged.file = Some(MergedFile { bytes, statistics, rows, rows_collapsed: 0, has_copies: false });
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use bytes::Bytes;

    use super::*;
    use crate::batch::parquet::encode_batch;

    fn records(first: i64, count: i64, raw_bytes: usize) -> Input {
        let text = |value: &dyn Fn(i64) -> String| -> ArrayRef {
            Arc::new((first..first + count).map(|n| Some(value(n))).collect::<StringArray>())
        };
        let raws: Vec<Vec<u8>> = (first..first + count).map(|n| vec![n as u8; raw_bytes]).collect();
        let columns: Vec<ArrayRef> = vec![
            text(&|_| "stream".to_owned()),
            text(&|_| "shardId-000000000000".to_owned()),
            text(&|n| n.to_string()),
            Arc::new(Int64Array::from(vec![None; count as usize])),
            Arc::new(TimestampMicrosecondArray::from_iter_values(first..first + count).with_timezone("UTC")),
            text(&|_| "not_json".to_owned()),
            text(&|n| format!("detail {n}")),
            Arc::new(BinaryArray::from_iter_values(raws)),
        ];
        let batch = RecordBatch::try_new(Table::Quarantine.file_schema(), columns).unwrap();
        let (bytes, _) = encode_batch(&batch).unwrap();
        Input { path: format!("file-{first}"), bytes, rows: Some(count as u64), sha256: None }
    }

    fn rows(bytes: &Bytes) -> Vec<RecordBatch> {
        UnorderedReader::open(Table::Quarantine, bytes.clone()).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn every_record_stays_as_it_was() {
        let inputs: Vec<Input> = (0..50).map(|file| records(file * 7, 7, 1 + file as usize)).collect();
        let before: Vec<RecordBatch> = inputs.iter().flat_map(|input| rows(&input.bytes)).collect();
        let merged = append(Table::Quarantine, inputs, DECODED_BYTES_MAX).unwrap();
        let file = merged.file.unwrap();
        assert_eq!((merged.paths.len(), file.rows, &file.statistics["numRecords"]), (50, 350, &350.into()));
        let schema = Table::Quarantine.file_schema();
        let whole = |batches: &[RecordBatch]| arrow::compute::concat_batches(&schema, batches).unwrap();
        assert_eq!(whole(&rows(&file.bytes)), whole(&before));
    }

    #[test]
    fn a_file_has_no_more_decoded_rows_than_a_redrive_can_hold() {
        // Each file has 1 MiB of zeros, which is nothing when it is compressed.
        let inputs: Vec<Input> = (0..8).map(|file| records(file, 1, 1 << 20)).collect();
        let merged = append(Table::Quarantine, inputs, 5 << 20).unwrap();
        assert_eq!(
            merged.paths,
            ["file-0", "file-1", "file-2", "file-3"],
            "the fifth is more than 5 MiB, with its texts"
        );
        let alone = append(Table::Quarantine, vec![records(0, 1, 1 << 20), records(1, 1, 1 << 20)], 1 << 20).unwrap();
        assert!(alone.file.is_none() && alone.left.is_empty());
    }

    #[test]
    fn damage_is_not_merged() {
        let fault =
            |input: Input| append(Table::Quarantine, vec![input, records(9, 1, 1)], DECODED_BYTES_MAX).unwrap_err();
        let claimed = fault(Input { rows: Some(3), ..records(0, 2, 1) });
        assert_eq!(claimed.to_string(), "file-0 holds 2 rows, the log claims 3; run `synclake verify`");
        let other = fault(Input { sha256: Some("00".repeat(32)), ..records(0, 2, 1) });
        assert!(other.to_string().contains("other bytes than were committed"), "{other}");
        let cut = records(0, 2, 1);
        let cut = fault(Input { bytes: cut.bytes.slice(..cut.bytes.len() / 2), ..cut });
        assert!(cut.to_string().starts_with("file-0 is no readable Parquet file"), "{cut}");
        let foreign = Table::Gaps.file_schema();
        let (bytes, _) = encode_batch(&RecordBatch::new_empty(foreign)).unwrap();
        let foreign = Input { path: "foreign".to_owned(), bytes, rows: None, sha256: None };
        let merged =
            append(Table::Quarantine, vec![foreign, records(0, 1, 1), records(1, 1, 1)], DECODED_BYTES_MAX).unwrap();
        assert_eq!((merged.left.len(), merged.paths.len()), (1, 2));
    }
}
