//! Decodes the quarantined records again, and moves those that now succeed into `sync_records`.
//!
//! # Each record once, however often it is run or killed
//! Two tables cannot change in one commit, so the records to move are first staged, file by file:
//!
//! 1. `quarantine`: one commit replaces a file by two: the records that decode now (named `redrive-…`) and the rest.
//! 2. `sync_records`: the rows of a `redrive-…` file are committed under the transaction id `redrive/<its name>`,
//!    unless the log has that id.
//! 3. `quarantine`: the `redrive-…` file is removed.
//!
//! A run that finds a `redrive-…` file finishes it: with step 3 if its id is in the log, else from step 2. Between 2
//! and 3 a record is in both tables; **it is never in none**. Of two concurrent runs, one loses the race for each step
//! and continues.
//!
//! **Only records that the shard's position covers are touched.** A quarantined record ahead of its shard's position is
//! read again, and is recognised then because it is in the quarantine.
//!
//! # What was examined
//! A run that decoded every record of the quarantine again, and left some, notes the version of `quarantine` that it
//! read, as a transaction id. So a status tells new records from records that cannot be helped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use deltalake::DeltaTable;
use deltalake::kernel::Add;
use serde::Serialize;

use crate::batch::parquet::{conform, encode_batch};
use crate::batch::{Meta, Partition, PartitionKey};
use crate::budget::Reservation;
use crate::decode::{Reason, decode};
use crate::failpoint;
use crate::ids::{SequenceNumber, ShardKey};
use crate::ingest::write_partition;
use crate::lake::ledger::{Ledger, new_token};
use crate::lake::log::Transactions;
use crate::lake::paths::{STAGED_PREFIX, is_staged};
use crate::lake::replace::Ids;
use crate::lake::{LakeError, Store, data_file, log, manifest, replace, snapshot, sweep};
use crate::query::{Limits, reading, session};
use crate::schema::Table;
use crate::verify::comparable;

/// The records to decode again.
#[derive(Debug, Clone, Default)]
pub struct RedriveOptions {
    /// Only records with one of these reasons; all if empty.
    pub reasons: BTreeSet<Reason>,
    /// Only records that arrived at or after this time.
    pub since: Option<DateTime<Utc>>,
}

/// The result of a run.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub struct RedriveReport {
    /// Records that were decoded again.
    pub examined: u64,
    /// Records that were moved into `sync_records`.
    pub moved: u64,
    /// Rows of the moved records.
    pub rows: u64,
    /// Records that stay in the quarantine, by their current reason.
    pub left: BTreeMap<&'static str, u64>,
}

/// Passes of a run, while other writers replace files of the quarantine.
const PASSES: usize = 4;
/// The transaction id in the log of `quarantine` whose value is the version up to which all records were decoded again.
const EXAMINED: &str = "redriven";

/// Returns the version of `quarantine` up to which all records were decoded again, without success.
pub(crate) fn examined_to(known: &Transactions) -> Option<u64> {
    known.ids.get(EXAMINED).and_then(|version| u64::try_from(*version).ok())
}

/// Goes once through the quarantine.
///
/// # Errors
/// Fails if the lake cannot be read or written. Running again continues where the run stopped.
pub async fn run(lake: &Store, options: &RedriveOptions) -> Result<RedriveReport, LakeError> {
    let mut report = RedriveReport::default();
    if Table::SyncRecords.load(lake, None).await?.is_none() {
        return Err(LakeError::NoLake(lake.to_string()));
    }
    let context = session(&Limits::default()).map_err(|e| LakeError::Invalid(e.to_string()))?;
    for _ in 0..PASSES {
        let mut passed = RedriveReport::default();
        let is_settled = pass(lake, options, &context, &mut passed).await?;
        passed.examined += report.moved;
        passed.moved += report.moved;
        passed.rows += report.rows;
        report = passed;
        if is_settled {
            break;
        }
    }
    for table in [Table::Quarantine, Table::SyncRecords] {
        manifest::follow_commit(lake, table).await;
    }
    Ok(report)
}

