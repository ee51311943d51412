//! `synclake`: parse, check, run.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use synclake::config::{self, File, Unusable};
use synclake::decode::Reason;
use synclake::ingest::{self, Counters};
use synclake::lake::{AwsSettings, Location, Store};

use synclake::maintain::{redrive, verify};
use synclake::query::print::Format;
use synclake::source::kinesis::Kinesis;
use synclake::source::{Retries, files, leases};
use synclake::{extract, query, simulate, terminal};

// The system's allocator: mimalloc kept 150 MiB more resident here and was no faster (docs/benchmarks.md).

/// Amazon Cognito Sync streams into a Parquet lake, each record exactly once.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "\
Examples:
  synclake simulate --events 10000 --out events.ndjson      make up a stream
  synclake ingest --source file:events.ndjson --lake lake   read it into a lake
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake
  synclake extract --lake lake --date yesterday             write a daily extract
  synclake-query --lake lake -c 'select * from current_state limit 5'

Settings come from flags, then SYNCLAKE_… variables, then a TOML file (--config, or ./synclake.toml).
Exit codes: 0 done, 1 failed, 2 usage."
)]
struct Cli {
    /// Settings file.
    #[arg(long, global = true, env = "SYNCLAKE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tell nothing on stderr but errors.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a stream or files into a lake; run it again to go on where it stopped.
    Ingest(IngestArgs),
    /// Write the state at the end of a day, and the day's changes.
    Extract(ExtractArgs),
    /// Make up a realistic stream from a seed.
    Simulate(SimulateArgs),
    /// Look whether a lake is whole.
    Verify(VerifyArgs),
    /// Decode again what the quarantine holds, and move what now succeeds.
    Redrive(RedriveArgs),
}

