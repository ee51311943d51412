//! Deliveries to a named consumer: every row of `sync_records` since its last success, exactly once.
//!
//! The cursor is two transaction ids in the log of `daily_state`. `consumer/<name>` is the version of `sync_records` up
//! to which the consumer has all rows. `consumer/<name>/to` is the version that the current delivery reaches.
//!
//! # Exactly once
//! 1. `…/to` is committed, with the format and a digest of the place. **The content, format and place of a delivery are
//!    fixed before anything is written.**
//! 2. The files are written below `consumer=<name>/versions=<from>-<to>/`, the manifest `_SUCCESS` last. The rows have
//!    one total order, so a repeated or concurrent delivery writes the same bytes under the same names.
//! 3. `consumer/<name>` is committed.
//!
//! If a run is killed between 1 and 3, the next run makes the same delivery again. A receiver takes the folders that
//! have a manifest, each once by its name.
//!
//! # Other writers
//! New rows are those that commits of new rows added (`lake::since`). Each is delivered once, whichever file holds it by
//! now:
//!
//! | fate of a file of new rows before the delivery | delivered rows |
//! |---|---|
//! | unchanged | the file |
//! | compacted | the original file, which exists until vacuum |
//! | rows of it were removed or changed | those of its rows that the table still holds, as they are now |
//!
//! Delivered rows stay delivered. If they are later removed, changed or restored, nothing is delivered; `changed`
//! reports it.
//!
//! # Forgetting
//! The log keeps a transaction id for ever, so a forgotten consumer keeps both ids, with the value -1, which is no
//! version. A delivery under its name begins with all rows, as for a new consumer. A delivery that runs meanwhile
//! commits its cursor, and the consumer is known again.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::prelude::{DataFrame, SessionContext, col};
use deltalake::DeltaTable;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::files::{ManifestEntry, encode, extension};
use super::{ExtractError, encode_error};
use crate::batch::parquet::conform;
use crate::failpoint;
use crate::lake::log::Transactions;
use crate::lake::replace::Ids;
use crate::lake::since::{Change, TableChanges, changes_between};
use crate::lake::snapshot::ActiveFile;
use crate::lake::{LakeError, Store, log, replace, snapshot};
use crate::print::Format;
use crate::query::{Limits, QueryError, reading, session};
use crate::schema::Table;

/// Rows per file.
const FILE_ROWS: usize = 250_000;
/// Bytes of text in the rows of one file; the last row may exceed it.
const FILE_TEXT_BYTES: usize = 128 << 20;
/// The order of a delivery. It is total, because the last four columns identify a row.
const ORDER: [&str; 7] =
    ["pool", "event_date", "arrived_at", "shard_id", "sequence_number", "sub_sequence", "record_index"];

/// The cursor of a forgotten consumer.
const FORGOTTEN: i64 = -1;

/// Files whose existence is checked at a time.
const LOOKS: usize = 16;

/// The result of a delivery.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Delivery {
    /// Name of the consumer.
    pub consumer: String,
    /// The version up to which the consumer had all rows before; `None` if it had none.
    pub from: Option<u64>,
    /// The version up to which the consumer has all rows now.
    pub to: u64,
    /// Rows of this delivery.
    pub rows: u64,
    /// Files of this delivery.
    pub files: usize,
    /// Place of its manifest; `None` if `sync_records` has no newer version.
    pub manifest: Option<String>,
    /// Commits in between that removed, changed or restored rows. These changes are not delivered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Change>,
}

/// A consumer that was forgotten.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ForgottenConsumer {
    /// Name of the consumer.
    pub forgotten: String,
    /// The version up to which it had all rows; `None` if it had no delivery.
    pub version: Option<u64>,
}

/// Parses the name of a consumer.
///
/// # Errors
/// Returns one line that shows the format of a name.
pub fn parse_name(name: &str) -> Result<String, String> {
    let is_name =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    is_name.then(|| name.to_owned()).ok_or_else(|| format!("{name:?} is not 1 to 64 of [A-Za-z0-9_-]"))
}

