//! Runs the statements of `synclake-query`, prints their results, and answers the backslash commands.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{Field, Schema};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::print::{Format, Printer, Style, distinct_names};
use crate::query::{Engine, QueryError, guard, views};
use crate::schema::Table;

mod output;
mod repl;

pub use output::remove_staged;
use output::{Pending, Stoppable};
pub use repl::{Opening, repl};

/// Settings for the output of results.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Format of results.
    pub format: Format,
    /// Whether control characters stay as they are.
    pub raw: bool,
    /// Whether CSV text that a spreadsheet would read as a formula gets a `'` before it.
    pub guards_formulas: bool,
    /// File for results, in place of standard output.
    pub output: Option<PathBuf>,
    /// Whether the duration of each statement is written to stderr.
    pub timing: bool,
    /// Whether stderr receives nothing but errors.
    pub quiet: bool,
}

/// Decision whether the shell goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    Quit,
}

const HELP: &str = "\
\\d             list tables and views   \\timing        show the time of each statement (on/off)
\\d NAME        list columns of NAME    \\format NAME   table csv tsv json ndjson markdown vertical
\\?             show this help          \\q             quit (also Ctrl-D)
A statement ends with a semicolon and may span lines. Everything is read-only.
";

/// Loads the tables that the statements of these texts name, so that all of them see the same versions.
///
/// # Errors
/// There is no lake, or it cannot be read.
pub async fn load(engine: &Engine, texts: &[String]) -> Result<(), QueryError> {
    let statements = texts.iter().filter(|text| !is_commands(text));
    // A text that cannot be split is reported when it runs.
    let statements: Vec<String> = statements.flat_map(|text| guard::split(text).unwrap_or_default()).collect();
    engine.load(&statements).await
}

/// Returns whether a text holds backslash commands, one a line.
fn is_commands(text: &str) -> bool {
    text.trim_start().starts_with('\\')
}

/// Runs a text of statements or backslash commands, and stops at the first failure.
///
/// # Errors
/// The error of the failed statement.
pub async fn run_text(
    engine: &Engine,
    text: &str,
    settings: &mut Settings,
    cancel: &CancellationToken,
) -> Result<(), QueryError> {
    if is_commands(text) {
        if settings.output.is_some() {
            return Err(QueryError::Refused(
                "-o takes the result of a statement, not of a backslash command".to_owned(),
            ));
        }
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match described(line) {
                Some(name) => print_text(&columns(engine, name).await?)?,
                None => {
                    command(line, settings)?;
                }
            }
        }
        return Ok(());
    }
    let statements = guard::split(text)?;
    if statements.is_empty() {
        return Err(QueryError::Refused("the SQL text is empty".to_owned()));
    }
    if statements.len() > 1 && (settings.output.is_some() || settings.format == Format::Parquet) {
        let message = format!("{} statements where one is expected: a file holds one result", statements.len());
        return Err(QueryError::Refused(message));
    }
    for statement in statements {
        run_statement(engine, &statement, settings, cancel).await?;
    }
    Ok(())
}

