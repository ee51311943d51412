//! The interactive shell: reads lines from a terminal, and runs each statement on the newest lake snapshot.
//!
//! # Cancellation
//! Ctrl-C ends the query within a second, and never the shell. A query may hold every thread of its runtime without
//! yielding. So the shell waits for the query on a separate thread, and a third thread receives signals. After Ctrl-C
//! the query's runtime is abandoned, whatever it still does, and the next query gets a new runtime.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustyline::error::ReadlineError;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use super::{Next, Settings, command, described, load, run_text};
use crate::aws::AwsSettings;
use crate::lake::{Location, Store};
use crate::query::{Engine, Limits, QueryError, Scope, guard};
use crate::terminal::{self, Interrupts};

/// Parameters with which a query of the shell starts anew.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The lake.
    pub location: Location,
    /// Access to AWS.
    pub aws: AwsSettings,
    /// Resources and guards of a session.
    pub limits: Limits,
    /// Rows that a session sees.
    pub scope: Scope,
    /// Stack size of each thread of a query.
    pub stack_bytes: usize,
}

/// Signals that the shell handles itself.
const CTRL_C: [SignalKind; 1] = [SignalKind::interrupt()];

/// Time that a query has to end after Ctrl-C; a query that does not yield is abandoned.
const GRACE: Duration = Duration::from_millis(400);

enum Ask {
    Open,
    Run(String, Settings),
}

struct Job {
    ask: Ask,
    cancel: CancellationToken,
    reply: mpsc::Sender<Event>,
}

enum Event {
    Interrupt,
    Done(Box<Answer>),
}

type Answer = Result<(), QueryError>;

fn refused(text: &str) -> Answer {
    Err(QueryError::Refused(text.to_owned()))
}

/// The thread that owns the runtime of queries.
struct Worker {
    jobs: mpsc::Sender<Job>,
    thread: std::thread::JoinHandle<()>,
}

impl Worker {
    fn start(opening: Opening) -> Result<Self, QueryError> {
        let (jobs, asked) = mpsc::channel();
        let thread = std::thread::Builder::new().stack_size(opening.stack_bytes).spawn(move || serve(&opening, &asked));
        let thread = thread.map_err(|error| QueryError::Refused(format!("start a thread: {error}")))?;
        Ok(Self { jobs, thread })
    }
}

fn serve(opening: &Opening, jobs: &mpsc::Receiver<Job>) {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(opening.stack_bytes).build();
    // Without a runtime the channel closes, and the shell notices.
    let Ok(runtime) = built else { return };
    let mut lake = None;
    while let Ok(job) = jobs.recv() {
        let work = std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = job.cancel.cancelled() => refused("cancelled"),
                    answer = answer(opening, &mut lake, &job) => answer,
                }
            })
        });
        let answer = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| refused("the query ended in a bug; please report it with its SQL"));
        // A shell that has abandoned this query does not listen.
        let _ = job.reply.send(Event::Done(Box::new(answer)));
    }
    runtime.shutdown_timeout(crate::timeouts::SHUTDOWN_TIMEOUT);
}

async fn answer(opening: &Opening, lake: &mut Option<Store>, job: &Job) -> Answer {
    let store = match lake.take() {
        Some(store) => store,
        None => Store::open(&opening.location, &opening.aws).await?,
    };
    let engine = Engine::open(lake.insert(store), &opening.limits, opening.scope)?;
    match &job.ask {
        Ask::Open => load(&engine, &[]).await,
        Ask::Run(text, settings) => {
            load(&engine, std::slice::from_ref(text)).await?;
            run_text(&engine, text, &mut settings.clone(), &job.cancel).await
        }
    }
}

/// The session of a shell: its settings, and the thread that runs its queries.
struct Session<'a> {
    opening: &'a Opening,
    interrupts: Interrupts,
    worker: Worker,
    settings: Settings,
}

impl<'a> Session<'a> {
    fn open(opening: &'a Opening, interrupts: Interrupts, settings: Settings) -> Result<Self, QueryError> {
        let worker = Worker::start(opening.clone())?;
        let mut session = Self { opening, interrupts, worker, settings };
        (*session.ask(Ask::Open)?)?;
        Ok(session)
    }

    /// Sends a job and waits for its answer or for Ctrl-C.
    fn ask(&mut self, ask: Ask) -> Result<Box<Answer>, QueryError> {
        let (reply, events) = mpsc::channel();
        let tell = reply.clone();
        self.interrupts.set(Some(Box::new(move |_| drop(tell.send(Event::Interrupt)))));
        let answer = self.wait(ask, reply, &events);
        self.interrupts.set(None);
        answer
    }

