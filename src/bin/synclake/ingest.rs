//! `synclake ingest`: check the settings, run, report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::ProgressBar;
use synclake::aws::AwsSettings;
use synclake::config::{self, File, Metrics, Sources, Unusable};
use synclake::ingest::emf::EmbeddedMetrics;
use synclake::ingest::monitor::Watched;
use synclake::ingest::{self, Counters, SharedMemory, Summary};
use synclake::lake::{Location, Store};
use synclake::source::kinesis::Kinesis;
use synclake::source::{Retries, files, leases};
use synclake::terminal;
use synclake::timeouts::EMF_INTERVAL;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::IngestArgs;
use crate::beside::{Beside, Care, Plan as BesidePlan};
use crate::output::{mib, print_report};
use crate::settings::{aws_settings, location, parsed, parsed_if_set, required};
use crate::streams::{self, Shared, report_several};

/// How often the progress bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Checked settings of a run.
struct Plan {
    /// Files, or streams.
    sources: Vec<ingest::Source>,
    lake: Location,
    aws: AwsSettings,
    options: ingest::IngestOptions,
    metrics: Metrics,
    beside: BesidePlan,
    /// Bytes of the files, if all of them tell.
    total: Option<u64>,
}

/// Runs the command.
pub(crate) async fn run(args: IngestArgs, file: &File) -> Result<()> {
    let mut done = Plan::check(args, file).await?.run().await?;
    match done.len() {
        1 => done.remove(0).1.and_then(|summary| report_alone(&summary)),
        _ => report_several(done),
    }
}

fn report_alone(summary: &Summary) -> Result<()> {
    let failure = summary.failure();
    if let (Some(failure), 0, true) = (&failure, summary.records, summary.lost_bytes.is_empty()) {
        anyhow::bail!("{failure}");
    }
    report(summary);
    print_report(summary)?;
    failure.map_or(Ok(()), |failure| anyhow::bail!("{failure}"))
}

impl Plan {
    async fn check(mut args: IngestArgs, file: &File) -> Result<Self> {
        let sources = Sources::of(std::mem::take(&mut args.source), file);
        if sources.is_empty() {
            required("source", None, &None)?;
        }
        let lake = location("lake", &required("lake", args.lake.take(), &file.lake)?)?;
        let options = options(&mut args, file, sources.len())?;
        let metrics = parsed_if_set("metrics", args.metrics.take(), &file.metrics, config::parse_metrics)?;
        let metrics = metrics.unwrap_or_default();
        let refresh_every =
            parsed_if_set("refresh-every", args.refresh_every.take(), &file.refresh_every, config::parse_duration)?;
        let care = parsed("care", args.care.take(), &file.care, "full", |text| {
            Care::from_str(text, false).map_err(|_| format!("{text:?} is none of off, light and full"))
        })?;
        let care_every = parsed("care-every", args.care_every.take(), &file.care_every, "1h", config::parse_duration)?;
        let beside = BesidePlan { refresh_every, care, care_every };
        let mut total = None;
        let reading = StreamSettings::check(&mut args, file)?;
        if args.follow && !sources.iter().all(|source| source.starts_with("s3://")) {
            let message = "--follow is for --source s3://<bucket>/<prefix>/; a stream is always followed, a file never";
            return Err(Unusable(message.to_owned()).into());
        }
        let aws = aws_settings(args.aws, file).await?;
        let streams = Sources::streams(&sources);
        let sources = if streams.len() == sources.len() {
            let mut opened = Vec::new();
            for (i, name) in streams.iter().enumerate() {
                let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
                if !(1..=128).contains(&name.len()) || !name.chars().all(is_name) {
                    let message = format!("--source \"kinesis:{name}\": a stream's name is 1 to 128 of [A-Za-z0-9_.-]");
                    return Err(Unusable(message).into());
                }
                if streams[..i].contains(name) {
                    return Err(
                        Unusable(format!("--source kinesis:{name} is given twice; give each stream once")).into()
                    );
                }
                aws.check_region().await.map_err(Unusable)?;
                let stream = reading.open(name, streams.len(), &aws).await?;
                opened.push(ingest::Source::Stream(Box::new(stream)));
            }
            opened
        } else if let [source] = &sources[..]
            && source.starts_with("s3://")
        {
            if reading.import.is_some() {
                return Err(Unusable("--import-kcl-checkpoints is for --source kinesis:<stream>".to_owned()).into());
            }
            let place = location("source", source)?;
            check_apart(source, &place, &lake)?;
            let leases = reading.leases.clone();
            let opened = ingest::ObjectSource::open(source, &place, args.follow, leases, &aws).await?;
            vec![ingest::Source::Objects(Box::new(opened))]
        } else if let [source] = &sources[..] {
            if reading.leases.is_some() || reading.import.is_some() {
                let message =
                    "--lease-table and --import-kcl-checkpoints are for --source kinesis:<stream>, not for files";
                return Err(Unusable(message.to_owned()).into());
            }
            let Some(path) = source.strip_prefix("file:") else {
                let message =
                    format!("--source {source:?} is none of kinesis:<stream>, s3://<bucket>/<prefix>/ and file:<path>");
                return Err(Unusable(message).into());
            };
            let found = files::expand(path)?;
            total = found.files.iter().map(|path: &PathBuf| files::plain_bytes(path)).sum::<Option<u64>>();
            vec![ingest::Source::Files(found)]
        } else {
            let message =
                "several --source flags are for kinesis:<stream>; read files and objects by a run of their own";
            return Err(Unusable(message.to_owned()).into());
        };
        Ok(Self { sources, lake, aws, options, metrics, beside, total })
    }