async fn run_statement(
    engine: &Engine,
    statement: &str,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<(), QueryError> {
    let began = Instant::now();
    let frame = engine.sql(statement).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    distinct_names(settings.format, &schema).map_err(QueryError::Refused)?;
    let batches = frame.execute_stream().await?;
    // The plan's types are those before coercion: only its names are those of the result.
    let planned = batches.schema();
    let named = schema.fields().iter().zip(planned.fields()).map(|(named, field)| {
        let field = Field::new(named.name(), field.data_type().clone(), true);
        field.with_metadata(named.metadata().clone())
    });
    let schema = Arc::new(Schema::new(named.collect::<Vec<_>>()));
    let rows = match &settings.output {
        Some(path) => {
            // A link is followed to its target. A device or a pipe is written to, never replaced.
            let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let file = Pending::create(path)?;
            let style = Style { guards_formulas: settings.guards_formulas, ..Style::EXACT };
            let out = BufWriter::new(file.file());
            let rows = print(batches, (settings.format, style), schema, out, &path.display().to_string()).await?;
            file.publish()?;
            rows
        }
        None => {
            let name = "standard output";
            let out =
                Stoppable::stdout(cancel).map_err(|source| QueryError::Output { path: name.to_owned(), source })?;
            let is_terminal = std::io::stdout().is_terminal();
            let style = Style { raw: settings.raw, is_terminal, guards_formulas: settings.guards_formulas };
            print(batches, (settings.format, style), schema, BufWriter::new(out), name).await?
        }
    };
    if settings.timing && !settings.quiet {
        crate::terminal::write_line(&format!("{rows} rows in {:.3} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

async fn print(
    mut batches: SendableRecordBatchStream,
    (format, style): (Format, Style),
    schema: arrow::datatypes::SchemaRef,
    out: impl Write + Send,
    name: &str,
) -> Result<usize, QueryError> {
    let fail = |source| QueryError::Output { path: name.to_owned(), source };
    let mut printer = Printer::new(format, style, schema, out).map_err(fail)?;
    while let Some(batch) = batches.next().await {
        printer.write(&batch?).map_err(fail)?;
    }
    printer.finish().map_err(fail)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.trim().trim_end_matches(';').split_whitespace()
}

/// Returns the table or view whose columns a backslash command asks for.
fn described(line: &str) -> Option<&str> {
    let mut words = words(line);
    if words.next() == Some("\\d") { words.next() } else { None }
}

fn print_text(text: &str) -> Result<(), QueryError> {
    let fail = |source| QueryError::Output { path: "standard output".to_owned(), source };
    std::io::stdout().write_all(text.as_bytes()).map_err(fail)
}

/// Runs a backslash command that needs no lake.
fn command(line: &str, settings: &mut Settings) -> Result<Next, QueryError> {
    let mut words = words(line);
    match (words.next().unwrap_or_default(), words.next()) {
        ("\\q" | "\\quit", _) => return Ok(Next::Quit),
        ("\\?" | "\\h" | "\\help", _) => print_text(HELP)?,
        ("\\d" | "\\dt" | "\\dv", None) => print_text(&relations())?,
        ("\\timing", _) => {
            settings.timing = !settings.timing;
            crate::terminal::write_line(&format!("timing is {}", if settings.timing { "on" } else { "off" }));
        }
        ("\\format", Some(name)) => {
            settings.format = clap::ValueEnum::from_str(name, true)
                .map_err(|_| QueryError::Refused(format!("unknown format {name:?}; \\? lists the formats")))?;
        }
        (other, _) => return Err(QueryError::Refused(format!("{other} is no command; \\? lists them"))),
    }
    Ok(Next::More)
}

fn relations() -> String {
    let tables = Table::ALL.map(|table| {
        let about = match table {
            Table::SyncRecords => "every change as it arrived",
            Table::Quarantine => "records that could not be decoded, and why",
            Table::DailyState => "daily extracts, as stored",
            Table::Gaps => "records that the stream lost before they were read",
            Table::State => "state of the last `synclake refresh`; key_state is up to date",
        };
        ("table", table.name(), about)
    });
    let views = views::VIEWS.map(|(name, _, about)| ("view", name, about));
    let key_state = ("view", "key_state", "latest change of each key, removed keys included, up to date");
    tables
        .into_iter()
        .chain([key_state])
        .chain(views)
        .map(|(kind, name, about)| format!("{kind:5}  {name:16}  {about}\n"))
        .collect()
}

async fn columns(engine: &Engine, name: &str) -> Result<String, QueryError> {
    let unknown = || QueryError::Refused(format!("there is no table or view {name:?}; \\d lists them"));
    let schema = engine.columns(name).await?.ok_or_else(unknown)?;
    Ok(schema.fields().iter().map(|f| format!("{:26}  {}\n", f.name(), type_name(f.data_type()))).collect())
}

/// Returns the SQL name of a type.
fn type_name(data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "varchar".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::UInt64 => "bigint unsigned".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "varbinary".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone".to_owned(),
        DataType::Dictionary(_, value) => type_name(value),
        other => other.to_string(),
    }
}
