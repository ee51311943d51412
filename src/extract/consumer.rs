//! What is new for a named consumer: every row of `sync_records` since its last success, exactly once.
//!
//! The cursor is two transaction ids in the log of `daily_state`: `consumer/<name>`, the version of `sync_records` up to
//! which it has everything, and `consumer/<name>/to`, the one that it is about to reach.
//!
//! # Exactly once
//! 1. `…/to` is committed, with the format and a digest of the place: **what a delivery holds, and how and where it is
//!    written, is fixed before anything is.**
//! 2. The files are written below `consumer=<name>/versions=<from>-<to>/`, the manifest `_SUCCESS` last. Rows have one total
//!    order, so doing it again, or twice at once, writes the same bytes under the same names.
//! 3. `consumer/<name>` is committed.
//!
//! Killed between 1 and 3, the next run makes the same delivery again. A receiver takes the folders that have a manifest,
//! each once by its name.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::prelude::{SessionContext, col};
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::files::{Listed, encode, extension};
use super::{ExtractError, encode_error};
use crate::failpoint;
use crate::lake::parquet::conform;
use crate::lake::tables::Table;
use crate::lake::{LakeError, Store, log, replace, since, snapshot};
use crate::query::print::Format;
use crate::query::{Limits, QueryError, reading, session};

/// Rows of one file; exactly, so that a delivery made again has the same files.
const FILE_ROWS: usize = 250_000;
/// The order of a delivery. It leaves nothing open: the last four are what a row is known by.
const ORDER: [&str; 7] =
    ["pool", "event_date", "arrived_at", "shard_id", "sequence_number", "sub_sequence", "record_index"];

/// What a consumer got.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Delivery {
    /// Its name.
    pub consumer: String,
    /// It had everything up to this version; `None` when it had nothing.
    pub from: Option<u64>,
    /// It has everything up to this version now.
    pub to: u64,
    /// Rows of this delivery.
    pub rows: u64,
    /// Its files.
    pub files: usize,
    /// Its manifest; `None` when nothing was new.
    pub manifest: Option<String>,
}

/// Whether a name can be a consumer's.
///
/// # Errors
/// One line that says what a name looks like.
pub fn parse_name(name: &str) -> Result<String, String> {
    let is_name =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    is_name.then(|| name.to_owned()).ok_or_else(|| format!("{name:?} is not 1 to 64 of [A-Za-z0-9_-]"))
}

/// Delivers what is new below `out`.
///
/// # Errors
/// See [`ExtractError`]; running again makes the same delivery.
pub async fn run(lake: &Store, name: &str, out: (&Store, Format), limits: &Limits) -> Result<Delivery, ExtractError> {
    let Intent { from, to } = intend(lake, name, out).await?;
    let mut delivery = Delivery { consumer: name.to_owned(), from, to, rows: 0, files: 0, manifest: None };
    if from == Some(to) {
        return Ok(delivery);
    }
    let store = Table::SyncRecords.store(lake);
    let records = snapshot::load(&store, Some(to)).await?.ok_or_else(|| LakeError::NoLake(lake.to_string()))?;
    let mut files: BTreeSet<String> = snapshot::live_files(&store, &records).await?.into_iter().collect();
    if let Some(from) = from {
        let added = since::added(&store, from, to).await?.ok_or_else(|| {
            let what = format!(
                "consumer {name} is at version {from} of {store}, which its log does not reach any more; take a whole \
                 copy under a new name"
            );
            LakeError::Invalid(what)
        })?;
        files.retain(|file| added.contains_key(file));
    }
    let context = session(limits)?;
    deliver(&context, &records, &files, out, &mut delivery).await?;
    failpoint::hit("consumer/written");
    reach(lake, name, to).await?;
    Ok(delivery)
}

fn id(name: &str) -> String {
    format!("consumer/{name}")
}

struct Intent {
    from: Option<u64>,
    to: u64,
}

/// Step 1: where the consumer is, and where this delivery takes it.
async fn intend(lake: &Store, name: &str, (out, format): (&Store, Format)) -> Result<Intent, LakeError> {
    let records = Table::SyncRecords.store(lake);
    let none = || LakeError::NoLake(lake.to_string());
    let newest = log::read_transactions(&records).await?.ok_or_else(none)?.version;
    Table::DailyState.ensure(lake).await?;
    let store = Table::DailyState.store(lake);
    let [intent, form, place] = ["to", "format", "place"].map(|part| format!("{}/{part}", id(name)));
    let (our_form, our_place) =
        (i64::from(format == Format::Parquet) + 2 * i64::from(format == Format::Csv), digest(out));
    loop {
        let known = log::read_transactions(&store).await?.unwrap_or_default();
        let version = |id: &str| known.ids.get(id).and_then(|version| u64::try_from(*version).ok());
        let from = version(&id(name));
        if let Some(from) = from.filter(|from| *from > newest) {
            let what =
                format!("consumer {name} is at version {from}, but {records} is at {newest}: is it an older copy?");
            return Err(LakeError::Invalid(what));
        }
        if let Some(to) = version(&intent).filter(|to| from.is_none_or(|from| from < *to)) {
            if known.ids.get(&form) != Some(&our_form) || known.ids.get(&place) != Some(&our_place) {
                let what = format!(
                    "a delivery to consumer {name} is not finished, and was begun with another --format or --out; run it \
                     once more with those, then with these"
                );
                return Err(LakeError::Invalid(what));
            }
            return Ok(Intent { from, to });
        }
        if from == Some(newest) {
            return Ok(Intent { from, to: newest });
        }
        let to = i64::try_from(newest).unwrap_or(i64::MAX);
        let ids = vec![(intent.clone(), to), (form.clone(), our_form), (place.clone(), our_place)];
        let next = known.version + 1;
        if replace::commit_version(lake, Table::DailyState, next, Vec::new(), Vec::new(), ids).await? {
            return Ok(Intent { from, to: newest });
        }
    }
}