    /// Reads all sources, and returns the result of each by its name.
    async fn run(self) -> Result<Vec<(String, Result<Summary>)>> {
        let Self { sources, lake: place, aws, options, metrics, beside, total } = self;
        let stop = terminal::stop_on_signals().context("handle signals")?;
        let lake = Store::create(&place, &aws).await?;
        let memory = SharedMemory::new(&options, sources.len())?;
        let watched: Vec<Watched> = sources.iter().map(watched_of).collect();
        let all: Vec<Arc<Counters>> = watched.iter().map(|watched| watched.counters.clone()).collect();
        let bar = match total {
            Some(total) => terminal::progress(Some(total), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"),
            None => terminal::progress(None, "{spinner} {bytes} {bytes_per_sec} {msg}"),
        };
        let drawn = tokio::spawn(draw(bar.clone(), all.clone()));
        let embedded = metrics.is_embedded.then(|| Printed::start(watched.clone()));
        let monitored = watched.clone();
        let served = async move {
            match metrics.address {
                Some(address) => {
                    let served = ingest::monitor::serve(address, monitored).await;
                    served.with_context(|| format!("serve metrics at {address}"))
                }
                None => std::future::pending().await,
            }
        };
        let is_wanted = beside.refresh_every.is_some() || beside.care != Care::Off;
        let beside = is_wanted.then(|| Beside::start(place, aws, &beside, all)).transpose()?;
        let shared = Shared { lake, options, memory, stop: stop.clone() };
        let done = tokio::select! {
            done = streams::read_all(sources, watched, &shared) => Ok(done),
            // An address that cannot be listened on fails here at once, before anything was read.
            failed = served => failed.and_then(|()| anyhow::bail!("the metrics server ended")),
        };
        drawn.abort();
        bar.finish_and_clear();
        if let Some(beside) = beside {
            let is_done = done.as_ref().is_ok_and(|done| done.iter().all(|(_, done)| done.is_ok()));
            beside.finish(is_done, &stop).await;
        }
        if let Some(embedded) = embedded {
            embedded.finish().await;
        }
        done
    }
}

/// Fails if a lake lies below the prefix that is read: its files are no events.
fn check_apart(source: &str, place: &Location, lake: &Location) -> Result<(), Unusable> {
    let (Location::S3 { bucket, prefix }, Location::S3 { bucket: of_lake, prefix: below }) = (place, lake) else {
        return Ok(());
    };
    let is_below = prefix.is_empty() || below == prefix || below.starts_with(&format!("{prefix}/"));
    match bucket == of_lake && is_below {
        true => Err(Unusable(format!("--source {source} contains the lake; give a prefix beside it"))),
        false => Ok(()),
    }
}

fn watched_of(source: &ingest::Source) -> Watched {
    let (stream, retries) = match source {
        ingest::Source::Stream(stream) => (stream.kinesis.stream(), stream.kinesis.retries()),
        ingest::Source::Files(_) | ingest::Source::Objects(_) => (files::STREAM, Retries::default()),
    };
    Watched { stream: stream.to_owned(), counters: Arc::default(), retries }
}

/// A task that prints embedded metrics.
struct Printed {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Printed {
    fn start(watched: Vec<Watched>) -> Self {
        let stop = CancellationToken::new();
        let mut lines: Vec<_> = watched.into_iter().map(|w| (EmbeddedMetrics::new(&w.stream), w)).collect();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            loop {
                let is_last = tokio::select! {
                    () = tokio::time::sleep(EMF_INTERVAL) => false,
                    () = stopped.cancelled() => true,
                };
                for (metrics, Watched { counters, retries, .. }) in &mut lines {
                    terminal::write_line(&metrics.line(counters, retries));
                }
                if is_last {
                    return;
                }
            }
        });
        Self { task, stop }
    }

    /// Prints the last line: without it, what was counted since the line before would be lost.
    async fn finish(self) {
        self.stop.cancel();
        // The task does not panic, and nobody aborts it.
        let _ = self.task.await;
    }
}