/// Goes through the files of the newest version. Returns whether no other writer replaced one of them meanwhile, as a
/// compaction does.
async fn pass(
    lake: &Store,
    options: &RedriveOptions,
    context: &SessionContext,
    report: &mut RedriveReport,
) -> Result<bool, LakeError> {
    let store = Table::Quarantine.store(lake);
    let Some(known) = log::read_transactions(&store).await? else { return Ok(true) };
    known.admit(Table::Quarantine, &store, true)?;
    let Some(loaded) = snapshot::load(&store, Some(known.version)).await? else { return Ok(true) };
    let mut files: Vec<String> = snapshot::active_paths(&store, &loaded).await?.into_iter().collect();
    files.sort();
    let mut ledger = Ledger::open(lake, Table::SyncRecords).await?;
    let (mut is_whole, mut is_settled) = (true, true);
    for path in files {
        let Some(held) = read(&store, &loaded, context, &path).await? else {
            is_settled = false;
            continue;
        };
        if is_staged(&path) {
            // The file is of a killed run. It is finished whatever the options of this run are.
            finish(lake, &mut ledger, &path, &held, report).await?;
            let name = path.rsplit('/').next().unwrap_or(&path);
            // The move is committed. Files that cannot be deleted stay, and no reader sees them.
            if let Err(error) = sweep::sweep_attempts(&Table::SyncRecords.store(lake), stem(name)).await {
                tracing::warn!(%error, "left files of sync_records that no commit lists");
            }
            continue;
        }
        let before = report.examined;
        let chosen = choose(&held, &ledger, options, report)?;
        is_whole &= report.examined - before == held.num_rows() as u64;
        if chosen.true_count() == 0 {
            continue;
        }
        match stage(lake, &path, &held, &chosen).await? {
            Some((staged, taken)) => finish(lake, &mut ledger, &staged, &taken, report).await?,
            None => is_settled = false,
        }
    }
    // The newest commit is the note of an earlier run if that read the version before it.
    let is_noted = examined_to(&known).is_some_and(|version| version + 1 == known.version);
    if is_whole && is_settled && !is_noted && !report.left.is_empty() {
        note_examined(lake, known.version).await?;
    }
    Ok(is_settled)
}

/// Notes that all records up to a version were decoded again, unless a later run did.
async fn note_examined(lake: &Store, version: u64) -> Result<(), LakeError> {
    let ids = vec![(EXAMINED.to_owned(), log::id_value(version)?)];
    let decide = |known: &Transactions| {
        let is_noted = examined_to(known).is_some_and(|noted| noted >= version);
        Ok(if is_noted { Ids::Keep(()) } else { Ids::Set(ids.clone(), ()) })
    };
    replace::set_ids(lake, Table::Quarantine, decide).await
}

fn stem(name: &str) -> &str {
    name.trim_end_matches(".parquet")
}

/// Reads a whole file of the quarantine. Its size is bounded by the memory of the ingest that wrote it.
///
/// It is read through the table, because another writer may have taken rows out by a deletion vector, or compacted the
/// file.
async fn read(
    store: &Store,
    loaded: &DeltaTable,
    context: &SessionContext,
    path: &str,
) -> Result<Option<RecordBatch>, LakeError> {
    if store.size(path).await?.is_none() {
        return Ok(None);
    }
    let fail = |error: DataFusionError| LakeError::delta("read", store, error.into());
    let of_file = BTreeSet::from([path.to_owned()]);
    let rows = reading::files_of(loaded, &reading::for_sorting(&context.state()), &of_file).await.map_err(fail)?;
    let Some(rows) = rows else { return Ok(None) };
    let batches = context.read_table(rows).map_err(fail)?.collect().await.map_err(fail)?;
    let schema = Table::Quarantine.file_schema();
    let batches = batches.iter().map(|batch| conform(&schema, batch)).collect::<Result<Vec<_>, _>>();
    let held = batches.and_then(|batches| concat_batches(&schema, &batches));
    held.map(Some).map_err(|error| fail(error.into()))
}

