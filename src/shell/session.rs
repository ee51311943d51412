//! The session of an interactive shell: its settings, its commands, and the thread that runs its statements.
//!
//! Ctrl-C ends the query within a second, and never the shell.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::commands::{Command, HELP};
use super::output::Output;
use super::script::{Part, Script};
use super::worker::{Answer, Ask, Event, Job, Worker, refused};
use super::{Opening, Settings, describe};
use crate::query::QueryError;
use crate::terminal::{self, Interrupts};

/// Time that a query has to end after Ctrl-C; a query that does not yield is abandoned.
const GRACE: Duration = Duration::from_millis(400);
/// Files that may include each other.
pub(super) const INCLUDES_MAX: usize = 16;

/// Decision whether the shell goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    More,
    /// The input failed, and the error was reported: the rest of it does not run.
    Failed,
    Quit,
}

pub(super) struct Session<'a> {
    opening: &'a Opening,
    interrupts: Interrupts,
    worker: Worker,
    settings: Settings,
    /// The statement that `\watch` and `\e` mean.
    last: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) fn open(opening: &'a Opening, interrupts: Interrupts, settings: Settings) -> Result<Self, QueryError> {
        let worker = Worker::start(opening.clone())?;
        let mut session = Self { opening, interrupts, worker, settings, last: None };
        (*session.ask(Ask::Open)?)?;
        Ok(session)
    }

    /// Runs statements and backslash commands up to the first that fails, and reports its error.
    pub(super) fn input(&mut self, text: &str) -> Result<Next, QueryError> {
        self.interrupts.forget();
        self.nested(&Script::of(text.to_owned()), INCLUDES_MAX)
    }

    fn nested(&mut self, script: &Script, depth: usize) -> Result<Next, QueryError> {
        let found = match script.pieces() {
            Ok(found) => found,
            Err(error) => return Ok(reported(&error)),
        };
        for piece in found {
            let next = match &piece.part {
                Part::Statement(statement) => {
                    self.last = Some(statement.clone());
                    self.run(Ask::Run(statement.clone()), |error| script.error(error, &piece))?
                }
                Part::Command(line) => match Command::parse(line) {
                    Ok(command) => self.command(&command, depth)?,
                    Err(error) => reported(&script.error(error, &piece)),
                },
            };
            if next != Next::More {
                return Ok(next);
            }
        }
        Ok(Next::More)
    }

    fn command(&mut self, command: &Command, depth: usize) -> Result<Next, QueryError> {
        match command.apply(&mut self.settings) {
            Ok(Some(told)) => {
                terminal::write_line(&told);
                return Ok(Next::More);
            }
            Ok(None) => {}
            Err(error) => return Ok(reported(&error)),
        }
        match command {
            Command::Quit => return Ok(Next::Quit),
            Command::Help => super::print_text(HELP)?,
            Command::Relations => super::print_text(&describe::relations())?,
            Command::Columns(name) => return self.run(Ask::Columns(name.clone()), |error| error),
            Command::Include(path) => return self.include(path, depth),
            Command::Output(path) => return Ok(self.output(path.as_deref())),
            Command::Watch(every) => return self.watch(*every),
            Command::Edit => return self.edit(depth),
            // These are settings.
            _ => {}
        }
        Ok(Next::More)
    }

    fn include(&mut self, path: &Path, depth: usize) -> Result<Next, QueryError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(reported(&too_deep(path)));
        };
        match Script::read(path) {
            Ok(script) => self.nested(&script, depth),
            Err(error) => Ok(reported(&error)),
        }
    }

    fn output(&mut self, path: Option<&Path>) -> Next {
        self.settings.output = match path.map(|path| Output::new(path.to_owned())).transpose() {
            Ok(output) => output,
            Err(error) => return reported(&error),
        };
        terminal::write_line(&match path {
            Some(path) => format!("results go to {}; \\o ends that", path.display()),
            None => "results go to the terminal".to_owned(),
        });
        Next::More
    }

    /// Repeats the last statement until Ctrl-C or an error.
    fn watch(&mut self, every: Duration) -> Result<Next, QueryError> {
        let Some(last) = self.last.clone() else { return Ok(reported(&nothing("\\watch"))) };
        loop {
            let now = chrono::Local::now().format("%H:%M:%S");
            terminal::write_line(&format!("{now}, every {} s; Ctrl-C ends", every.as_secs_f64()));
            match self.run(Ask::Run(last.clone()), |error| error)? {
                // Ctrl-C ended the query, and is no failure of what follows.
                Next::Failed => return Ok(Next::More),
                Next::Quit => return Ok(Next::Quit),
                Next::More => {}
            }
            let (tell, interrupted) = mpsc::channel();
            self.interrupts.set(Some(Box::new(move |_| {
                // Nobody waits any more once the time is over.
                let _ = tell.send(());
            })));
            let waited = interrupted.recv_timeout(every);
            self.interrupts.set(None);
            if waited.is_ok() {
                return Ok(Next::More);
            }
        }
    }

    /// Runs what the user makes of the last statement in an editor.
    fn edit(&mut self, depth: usize) -> Result<Next, QueryError> {
        let edited = edited(self.last.as_deref().unwrap_or_default());
        // A Ctrl-C went to the editor.
        self.interrupts.forget();
        match edited {
            Ok(text) if text.trim().is_empty() => Ok(Next::More),
            Ok(text) => {
                terminal::write_line(text.trim_end());
                self.nested(&Script::of(text), depth)
            }
            Err(error) => Ok(reported(&QueryError::Output { path: "the editor".to_owned(), source: error })),
        }
    }

    /// Runs a job and reports its error.
    fn run(&mut self, ask: Ask, placed: impl FnOnce(QueryError) -> QueryError) -> Result<Next, QueryError> {
        match *self.ask(ask)? {
            Ok(()) => Ok(Next::More),
            Err(error) if error.is_broken_pipe() => Ok(Next::Quit),
            Err(error) => Ok(reported(&placed(error))),
        }
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
        let job = Job { ask, settings: self.settings.clone(), cancel: cancel.clone(), reply };
        let event = self.worker.jobs.send(job).map_err(|_| mpsc::RecvError).and_then(|()| events.recv());
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

    /// Ends the thread that runs queries.
    pub(super) fn close(self) {
        let Worker { jobs, thread } = self.worker;
        drop(jobs);
        // Abandoned threads end with the process.
        let _ = thread.join();
    }
}

