//! The daily extract: the state at the end of a day and the day's net changes, into `daily_state` and, if asked for,
//! into files elsewhere.
//!
//! Both are computed by the shipped views over what the server had seen by the end of that day (UTC), in one pass that
//! is sorted by pool. The table's partition of that day is replaced in one commit. Files elsewhere count only once
//! `_SUCCESS` lists them; that manifest is written last, over the one of an earlier run.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, SchemaRef};
use chrono::{Days, NaiveDate, Utc};
use deltalake::kernel::Add;
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::lake::parquet::{add, encode_batches, row_count_statistics};
use crate::lake::part;
use crate::lake::tables::Table;
use crate::lake::{LakeError, Store, replace};
use crate::query::print::{Format, Printer};
use crate::query::{Engine, Limits, QueryError, Scope};

/// Rows of one file.
const FILE_ROWS_MAX: usize = 500_000;

/// Why an extract failed. The table and an earlier manifest are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The views.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A batch could not be formed or printed.
    #[error("encode the extract")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn encode_error(error: impl std::error::Error + Send + Sync + 'static) -> ExtractError {
    ExtractError::Encode(Box::new(error))
}

/// What was extracted.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Report {
    /// The day.
    pub date: NaiveDate,
    /// Live keys at its end.
    pub state_rows: u64,
    /// Net changes of the day.
    pub change_rows: u64,
    /// Files in the table's partition now.
    pub files: usize,
    /// Version of `daily_state`.
    pub version: u64,
    /// Where the manifest is, if files were written.
    pub manifest: Option<String>,
}

/// A file of the manifest.
#[derive(Debug, Serialize)]
struct Listed {
    path: String,
    kind: &'static str,
    rows: usize,
    bytes: usize,
    sha256: String,
}

/// `2026-11-20`, or `yesterday` or `today` (UTC).
///
/// # Errors
/// One line that says what a date looks like.
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

/// Extracts one day.
///
/// # Errors
/// See [`ExtractError`]; running again is always right.
pub async fn run(
    lake: &Store,
    date: NaiveDate,
    out: Option<(&Store, Format)>,
    limits: &Limits,
) -> Result<Report, ExtractError> {
    let engine = Engine::open(lake, limits, Scope { as_of: Some(date), ..Scope::default() }).await?;
    Table::DailyState.ensure(lake).await?;
    let mut run = Run {
        table: Table::DailyState.store(lake),
        out,
        date,
        token: format!("{:016x}", crate::lake::ledger::new_token()),
        pool: String::new(),
        held: Vec::new(),
        held_rows: 0,
        schema: Table::DailyState.file_schema(),
        files: Vec::new(),
        listed: Vec::new(),
    };
    let columns = "pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count, last_modified_date, \
                   device_last_modified_date";
    let order = "ORDER BY pool, identity_id, dataset_name, key";
    let state = format!("SELECT 'state' AS kind, {columns} FROM current_state {order}");
    let state_rows = run.take(&engine, "state", &state).await?;
    let changes = format!("SELECT 'change' AS kind, {columns} FROM daily_changes WHERE event_date = '{date}' {order}");
    let change_rows = run.take(&engine, "changes", &changes).await?;
    let manifest = run.publish(state_rows, change_rows).await?;
    let files = run.files.len();
    let version = replace::replace(lake, Table::DailyState, "extract_date", &date.to_string(), run.files).await?;
    Ok(Report { date, state_rows, change_rows, files, version, manifest })
}

struct Run<'a> {
    table: Store,
    out: Option<(&'a Store, Format)>,
    date: NaiveDate,
    /// In every file name: what two runs write never collides.
    token: String,
    pool: String,
    held: Vec<RecordBatch>,
    held_rows: usize,
    schema: SchemaRef,
    files: Vec<Add>,
    listed: Vec<Listed>,
}