/// Of a place, as a transaction id can hold it.
fn digest(out: &Store) -> i64 {
    let digest = Sha256::digest(out.url().to_string().as_bytes());
    digest.iter().take(7).fold(0, |value, byte| value << 8 | i64::from(*byte))
}

/// Step 3. Whoever made the same delivery at the same time may have been faster.
async fn reach(lake: &Store, name: &str, to: u64) -> Result<(), LakeError> {
    let store = Table::DailyState.store(lake);
    loop {
        let known = log::read_transactions(&store).await?.unwrap_or_default();
        let to = i64::try_from(to).unwrap_or(i64::MAX);
        if known.ids.get(&id(name)).is_some_and(|reached| *reached >= to) {
            return Ok(());
        }
        let ids = vec![(id(name), to)];
        let next = known.version + 1;
        if replace::commit_version(lake, Table::DailyState, next, Vec::new(), Vec::new(), ids).await? {
            return Ok(());
        }
    }
}

/// Step 2.
async fn deliver(
    context: &SessionContext,
    records: &deltalake::DeltaTable,
    files: &BTreeSet<String>,
    (out, format): (&Store, Format),
    delivery: &mut Delivery,
) -> Result<(), ExtractError> {
    let from = delivery.from.map_or(0, |from| from + 1);
    let folder = format!("consumer={}/versions={from:010}-{:010}", delivery.consumer, delivery.to);
    let schema: SchemaRef = Table::SyncRecords.schema();
    let mut listed = Vec::new();
    let mut held: Vec<RecordBatch> = Vec::new();
    let mut held_rows = 0;
    let sorting = reading::for_sorting(&context.state());
    if let Some(rows) = reading::files_of(records, &sorting, files).await.map_err(QueryError::from)? {
        let order = ORDER.map(|name| col(name).sort(true, true)).to_vec();
        let frame = context.read_table(rows).and_then(|rows| rows.sort(order)).map_err(QueryError::from)?;
        let mut batches = frame.execute_stream().await.map_err(QueryError::from)?;
        while let Some(batch) = batches.next().await {
            let batch = conform(&schema, &batch.map_err(QueryError::from)?).map_err(encode_error)?;
            let mut start = 0;
            while start < batch.num_rows() {
                let take = (FILE_ROWS - held_rows).min(batch.num_rows() - start);
                held.push(batch.slice(start, take));
                (held_rows, start) = (held_rows + take, start + take);
                if held_rows == FILE_ROWS {
                    listed.push(write(out, format, &folder, listed.len(), &schema, &mut held).await?);
                    held_rows = 0;
                }
            }
        }
    }
    if held_rows > 0 {
        listed.push(write(out, format, &folder, listed.len(), &schema, &mut held).await?);
    }
    delivery.files = listed.len();
    delivery.rows = listed.iter().map(|file| file.rows as u64).sum();
    let manifest = serde_json::json!({
        "version": 1, "consumer": delivery.consumer, "from": delivery.from, "to": delivery.to,
        "format": extension(format), "rows": delivery.rows, "files": listed,
    });
    let path = format!("{folder}/_SUCCESS");
    out.put(&path, serde_json::to_vec_pretty(&manifest).map_err(encode_error)?.into()).await?;
    delivery.manifest = Some(format!("{}{path}", out.url()));
    Ok(())
}

async fn write(
    out: &Store,
    format: Format,
    folder: &str,
    number: usize,
    schema: &SchemaRef,
    held: &mut Vec<RecordBatch>,
) -> Result<Listed, ExtractError> {
    // One batch, so that the bytes do not depend on how the rows came.
    let rows = concat_batches(schema, &std::mem::take(held)).map_err(encode_error)?;
    let bytes = encode(format, schema, std::slice::from_ref(&rows))?;
    let path = format!("{folder}/part-{number:05}.{}", extension(format));
    Listed::put(out, path, None, rows.num_rows(), bytes).await
}
