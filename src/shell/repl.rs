//! The interactive shell: reads statements and backslash commands from a terminal until its user leaves.

use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::signal::unix::SignalKind;

use super::editor::Assistant;
use super::script::is_command;
use super::session::{Next, Session};
use super::{Opening, Settings};
use crate::query::{QueryError, guard};
use crate::terminal::{self, Interrupts};

/// Signals that the shell handles itself.
const CTRL_C: [SignalKind; 1] = [SignalKind::interrupt()];
/// Statements that the history keeps.
const HISTORY: usize = 10_000;

type Lines = Editor<Assistant, FileHistory>;

/// Reads statements from a terminal until end of input. Each statement runs on the newest lake snapshot.
///
/// # Errors
/// The lake cannot be opened, or the terminal fails. A failed statement is reported, and the shell goes on.
pub fn repl(opening: &Opening, name: &str, settings: Settings) -> Result<(), QueryError> {
    let interrupts =
        Interrupts::install(&CTRL_C).map_err(|error| QueryError::Refused(format!("listen for Ctrl-C: {error}")))?;
    let config = Config::builder().completion_type(CompletionType::List).completion_show_all_if_ambiguous(true);
    let config = config.max_history_size(HISTORY).map_err(broken)?;
    let mut lines: Lines = Editor::with_config(config.auto_add_history(false).build()).map_err(broken)?;
    let history = history_file();
    if let Some(path) = &history {
        // A missing history does not prevent the start.
        let _ = lines.load_history(path);
    }
    let mut session = Session::open(opening, interrupts, settings)?;
    lines.set_helper(Some(Assistant::start(opening.clone())));
    let version = env!("CARGO_PKG_VERSION");
    terminal::write_line(&format!("synclake-query {version} on {name}. \\? for help, \\d for tables, \\q to leave."));
    read_statements(&mut lines, &mut session, history.as_deref())?;
    session.close();
    Ok(())
}

/// Reads and runs statements and backslash commands until the user or the end of input ends the shell.
fn read_statements(lines: &mut Lines, session: &mut Session<'_>, history: Option<&Path>) -> Result<(), QueryError> {
    loop {
        let text = match lines.readline("synclake> ") {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(broken(error)),
        };
        let text = match word(&text).as_deref() {
            Some("exit" | "quit") => return Ok(()),
            Some(_) => "\\?".to_owned(),
            None if guard::is_blank(&text) => continue,
            None => text,
        };
        let _ = lines.add_history_entry(text.trim());
        if let Some(path) = history {
            // Now, because another shell may write to the same file, and a closed window ends this one.
            let _ = lines.append_history(path);
        }
        if session.input(&text)? == Next::Quit {
            return Ok(());
        }
    }
}

/// Returns a word that stands for a command, if a text is one, with or without a semicolon.
fn word(text: &str) -> Option<String> {
    let word = text.trim().trim_end_matches(';').trim_end().to_lowercase();
    ["exit", "quit", "help"].contains(&word.as_str()).then_some(word)
}

/// Returns whether a text can run; otherwise it goes on in another line.
pub(super) fn is_ready(text: &str) -> bool {
    is_command(text) || word(text).is_some() || guard::is_blank(text) || guard::is_complete(text)
}

fn broken(error: ReadlineError) -> QueryError {
    QueryError::Refused(format!("read the terminal: {error}"))
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let folder =
        state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?.join("synclake");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
