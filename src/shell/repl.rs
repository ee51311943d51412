//! The interactive shell: reads statements and backslash commands from a terminal until its user leaves.

use std::path::PathBuf;

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
    let config = Config::builder().completion_type(CompletionType::List).max_history_size(HISTORY).map_err(broken)?;
    let mut lines: Lines = Editor::with_config(config.auto_add_history(false).build()).map_err(broken)?;
    let history = history_file();
    if let Some(path) = &history {
        // A missing history does not prevent the start.
        let _ = lines.load_history(path);
    }
    let mut session = Session::open(opening, interrupts, settings)?;
    lines.set_helper(Some(Assistant::start(opening.clone())));
    terminal::write_line(&format!("synclake-query on {name}. \\? for help, \\d for tables, \\q to leave."));
    read_statements(&mut lines, &mut session)?;
    if let Some(path) = &history {
        let _ = lines.save_history(path);
    }
    session.close();
    Ok(())
}

/// Reads and runs statements and backslash commands until the user or the end of input ends the shell.
fn read_statements(lines: &mut Lines, session: &mut Session<'_>) -> Result<(), QueryError> {
    let mut pending = String::new();
    loop {
        let prompt = if pending.is_empty() { "synclake> " } else { "      ..> " };
        if let Some(assistant) = lines.helper_mut() {
            assistant.before.clone_from(&pending);
        }
        let line = match lines.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                pending.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(broken(error)),
        };
        let word = line.trim().trim_end_matches(';').trim_end().to_lowercase();
        let is_first = guard::is_blank(&pending);
        let line = match word.as_str() {
            "exit" | "quit" if is_first => return Ok(()),
            "help" if is_first => "\\?".to_owned(),
            _ => line,
        };
        if is_first && is_command(&line) {
            pending.clear();
        }
        pending.push_str(&line);
        pending.push('\n');
        let is_ready = is_command(&pending) || guard::is_complete(&pending);
        if guard::is_blank(&pending) {
            pending.clear();
        }
        if !is_ready || pending.is_empty() {
            continue;
        }
        let text = std::mem::take(&mut pending);
        let _ = lines.add_history_entry(text.trim());
        if session.input(&text)? == Next::Quit {
            return Ok(());
        }
    }
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