/// Delivers the new rows below `out`.
///
/// # Errors
/// See [`ExtractError`]. Running again makes the same delivery.
pub async fn run(lake: &Store, name: &str, out: (&Store, Format), limits: &Limits) -> Result<Delivery, ExtractError> {
    let Intent { from, to } = begin_delivery(lake, name, out).await?;
    let consumer = name.to_owned();
    let mut delivery = Delivery { consumer, from, to, rows: 0, files: 0, manifest: None, changed: Vec::new() };
    if from == Some(to) {
        return Ok(delivery);
    }
    let store = Table::SyncRecords.store(lake);
    let records = match snapshot::load(&store, Some(to)).await {
        // The newest version was found to be readable, so this is that of an unfinished delivery.
        Err(error @ LakeError::Unsupported { .. }) => {
            let what = format!(
                "consumer {name} has an unfinished delivery of version {to}, whose rows cannot be read: {error}; forget it \
                 (deliver --forget {name}), and make a full copy"
            );
            return Err(LakeError::Invalid(what).into());
        }
        loaded => loaded?.ok_or_else(|| LakeError::NoLake(lake.to_string()))?,
    };
    let rows = match from {
        None => {
            let files = snapshot::files(&store, &records).await?;
            let context = session(&limits.for_rows_of(files.iter().map(ActiveFile::rows_and_bytes)))?;
            rows_of(&context, &records, &files.into_iter().map(|file| file.path).collect()).await?
        }
        Some(from) => {
            let changes = changes_between(&store, from, to).await?.ok_or_else(|| {
                let what = format!(
                    "cannot deliver to consumer {name}: it is at version {from} of {store}, and the log no longer \
                     reaches back to it; make a full copy under a new consumer name"
                );
                LakeError::Invalid(what)
            })?;
            delivery.changed = changes.commits.clone();
            for Change { version, operation } in &changes.commits {
                tracing::warn!(
                    version,
                    operation,
                    "another writer removed, changed or restored rows; consumers do not receive these changes"
                );
            }
            let mut sizes: Vec<_> = changes.new.values().map(|file| (file.rows, file.bytes)).collect();
            if changes.is_new_changed {
                let files = snapshot::files(&store, &records).await?;
                let rewritten = files.iter().filter(|file| changes.rewritten.contains_key(&file.path));
                sizes.extend(rewritten.map(ActiveFile::rows_and_bytes));
            }
            let context = session(&limits.for_rows_of(sizes))?;
            new_rows(name, &context, &store, &records, &changes).await?
        }
    };
    deliver(rows, out, &mut delivery).await?;
    failpoint::hit("consumer/written");
    commit_cursor(lake, name, to).await?;
    Ok(delivery)
}

/// Removes the cursor of a consumer. Its deliveries stay where they are.
///
/// # Errors
/// The lake has no such consumer, or the log cannot be read or committed to.
pub async fn forget(lake: &Store, name: &str) -> Result<ForgottenConsumer, LakeError> {
    if !Table::SyncRecords.exists(lake).await? {
        return Err(LakeError::NoLake(lake.to_string()));
    }
    let decide = |known: &Transactions| {
        let all = cursors(known);
        let Some(cursor) = all.iter().find(|cursor| cursor.name == name) else {
            let names: Vec<&str> = all.iter().map(|cursor| cursor.name.as_str()).collect();
            let others = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let what = format!("{lake} has no consumer {name}, so there is nothing to forget; its consumers: {others}");
            return Err(LakeError::Invalid(what));
        };
        let ids = [id(name), intent_id(name)].map(|id| (id, FORGOTTEN)).to_vec();
        Ok(Ids::Set(ids, ForgottenConsumer { forgotten: name.to_owned(), version: cursor.version }))
    };
    replace::set_ids(lake, Table::DailyState, decide).await
}