/// A quarantined record.
struct QuarantinedRecord<'a> {
    shard: ShardKey,
    sequence_number: SequenceNumber,
    sub_sequence: Option<i64>,
    arrived_at: i64,
    reason: &'a str,
    raw: &'a [u8],
}

fn quarantined_records(held: &RecordBatch) -> Result<Vec<QuarantinedRecord<'_>>, LakeError> {
    let odd =
        || LakeError::Invalid("a file of the quarantine has other columns than schemas/quarantine.json".to_owned());
    let column = |name: &str| held.column_by_name(name).ok_or_else(odd);
    let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(odd);
    let (streams, shards, numbers, reasons) =
        (text("stream")?, text("shard_id")?, text("sequence_number")?, text("reason")?);
    let subs = column("sub_sequence")?.as_primitive_opt::<Int64Type>().ok_or_else(odd)?;
    let arrivals = column("arrived_at")?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(odd)?;
    let raws = column("raw")?.as_binary_opt::<i32>().ok_or_else(odd)?;
    (0..held.num_rows())
        .map(|row| {
            Ok(QuarantinedRecord {
                shard: ShardKey::new(streams.value(row), shards.value(row)).ok_or_else(odd)?,
                sequence_number: SequenceNumber::parse(numbers.value(row)).ok_or_else(odd)?,
                sub_sequence: subs.is_valid(row).then(|| subs.value(row)),
                arrived_at: arrivals.value(row),
                reason: reasons.value(row),
                raw: raws.value(row),
            })
        })
        .collect()
}

/// Returns which records of a file decode now and may be moved.
fn choose(
    held: &RecordBatch,
    ledger: &Ledger,
    options: &RedriveOptions,
    report: &mut RedriveReport,
) -> Result<BooleanArray, LakeError> {
    let mut reached: HashMap<ShardKey, Option<SequenceNumber>> = HashMap::new();
    let mut chosen = Vec::with_capacity(held.num_rows());
    for record in quarantined_records(held)? {
        let reason = Reason::parse(record.reason);
        let wanted = options.reasons.is_empty() || reason.is_some_and(|reason| options.reasons.contains(&reason));
        let recent = options.since.is_none_or(|since| record.arrived_at >= since.timestamp_micros());
        let reached = reached.entry(record.shard.clone()).or_insert_with(|| {
            ledger.state(&record.shard)?.position.map(|position| comparable(&record.shard, &position))
        });
        let covered = reached.as_ref().is_some_and(|reached| record.sequence_number <= *reached);
        // A record that was cut is not whole, so it never decodes.
        let whole = reason != Some(Reason::TooLong);
        if !(wanted && recent && covered) {
            chosen.push(false);
            continue;
        }
        report.examined += 1;
        let outcome = if whole { try_decode(record.raw) } else { Err(Reason::TooLong) };
        if let Err(reason) = &outcome {
            *report.left.entry(reason.as_str()).or_default() += 1;
        }
        chosen.push(outcome.is_ok());
    }
    Ok(chosen.into())
}

fn try_decode(raw: &[u8]) -> Result<(), Reason> {
    if failpoint::poisons(raw) {
        return Err(Reason::InvalidField);
    }
    decode(raw).map(drop).map_err(|reject| reject.reason)
}

/// Step 1. Returns `None` if another run was faster.
async fn stage(
    lake: &Store,
    path: &str,
    held: &RecordBatch,
    chosen: &BooleanArray,
) -> Result<Option<(String, RecordBatch)>, LakeError> {
    let fail =
        |e: arrow::error::ArrowError| LakeError::Parquet { action: "encode", path: path.to_owned(), source: e.into() };
    let rest: BooleanArray = chosen.iter().map(|c| c.map(|c| !c)).collect();
    let taken = filter_record_batch(held, chosen).map_err(fail)?;
    let rest = filter_record_batch(held, &rest).map_err(fail)?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let token = new_token();
    let staged = format!("{folder}/{STAGED_PREFIX}{token:016x}.parquet");
    let mut files = vec![write(lake, &staged, &taken).await?];
    if rest.num_rows() > 0 {
        files.push(write(lake, &format!("{folder}/rest-{token:016x}.parquet"), &rest).await?);
    }
    failpoint::hit("redrive/apart/before");
    let done = replace::swap(lake, Table::Quarantine, &[path.to_owned()], files).await?;
    failpoint::hit("redrive/apart/after");
    Ok(done.map(|_| (staged, taken)))
}

