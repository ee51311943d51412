//! The sources of an ingest: one, or several streams beside each other. A stream that fails does not hold up the others.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use synclake::ingest::monitor::Watched;
use synclake::ingest::{self, IngestOptions, SharedMemory, Source, Stream, Summary};
use synclake::lake::Store;
use synclake::terminal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ingest::report;
use crate::output::print_report;

/// Pauses before a stream that failed is tried again: each twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The lake, the options and the memory that all sources share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) lake: Store,
    pub(crate) options: IngestOptions,
    pub(crate) memory: SharedMemory,
    pub(crate) stop: CancellationToken,
}

/// Reads all sources to their ends, and returns the result of each by its name. An only source ends with its error.
pub(crate) async fn read_all(
    mut sources: Vec<Source>,
    mut watched: Vec<Watched>,
    shared: &Shared,
) -> Vec<(String, Result<Summary>)> {
    if let ([_], [_]) = (&sources[..], &watched[..]) {
        let (source, watched) = (sources.remove(0), watched.remove(0));
        return vec![(watched.stream.clone(), read_once(source, &watched, shared).await)];
    }
    let mut reading = JoinSet::new();
    for (source, watched) in sources.into_iter().zip(watched) {
        let (stream, shared) = (watched.stream.clone(), shared.clone());
        reading.spawn(async move {
            let done = match source {
                Source::Stream(stream) => read_again(*stream, &watched, &shared).await,
                source @ (Source::Files(_) | Source::Objects(_)) => read_once(source, &watched, &shared).await,
            };
            (stream, done)
        });
    }
    // A task fails only by a panic, which has already been reported.
    let mut done: Vec<_> = reading.join_all().await;
    done.sort_by(|a, b| a.0.cmp(&b.0));
    done
}

async fn read_once(source: Source, watched: &Watched, shared: &Shared) -> Result<Summary> {
    let Shared { lake, options, memory, stop } = shared.clone();
    Ok(ingest::run_sharing(source, lake, options, memory, watched.counters.clone(), stop).await?)
}

/// Reads a stream, and again after each failure, until a signal. A run that is to end by itself ends with its first error.
async fn read_again(stream: Stream, watched: &Watched, shared: &Shared) -> Result<Summary> {
    let (name, mut pause) = (stream.kinesis.stream().to_owned(), PAUSE_MIN);
    loop {
        let began = Instant::now();
        // The stream may have been made again under its name.
        let stream = Stream { kinesis: stream.kinesis.anew(), ..stream.clone() };
        let is_endless = stream.until_idle.is_none();
        let error = match read_once(Source::Stream(Box::new(stream)), watched, shared).await {
            Err(error) if is_endless && !shared.stop.is_cancelled() => terminal::chain(error.as_ref()),
            done => return done,
        };
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        watched.counters.set_failed(true);
        let seconds = pause.as_secs();
        tracing::error!(stream = name, error, seconds, "a stream failed and is tried again; the others go on");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The next turn ends at once, with the counts of all runs. The error is in the log already.
            () = shared.stop.cancelled() => {}
        }
        watched.counters.set_failed(false);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The report of one of several streams.
#[derive(serde::Serialize)]
struct StreamSummary<'a> {
    source: String,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Reports on several streams, a line for each, and fails if one did.
pub(crate) fn report_several(done: Vec<(String, Result<Summary>)>) -> Result<()> {
    let (count, mut failed) = (done.len(), Vec::new());
    for (stream, done) in done {
        match done {
            Ok(summary) => {
                terminal::print_message(&format!("stream {stream}:"));
                report(&summary);
                print_report(&StreamSummary { source: format!("kinesis:{stream}"), summary: &summary })?;
            }
            Err(error) => failed.push(format!("{stream}: {}", terminal::chain(error.as_ref()))),
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{} of {count} streams failed: {}", failed.len(), failed.join("; ")),
    }
}