/// The cursor of a consumer, as the log of `daily_state` records it.
pub(crate) struct Cursor {
    /// Name of the consumer.
    pub name: String,
    /// The version of `sync_records` up to which the consumer has all rows; `None` before its first delivery.
    pub version: Option<u64>,
    /// The version that an unfinished delivery will reach.
    pub unfinished_to: Option<u64>,
}

/// Returns the cursors of all consumers that were not forgotten, by name.
pub(crate) fn cursors(known: &Transactions) -> Vec<Cursor> {
    let name = |id: &String| id.strip_prefix("consumer/")?.split('/').next().map(str::to_owned);
    let names: BTreeSet<String> = known.ids.keys().filter_map(name).collect();
    let version = |id: &str| known.ids.get(id).and_then(|version| u64::try_from(*version).ok());
    let cursor = |name: String| {
        let (version, to) = (version(&id(&name)), version(&intent_id(&name)));
        let unfinished_to = to.filter(|to| version.is_none_or(|version| version < *to));
        (version.is_some() || to.is_some()).then_some(Cursor { name, version, unfinished_to })
    };
    names.into_iter().filter_map(cursor).collect()
}

/// Returns the transaction id of a consumer's cursor.
pub(crate) fn id(name: &str) -> String {
    format!("consumer/{name}")
}

/// Returns the transaction id of the version that a consumer's delivery reaches.
fn intent_id(name: &str) -> String {
    format!("{}/to", id(name))
}

struct Intent {
    from: Option<u64>,
    to: u64,
}

/// Step 1: reads the consumer's cursor, and fixes the version that this delivery reaches.
async fn begin_delivery(lake: &Store, name: &str, (out, format): (&Store, Format)) -> Result<Intent, LakeError> {
    let records = Table::SyncRecords.store(lake);
    let none = || LakeError::NoLake(lake.to_string());
    let known = log::read_transactions(&records).await?.ok_or_else(none)?;
    // A table that cannot be read is refused before its version is fixed for the delivery.
    if let Some(reason) = known.requirements.unreadable_rows(Table::SyncRecords) {
        return Err(LakeError::Unsupported { table: records.to_string(), reason });
    }
    let newest = known.version;
    Table::DailyState.ensure(lake).await?;
    let intent = intent_id(name);
    let [form, place] = ["format", "place"].map(|part| format!("{}/{part}", id(name)));
    let (our_form, our_place) =
        (i64::from(format == Format::Parquet) + 2 * i64::from(format == Format::Csv), digest(out));
    let decide = |known: &Transactions| {
        let version = |id: &str| known.ids.get(id).and_then(|version| u64::try_from(*version).ok());
        let from = version(&id(name));
        if let Some(ahead) = from.max(version(&intent)).filter(|version| *version > newest) {
            let what = format!("consumer {name} is at version {ahead}, but {records} is at {newest}; check --lake");
            return Err(LakeError::Invalid(what));
        }
        if let Some(to) = version(&intent).filter(|to| from.is_none_or(|from| from < *to)) {
            if known.ids.get(&form) != Some(&our_form) || known.ids.get(&place) != Some(&our_place) {
                let what = format!(
                    "consumer {name} has an unfinished delivery with another --format or --out; run the command once \
                     more with those values, then with these"
                );
                return Err(LakeError::Invalid(what));
            }
            return Ok(Ids::Keep(Intent { from, to }));
        }
        if from == Some(newest) {
            return Ok(Ids::Keep(Intent { from, to: newest }));
        }
        let to = log::id_value(newest)?;
        let ids = vec![(intent.clone(), to), (form.clone(), our_form), (place.clone(), our_place)];
        Ok(Ids::Set(ids, Intent { from, to: newest }))
    };
    replace::set_ids(lake, Table::DailyState, decide).await
}

/// Returns a digest of a place that fits into a transaction id.
fn digest(out: &Store) -> i64 {
    let digest = Sha256::digest(out.url().to_string().as_bytes());
    digest.iter().take(7).fold(0, |value, byte| value << 8 | i64::from(*byte))
}