fn options(args: &mut IngestArgs, file: &File, sources: usize) -> Result<ingest::IngestOptions> {
    let memory_bytes = parsed("memory", args.memory.take(), &file.memory, "256MiB", config::parse_bytes)?;
    let memory_bytes = usize::try_from(memory_bytes)
        .ok()
        .filter(|bytes| *bytes >= ingest::IngestOptions::MEMORY_BYTES_MIN)
        .ok_or_else(|| Unusable("--memory must be at least 64MiB: one record may have 10 MiB".to_owned()))?;
    if memory_bytes / sources.max(1) < ingest::IngestOptions::MEMORY_BYTES_MIN {
        let least = sources * (ingest::IngestOptions::MEMORY_BYTES_MIN >> 20);
        return Err(
            Unusable(format!("--memory must be at least 64MiB for each stream: {least}MiB for {sources}")).into()
        );
    }
    let flush_bytes = parsed("flush-bytes", args.flush_bytes.take(), &file.flush_bytes, "2GiB", config::parse_bytes)?;
    let flush_interval =
        parsed("flush-interval", args.flush_interval.take(), &file.flush_interval, "60s", config::parse_duration)?;
    let payloads = config::payloads(
        args.payload_hosts.take(),
        args.payload_bytes.take(),
        args.payload_timeout.take(),
        args.payload_private_addresses,
        file,
    )?;
    Ok(ingest::IngestOptions { memory_bytes, flush_bytes, flush_interval, payloads })
}

/// Settings that apply to streams alone. They are checked for files too.
struct StreamSettings {
    from: synclake::source::kinesis::From,
    until_idle: Option<Duration>,
    leases: Option<leases::LeaseOptions>,
    import: Option<String>,
}

impl StreamSettings {
    fn check(args: &mut IngestArgs, file: &File) -> Result<Self, Unusable> {
        let from = parsed("from", args.from.take(), &file.from, "trim-horizon", config::parse_from)?;
        let until_idle = parsed_if_set("until-idle", args.until_idle.take(), &file.until_idle, config::parse_duration)?;
        let table =
            parsed_if_set("lease-table", args.lease_table.take(), &file.lease_table, config::parse_lease_table)?;
        let failover = args.lease_failover.take();
        let failover = parsed("lease-failover", failover, &file.lease_failover, "10s", config::parse_duration)?;
        let worker = args.worker_id.take().filter(|name| !name.is_empty()).unwrap_or_else(config::worker_name);
        let leases = table.map(|table| leases::LeaseOptions { table, worker, failover, lake: String::new() });
        Ok(Self { from, until_idle, leases, import: args.import_kcl_checkpoints.take() })
    }

    /// Opens one of so many streams.
    async fn open(&self, name: &str, streams: usize, aws: &AwsSettings) -> Result<ingest::Stream> {
        let leases = self.leases.clone().map(|leases| {
            let table = config::lease_table_of(&leases.table, name, streams)?;
            Ok::<_, Unusable>(leases::LeaseOptions { table, ..leases })
        });
        if streams > 1 && self.import.is_some() {
            let message = "--import-kcl-checkpoints is for one stream; import each stream by a run of its own";
            return Err(Unusable(message.to_owned()).into());
        }
        Ok(ingest::Stream {
            kinesis: Kinesis::new(aws, name).await?,
            from: self.from,
            until_idle: self.until_idle,
            leases: leases.transpose()?,
            import: self.import.clone(),
            aws: aws.clone(),
        })
    }
}

async fn draw(bar: ProgressBar, all: Vec<Arc<Counters>>) {
    loop {
        tokio::time::sleep(DRAW_INTERVAL).await;
        let records: u64 = all.iter().map(|counters| counters.progress().0).sum();
        bar.set_position(all.iter().map(|counters| counters.progress().1 + counters.skipped()).sum());
        bar.set_message(format!("{records} records"));
    }
}

/// Says on stderr what was done.
pub(crate) fn report(summary: &Summary) {
    terminal::print_message(&format!(
        "{} records ({}) -> {} rows in {} files ({}), {} commits, {:.1} s",
        summary.records,
        mib(summary.record_bytes),
        summary.rows,
        summary.files,
        mib(summary.file_bytes),
        summary.commits,
        Duration::from_millis(summary.elapsed_ms).as_secs_f64(),
    ));
    if summary.skipped_bytes > 0 {
        terminal::print_message(&format!(
            "{} were in the lake already and were not read again",
            mib(summary.skipped_bytes)
        ));
    }
    let quarantined: u64 = summary.quarantined.values().sum();
    if quarantined > 0 {
        let reasons: Vec<String> = summary.quarantined.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        terminal::print_message(&format!("{quarantined} records quarantined: {}", reasons.join(", ")));
    }
    for (name, bytes) in &summary.torn {
        terminal::print_message(&format!(
            "{name}: the last line ({bytes} bytes) has no line break and is not a complete event; the next run reads \
             it again. Add a line break to quarantine it"
        ));
    }
}
