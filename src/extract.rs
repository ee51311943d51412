//! The daily extract: the state at the end of a day and the day's net changes, written into `daily_state` and, on
//! request, into files elsewhere.
//!
//! A day is computed from the newest extract of an earlier day and the rows added since (`plan.rs`), by the same
//! aggregate as the current state. Beside the live keys, the table keeps the removed keys (`kind = 'removed'`), because
//! the next day is computed from them. If a day is extracted again, the table also keeps the differences from its
//! earlier extracts (`corrections.rs`). One commit replaces the table's partition of the day, and records the version
//! of `sync_records` it covers. Files elsewhere count only once `_SUCCESS` lists them. That manifest is written after
//! the commit, over the manifest of an earlier run. So the manifest is never ahead of the table. A run that is killed
//! between the two extracts the day again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{Days, NaiveDate, Utc};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::prelude::{DataFrame, SessionContext, col, lit};
use deltalake::DeltaTable;
use serde::Serialize;

use crate::failpoint;
use crate::lake::snapshot::ActiveFile;
use crate::lake::{LakeError, Store, log, manifest, replace, sweep};
use crate::print::Format;
use crate::query::state::{Resolved, is_damage};
use crate::query::{Limits, QueryError, reading, session, views};
use crate::schema::Table;

mod base;
pub mod consumer;
mod corrections;
mod files;
mod plan;

pub(crate) use base::NewestExtract;
pub use files::ManifestEntry;
use files::Writer;
pub use plan::ShardWatermark;
use plan::{Plan, covers_id, extracted_id, stale_id};
pub(crate) use plan::{forgotten_ids, recorded};

/// The reason why an extract failed. The table and an earlier manifest are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// An error of the lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// An error of a query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A batch that cannot be built or encoded.
    #[error("encode the extract")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn encode_error(error: impl std::error::Error + Send + Sync + 'static) -> ExtractError {
    ExtractError::Encode(Box::new(error))
}

/// The result of one extract.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ExtractReport {
    /// The extracted day.
    pub date: NaiveDate,
    /// Live keys at the end of the day.
    pub state_rows: u64,
    /// Net changes of the day.
    pub change_rows: u64,
    /// Keys whose live row differs from that in an earlier extract of the day.
    pub corrections: u64,
    /// Files in the table's partition of the day now.
    pub files: usize,
    /// Version of `daily_state`.
    pub version: u64,
    /// The version of `sync_records` that was read.
    pub covers: u64,
    /// The day of the extract that this one builds on; `None` if it was computed from all rows.
    pub base: Option<NaiveDate>,
    /// Bytes of the files of `sync_records` that were read.
    pub change_bytes: u64,
    /// Rows of days up to the base's day that were added after the base was extracted, by day.
    pub late_rows: BTreeMap<NaiveDate, u64>,
    /// Extracted days whose rows in `sync_records` have changed since; `correct` extracts them again.
    pub stale: Vec<NaiveDate>,
    /// Such days that this run extracted again.
    pub corrected: Vec<NaiveDate>,
    /// Whether every shard of a stream was read to the end of the day; `None` if the lake was read from files alone.
    pub is_complete: Option<bool>,
    /// The watermark of each shard.
    pub shards: Vec<ShardWatermark>,
    /// Place of the manifest, if files were written.
    pub manifest: Option<String>,
}

/// Parses `2026-11-20`, `yesterday` or `today` (UTC).
///
/// # Errors
/// Returns one line that shows the format of a date.
pub fn parse_date(text: &str) -> Result<NaiveDate, String> {
    let today = Utc::now().date_naive();
    match text {
        "today" => Ok(today),
        "yesterday" => today.checked_sub_days(Days::new(1)).ok_or_else(|| "there is no yesterday".to_owned()),
        _ => {
            let shaped = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| shaped);
            date.ok_or_else(|| format!("{text:?} is no date; write YYYY-MM-DD, today or yesterday"))
        }
    }
}

