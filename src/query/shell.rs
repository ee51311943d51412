//! What `synclake-query` does with its statements: run them, print them, and answer the backslash commands.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::StreamExt;
use rustyline::error::ReadlineError;

use super::print::{Format, Printer};
use super::{Engine, Limits, QueryError, Scope, guard, views};
use crate::lake::Store;
use crate::lake::tables::Table;

/// How results are shown.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Format of results.
    pub format: Format,
    /// Leave control characters as they are.
    pub raw: bool,
    /// Write results to this file in place of standard output.
    pub output: Option<PathBuf>,
    /// Tell on stderr how long each statement took.
    pub timing: bool,
    /// Tell nothing on stderr but errors.
    pub quiet: bool,
}

/// Whether the shell goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    Quit,
}

const HELP: &str = "\
\\d             tables and views       \\timing        how long a statement takes, on and off
\\d NAME        columns of one         \\format NAME   table csv tsv json ndjson markdown vertical
\\?             this text              \\q             leave (also Ctrl-D)
A statement ends with a semicolon and may span lines. Everything is read-only.
";

/// Runs a text of statements and backslash lines, and stops at the first that fails.
///
/// # Errors
/// That of the failed statement.
pub async fn run_text(engine: &Engine, text: &str, settings: &mut Settings) -> Result<(), QueryError> {
    if text.trim_start().starts_with('\\') {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            command(engine, line.trim(), settings)?;
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
        run_statement(engine, &statement, settings).await?;
    }
    Ok(())
}

async fn run_statement(engine: &Engine, statement: &str, settings: &Settings) -> Result<(), QueryError> {
    let began = Instant::now();
    let frame = engine.sql(statement).await?;
    let schema = std::sync::Arc::new(frame.schema().as_arrow().clone());
    let mut batches = frame.execute_stream().await?;
    let rows = match &settings.output {
        Some(path) => {
            // Through a link to what it names; and a device or a pipe is written to, never replaced.
            let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let file = Pending::create(path)?;
            let fail = |source| QueryError::Output { path: path.display().to_string(), source };
            let out = std::io::BufWriter::new(&file.file);
            let mut printer = Printer::new(settings.format, true, schema, out).map_err(fail)?;
            while let Some(batch) = batches.next().await {
                printer.write(&batch?).map_err(fail)?;
            }
            let rows = printer.finish().map_err(fail)?;
            file.publish(path)?;
            rows
        }
        None => {
            let fail = |source| QueryError::Output { path: "standard output".to_owned(), source };
            let out = std::io::BufWriter::new(std::io::stdout());
            let mut printer = Printer::new(settings.format, settings.raw, schema, out).map_err(fail)?;
            while let Some(batch) = batches.next().await {
                printer.write(&batch?).map_err(fail)?;
            }
            printer.finish().map_err(fail)?
        }
    };
    if settings.timing && !settings.quiet {
        eprintln!("{rows} rows in {:.3} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A file that appears whole or not at all.
struct Pending {
    file: std::fs::File,
    /// Set when the file is written beside its place first.
    staged: Option<PathBuf>,
    published: std::cell::Cell<bool>,
}

impl Pending {
    fn create(path: &Path) -> Result<Self, QueryError> {
        let fail = |source| QueryError::Output { path: path.display().to_string(), source };
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            let file = std::fs::File::options().write(true).open(path).map_err(fail)?;
            return Ok(Self { file, staged: None, published: std::cell::Cell::new(true) });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:08x}.tmp", rand::random::<u32>()));
        let staged = path.with_file_name(name);
        let file = std::fs::File::create(&staged).map_err(fail)?;
        Ok(Self { file, staged: Some(staged), published: std::cell::Cell::new(false) })
    }

    fn publish(self, path: &Path) -> Result<(), QueryError> {
        let Some(staged) = &self.staged else { return Ok(()) };
        let done = self.file.sync_all().and_then(|()| std::fs::rename(staged, path));
        self.published.set(done.is_ok());
        done.map_err(|source| QueryError::Output { path: path.display().to_string(), source })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let (false, Some(staged)) = (self.published.get(), &self.staged) {
            // Best effort: the error that brought us here is the one to tell.
            let _ = std::fs::remove_file(staged);
        }
    }
}

fn command(engine: &Engine, line: &str, settings: &mut Settings) -> Result<Next, QueryError> {
    let mut words = line.trim_end_matches(';').split_whitespace();
    let out = |text: String| {
        std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|source| QueryError::Output { path: "standard output".to_owned(), source })
    };
    match (words.next().unwrap_or_default(), words.next()) {
        ("\\q" | "\\quit", _) => return Ok(Next::Quit),
        ("\\?" | "\\h" | "\\help", _) => out(HELP.to_owned())?,
        ("\\d" | "\\dt" | "\\dv", None) => out(relations())?,
        ("\\d", Some(name)) => out(columns(engine, name)?)?,
        ("\\timing", _) => {
            settings.timing = !settings.timing;
            eprintln!("timing is {}", if settings.timing { "on" } else { "off" });
        }
        ("\\format", Some(name)) => {
            settings.format = clap::ValueEnum::from_str(name, true)
                .map_err(|_| QueryError::Refused(format!("format {name:?} is none of those that \\? lists")))?;
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
            Table::Gaps => "what the stream's retention trimmed before it was read",
            Table::State => "what `synclake refresh` keeps; ask key_state, which is up to date",
        };
        ("table", table.name(), about)
    });
    let views = views::VIEWS.map(|(name, _, about)| ("view", name, about));
    let key_state = ("table", "key_state", "each key's latest change, removed ones too, to the newest commit");
    tables
        .into_iter()
        .chain([key_state])
        .chain(views)
        .map(|(kind, name, about)| format!("{kind:5}  {name:16}  {about}\n"))
        .collect()
}

