//! Runs the statements of `synclake-query`, prints their results, and answers the backslash commands.
//!
//! A script (`-c`, `-f`, a pipe) reads one snapshot of the lake and stops at the first failure ([`run`]). The
//! interactive shell reads the newest snapshot for each statement and goes on after a failure ([`repl()`]).

use std::io::Write;

use tokio_util::sync::CancellationToken;

use crate::aws::AwsSettings;
use crate::lake::{Location, Store};
use crate::print::Format;
use crate::query::{Engine, Limits, Parameters, QueryError, Scope};

mod commands;
mod complete;
mod describe;
mod editor;
mod export;
mod highlight;
mod output;
mod pager;
mod partitions;
mod progress;
mod repl;
mod script;
mod session;
mod statement;
mod worker;

use commands::Command;
pub use output::{Output, discard_unfinished};
pub use repl::repl;
pub use script::Script;
use script::{Part, Piece};

/// What a session starts with.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The lake.
    pub location: Location,
    /// Access to AWS.
    pub aws: AwsSettings,
    /// Resources and guards of a session.
    pub limits: Limits,
    /// Stack size of each thread of a query.
    pub stack_bytes: usize,
}

impl Opening {
    /// Builds a runtime for queries.
    ///
    /// # Errors
    /// The system does not start its threads.
    pub fn runtime(&self) -> std::io::Result<tokio::runtime::Runtime> {
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(self.stack_bytes).build()
    }
}

/// What commands can change.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Format of results; `None` for the one that the name of the file stands for, or a table.
    pub format: Option<Format>,
    /// Whether control characters stay as they are.
    pub raw: bool,
    /// Whether CSV text that a spreadsheet would read as a formula gets a `'` before it.
    pub guards_formulas: bool,
    /// Whether CSV begins with a byte order mark.
    pub has_bom: bool,
    /// File for results, in place of standard output.
    pub output: Option<Output>,
    /// Columns whose values name the folders of the result's Parquet files.
    pub partition_by: Vec<String>,
    /// Whether the duration of each statement is written to stderr.
    pub timing: bool,
    /// Whether stderr receives nothing but errors.
    pub quiet: bool,
    /// Whether a table has a line a column.
    pub expanded: bool,
    /// Whether a terminal shows all rows, however many.
    pub all_rows: bool,
    /// Whether results on a terminal go through the pager.
    pub pager: bool,
    /// Rows that statements see.
    pub scope: Scope,
    /// Values of `$name` in statements.
    pub parameters: Parameters,
}

impl Settings {
    /// Opens a session that sees what these settings say.
    fn engine(&self, lake: &Store, limits: &Limits) -> Result<Engine, QueryError> {
        Ok(Engine::open(lake, limits, self.scope)?.with_parameters(self.parameters.clone()))
    }

    /// Returns the format of the next result.
    pub fn result_format(&self) -> Format {
        if !self.partition_by.is_empty() {
            return Format::Parquet;
        }
        match self.format.or_else(|| self.output.as_ref().and_then(Output::format)).unwrap_or(Format::Table) {
            Format::Table if self.expanded => Format::Vertical,
            format => format,
        }
    }
}

/// Runs texts of statements and backslash commands in order, up to the first failure. All statements see the same
/// versions of the tables that they name.
///
/// # Errors
/// There is no lake, it cannot be read, or a statement or command fails.
pub async fn run(opening: &Opening, scripts: &[Script], settings: Settings) -> Result<(), QueryError> {
    let lake = Store::open(&opening.location, &opening.aws).await?;
    let engine = settings.engine(&lake, &opening.limits)?;
    // The tables of all statements are loaded at once. A text that cannot be split is reported when it runs.
    let texts: Vec<_> = scripts.iter().map(|script| (script, script.pieces())).collect();
    let pieces = texts.iter().filter_map(|(_, pieces)| pieces.as_ref().ok()).flatten();
    let statements = pieces.filter_map(|piece| match &piece.part {
        Part::Statement(statement) => Some(statement.clone()),
        Part::Command(_) => None,
    });
    engine.load(&statements.collect::<Vec<_>>()).await?;
    let mut run = Run { opening, lake, engine, settings, has_binary: false };
    for (script, pieces) in texts {
        let pieces = pieces?;
        if pieces.is_empty() {
            return Err(QueryError::Refused("the SQL text is empty".to_owned()));
        }
        if !run.script(script, pieces, session::INCLUDES_MAX).await? {
            break;
        }
    }
    Ok(())
}