/// Extracts the days from `from` to `to`, each from the day before.
///
/// With `correct`, extracted days that late rows have changed are extracted again: earlier days first, later days at
/// the end.
///
/// # Errors
/// See [`ExtractError`]. Finished days stay finished, and running again is always safe.
pub async fn run(
    lake: &Store,
    (from, to): (NaiveDate, NaiveDate),
    out: Option<(&Store, Format)>,
    correct: bool,
    limits: &Limits,
    mut done: impl FnMut(&ExtractReport),
) -> Result<Vec<ExtractReport>, ExtractError> {
    let mut reports = Vec::new();
    for date in from.iter_days().take_while(|date| *date <= to) {
        let mut plan = Plan::new(lake, date).await?;
        let mut corrected = Vec::new();
        if correct && !plan.stale.is_empty() {
            // Later stale days are extracted after this day.
            for stale in plan.stale.iter().copied().filter(|stale| *stale < date) {
                if correct_day(lake, stale, out, limits).await? {
                    corrected.push(stale);
                }
            }
            plan = Plan::new(lake, date).await?;
        }
        let mut report = day(lake, plan, out, limits).await?;
        if correct && date == to {
            // Later stale days, oldest first, so that each day builds on an extract that holds all rows.
            let later: Vec<NaiveDate> = report.stale.iter().copied().filter(|stale| *stale > date).collect();
            for stale in later {
                if correct_day(lake, stale, out, limits).await? {
                    corrected.push(stale);
                }
            }
            report.stale.retain(|stale| *stale <= date || !corrected.contains(stale));
        }
        report.corrected = corrected;
        done(&report);
        reports.push(report);
    }
    match sweep::sweep_forgotten(&Table::DailyState.store(lake)).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "deleted files of daily_state that no commit lists"),
        // The files are invisible, and the days are done.
        Err(error) => tracing::warn!("left files of daily_state that no commit lists: {error}"),
    }
    Ok(reports)
}

