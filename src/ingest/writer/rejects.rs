//! Decode errors: their rows in the quarantine, and the records that the quarantine already holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use chrono::{DateTime, NaiveDate};
use parquet::arrow::ProjectionMask;

use crate::batch::Rejected;
use crate::ids::{SequenceNumber, ShardKey};
use crate::ingest::decoding::Skip;
use crate::lake::files::open;
use crate::lake::paths::PartName;
use crate::lake::{LakeError, RESTORE, Store, snapshot};
use crate::schema::Table;

/// Most bytes of records in a quarantine file, unless one record alone is larger. A reader holds the whole file, and an
/// Arrow column holds less than 2 GiB.
const FILE_BYTES_MAX: usize = 64 << 20;

/// Groups decode errors by day of arrival, the partition column of the quarantine; a day gets as many files as it
/// needs.
pub(super) fn by_arrival(rejected: &[Rejected]) -> Vec<(NaiveDate, Vec<&Rejected>)> {
    let mut found: BTreeMap<NaiveDate, Vec<&Rejected>> = BTreeMap::new();
    for reject in rejected {
        let date = DateTime::from_timestamp_micros(reject.arrived_at).unwrap_or_default().date_naive();
        found.entry(date).or_default().push(reject);
    }
    let mut files: Vec<(NaiveDate, Vec<&Rejected>)> = Vec::new();
    for (date, rejects) in found {
        let mut bytes = usize::MAX;
        for reject in rejects {
            bytes = bytes.saturating_add(reject.raw.len());
            match files.last_mut() {
                Some((_, file)) if bytes <= FILE_BYTES_MAX => file.push(reject),
                _ => {
                    bytes = reject.raw.len();
                    files.push((date, vec![reject]));
                }
            }
        }
    }
    files
}

/// Returns decode errors as rows of the quarantine.
pub(super) fn rejected_rows(
    shard: &ShardKey,
    rows: &[&Rejected],
) -> Result<RecordBatch, parquet::errors::ParquetError> {
    let text = |value: fn(&Rejected) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(|r| value(r))));
    Ok(RecordBatch::try_new(
        Table::Quarantine.file_schema(),
        vec![
            Arc::new(StringArray::from(vec![shard.stream(); rows.len()])),
            Arc::new(StringArray::from(vec![shard.shard(); rows.len()])),
            text(|r| r.sequence_number.as_str()),
            Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.sub_sequence))),
            Arc::new(
                TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.arrived_at)).with_timezone("UTC"),
            ),
            text(|r| r.reason.as_str()),
            text(|r| &r.detail),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.raw))),
        ],
    )?)
}

/// Returns the records of a shard that the quarantine holds.
pub(super) async fn quarantined(lake: &Store, shard: &ShardKey) -> Result<Skip, LakeError> {
    let store = Table::Quarantine.store(lake);
    let Some(loaded) = snapshot::load(&store, None).await? else { return Ok(Skip::new()) };
    let mut found = Skip::new();
    for path in snapshot::active_paths(&store, &loaded).await? {
        // The name of an ingest file contains its shard. A file that a redrive left holds several shards.
        let name = path.rsplit('/').next().and_then(PartName::parse);
        if name.is_some_and(|name| name.shard != shard.to_string()) {
            continue;
        }
        let Some(bytes) = store.get(&path).await? else {
            let path = format!("{}{path}", store.url());
            let reason = format!("the log lists this file, but it does not exist; {RESTORE}");
            return Err(LakeError::Log { path, reason });
        };
        let fail = |source| LakeError::Parquet { action: "decode", path: path.clone(), source };
        let builder = open(bytes).map_err(fail)?;
        let mask = ProjectionMask::columns(
            builder.parquet_schema(),
            ["stream", "shard_id", "sequence_number", "sub_sequence"],
        );
        for batch in builder.with_projection(mask).build().map_err(fail)? {
            let batch = batch.map_err(|e| fail(e.into()))?;
            let text = |column: usize| batch.column(column).as_string::<i32>().iter();
            let subs = batch.column(3).as_primitive::<Int64Type>().iter();
            let ours = text(0).zip(text(1)).map(|(s, id)| s == Some(shard.stream()) && id == Some(shard.shard()));
            let known = ours.zip(text(2)).zip(subs).filter(|((ours, _), _)| *ours);
            found.extend(known.filter_map(|((_, n), sub)| Some((SequenceNumber::parse(n?)?, sub))));
        }
    }
    Ok(found)
}