/// Step 3. A concurrent run of the same delivery may already have committed it.
async fn commit_cursor(lake: &Store, name: &str, to: u64) -> Result<(), LakeError> {
    let to = log::id_value(to)?;
    let decide = |known: &Transactions| {
        if known.ids.get(&id(name)).is_some_and(|reached| *reached >= to) {
            return Ok(Ids::Keep(()));
        }
        if known.ids.get(&intent_id(name)) != Some(&to) {
            return Err(LakeError::Invalid(format!(
                "consumer {name} was forgotten during this delivery, so its next delivery begins with the first rows; \
                 use another name for a new consumer"
            )));
        }
        Ok(Ids::Set(vec![(id(name), to)], ()))
    };
    replace::set_ids(lake, Table::DailyState, decide).await
}

/// Returns the rows of some files of a table as it was loaded; `None` for no files.
async fn rows_of(
    context: &SessionContext,
    table: &DeltaTable,
    files: &BTreeSet<String>,
) -> Result<Option<DataFrame>, QueryError> {
    let sorting = reading::for_sorting(&context.state());
    let Some(rows) = reading::files_of(table, &sorting, files).await? else { return Ok(None) };
    let schema = Table::SyncRecords.schema();
    // Of two versions, one may have columns that the other one lacks.
    let ours: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Ok(Some(context.read_table(rows)?.select_columns(&ours)?))
}

/// Returns the union of the parts.
fn union_all(parts: impl IntoIterator<Item = DataFrame>) -> Result<Option<DataFrame>, QueryError> {
    let mut all: Option<DataFrame> = None;
    for part in parts {
        all = Some(match all {
            Some(all) => all.union(part)?,
            None => part,
        });
    }
    Ok(all)
}

/// Returns the new rows, by the table in the module documentation.
async fn new_rows(
    name: &str,
    context: &SessionContext,
    store: &Store,
    records: &DeltaTable,
    changes: &TableChanges,
) -> Result<Option<DataFrame>, ExtractError> {
    let mut there = BTreeSet::new();
    // Grouped by the last version that lists them.
    let mut gone: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (path, file) in &changes.new {
        match file.removed_at {
            None => there.insert(path.clone()),
            Some(version) => gone.entry(version - 1).or_default().insert(path.clone()),
        };
    }
    let mut parts: Vec<DataFrame> = rows_of(context, records, &there).await?.into_iter().collect();
    let mut originals = Vec::new();
    for (version, files) in gone {
        check_originals_exist(name, store, version, &files).await?;
        let listing = snapshot::load(store, Some(version)).await?;
        let listing = listing.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        originals.extend(rows_of(context, &listing, &files).await?);
    }
    match union_all(originals)? {
        Some(originals) if changes.is_new_changed => {
            let rewritten = changes.rewritten.keys().cloned().collect();
            if let Some(rewritten) = rows_of(context, records, &rewritten).await? {
                parts.push(semi_join(context, rewritten, originals).await?);
            }
        }
        originals => parts.extend(originals),
    }
    Ok(union_all(parts)?)
}

/// Returns those rows of `rewritten` that are among `originals`, compared by the columns that identify a row.
async fn semi_join(
    context: &SessionContext,
    rewritten: DataFrame,
    originals: DataFrame,
) -> Result<DataFrame, QueryError> {
    context.register_table("rewritten", rewritten.into_view())?;
    context.register_table("originals", originals.into_view())?;
    let sql = "SELECT h.* FROM rewritten AS h LEFT SEMI JOIN originals AS o
        ON h.shard_id = o.shard_id AND h.sequence_number = o.sequence_number AND (h.source IS NOT DISTINCT FROM o.source)
        AND (h.sub_sequence IS NOT DISTINCT FROM o.sub_sequence) AND (h.record_index IS NOT DISTINCT FROM o.record_index)";
    // Without the parentheses, DataFusion's dialect takes everything that follows as the right-hand side.
    Ok(context.sql(sql).await?)
}

