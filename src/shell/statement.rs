//! One statement: plans it, runs it, and prints its rows where the settings say.

use std::io::{BufWriter, IsTerminal, Write};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::execute_stream;
use futures::StreamExt;
use regex::Regex;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::output::{Pending, Stoppable};
use super::pager::Pager;
use super::progress::Progress;
use crate::print::{Fit, Format, Printer, Style, distinct_names};
use crate::query::{Engine, QueryError};

/// Rows of a result that a person reads.
const ROWS_SHOWN: usize = 40;
/// Width of a terminal that does not tell its width.
const COLUMNS: usize = 80;

/// Runs a statement.
///
/// # Errors
/// The statement fails, or its result cannot be written.
pub(super) async fn run(
    engine: &Engine,
    statement: &str,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<(), QueryError> {
    let began = Instant::now();
    let format = settings.result_format();
    let frame = engine.sql(statement).await?;
    let schema = plain_names(frame.schema().as_arrow(), frame.logical_plan());
    distinct_names(format, &schema).map_err(QueryError::Refused)?;
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let batches = execute_stream(plan.clone(), task)?;
    // The plan's types are those before coercion: only its names are those of the result.
    let planned = batches.schema();
    let named = schema.fields().iter().zip(planned.fields()).map(|(named, field)| {
        let field = Field::new(named.name(), field.data_type().clone(), true);
        field.with_metadata(named.metadata().clone())
    });
    let schema = Arc::new(Schema::new(named.collect::<Vec<_>>()));
    let progress = Progress::start(plan, settings.quiet);
    let rows = match &settings.output {
        Some(output) => {
            output.check(format)?;
            // A link is followed to its target. A device or a pipe is written to, never replaced.
            let path = &std::fs::canonicalize(&output.path).unwrap_or_else(|_| output.path.clone());
            let file = Pending::create(path, output.is_begun())?;
            let style = Style { guards_formulas: settings.guards_formulas, ..Style::EXACT };
            let out = BufWriter::new(file.file());
            let rows = print(batches, (format, style), schema, out, &path.display().to_string(), None).await?;
            drop(progress);
            file.publish()?;
            output.begun();
            rows
        }
        None => to_stdout(batches, format, schema, settings, cancel, progress).await?,
    };
    if settings.timing && !settings.quiet {
        crate::terminal::write_line(&format!("{rows} rows in {:.3} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Returns a schema whose names have literals as SQL writes them: `Int64(1)` is 1. A name that the query gives stays.
fn plain_names(schema: &Schema, plan: &LogicalPlan) -> Schema {
    static LITERAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r#"\b(?:U?Int(?:8|16|32|64)|Float(?:32|64)|Boolean)\(([^()]*)\)|\bUtf8(?:View)?\("([^"]*)"\)"#).ok()
    });
    let plain = |found: &regex::Captures<'_>| match (found.get(1), found.get(2)) {
        (_, Some(text)) => format!("'{}'", text.as_str()),
        (number, None) => number.map_or(String::new(), |number| number.as_str().to_owned()),
    };
    let fields = schema.fields().iter().enumerate().map(|(column, field)| match LITERAL.as_ref() {
        Some(literal) if !is_alias(plan, column) => {
            field.as_ref().clone().with_name(literal.replace_all(field.name(), plain))
        }
        _ => field.as_ref().clone(),
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// Returns whether a query names a column of its result.
fn is_alias(plan: &LogicalPlan, column: usize) -> bool {
    match plan {
        LogicalPlan::Sort(sort) => is_alias(&sort.input, column),
        LogicalPlan::Limit(limit) => is_alias(&limit.input, column),
        LogicalPlan::Projection(projection) => matches!(projection.expr.get(column), Some(Expr::Alias(_))),
        _ => false,
    }
}

async fn to_stdout(
    batches: SendableRecordBatchStream,
    format: Format,
    schema: SchemaRef,
    settings: &Settings,
    cancel: &CancellationToken,
    progress: Progress,
) -> Result<usize, QueryError> {
    let name = "standard output";
    let fail = |source| QueryError::Output { path: name.to_owned(), source };
    let is_terminal = std::io::stdout().is_terminal();
    if format == Format::Parquet && is_terminal {
        return Err(QueryError::Refused("Parquet is binary; name a file with \\o FILE, or with -o FILE".to_owned()));
    }
    let pager = match settings.pager && is_terminal {
        true => Some(Pager::start().map_err(|source| QueryError::Output { path: "the pager".to_owned(), source })?),
        false => None,
    };
    let fit = (is_terminal && pager.is_none()).then(|| Fit {
        columns: terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| usize::from(width.0)),
        rows: if settings.all_rows { usize::MAX } else { ROWS_SHOWN },
    });
    let style = Style { raw: settings.raw, is_terminal, guards_formulas: settings.guards_formulas, fit };
    let Some(mut pager) = pager else {
        let out = Stoppable::stdout(cancel).map_err(fail)?;
        // A table for people is printed at the end of the query, unless it is long. A bar would mix with anything else.
        let progress = Some(progress).filter(|_| format == Format::Table && is_terminal);
        return print(batches, (format, style), schema, BufWriter::new(out), name, progress).await;
    };
    let out = BufWriter::new(pager.input());
    match print(batches, (format, style), schema, out, name, None).await {
        // Whoever leaves the pager early has seen enough.
        Err(error) if error.is_broken_pipe() => Ok(0),
        printed => printed,
    }
}

async fn print(
    mut batches: SendableRecordBatchStream,
    (format, style): (Format, Style),
    schema: SchemaRef,
    out: impl Write + Send,
    name: &str,
    mut progress: Option<Progress>,
) -> Result<usize, QueryError> {
    let fail = |source| QueryError::Output { path: name.to_owned(), source };
    let mut printer = Printer::new(format, style, schema, out).map_err(fail)?;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if printer.is_writing(batch.num_rows()) {
            progress = None;
        }
        printer.write(&batch).map_err(fail)?;
    }
    drop(progress);
    printer.finish().map_err(fail)
}