fn reported(error: &QueryError) -> Next {
    terminal::print_error(&terminal::chain(error));
    if let Some(excerpt) = error.excerpt() {
        terminal::write_line(excerpt);
    }
    Next::Failed
}

fn nothing(command: &str) -> QueryError {
    QueryError::Refused(format!("{command}: no statement has run yet"))
}

pub(super) fn too_deep(path: &Path) -> QueryError {
    let path = path.display();
    QueryError::Refused(format!("{path}: files include each other more than {INCLUDES_MAX} deep; end the circle"))
}

/// Opens a text in the user's editor, and returns what it became.
fn edited(text: &str) -> std::io::Result<String> {
    let file = tempfile::Builder::new().prefix("synclake-").suffix(".sql").tempfile()?;
    std::fs::write(file.path(), if text.is_empty() { String::new() } else { format!("{text};\n") })?;
    let asked = ["VISUAL", "EDITOR"].iter().filter_map(|name| std::env::var(name).ok());
    let editor = asked.into_iter().find(|asked| !asked.trim().is_empty()).unwrap_or_else(|| "vi".to_owned());
    // The variable may hold options, so a shell reads it.
    let command = format!("{editor} \"$1\"");
    let done = std::process::Command::new("sh").args(["-c", &command, "sh"]).arg(file.path()).status()?;
    match done.success() {
        true => std::fs::read_to_string(file.path()),
        false => Err(std::io::Error::other(format!("{editor} failed ({done}); set EDITOR"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::Location;
    use crate::query::Limits;

    fn opening(stack_bytes: usize) -> Opening {
        let location = Location::Folder("lake".into());
        Opening { location, aws: AwsSettings::default(), limits: Limits::default(), stack_bytes }
    }

    #[test]
    fn no_callback_stays_when_no_thread_starts() {
        // No address space holds such a stack.
        let opening = opening(1 << 47);
        let (jobs, ended) = mpsc::channel();
        drop(ended);
        let worker = Worker { jobs, thread: std::thread::spawn(|| ()) };
        let settings = Settings { quiet: true, ..Settings::default() };
        let interrupts = Interrupts::default();
        let mut session = Session { opening: &opening, interrupts: interrupts.clone(), worker, settings, last: None };
        assert!(session.ask(Ask::Open).is_err());
        assert!(!interrupts.is_set());
    }

    #[test]
    fn ctrl_c_between_two_statements_ends_what_follows() {
        let interrupts = Interrupts::default();
        let (jobs, asked) = mpsc::channel::<Job>();
        let count = std::thread::spawn(move || {
            let answer = |job: &Job| job.reply.send(Event::Done(Box::new(Ok(()))));
            asked.iter().inspect(|job| drop(answer(job))).take(2).count()
        });
        let worker = Worker { jobs, thread: std::thread::spawn(|| ()) };
        let settings = Settings { quiet: true, ..Settings::default() };
        let opening = opening(1 << 20);
        let last = Some("select 1".to_owned());
        let mut session = Session { opening: &opening, interrupts: interrupts.clone(), worker, settings, last };
        // No callback is set.
        interrupts.receive(2);
        assert_eq!(session.watch(Duration::from_millis(1)).expect("the shell goes on"), Next::More);
        drop(session);
        assert_eq!(count.join().expect("no panic"), 1, "the watch went on");
    }
}