/// A run of scripts.
struct Run<'a> {
    opening: &'a Opening,
    lake: Store,
    engine: Engine,
    settings: Settings,
    /// Whether a result is on standard output that nothing may follow.
    has_binary: bool,
}

impl Run<'_> {
    /// Runs the pieces of a script. Returns whether what follows is to run, too.
    async fn script(&mut self, script: &Script, pieces: Vec<Piece>, depth: usize) -> Result<bool, QueryError> {
        let statements = pieces.iter().filter(|piece| matches!(piece.part, Part::Statement(_))).count();
        let is_file = self.settings.output.is_some() || self.settings.result_format().is_binary();
        if is_file && statements > 1 && statements == pieces.len() {
            let message = format!("{statements} statements where one is expected: a file holds one result");
            return Err(QueryError::Refused(message));
        }
        for piece in pieces {
            if !self.piece(&piece.part, depth).await.map_err(|error| script.error(error, &piece))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn piece(&mut self, part: &Part, depth: usize) -> Result<bool, QueryError> {
        let statement = match part {
            Part::Statement(statement) => statement,
            Part::Command(line) => return self.command(&Command::parse(line)?, depth).await,
        };
        if self.settings.output.is_none() && self.settings.result_format().is_binary() {
            if self.has_binary {
                let message = "a second result, where standard output holds one of this format; add -o FILE";
                return Err(QueryError::Refused(message.to_owned()));
            }
            self.has_binary = true;
        }
        let with = (self.opening, &self.settings);
        statement::run(&self.engine, statement, with, &CancellationToken::new()).await?;
        // Standard output has its mark now; a file knows by itself.
        self.settings.has_bom &= self.settings.output.is_some();
        Ok(true)
    }

    async fn command(&mut self, command: &Command, depth: usize) -> Result<bool, QueryError> {
        let prints = matches!(command, Command::Help | Command::Relations | Command::Columns(_));
        if prints && self.settings.output.is_some() {
            let message = "-o and \\o take the result of a statement, not of a backslash command";
            return Err(QueryError::Refused(message.to_owned()));
        }
        if command.apply(&mut self.settings)?.is_some() {
            if matches!(command, Command::AsOf(_) | Command::At(_) | Command::Set(_)) {
                self.engine = self.settings.engine(&self.lake, &self.opening.limits)?;
            }
            return Ok(true);
        }
        match command {
            Command::Quit => return Ok(false),
            Command::Help => print_text(commands::HELP)?,
            Command::Relations => print_text(&describe::relations())?,
            Command::Columns(name) => print_text(&describe::columns(&self.engine, name).await?)?,
            Command::Output(_) if !self.settings.partition_by.is_empty() => {
                return Err(QueryError::Refused("\\o and --partition-by exclude each other; leave one out".to_owned()));
            }
            Command::Output(path) => self.settings.output = path.clone().map(Output::new).transpose()?,
            Command::Include(path) => {
                let depth = depth.checked_sub(1).ok_or_else(|| session::too_deep(path))?;
                let script = Script::read(path)?;
                let pieces = script.pieces()?;
                return Box::pin(self.script(&script, pieces, depth)).await;
            }
            _ => {
                let message = "\\watch and \\e need a terminal; run synclake-query without -c, -f and pipes";
                return Err(QueryError::Refused(message.to_owned()));
            }
        }
        Ok(true)
    }
}

fn print_text(text: &str) -> Result<(), QueryError> {
    let fail = |source| QueryError::Output { path: "standard output".to_owned(), source };
    std::io::stdout().write_all(text.as_bytes()).map_err(fail)
}