/// Extracts a stale day again. Returns `false` if it needs rows that have left: then it stays as it is, and stale.
async fn correct_day(
    lake: &Store,
    date: NaiveDate,
    out: Option<(&Store, Format)>,
    limits: &Limits,
) -> Result<bool, ExtractError> {
    match Plan::new(lake, date).await {
        Ok(plan) => day(lake, plan, out, limits).await.map(|_| true),
        Err(error @ LakeError::Expired(_)) => {
            tracing::warn!(%date, %error, "this day cannot be corrected any more");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

const COLUMNS: &str = "pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count, last_modified_date, \
                       device_last_modified_date";
/// Columns that the next day is computed from.
const ORDERED: &str = "is_after_removal, shard_id, sequence_number, sub_sequence, record_index, arrived_at";
/// The condition for live keys.
const LIVE: &str = "is_after_removal AND op <> 'remove'";
const ORDER: &str = "ORDER BY pool, identity_id, dataset_name, key NULLS FIRST";

async fn day(
    lake: &Store,
    plan: Plan,
    out: Option<(&Store, Format)>,
    limits: &Limits,
) -> Result<ExtractReport, ExtractError> {
    let context = tables(&plan, limits).await?;
    let mut writer = Writer::new(lake, plan.date, out);
    let Counts { state_rows, change_rows, corrections } = write_rows(&mut writer, &context, &plan).await?;
    let is_complete = (!plan.shards.is_empty()).then(|| plan.shards.iter().all(|shard| shard.is_complete));
    let mut report = ExtractReport {
        date: plan.date,
        state_rows,
        change_rows,
        corrections,
        files: writer.files.len(),
        version: 0,
        covers: plan.version,
        base: plan.base,
        change_bytes: plan.tail.iter().map(|file| file.size).sum(),
        late_rows: plan.late,
        stale: plan.stale,
        corrected: Vec::new(),
        is_complete,
        shards: plan.shards,
        manifest: None,
    };
    let about = serde_json::json!({
        "version": 1, "date": report.date, "state_rows": state_rows, "change_rows": change_rows,
        "corrections": corrections, "covers": report.covers, "is_complete": is_complete, "shards": report.shards,
        "late_rows": report.late_rows,
    });
    let version = log::id_value(plan.version)?;
    let mut covers = vec![(covers_id(plan.date), version)];
    covers.extend(report.stale.iter().map(|day| (stale_id(*day), version)));
    let date = plan.date.to_string();
    let files = std::mem::take(&mut writer.files);
    let ids = |written| {
        let of_version = (extracted_id(plan.date), written);
        covers.iter().cloned().chain([of_version]).collect()
    };
    report.version = replace::replace(lake, Table::DailyState, "extract_date", &date, files, ids).await?;
    failpoint::hit("extract/committed");
    manifest::follow_commit(lake, Table::DailyState).await;
    report.manifest = writer.publish(about).await?;
    Ok(report)
}

/// Numbers of the rows that an extract consists of.
struct Counts {
    state_rows: u64,
    change_rows: u64,
    corrections: u64,
}

/// Writes the rows of an extract: live keys, removed keys, changes and corrections.
async fn write_rows(writer: &mut Writer<'_>, context: &SessionContext, plan: &Plan) -> Result<Counts, ExtractError> {
    let ask = async |sql: String| -> Result<DataFrame, ExtractError> {
        Ok(context.sql(&sql).await.map_err(QueryError::from)?)
    };
    let live = ask(format!("SELECT 'state' AS kind, {COLUMNS}, {ORDERED} FROM key_state WHERE {LIVE} {ORDER}")).await?;
    let state_rows = writer.take("state", live).await?;
    let removed =
        format!("SELECT 'removed' AS kind, {COLUMNS}, {ORDERED} FROM key_state WHERE ({LIVE}) IS NOT TRUE {ORDER}");
    writer.take("removed", ask(removed).await?).await?;
    let changes = format!("SELECT 'change' AS kind, {COLUMNS} FROM daily_changes {ORDER}");
    let change_rows = writer.take("changes", ask(changes).await?).await?;
    let corrections = match corrections::rows(context, plan).await? {
        Some(rows) => match writer.take("corrections", rows).await {
            // The query groups before it emits rows, so nothing was written before the error.
            Err(ExtractError::Query(QueryError::Sql(error))) if is_damage(&error) => {
                let date = plan.date;
                tracing::warn!(%date, %error, "cannot read the earlier extract of this day; all keys are corrections");
                writer.take("corrections", corrections::all(context).await?).await?
            }
            taken => taken?,
        },
        None => 0,
    };
    Ok(Counts { state_rows, change_rows, corrections })
}

/// Creates a session with the state at the end of the day, and the changes of the day.
async fn tables(plan: &Plan, limits: &Limits) -> Result<SessionContext, ExtractError> {
    let sizes = plan.tail.iter().map(ActiveFile::rows_and_bytes).chain(plan.base_sizes.iter().copied());
    let context = session(&limits.for_rows_of(sizes))?;
    let state = context.state();
    let tail = plan.tail.iter().map(|file| file.path.clone()).collect();
    let tail = reading::files_of(&plan.records, &state, &tail).await.map_err(QueryError::from)?;
    let base = reading::files_of(&plan.daily, &state, &plan.base_files).await.map_err(QueryError::from)?;
    let base = match base {
        Some(base) => {
            let base = as_state(&context, base)?;
            Some(match &plan.only {
                Some(left) => reading::filtered(base, reading::before(left)).map_err(QueryError::from)?,
                None => base,
            })
        }
        None => None,
    };
    let name = |e: DataFusionError| ExtractError::Query(e.into());
    let remedy =
        plan.base.map(|day| format!("cannot read the extract of {day}; run `synclake extract --date {day}` again"));
    let resolved = Resolved::new(tail, base, remedy.unwrap_or_default());
    context.register_table("key_state", Arc::new(resolved)).map_err(name)?;
    let sorting = reading::for_sorting(&state);
    let of_day = rows_of(Table::SyncRecords, &plan.records, &sorting, &plan.of_the_day()).await?;
    context.register_table(Table::SyncRecords.name(), of_day).map_err(name)?;
    views::register(&context, &["changes", "daily_changes"]).await.map_err(name)?;
    Ok(context)
}

/// Selects the state's columns from an extract.
fn as_state(context: &SessionContext, base: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>, ExtractError> {
    let columns: Vec<_> = Table::State.schema().fields().iter().map(|field| col(field.name())).collect();
    let rows = context
        .read_table(base)
        .and_then(|rows| rows.filter(col("kind").in_list(vec![lit("state"), lit("removed")], false)));
    let rows = rows.and_then(|rows| rows.select(columns)).map_err(QueryError::from)?;
    Ok(rows.into_view())
}

/// Returns some files of a table as a relation, which is empty if there are none.
async fn rows_of(
    table: Table,
    loaded: &DeltaTable,
    session: &SessionState,
    files: &BTreeSet<String>,
) -> Result<Arc<dyn TableProvider>, ExtractError> {
    let rows = reading::files_of(loaded, session, files).await.map_err(QueryError::from)?;
    Ok(match rows {
        Some(rows) => rows,
        None => Arc::new(MemTable::try_new(table.query_schema(), vec![Vec::new()]).map_err(QueryError::from)?),
    })
}