fn columns(engine: &Engine, name: &str) -> Result<String, QueryError> {
    let context = engine.context();
    let unknown = || QueryError::Refused(format!("there is no table or view {name:?}; \\d lists them"));
    let known = context.catalog("datafusion").and_then(|c| c.schema("public")).ok_or_else(unknown)?;
    if !known.table_exist(name) {
        return Err(unknown());
    }
    let table = futures::executor::block_on(known.table(name))?.ok_or_else(unknown)?;
    let schema = table.schema();
    Ok(schema.fields().iter().map(|f| format!("{:26}  {}\n", f.name(), type_name(f.data_type()))).collect())
}

/// The type as SQL calls it.
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

/// Reads statements from a terminal. Each is run on the newest snapshot.
///
/// # Errors
/// The terminal fails; a failed statement is told and the shell goes on.
pub async fn repl(lake: &Store, limits: &Limits, scope: Scope, mut settings: Settings) -> Result<(), QueryError> {
    let broken = |error: ReadlineError| QueryError::Refused(format!("read the terminal: {error}"));
    let mut editor = rustyline::DefaultEditor::new().map_err(broken)?;
    let history = history_file();
    if let Some(path) = &history {
        // No history is no reason not to start.
        let _ = editor.load_history(path);
    }
    let mut engine = Engine::open(lake, limits, scope).await?;
    eprintln!("synclake-query on {lake}. \\? for help, \\d for tables, \\q to leave.");
    let mut pending = String::new();
    loop {
        let prompt = if pending.is_empty() { "synclake> " } else { "      ..> " };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                pending.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(broken(error)),
        };
        if pending.is_empty() && line.trim_start().starts_with('\\') {
            let _ = editor.add_history_entry(line.trim());
            match command(&engine, line.trim(), &mut settings) {
                Ok(Next::Quit) => break,
                Ok(Next::More) => {}
                Err(error) => eprintln!("error: {error}"),
            }
            continue;
        }
        pending.push_str(&line);
        pending.push('\n');
        if pending.trim().is_empty() {
            pending.clear();
            continue;
        }
        if !pending.trim_end().ends_with(';') {
            continue;
        }
        let text = std::mem::take(&mut pending);
        let _ = editor.add_history_entry(text.trim());
        engine = Engine::open(lake, limits, scope).await?;
        // Ctrl-C ends the query and not the shell.
        let done = tokio::select! {
            done = run_text(&engine, &text, &mut settings) => done,
            _ = tokio::signal::ctrl_c() => Err(QueryError::Refused("cancelled".to_owned())),
        };
        match done {
            Ok(()) => {}
            Err(error) if error.is_broken_pipe() => break,
            Err(error) => eprintln!("error: {error}"),
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    Ok(())
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let folder =
        state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?.join("synclake");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