/// Checks that files still exist that no version lists any more.
async fn check_originals_exist(
    name: &str,
    store: &Store,
    version: u64,
    files: &BTreeSet<String>,
) -> Result<(), LakeError> {
    let mut sizes = futures::stream::iter(files)
        .map(|path| async move { store.size(path).await.map(|size| (path, size)) })
        .buffer_unordered(LOOKS);
    while let Some((path, size)) = sizes.try_next().await? {
        if size.is_none() {
            return Err(LakeError::Invalid(format!(
                "cannot deliver the rows of {path} to consumer {name}: they were rewritten after version {version}, \
                 and the original file was vacuumed; make a full copy under a new consumer name"
            )));
        }
    }
    Ok(())
}

/// Step 2: writes the files, and then the manifest.
async fn deliver(
    rows: Option<DataFrame>,
    (out, format): (&Store, Format),
    delivery: &mut Delivery,
) -> Result<(), ExtractError> {
    let from = delivery.from.map_or(0, |from| from + 1);
    let folder = format!("consumer={}/versions={from:010}-{:010}", delivery.consumer, delivery.to);
    let schema: SchemaRef = Table::SyncRecords.schema();
    let mut listed = Vec::new();
    let mut held: Vec<RecordBatch> = Vec::new();
    let (mut held_rows, mut held_bytes) = (0, 0);
    if let Some(rows) = rows {
        let order = ORDER.map(|name| col(name).sort(true, true)).to_vec();
        let frame = rows.sort(order).map_err(QueryError::from)?;
        let mut batches = frame.execute_stream().await.map_err(QueryError::from)?;
        while let Some(batch) = batches.next().await {
            let batch = conform(&schema, &batch.map_err(QueryError::from)?).map_err(encode_error)?;
            // Files are cut by the rows alone, not by the batches, so that a repeated delivery has the same files.
            let mut start = 0;
            for (row, bytes) in text_bytes(&batch).into_iter().enumerate() {
                (held_rows, held_bytes) = (held_rows + 1, held_bytes + bytes);
                if held_rows >= FILE_ROWS || held_bytes >= FILE_TEXT_BYTES {
                    held.push(batch.slice(start, row + 1 - start));
                    listed.push(write(out, format, &folder, listed.len(), &schema, &mut held).await?);
                    (held_rows, held_bytes, start) = (0, 0, row + 1);
                }
            }
            if start < batch.num_rows() {
                held.push(batch.slice(start, batch.num_rows() - start));
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
        "format": extension(format), "rows": delivery.rows, "files": listed, "changed": delivery.changed,
    });
    let path = format!("{folder}/_SUCCESS");
    out.put(&path, serde_json::to_vec_pretty(&manifest).map_err(encode_error)?.into()).await?;
    delivery.manifest = Some(format!("{}{path}", out.url()));
    Ok(())
}

/// Returns the bytes of the text in each row.
fn text_bytes(batch: &RecordBatch) -> Vec<usize> {
    let mut bytes = vec![0; batch.num_rows()];
    for text in batch.columns().iter().filter_map(|column| column.as_string_opt::<i32>()) {
        for (bytes, ends) in bytes.iter_mut().zip(text.value_offsets().windows(2)) {
            *bytes += usize::try_from(ends[1] - ends[0]).unwrap_or(0);
        }
    }
    bytes
}

async fn write(
    out: &Store,
    format: Format,
    folder: &str,
    number: usize,
    schema: &SchemaRef,
    held: &mut Vec<RecordBatch>,
) -> Result<ManifestEntry, ExtractError> {
    // One batch, so that the bytes do not depend on the batches in which the rows came.
    let rows = concat_batches(schema, &std::mem::take(held)).map_err(encode_error)?;
    let bytes = encode(format, schema, std::slice::from_ref(&rows))?;
    let path = format!("{folder}/part-{number:05}.{}", extension(format));
    ManifestEntry::put(out, path, None, rows.num_rows(), bytes).await
}
