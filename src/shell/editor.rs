//! What helps while a line is typed: completion and colours.

use std::borrow::Cow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::{Opening, complete, highlight};
use crate::lake::Store;
use crate::query::{Engine, QueryError, Scope, Vocabulary};

/// Time that a first completion waits for the names of the lake.
const PATIENCE: Duration = Duration::from_secs(2);

/// The helper of the line editor.
pub(super) struct Assistant {
    known: Arc<Known>,
    files: FilenameCompleter,
    has_colours: bool,
}

/// The words of the lake, once they are read.
#[derive(Default)]
struct Known {
    words: Mutex<Option<Arc<Vocabulary>>>,
    is_read: Condvar,
}

impl Known {
    fn set(&self, words: Vocabulary) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(words));
        self.is_read.notify_all();
    }

    fn get(&self) -> Arc<Vocabulary> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.is_read.wait_timeout_while(words, PATIENCE, |words| words.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone().unwrap_or_default()
    }
}

impl Assistant {
    /// Creates a helper, and reads the words of the lake meanwhile. Without them it completes keywords only.
    pub(super) fn start(opening: Opening) -> Self {
        let known = Arc::new(Known::default());
        let found = known.clone();
        let read = move || {
            let words = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&opening)));
            // A lake that cannot be read is reported by the statement that reads it.
            found.set(words.ok().and_then(Result::ok).unwrap_or_default());
        };
        let thread = std::thread::Builder::new().name("completion".to_owned()).stack_size(STACK_BYTES);
        if thread.spawn(read).is_err() {
            known.set(Vocabulary::default());
        }
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_colours = !is_dumb && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { known, files: FilenameCompleter::new(), has_colours }
    }
}

/// Stack size of the threads that read the words: the views are planned, which is not deep.
const STACK_BYTES: usize = 16 << 20;

fn read(opening: &Opening) -> Result<Vocabulary, QueryError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).thread_stack_size(STACK_BYTES).enable_all().build();
    let runtime = runtime.map_err(|error| QueryError::Refused(format!("start the runtime: {error}")))?;
    let words = runtime.block_on(async {
        let lake = Store::open(&opening.location, &opening.aws).await?;
        Engine::open(&lake, &opening.limits, Scope::default())?.vocabulary().await
    });
    runtime.shutdown_timeout(crate::timeouts::SHUTDOWN_TIMEOUT);
    words
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (left, right) = line.split_at(pos);
        let is_file = ["\\i ", "\\o "].iter().any(|command| left.trim_start().starts_with(command));
        if is_file {
            return self.files.complete(line, pos, context);
        }
        let complete::Offer { replaced, words } = complete::offer(left, right, &self.known.get());
        let pairs = words.into_iter().map(|word| Pair { display: word.clone(), replacement: word });
        Ok((pos.saturating_sub(replaced), pairs.collect()))
    }
}

impl Highlighter for Assistant {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        match self.has_colours && !super::script::is_command(line) {
            true => Cow::Owned(highlight::coloured(line)),
            false => Cow::Borrowed(line),
        }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        self.has_colours && kind != CmdKind::MoveCursor
    }
}

impl Hinter for Assistant {
    type Hint = String;
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let is_ready = super::repl::is_ready(context.input());
        Ok(if is_ready { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Helper for Assistant {}
