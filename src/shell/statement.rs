//! One statement: plans it, runs it, and prints its rows where the settings say.

use std::io::{BufWriter, IsTerminal};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use regex::Regex;
use tokio_util::sync::CancellationToken;

use super::export::export;
use super::output::{Sink, Stoppable};
use super::pager::Pager;
use super::progress::Progress;
use super::{Opening, Settings};
use crate::print::{Fit, Format, Printer, Style, distinct_names};
use crate::query::{Engine, QueryError, Scan};

/// Rows of a result that a person reads.
const ROWS_SHOWN: usize = 40;
/// Width of a terminal that does not tell its width.
const COLUMNS: usize = 80;

/// The rows of a statement, before it runs.
pub(super) struct Rows {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    pub(super) task: Arc<TaskContext>,
    /// The columns, with the names that the user sees.
    pub(super) schema: SchemaRef,
    /// Counts of files and bytes, which EXPLAIN ANALYZE adds to its plan.
    pub(super) scan: Option<Scan>,
}

impl Rows {
    /// Runs the statement.
    ///
    /// # Errors
    /// The plan cannot be executed.
    pub(super) fn stream(&self) -> Result<SendableRecordBatchStream, QueryError> {
        let rows = execute_stream(self.plan.clone(), self.task.clone())?;
        let Some(scan) = self.scan.clone() else { return Ok(rows) };
        let (schema, of_row) = (rows.schema(), rows.schema());
        let last = futures::stream::once(async move { scan.row(of_row) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(last))))
    }
}

/// Runs a statement.
///
/// # Errors
/// The statement fails, or its result cannot be written.
pub(super) async fn run(
    engine: &Engine,
    statement: &str,
    (opening, settings): (&Opening, &Settings),
    cancel: &CancellationToken,
) -> Result<(), QueryError> {
    let began = Instant::now();
    let format = settings.result_format();
    let frame = engine.sql(statement).await?;
    let schema = plain_names(frame.schema().as_arrow(), frame.logical_plan());
    distinct_names(format, &schema).map_err(QueryError::Refused)?;
    let scan = match frame.logical_plan() {
        LogicalPlan::Analyze(_) => Some(engine.scan(statement).await?),
        _ => None,
    };
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    // The plan's types are those before coercion: only its names are those of the result.
    let planned = plan.schema();
    let named = schema.fields().iter().zip(planned.fields()).map(|(named, field)| {
        let field = Field::new(named.name(), field.data_type().clone(), true);
        field.with_metadata(named.metadata().clone())
    });
    let schema = Arc::new(Schema::new(named.collect::<Vec<_>>()));
    let rows = Rows { plan, task, schema, scan };
    let rows = match &settings.output {
        Some(output) => export(rows, output, settings, opening).await?,
        None => to_stdout(rows, format, settings, cancel).await?,
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
    rows: Rows,
    format: Format,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<usize, QueryError> {
    let name = "standard output";
    let fail = |source| QueryError::Output { path: name.to_owned(), source };
    let is_terminal = std::io::stdout().is_terminal();
    if format.is_binary() && is_terminal {
        let message = format!("{} is binary; name a file with \\o FILE, or with -o FILE", format.name());
        return Err(QueryError::Refused(message));
    }
    let progress = Progress::start(rows.plan.clone(), settings.quiet);
    let (batches, schema) = (rows.stream()?, rows.schema);
    let pager = match settings.pager && is_terminal {
        true => Some(Pager::start().map_err(|source| QueryError::Output { path: "the pager".to_owned(), source })?),
        false => None,
    };
    let fit = (is_terminal && pager.is_none()).then(|| Fit {
        columns: terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| usize::from(width.0)),
        rows: if settings.all_rows { usize::MAX } else { ROWS_SHOWN },
    });
    let style = Style {
        raw: settings.raw,
        is_terminal,
        guards_formulas: settings.guards_formulas,
        has_bom: settings.has_bom,
        is_stream: true,
        fit,
    };
    let Some(mut pager) = pager else {
        let out = Stoppable::stdout(cancel).map_err(fail)?;
        // A table for people is printed at the end of the query, unless it is long. A bar would mix with anything else.
        let progress = Some(progress).filter(|_| format == Format::Table && is_terminal);
        let printed = print(batches, (format, style), schema, BufWriter::new(out), name, progress).await;
        return printed.map(|(rows, _)| rows);
    };
    let out = BufWriter::new(pager.input());
    match print(batches, (format, style), schema, out, name, None).await {
        // Whoever leaves the pager early has seen enough.
        Err(error) if error.is_broken_pipe() => Ok(0),
        printed => printed.map(|(rows, _)| rows),
    }
}

/// Prints rows, and returns their number and what they were printed to.
pub(super) async fn print<S: Sink>(
    mut batches: SendableRecordBatchStream,
    (format, style): (Format, Style),
    schema: SchemaRef,
    out: S,
    name: &str,
    mut progress: Option<Progress>,
) -> Result<(usize, S), QueryError> {
    let fail = |source| QueryError::Output { path: name.to_owned(), source };
    let mut printer = Printer::new(format, style, schema, out).map_err(fail)?;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if printer.is_writing(batch.num_rows()) {
            progress = None;
        }
        printer.write(&batch).map_err(fail)?;
        printer.out().advance().await?;
    }
    drop(progress);
    let rows = printer.finish().map_err(fail)?;
    Ok((rows, printer.into_out()))
}
