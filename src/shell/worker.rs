//! The thread that runs the statements of an interactive shell, each on the newest lake snapshot.
//!
//! # Cancellation
//! A query may hold every thread of its runtime without yielding. So the shell waits for the query on a separate thread.
//! After Ctrl-C the query's runtime is abandoned, whatever it still does, and the next query gets a new runtime.

use std::sync::mpsc;

use tokio_util::sync::CancellationToken;

use super::{Opening, Settings, describe, statement};
use crate::lake::Store;
use crate::query::QueryError;

/// What a worker is asked.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    /// Whether there is a lake.
    Open,
    /// To run a statement.
    Run(String),
    /// To print the columns of a table or view.
    Columns(String),
}

pub(super) struct Job {
    pub(super) ask: Ask,
    pub(super) settings: Settings,
    pub(super) cancel: CancellationToken,
    pub(super) reply: mpsc::Sender<Event>,
}

/// What the shell waits for.
pub(super) enum Event {
    Interrupt,
    Done(Box<Answer>),
}

pub(super) type Answer = Result<(), QueryError>;

pub(super) fn refused(text: &str) -> Answer {
    Err(QueryError::Refused(text.to_owned()))
}

/// The thread that owns the runtime of queries.
pub(super) struct Worker {
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) thread: std::thread::JoinHandle<()>,
}

impl Worker {
    pub(super) fn start(opening: Opening) -> Result<Self, QueryError> {
        let (jobs, asked) = mpsc::channel();
        let thread = std::thread::Builder::new().stack_size(opening.stack_bytes).spawn(move || serve(&opening, &asked));
        let thread = thread.map_err(|error| QueryError::Refused(format!("start a thread: {error}")))?;
        Ok(Self { jobs, thread })
    }
}

fn serve(opening: &Opening, jobs: &mpsc::Receiver<Job>) {
    // Without a runtime the channel closes, and the shell notices.
    let Ok(runtime) = opening.runtime() else { return };
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
    let engine = job.settings.engine(lake.insert(store), &opening.limits)?;
    match &job.ask {
        Ask::Open => engine.load(&[]).await,
        Ask::Run(text) => statement::run(&engine, text, (opening, &job.settings), &job.cancel).await,
        Ask::Columns(name) => super::print_text(&describe::columns(&engine, name).await?),
    }
}