    fn wait(
        &mut self,
        ask: Ask,
        reply: mpsc::Sender<Event>,
        events: &mpsc::Receiver<Event>,
    ) -> Result<Box<Answer>, QueryError> {
        let cancel = CancellationToken::new();
        let sent = self.worker.jobs.send(Job { ask, cancel: cancel.clone(), reply });
        let event = sent.map_err(|_| mpsc::RecvError).and_then(|()| events.recv());
        match event {
            Ok(Event::Done(answer)) => Ok(answer),
            Ok(Event::Interrupt) => {
                cancel.cancel();
                let until = Instant::now() + GRACE;
                while let Ok(Event::Interrupt) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {}
                // The query's tasks may hold their threads for long, so the next query gets new ones.
                self.worker = Worker::start(self.opening.clone())?;
                Ok(Box::new(refused("cancelled")))
            }
            Err(_) => {
                self.worker = Worker::start(self.opening.clone())?;
                Ok(Box::new(refused("the threads for queries could not be started; try again")))
            }
        }
    }

    /// Runs a backslash command and reports its error.
    fn command(&mut self, line: &str) -> Result<Next, QueryError> {
        if described(line).is_some() {
            return self.run(line.to_owned());
        }
        Ok(command(line, &mut self.settings).unwrap_or_else(|error| {
            terminal::print_error(&error.to_string());
            Next::More
        }))
    }

    /// Runs a statement on the newest lake snapshot and reports its error.
    fn run(&mut self, text: String) -> Result<Next, QueryError> {
        match *self.ask(Ask::Run(text, self.settings.clone()))? {
            Ok(()) => Ok(Next::More),
            Err(error) if error.is_broken_pipe() => Ok(Next::Quit),
            Err(error) => {
                terminal::print_error(&error.to_string());
                Ok(Next::More)
            }
        }
    }

    /// Ends the thread that runs queries.
    fn close(self) {
        let Worker { jobs, thread } = self.worker;
        drop(jobs);
        // Abandoned threads end with the process.
        let _ = thread.join();
    }
}

/// Reads statements from a terminal until end of input. Each statement runs on the newest lake snapshot.
///
/// # Errors
/// The lake cannot be opened, or the terminal fails. A failed statement is reported, and the shell goes on.
pub fn repl(opening: &Opening, name: &str, settings: Settings) -> Result<(), QueryError> {
    let interrupts =
        Interrupts::install(&CTRL_C).map_err(|error| QueryError::Refused(format!("listen for Ctrl-C: {error}")))?;
    let mut editor = rustyline::DefaultEditor::new().map_err(broken)?;
    let history = history_file();
    if let Some(path) = &history {
        // A missing history does not prevent the start.
        let _ = editor.load_history(path);
    }
    let mut session = Session::open(opening, interrupts, settings)?;
    terminal::write_line(&format!("synclake-query on {name}. \\? for help, \\d for tables, \\q to leave."));
    read_statements(&mut editor, &mut session)?;
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    session.close();
    Ok(())
}

/// Reads and runs statements and backslash commands until the user or the end of input ends the shell.
fn read_statements(editor: &mut rustyline::DefaultEditor, session: &mut Session<'_>) -> Result<(), QueryError> {
    let mut pending = String::new();
    loop {
        let prompt = if pending.is_empty() { "synclake> " } else { "      ..> " };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                pending.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(broken(error)),
        };
        let word = line.trim().trim_end_matches(';').trim_end().to_lowercase();
        if pending.is_empty() && ["exit", "quit"].contains(&word.as_str()) {
            return Ok(());
        }
        if pending.is_empty() && line.trim_start().starts_with('\\') {
            let _ = editor.add_history_entry(line.trim());
            match session.command(line.trim())? {
                Next::Quit => return Ok(()),
                Next::More => continue,
            }
        }
        pending.push_str(&line);
        pending.push('\n');
        if pending.trim().is_empty() {
            pending.clear();
            continue;
        }
        if !guard::is_complete(&pending) {
            continue;
        }
        let text = std::mem::take(&mut pending);
        let _ = editor.add_history_entry(text.trim());
        if session.run(text)? == Next::Quit {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::Format;

    #[test]
    fn no_callback_stays_when_no_thread_starts() {
        // No address space holds such a stack.
        let opening = Opening {
            location: Location::Folder("lake".into()),
            aws: AwsSettings::default(),
            limits: Limits::default(),
            scope: Scope::default(),
            stack_bytes: 1 << 47,
        };
        let (jobs, ended) = mpsc::channel();
        drop(ended);
        let worker = Worker { jobs, thread: std::thread::spawn(|| ()) };
        let settings = Settings {
            format: Format::Csv,
            raw: false,
            guards_formulas: false,
            output: None,
            timing: false,
            quiet: true,
        };
        let interrupts = Interrupts::default();
        let mut session = Session { opening: &opening, interrupts: interrupts.clone(), worker, settings };
        assert!(session.ask(Ask::Open).is_err());
        assert!(!interrupts.is_set());
    }
}
