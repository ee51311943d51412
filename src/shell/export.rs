//! Writes the rows of a statement into a file, an object of S3, or a partitioned folder of either.

use std::io::BufWriter;

use futures::StreamExt;

use super::output::{Folder, Output, Part, Pending, Place, Sink};
use super::partitions::Partitions;
use super::progress::Progress;
use super::statement::{Rows, print};
use super::{Opening, Settings};
use crate::lake::Store;
use crate::print::{Format, Printer, Style};
use crate::query::QueryError;

/// Writes a result, and returns its number of rows.
///
/// # Errors
/// The statement fails, or the result cannot be written.
pub(super) async fn export(
    rows: Rows,
    output: &Output,
    settings: &Settings,
    opening: &Opening,
) -> Result<usize, QueryError> {
    let format = settings.result_format();
    output.check(format, !settings.partition_by.is_empty(), &opening.location)?;
    if settings.format.is_none() && settings.partition_by.is_empty() {
        Format::check_name(&output.shown()).map_err(QueryError::Refused)?;
    }
    let style = Style {
        guards_formulas: settings.guards_formulas,
        has_bom: settings.has_bom && !output.is_begun(),
        ..Style::EXACT
    };
    let rows = if settings.partition_by.is_empty() {
        file(rows, output, (format, style), settings.quiet, opening).await?
    } else {
        folder(rows, output, settings, opening).await?
    };
    output.begun();
    Ok(rows)
}

async fn file(
    rows: Rows,
    output: &Output,
    (format, style): (Format, Style),
    is_quiet: bool,
    opening: &Opening,
) -> Result<usize, QueryError> {
    let shown = output.shown();
    let progress = Progress::start(rows.plan.clone(), is_quiet);
    match output.place() {
        Place::Local(path) => {
            // A link is followed to its target. A device or a pipe is written to, never replaced.
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let file = Pending::create(&path, output.is_begun())?;
            let style = Style { is_stream: !file.is_staged(), ..style };
            let out = BufWriter::new(file.file());
            let (written, _) = print(rows.stream()?, (format, style), rows.schema, out, &shown, None).await?;
            drop(progress);
            file.publish()?;
            Ok(written)
        }
        Place::Object(location) => {
            let store = Store::open(location, &opening.aws).await?;
            let Some(upload) = store.upload("").await? else {
                return Err(QueryError::Refused(format!("{shown} takes no uploads")));
            };
            let (written, upload) = print(rows.stream()?, (format, style), rows.schema, upload, &shown, None).await?;
            drop(progress);
            upload.complete().await?;
            Ok(written)
        }
    }
}

/// Writes a file for each combination of the values of the partition columns, one after the other: rows are sorted by
/// them, so that only one file is open at a time.
async fn folder(rows: Rows, output: &Output, settings: &Settings, opening: &Opening) -> Result<usize, QueryError> {
    let shown = output.shown();
    let fail = |source| QueryError::Output { path: shown.clone(), source };
    let partitions = Partitions::new(&rows.schema, &settings.partition_by)?;
    let rows = Rows { plan: partitions.sorted(rows.plan)?, ..rows };
    let mut folder = Folder::create(output.place(), &opening.aws, &shown).await?;
    let progress = Progress::start(rows.plan.clone(), settings.quiet);
    let mut batches = rows.stream()?;
    let schema = partitions.stored(&rows.schema);
    let mut open = None;
    let mut written = 0;
    while let Some(batch) = batches.next().await {
        for (path, batch) in partitions.split(&batch?)? {
            let mut printer = match open.take() {
                Some((at, printer)) if at == path => printer,
                before => {
                    if let Some((_, printer)) = before {
                        written += close(&mut folder, printer, &shown).await?;
                    }
                    let file = folder.file(&format!("{path}/part-0.parquet")).await?;
                    Printer::new(Format::Parquet, Style::EXACT, schema.clone(), file).map_err(fail)?
                }
            };
            printer.write(&batch).map_err(fail)?;
            printer.out().advance().await?;
            open = Some((path, printer));
        }
    }
    if let Some((_, printer)) = open {
        written += close(&mut folder, printer, &shown).await?;
    }
    drop(progress);
    folder.publish().await?;
    Ok(written)
}

async fn close(folder: &mut Folder, mut printer: Printer<Part>, shown: &str) -> Result<usize, QueryError> {
    let rows = printer.finish().map_err(|source| QueryError::Output { path: shown.to_owned(), source })?;
    folder.close(printer.into_out()).await?;
    Ok(rows)
}
