//! The files of one extract: in the table and, on request, elsewhere.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use chrono::{NaiveDate, Utc};
use datafusion::prelude::DataFrame;
use deltalake::kernel::Add;
use futures::StreamExt;
use serde::Serialize;

use super::{ExtractError, encode_error};
use crate::batch::parquet::{encode_batches, kind_statistics};
use crate::lake::files::sha256_of;
use crate::lake::{LakeError, Store, data_file};
use crate::print::{Format, Printer, Style};
use crate::query::QueryError;
use crate::schema::Table;

/// Rows per file.
const FILE_ROWS_MAX: usize = 500_000;
/// Bytes of one file, before encoding.
const FILE_BYTES_MAX: usize = 256 << 20;

/// A file of a manifest.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestEntry {
    /// Path below the place of the extracts.
    pub path: String,
    /// `state`, `changes` or `corrections` for an extract; `None` for a delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Number of rows.
    pub rows: usize,
    /// Size in bytes.
    pub bytes: usize,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
}

impl ManifestEntry {
    /// Writes a file elsewhere, and returns its manifest entry.
    pub(super) async fn put(
        out: &Store,
        path: String,
        kind: Option<&'static str>,
        rows: usize,
        bytes: Bytes,
    ) -> Result<Self, ExtractError> {
        let (size, sha256) = (bytes.len(), sha256_of(&bytes));
        out.put(&path, bytes).await?;
        Ok(Self { path, kind, rows, bytes: size, sha256 })
    }
}

