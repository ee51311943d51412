//! The progress of a query, on a terminal: rows that its scans have read, and the part of all rows where that is known.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use indicatif::HumanCount;

use crate::terminal;

/// A query that is done by then shows no progress.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks at the metrics.
const INTERVAL: Duration = Duration::from_millis(250);

/// Shows the progress of a query until it is dropped.
pub(super) struct Progress {
    /// Its end ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts to watch a plan that runs.
    pub(super) fn start(plan: Arc<dyn ExecutionPlan>, is_quiet: bool) -> Self {
        if is_quiet || !std::io::stderr().is_terminal() {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = mpsc::channel();
        // A thread of its own, because a query may hold all threads of its runtime. Without it, nothing is shown.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || watch(&*plan, &stopped));
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread removes the bar before anything else is printed.
            let _ = thread.join();
        }
    }
}

fn watch(plan: &dyn ExecutionPlan, stopped: &mpsc::Receiver<()>) {
    let began = Instant::now();
    if stopped.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let bar = terminal::progress(Some(1_000), "{msg}");
    loop {
        let (read, all) = rows(plan);
        let seconds = began.elapsed().as_secs_f64();
        let part = all.filter(|all| *all >= read && read > 0).map(|all| read as f64 / all as f64);
        let left = part.map(|part| format!(" ({:.0} %, about {:.0} s left)", part * 100.0, seconds / part - seconds));
        bar.set_message(format!("{seconds:.0} s, {} rows read{}", HumanCount(read), left.unwrap_or_default()));
        if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            bar.finish_and_clear();
            return;
        }
    }
}

/// Returns the rows that the scans of a plan have read, and those of all their files; `None` if a scan does not tell.
fn rows(plan: &dyn ExecutionPlan) -> (u64, Option<u64>) {
    let children = plan.children();
    if children.is_empty() {
        let read = plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0) as u64;
        let all = StatisticsContext::new().compute(plan, &StatisticsArgs::new()).ok();
        return (read, all.and_then(|all| all.num_rows.get_value().map(|rows| *rows as u64)));
    }
    children.iter().map(|child| rows(child.as_ref())).fold((0, Some(0)), |(read, all), (more, more_of)| {
        (read + more, all.zip(more_of).map(|(all, more)| all + more))
    })
}