/// How AWS is reached. Region, credentials and endpoints otherwise come from where every AWS tool takes them.
#[derive(Debug, Args)]
struct AwsArgs {
    /// AWS region.
    #[arg(long, env = "SYNCLAKE_REGION", value_name = "REGION", help_heading = "AWS")]
    region: Option<String>,
    /// Endpoint of all AWS services, for private endpoints and local servers.
    #[arg(long, env = "SYNCLAKE_ENDPOINT_URL", value_name = "URL", help_heading = "AWS")]
    endpoint_url: Option<String>,
    /// Named profile.
    #[arg(long, env = "SYNCLAKE_PROFILE", value_name = "NAME", help_heading = "AWS")]
    profile: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake ingest --source file:events.ndjson.gz --lake lake
  zcat *.gz | synclake ingest --source file:- --lake lake
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --until-idle 1m
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --lease-table dynamodb:synclake-cognito

A file is known by its content: the same file is not read twice, one that has grown is continued.
Start any number of workers with one --lease-table: they share the shards, and take over from those that die.
SIGTERM and SIGINT commit what was read, give the leases back, and exit with 0.")]
struct IngestArgs {
    /// kinesis:<stream>, file:<path> (NDJSON; .gz and .zst too; a folder of them), or file:- for standard input.
    #[arg(long, env = "SYNCLAKE_SOURCE", value_name = "SOURCE")]
    source: Option<String>,
    /// s3://bucket/prefix, or a folder, made if it is not there.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    lake: Option<String>,
    /// Where to begin a stream that the lake does not know: trim-horizon (default), latest, or a time such as
    /// 2026-11-20T00:00:00Z.
    #[arg(long, env = "SYNCLAKE_FROM", value_name = "WHERE")]
    from: Option<String>,
    /// Stop once every shard had nothing to read for this long.
    #[arg(long, env = "SYNCLAKE_UNTIL_IDLE", value_name = "DURATION")]
    until_idle: Option<String>,
    /// Bytes that may be buffered [default: 256MiB].
    #[arg(long, env = "SYNCLAKE_MEMORY", value_name = "SIZE")]
    memory: Option<String>,
    /// Commit after this many bytes of records [default: 2GiB].
    #[arg(long, env = "SYNCLAKE_FLUSH_BYTES", value_name = "SIZE")]
    flush_bytes: Option<String>,
    /// Commit after this long [default: 60s].
    #[arg(long, env = "SYNCLAKE_FLUSH_AGE", value_name = "DURATION")]
    flush_age: Option<String>,
    /// Share the stream's shards with other workers: dynamodb:<table>, made if it is not there.
    #[arg(long, env = "SYNCLAKE_LEASE_TABLE", value_name = "TABLE", help_heading = "Fleet")]
    lease_table: Option<String>,
    /// A worker that was not seen to renew a lease for this long has lost it [default: 10s].
    #[arg(long, env = "SYNCLAKE_LEASE_FAILOVER", value_name = "DURATION", help_heading = "Fleet")]
    lease_failover: Option<String>,
    /// This worker's name in the lease table [default: made from the machine's name].
    #[arg(long, env = "SYNCLAKE_WORKER_ID", value_name = "NAME", help_heading = "Fleet")]
    worker_id: Option<String>,
    /// Begin a stream that the lake does not know where an application of the Kinesis Client Library stopped: the name
    /// of its DynamoDB table, which is only read.
    #[arg(long, value_name = "TABLE", help_heading = "Fleet")]
    import_kcl_checkpoints: Option<String>,
    /// A host beside S3's own from which oversize payloads may be fetched: host, host:port, http://host:port, *.suffix.
    #[arg(long, env = "SYNCLAKE_PAYLOAD_HOSTS", value_name = "HOST", value_delimiter = ',', help_heading = "Payloads")]
    payload_hosts: Option<Vec<String>>,
    /// Bytes that a payload may have, unpacked [default: 16MiB].
    #[arg(long, env = "SYNCLAKE_PAYLOAD_BYTES", value_name = "SIZE", help_heading = "Payloads")]
    payload_bytes: Option<String>,
    /// A payload that cannot be fetched is tried for this long, and no longer than its URL is good [default: 15m].
    #[arg(long, env = "SYNCLAKE_PAYLOAD_PATIENCE", value_name = "DURATION", help_heading = "Payloads")]
    payload_patience: Option<String>,
    /// Serve /metrics, /healthz and /readyz at this address, such as 127.0.0.1:9464.
    #[arg(long, env = "SYNCLAKE_METRICS", value_name = "ADDRESS", help_heading = "Monitoring")]
    metrics: Option<String>,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake extract --lake lake --date 2026-11-20
  synclake extract --lake s3://bucket/lake --date yesterday --out s3://bucket/extracts --format csv

Running it again for a date replaces that date, all of it or nothing.")]
struct ExtractArgs {
    /// The day (UTC): YYYY-MM-DD, yesterday or today.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date)]
    date: chrono::NaiveDate,
    /// The lake.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    lake: Option<String>,
    /// Also write files below this folder or s3:// prefix, with a _SUCCESS manifest.
    #[arg(long, value_name = "URL")]
    out: Option<String>,
    /// Format of those files.
    #[arg(long, value_enum, default_value = "parquet")]
    format: FileFormat,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake verify --lake lake
  synclake verify --lake s3://bucket/lake --format json

Exits with 1 when something is wrong. Orphans are no fault: no reader of the table sees them, and the next ingest of
their shard deletes them. Gaps (what the stream had trimmed before it was read) are told and are no fault either: the
lake is whole without them, and a bulk publish brings their data back.")]
struct VerifyArgs {
    /// The lake.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    lake: Option<String>,
    /// How the report is written.
    #[arg(long, value_enum, default_value = "human")]
    format: ReportFormat,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake redrive --lake lake
  synclake redrive --lake s3://bucket/lake --reason invalid_field --reason invalid_id --since 2026-11-01

Run it after an upgrade whose decoder understands more. Each record is moved once, however often this is run or killed;
what still cannot be decoded stays. It may run beside an ingest.")]
struct RedriveArgs {
    /// The lake.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    lake: Option<String>,
    /// Only records with this reason; may be given again.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Vec<Reason>,
    /// Only records that arrived at or after this: YYYY-MM-DD (UTC) or 2026-11-20T08:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = config::parse_time)]
    since: Option<chrono::DateTime<chrono::Utc>>,
    #[command(flatten)]
    aws: AwsArgs,
}

fn reason(text: &str) -> Result<Reason, String> {
    let known = || Reason::ALL.map(Reason::as_str).join(", ");
    Reason::parse(text).ok_or_else(|| format!("{text:?} is no reason; there are {}", known()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReportFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FileFormat {
    Parquet,
    Csv,
    Ndjson,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake simulate --events 200000 --seed 7 --out events.ndjson --oracle truth.ndjson
  synclake simulate --events 1000 --to kinesis:cognito --endpoint-url http://127.0.0.1:4567")]
struct SimulateArgs {
    /// Synchronizations to make up; copies come on top.
    #[arg(long, default_value_t = 10_000)]
    events: u64,
    /// Seed: the same seed and options give the same stream.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Identity pools.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pools: u32,
    /// Identities.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    identities: u32,
    /// Days that the events are spread over.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// First day.
    #[arg(long, default_value = "2026-01-01", value_parser = extract::parse_date)]
    start: chrono::NaiveDate,
    /// Share of events that are delivered twice.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    duplicates: f64,
    /// How many later events may overtake one.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    reorder: u64,
    /// Share of events that come very late.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    late: f64,
    /// Share of events that remove a whole dataset.
    #[arg(long, default_value_t = 0.005, value_parser = share)]
    dataset_removals: f64,
    /// Share of events that a bulk-publish copy of some user's datasets follows.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    bulk_copies: f64,
    /// Typical length of a value, in characters.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    value_chars: u32,
    /// Write the stream to this file as NDJSON; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    out: Option<String>,
    /// Put the stream into kinesis:<stream>.
    #[arg(long, value_name = "STREAM")]
    to: Option<String>,
    /// Write the true current state to this file as NDJSON.
    #[arg(long, value_name = "FILE")]
    oracle: Option<PathBuf>,
    #[command(flatten)]
    aws: AwsArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| (0.0..=1.0).contains(v));
    value.ok_or_else(|| format!("{text:?} is no share between 0 and 1"))
}

fn main() -> ExitCode {
    let _failpoints = synclake::failpoint::setup();
    let cli = Cli::parse();
    terminal::QUIET.store(cli.quiet, Ordering::Relaxed);
    terminal::init_logs(if cli.quiet { "error" } else { "warn" });
    let done = run_on_large_stack(cli);
    done.map_or_else(|error| terminal::fail(&error), |()| ExitCode::SUCCESS)
}

fn run_on_large_stack(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(16 << 20)
        // One reads, three decode, two encode, and the store's own; more threads only hold more idle memory.
        .max_blocking_threads(8)
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(cli));
    // A reader that still waits for standard input must not keep a finished run alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn run(cli: Cli) -> Result<()> {
    let file = File::load(cli.config.as_deref())?;
    match cli.command {
        Command::Ingest(args) => run_ingest(args, &file).await,
        Command::Extract(args) => run_extract(args, &file).await,
        Command::Simulate(args) => run_simulate(args, &file).await,
        Command::Verify(args) => run_verify(args, &file).await,
        Command::Redrive(args) => run_redrive(args, &file).await,
    }
}

fn aws_settings(args: AwsArgs, file: &File) -> AwsSettings {
    config::aws(args.region, args.endpoint_url, args.profile, file)
}

fn required(name: &str, flag: Option<String>, file: &Option<String>) -> Result<String, Unusable> {
    let variable = name.to_ascii_uppercase();
    flag.or_else(|| file.clone()).ok_or_else(|| {
        Unusable(format!("--{name} is missing; give it as a flag, as SYNCLAKE_{variable} or in the settings file"))
    })
}

fn location(name: &str, text: &str) -> Result<Location, Unusable> {
    text.parse().map_err(|e| Unusable(format!("--{name} {e}")))
}

fn parsed<T>(
    name: &str,
    flag: Option<String>,
    file: &Option<String>,
    default: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Unusable> {
    let text = flag.or_else(|| file.clone());
    parse(text.as_deref().unwrap_or(default)).map_err(|e| Unusable(format!("--{name} {e}")))
}

async fn run_ingest(args: IngestArgs, file: &File) -> Result<()> {
    let source = required("source", args.source, &file.source)?;
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let from = parsed("from", args.from, &file.from, "trim-horizon", config::parse_from)?;
    let until_idle = args.until_idle.or_else(|| file.until_idle.clone());
    let until_idle = until_idle.map(|text| config::parse_duration(&text)).transpose();
    let until_idle = until_idle.map_err(|e| Unusable(format!("--until-idle {e}")))?;
    let memory_bytes = parsed("memory", args.memory, &file.memory, "256MiB", config::parse_bytes)?;
    let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
    if memory_bytes < ingest::Options::MEMORY_BYTES_MIN {
        return Err(Unusable("--memory must be at least 64MiB: one record may have 10 MiB".to_owned()).into());
    }
    let options = ingest::Options {
        memory_bytes,
        flush_bytes: parsed("flush-bytes", args.flush_bytes, &file.flush_bytes, "2GiB", config::parse_bytes)?,
        flush_age: parsed("flush-age", args.flush_age, &file.flush_age, "60s", config::parse_duration)?,
        payloads: config::payloads(args.payload_hosts, args.payload_bytes, args.payload_patience, file)?,
    };
    let aws = aws_settings(args.aws, file);
    let mut total = None;
    let lease_table = args.lease_table.or_else(|| file.lease_table.clone());
    let lease_table = lease_table.map(|text| config::parse_lease_table(&text)).transpose();
    let lease_table = lease_table.map_err(|e| Unusable(format!("--lease-table {e}")))?;
    let failover = parsed("lease-failover", args.lease_failover, &file.lease_failover, "10s", config::parse_duration)?;
    let worker = args.worker_id.unwrap_or_else(config::worker_name);
    let leases = lease_table.map(|table| leases::Options { table, worker, failover });
    let metrics = args.metrics.or_else(|| file.metrics.clone()).map(|text| {
        let address = text.parse::<std::net::SocketAddr>();
        address.map_err(|_| Unusable(format!("--metrics {text:?} is no address; write 127.0.0.1:9464")))
    });
    let metrics = metrics.transpose()?;
    let mut retries = Retries::default();
    let source = if let Some(stream) = source.strip_prefix("kinesis:") {
        let kinesis = Kinesis::new(&aws, stream).await?;
        retries = kinesis.retries();
        let import = args.import_kcl_checkpoints;
        let aws = aws.clone();
        ingest::Source::Stream(Box::new(ingest::Stream { kinesis, from, until_idle, leases, import, aws }))
    } else if leases.is_some() || args.import_kcl_checkpoints.is_some() {
        let message = "--lease-table and --import-kcl-checkpoints are for --source kinesis:<stream>";
        return Err(Unusable(message.to_owned()).into());
    } else if let Some(path) = source.strip_prefix("file:") {
        let paths = files::expand(path)?;
        let packed = |p: &PathBuf| files::plain_bytes(p);
        total = paths.iter().map(packed).sum::<Option<u64>>();
        ingest::Source::Files(paths)
    } else {
        let message = format!("--source {source:?} is neither kinesis:<stream> nor file:<path>");
        return Err(Unusable(message).into());
    };
    let stop = terminal::stop_on_signals().context("handle signals")?;
    let lake = Store::create(&lake, &aws).await?;
    let counters = Arc::new(Counters::default());
    let bar = match total {
        Some(total) => terminal::progress(Some(total), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"),
        None => terminal::progress(None, "{spinner} {bytes} {bytes_per_sec} {msg}"),
    };
    let watch = {
        let (bar, counters) = (bar.clone(), counters.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let (records, bytes) = counters.progress();
                bar.set_position(bytes + counters.skipped());
                bar.set_message(format!("{records} records"));
            }
        })
    };
    let monitored = counters.clone();
    let served = async move {
        match metrics {
            Some(address) => {
                let served = ingest::monitor::serve(address, monitored, retries).await;
                served.with_context(|| format!("serve metrics at {address}"))
            }
            None => std::future::pending().await,
        }
    };
    let done = tokio::select! {
        done = ingest::run(source, lake, options, counters, stop) => done.map_err(anyhow::Error::from),
        // An address that cannot be listened on is found out at once, before anything was read.
        failed = served => failed.and_then(|()| anyhow::bail!("the metrics server ended")),
    };
    watch.abort();
    bar.finish_and_clear();
    let summary = done?;
    let quarantined: u64 = summary.quarantined.values().sum();
    let reasons: Vec<String> = summary.quarantined.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    terminal::say(&format!(
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
        terminal::say(&format!("{} were in the lake already and were not read again", mib(summary.skipped_bytes)));
    }
    if quarantined > 0 {
        terminal::say(&format!("{quarantined} records quarantined: {}", reasons.join(", ")));
    }
    for (name, bytes) in &summary.torn {
        terminal::say(&format!(
            "{name}: the last line ({bytes} bytes) has no line break and is no whole event; it is left for the next \
             run. End it with a line break to have it quarantined"
        ));
    }
    let line = serde_json::to_string(&summary).context("encode the summary")?;
    print_line(&line)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// Data to stdout; a reader that has gone is no error.
fn print_line(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write standard output"),
        _ => Ok(()),
    }
}

async fn run_extract(args: ExtractArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let out = args.out.map(|out| location("out", &out)).transpose()?;
    let aws = aws_settings(args.aws, file);
    let lake = Store::open(&lake, &aws).await?;
    let out = match out {
        Some(out) => Some(Store::create(&out, &aws).await?),
        None => None,
    };
    let format = match args.format {
        FileFormat::Parquet => Format::Parquet,
        FileFormat::Csv => Format::Csv,
        FileFormat::Ndjson => Format::Ndjson,
    };
    let began = Instant::now();
    let bar = terminal::progress(None, "{spinner} extracting {elapsed}");
    let report = extract::run(&lake, args.date, out.as_ref().map(|o| (o, format)), &query::Limits::default()).await;
    bar.finish_and_clear();
    let report = report?;
    terminal::say(&format!(
        "{}: {} live keys, {} changes, {} files, {:.1} s",
        report.date,
        report.state_rows,
        report.change_rows,
        report.files,
        began.elapsed().as_secs_f64()
    ));
    print_line(&serde_json::to_string(&report).context("encode the report")?)
}

async fn run_verify(args: VerifyArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let lake = Store::open(&lake, &aws_settings(args.aws, file)).await?;
    let bar = terminal::progress(None, "{spinner} verifying {elapsed}");
    let report = verify::run(&lake).await;
    bar.finish_and_clear();
    let report = report?;
    if args.format == ReportFormat::Json {
        print_line(&serde_json::to_string(&report).context("encode the report")?)?;
    } else {
        for (name, table) in &report.tables {
            let (version, files, rows, orphans) = (table.version, table.files, table.rows, table.orphans);
            print_line(&format!("{name:13} version {version}, {files} files, {rows} rows, {orphans} orphans"))?;
        }
        for (name, shard) in &report.shards {
            let at = if shard.ended {
                "ended".to_owned()
            } else {
                format!("at {}", shard.position.as_deref().unwrap_or("-"))
            };
            print_line(&format!("{name}  {} commits ({} checked), {at}", shard.commits, shard.commits_checked))?;
        }
        for gap in &report.gaps {
            print_line(&format!("GAP {gap}"))?;
        }
        for fault in &report.faults {
            print_line(&format!("FAULT {fault}"))?;
        }
    }
    match report.faults.len() {
        0 => Ok(()),
        faults => anyhow::bail!("{lake} is not whole: {faults} faults, listed on standard output"),
    }
}

async fn run_redrive(args: RedriveArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let lake = Store::open(&lake, &aws_settings(args.aws, file)).await?;
    let options = redrive::Options { reasons: args.reason.into_iter().collect(), since: args.since };
    let bar = terminal::progress(None, "{spinner} decoding again {elapsed}");
    let report = redrive::run(&lake, &options).await;
    bar.finish_and_clear();
    let report = report?;
    let left: Vec<String> = report.left.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let left = if left.is_empty() { "none".to_owned() } else { left.join(", ") };
    terminal::say(&format!(
        "{} records decoded again, {} moved ({} rows), left: {left}",
        report.examined, report.moved, report.rows
    ));
    print_line(&serde_json::to_string(&report).context("encode the report")?)
}

async fn run_simulate(args: SimulateArgs, file: &File) -> Result<()> {
    let options = simulate::Options {
        seed: args.seed,
        events: args.events,
        pools: args.pools,
        identities: args.identities,
        days: args.days,
        start: args.start,
        duplicates: args.duplicates,
        reorder: args.reorder,
        late: args.late,
        dataset_removals: args.dataset_removals,
        bulk_copies: args.bulk_copies,
        value_chars: args.value_chars as usize,
    };
    let bar = terminal::progress(Some(args.events), "{bar:30} {pos}/{len} events {eta}");
    let (produced, truth) = if let Some(to) = &args.to {
        let stream = to.strip_prefix("kinesis:").filter(|s| !s.is_empty());
        let stream = stream.ok_or_else(|| Unusable(format!("--to {to:?} is not kinesis:<stream>")))?;
        let aws = aws_settings(args.aws, file);
        let (events, mut received) = tokio::sync::mpsc::channel::<(String, String)>(1_000);
        let maker = tokio::task::spawn_blocking(move || {
            simulate::run(&options, |key, json| events.blocking_send((key.to_owned(), json)))
        });
        let mut publisher = simulate::publish::Publisher::new(&aws, stream).await;
        while let Some((key, json)) = received.recv().await {
            bar.inc(1);
            publisher.put(&key, json).await?;
        }
        publisher.flush().await?;
        maker.await.context("simulate")?.context("simulate")?
    } else {
        let path = args.out.as_deref().unwrap_or("-");
        let out: Box<dyn Write + Send> = match path {
            "-" => Box::new(std::io::stdout()),
            path => Box::new(std::fs::File::create(path).with_context(|| format!("create {path}"))?),
        };
        let mut out = std::io::BufWriter::with_capacity(1 << 20, out);
        let written = simulate::run(&options, |_, json| {
            bar.inc(1);
            out.write_all(json.as_bytes())?;
            out.write_all(b"\n")
        });
        match written.and_then(|done| out.flush().map(|()| done)) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            done => done.with_context(|| format!("write {path}"))?,
        }
    };
    bar.finish_and_clear();
    if let Some(path) = &args.oracle {
        let shown = path.display();
        let file = std::fs::File::create(path).with_context(|| format!("create {shown}"))?;
        truth.write(&mut std::io::BufWriter::new(file)).with_context(|| format!("write {shown}"))?;
    }
    terminal::say(&format!(
        "{} events ({}) with {} changes; {} keys are live at the end",
        produced.events,
        mib(produced.bytes),
        produced.changes,
        produced.live_keys
    ));
    Ok(())
}