impl Run<'_> {
    /// Writes the rows of one query, which come sorted by pool.
    async fn take(&mut self, engine: &Engine, kind: &'static str, sql: &str) -> Result<u64, ExtractError> {
        let mut rows = 0;
        let frame = engine.sql(sql).await?;
        let mut batches = frame.execute_stream().await.map_err(QueryError::Sql)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(QueryError::Sql)?;
            rows += batch.num_rows() as u64;
            let pools = batch.column_by_name("pool").map(|c| cast(c, &DataType::Utf8)).transpose();
            let pools = pools.map_err(encode_error)?;
            let Some(pools) = pools.as_ref().and_then(|c| c.as_string_opt::<i32>()) else { continue };
            let stored = self.stored_columns(&batch)?;
            let mut start = 0;
            for end in 1..=pools.len() {
                if end == pools.len() || pools.value(end) != pools.value(start) {
                    if self.pool != pools.value(start) || self.held_rows >= FILE_ROWS_MAX {
                        self.roll(kind).await?;
                        pools.value(start).clone_into(&mut self.pool);
                    }
                    self.held_rows += end - start;
                    self.held.push(stored.slice(start, end - start));
                    start = end;
                }
            }
        }
        self.roll(kind).await?;
        Ok(rows)
    }

    fn stored_columns(&self, batch: &RecordBatch) -> Result<RecordBatch, ExtractError> {
        let columns = self.schema.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name()).ok_or_else(|| {
                encode_error(std::io::Error::other(format!("the view has no column {}", field.name())))
            })?;
            cast(column, field.data_type()).map_err(encode_error)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(self.schema.clone(), columns).map_err(encode_error)
    }

    async fn roll(&mut self, kind: &'static str) -> Result<(), ExtractError> {
        let batches = std::mem::take(&mut self.held);
        let rows = std::mem::take(&mut self.held_rows);
        if rows == 0 {
            return Ok(());
        }
        let date = self.date.to_string();
        let name = format!("part-{kind}-{}-{:05}", self.token, self.files.len());
        let path = format!("extract_date={date}/pool={}/{name}.parquet", self.pool);
        let fail = |source| LakeError::Parquet { action: "encode", path: path.clone(), source };
        let bytes = encode_batches(self.schema.clone(), &batches).map_err(fail)?;
        let size = bytes.len();
        part::put(&self.table, &path, bytes.clone()).await?;
        let values = [("extract_date", date.clone()), ("pool", self.pool.clone())];
        let now_ms = Utc::now().timestamp_millis();
        self.files.push(add(path, &values, size, now_ms, row_count_statistics(rows)));
        if let Some((out, format)) = self.out {
            let bytes = match format {
                Format::Parquet => bytes,
                format => {
                    let whole = concat_batches(&self.schema, &batches).map_err(encode_error)?;
                    let mut text = Vec::new();
                    let mut printer =
                        Printer::new(format, true, self.schema.clone(), &mut text).map_err(encode_error)?;
                    printer.write(&whole).map_err(encode_error)?;
                    printer.finish().map_err(encode_error)?;
                    text.into()
                }
            };
            let path = format!("extract_date={date}/{kind}/{name}.{}", extension(format));
            let digest = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            let size = bytes.len();
            out.put(&path, bytes).await?;
            self.listed.push(Listed { path, kind, rows, bytes: size, sha256: digest });
        }
        Ok(())
    }

    /// Publishes the files elsewhere, and then deletes those of earlier runs.
    async fn publish(&self, state_rows: u64, change_rows: u64) -> Result<Option<String>, ExtractError> {
        let Some((out, format)) = self.out else { return Ok(None) };
        let folder = format!("extract_date={}", self.date);
        let manifest = serde_json::json!({
            "version": 1, "date": self.date, "format": extension(format), "state_rows": state_rows,
            "change_rows": change_rows, "files": self.listed,
        });
        let path = format!("{folder}/_SUCCESS");
        let text = serde_json::to_vec_pretty(&manifest).map_err(encode_error)?;
        out.put(&path, text.into()).await?;
        for (old, _) in out.list(&folder).await? {
            let ours = old == path || self.listed.iter().any(|f| f.path == old);
            let written_by_us = old.rsplit('/').next().is_some_and(|name| name.starts_with("part-"));
            if !ours && written_by_us {
                out.delete(&old).await?;
            }
        }
        Ok(Some(format!("{}{path}", out.url())))
    }
}

fn extension(format: Format) -> &'static str {
    match format {
        Format::Csv => "csv",
        Format::Ndjson => "ndjson",
        _ => "parquet",
    }
}