/// The writer of one day's rows.
pub(super) struct Writer<'a> {
    table: Store,
    out: Option<(&'a Store, Format)>,
    date: NaiveDate,
    /// Part of every file name, so that files of two runs never collide.
    token: String,
    pool: String,
    held: Vec<RecordBatch>,
    held_rows: usize,
    schema: SchemaRef,
    held_bytes: usize,
    /// Written files of the table, for its commit.
    pub(super) files: Vec<Add>,
    /// Files written elsewhere, for the manifest.
    pub(super) listed: Vec<ManifestEntry>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(lake: &Store, date: NaiveDate, out: Option<(&'a Store, Format)>) -> Self {
        Self {
            table: Table::DailyState.store(lake),
            out,
            date,
            token: format!("{:016x}", crate::lake::ledger::new_token()),
            pool: String::new(),
            held: Vec::new(),
            held_rows: 0,
            held_bytes: 0,
            schema: Table::DailyState.file_schema(),
            files: Vec::new(),
            listed: Vec::new(),
        }
    }

    /// Writes rows, which must be sorted by pool, and returns their number. Rows of kind `removed` go into the table
    /// only, because they are for the next day alone.
    pub(super) async fn take(&mut self, kind: &'static str, frame: DataFrame) -> Result<u64, ExtractError> {
        let mut rows = 0;
        let mut batches = frame.execute_stream().await.map_err(QueryError::from)?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(QueryError::from)?;
            rows += batch.num_rows() as u64;
            let pools = batch.column_by_name("pool").map(|c| cast(c, &DataType::Utf8)).transpose();
            let pools = pools.map_err(encode_error)?;
            let Some(pools) = pools.as_ref().and_then(|c| c.as_string_opt::<i32>()) else { continue };
            let stored = self.stored_columns(&batch)?;
            let mut start = 0;
            for end in 1..=pools.len() {
                if end == pools.len() || pools.value(end) != pools.value(start) {
                    if self.pool != pools.value(start) || self.is_full() {
                        self.roll(kind).await?;
                        pools.value(start).clone_into(&mut self.pool);
                    }
                    self.held_rows += end - start;
                    let slice = stored.slice(start, end - start);
                    self.held_bytes += stored.get_array_memory_size() * (end - start) / pools.len();
                    self.held.push(slice);
                    start = end;
                }
            }
        }
        self.roll(kind).await?;
        Ok(rows)
    }

    fn is_full(&self) -> bool {
        self.held_rows >= FILE_ROWS_MAX || self.held_bytes >= FILE_BYTES_MAX
    }

    fn stored_columns(&self, batch: &RecordBatch) -> Result<RecordBatch, ExtractError> {
        // Changes and corrections lack the columns of the order, because nothing is computed from them.
        let columns = self.schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
            Some(column) => cast(column, field.data_type()).map_err(encode_error),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(self.schema.clone(), columns).map_err(encode_error)
    }

    async fn roll(&mut self, kind: &'static str) -> Result<(), ExtractError> {
        let batches = std::mem::take(&mut self.held);
        let rows = std::mem::take(&mut self.held_rows);
        self.held_bytes = 0;
        if rows == 0 {
            return Ok(());
        }
        let date = self.date.to_string();
        let name = format!("part-{kind}-{}-{:05}", self.token, self.files.len());
        let path = format!("extract_date={date}/pool={}/{name}.parquet", self.pool);
        let (schema, of_file) = (self.schema.clone(), batches.clone());
        let encode_file = move || {
            let kinds = of_file[0].column_by_name("kind").and_then(|c| c.as_string_opt::<i32>());
            let kind = kinds.filter(|kinds| !kinds.is_empty()).map(|kinds| kinds.value(0));
            Ok((encode_batches(schema, &of_file)?, kind_statistics(rows, kind)))
        };
        let encoded = data_file::encode(&self.table, &path, encode_file).await?;
        let bytes = encoded.bytes.clone();
        let values = [("extract_date", date.clone()), ("pool", self.pool.clone())];
        self.files.push(data_file::write(&self.table, path, &values, encoded).await?);
        if let Some((out, format)) = self.out.filter(|_| kind != "removed") {
            let bytes = match format {
                Format::Parquet => bytes,
                format => encode(format, &self.schema, &batches)?,
            };
            let path = format!("extract_date={date}/{kind}/{name}.{}", extension(format));
            self.listed.push(ManifestEntry::put(out, path, Some(kind), rows, bytes).await?);
        }
        Ok(())
    }

    /// Publishes the files elsewhere by a manifest (`about` and the list of files), and then deletes the files of the
    /// run before. A failed deletion is no error, because the day is done.
    ///
    /// **It deletes only files that the replaced manifest listed, and part files older than a day that this manifest
    /// does not list**: newer files may belong to a concurrent run.
    pub(super) async fn publish(&self, mut about: serde_json::Value) -> Result<Option<String>, ExtractError> {
        let Some((out, format)) = self.out else { return Ok(None) };
        let folder = format!("extract_date={}", self.date);
        about["format"] = extension(format).into();
        about["files"] = serde_json::to_value(&self.listed).map_err(encode_error)?;
        let path = format!("{folder}/_SUCCESS");
        let before = out.get(&path).await?.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let before: HashSet<String> = before
            .iter()
            .flat_map(|manifest| manifest["files"].as_array().into_iter().flatten())
            .filter_map(|file| Some(file["path"].as_str()?.to_owned()))
            .collect();
        let text = serde_json::to_vec_pretty(&about).map_err(encode_error)?;
        out.put(&path, text.into()).await?;
        if let Err(error) = self.clean(out, &folder, &before).await {
            tracing::warn!(date = %self.date, %error, "left files of earlier runs beside the manifest");
        }
        Ok(Some(format!("{}{path}", out.url())))
    }

    async fn clean(&self, out: &Store, folder: &str, before: &HashSet<String>) -> Result<(), LakeError> {
        let long_ago = Utc::now() - chrono::Duration::days(1);
        for (old, object) in out.list(folder).await? {
            let listed = self.listed.iter().any(|f| f.path == old);
            let is_part = old.rsplit('/').next().is_some_and(|name| name.starts_with("part-"));
            if is_part && !listed && (before.contains(&old) || object.last_modified < long_ago) {
                out.delete(&old).await?;
            }
        }
        Ok(())
    }
}

pub(super) fn extension(format: Format) -> &'static str {
    match format {
        Format::Csv => "csv",
        Format::Ndjson => "ndjson",
        _ => "parquet",
    }
}

/// Encodes batches as a file of that format.
pub(super) fn encode(format: Format, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Bytes, ExtractError> {
    if format == Format::Parquet {
        return encode_batches(schema.clone(), batches).map_err(encode_error);
    }
    let mut text = Vec::new();
    let mut printer = Printer::new(format, Style::EXACT, schema.clone(), &mut text).map_err(encode_error)?;
    for batch in batches {
        printer.write(batch).map_err(encode_error)?;
    }
    printer.finish().map_err(encode_error)?;
    Ok(text.into())
}