async fn write(lake: &Store, path: &str, rows: &RecordBatch) -> Result<Add, LakeError> {
    let date = path.split('/').find_map(|part| part.strip_prefix("arrived_date=")).unwrap_or_default();
    let values = [("arrived_date", date.to_owned())];
    let (store, rows) = (Table::Quarantine.store(lake), rows.clone());
    let encoded = data_file::encode(&store, path, move || encode_batch(&rows)).await?;
    data_file::write(&store, path.to_owned(), &values, encoded).await
}

/// Steps 2 and 3.
async fn finish(
    lake: &Store,
    ledger: &mut Ledger,
    staged: &str,
    taken: &RecordBatch,
    report: &mut RedriveReport,
) -> Result<(), LakeError> {
    let name = staged.rsplit('/').next().unwrap_or(staged);
    let id = format!("redrive/{name}");
    ledger.refresh().await?;
    if !ledger.is_done(&id) {
        let records = quarantined_records(taken)?;
        let decodes: BooleanArray = records.iter().map(|r| Some(try_decode(r.raw).is_ok())).collect();
        if decodes.false_count() > 0 {
            // A later version of synclake staged these. Records that this version cannot decode go back.
            let Some((again, fewer)) = stage(lake, staged, taken, &decodes).await? else { return Ok(()) };
            return Box::pin(finish(lake, ledger, &again, &fewer, report)).await;
        }
        let (files, rows) = encode(lake, name, &records).await?;
        failpoint::hit("redrive/move/before");
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        if ledger.commit_once(files, &id).await? {
            report.moved += records.len() as u64;
            report.rows += rows;
        } else {
            for path in paths {
                // Another run moved the records; no reader sees these files.
                if let Err(error) = Table::SyncRecords.store(lake).delete(&path).await {
                    tracing::warn!(path, %error, "left a file of sync_records that no commit lists");
                }
            }
        }
        failpoint::hit("redrive/move/after");
    }
    replace::swap(lake, Table::Quarantine, &[staged.to_owned()], Vec::new()).await?;
    failpoint::hit("redrive/done");
    Ok(())
}

/// Writes the rows of records as data files, not yet listed.
async fn encode(lake: &Store, name: &str, records: &[QuarantinedRecord<'_>]) -> Result<(Vec<Add>, u64), LakeError> {
    let mut partitions: BTreeMap<PartitionKey, Partition> = BTreeMap::new();
    let mut rows = 0;
    for record in records {
        let Ok(event) = decode(record.raw) else { continue };
        rows += event.rows.len() as u64;
        let meta = Meta {
            sequence_number: &record.sequence_number,
            sub_sequence: record.sub_sequence,
            arrived_at: record.arrived_at,
        };
        let identity_pool_id: Arc<str> = Arc::from(&*event.identity_pool_id);
        for rows in event.rows_by_day().chunk_by(|a, b| a.day() == b.day()) {
            let (identity_pool_id, event_date) = (identity_pool_id.clone(), rows[0].event_date());
            let key = PartitionKey { shard: record.shard.clone(), identity_pool_id, event_date };
            partitions.entry(key).or_default().push(&meta, &event, rows.iter().copied());
        }
    }
    let store = Table::SyncRecords.store(lake);
    let stem = stem(name);
    // Each attempt has its own names, because an earlier attempt may have been killed midway.
    let attempt = new_token();
    let mut files = Vec::new();
    for (index, (key, partition)) in partitions.into_iter().enumerate() {
        let name = format!("{stem}-{attempt:016x}-{index:05}.parquet");
        // A redrive has no budget: it holds the records of one file of the quarantine.
        files.push(write_partition(&store, &name, key, partition.into(), Reservation::none()).await?);
    }
    Ok((files, rows))
}
