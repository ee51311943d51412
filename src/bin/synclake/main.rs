//! `synclake`: parses the command line, checks it and runs one command.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use synclake::aws::AwsSettings;
use synclake::config::{self, File, Unusable};
use synclake::ingest::{self, Counters};
use synclake::lake::{Location, Store};

use synclake::print::Format;
use synclake::query::state::refresh;
use synclake::source::kinesis::Kinesis;
use synclake::source::{Retries, files, leases};
use synclake::{cpu, ddl, extract, query, redrive, simulate, terminal, verify};

mod args;

use args::{
    AwsArgs, Cli, Command, DdlArgs, ExtractArgs, FileFormat, IngestArgs, RedriveArgs, RefreshArgs, ReportFormat,
    SimulateArgs, VerifyArgs,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let _failpoints = synclake::failpoint::setup();
    let (cli, _): (Cli, _) = terminal::parse();
    terminal::QUIET.store(cli.quiet, Ordering::Relaxed);
    terminal::init_logs(if cli.quiet { "error" } else { "warn" });
    let done = run_on_large_stack(cli);
    done.map_or_else(|error| terminal::fail(&error), |()| ExitCode::SUCCESS)
}

/// Stack size of each thread of the runtime.
const STACK_BYTES: usize = 16 << 20;

fn run_on_large_stack(cli: Cli) -> Result<()> {
    // The blocking threads run decoders and encoders, at most one per processor (`cpu.rs`). The Delta kernel also
    // blocks them until its reads are done. Those reads run elsewhere (`lake/apart.rs`), so no number of threads is too
    // small; more threads only hold more idle memory.
    let blocking = (4 * cpu::processors()).max(8);
    terminal::check_address_space(((cpu::processors() + blocking) * STACK_BYTES + (512 << 20)) as u64)?;
    terminal::check_threads()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .max_blocking_threads(blocking)
        .build()
        .context("start the runtime")?;
    // A reader that still waits for standard input must not keep a finished run alive.
    let patience = match cli.command {
        Command::Ingest(_) => Duration::from_millis(100),
        _ => query::FILES_PATIENCE,
    };
    let result = runtime.block_on(run(cli));
    runtime.shutdown_timeout(patience);
    result
}

async fn run(cli: Cli) -> Result<()> {
    let file = File::load(cli.config.as_deref())?;
    match cli.command {
        Command::Ingest(args) => run_ingest(*args, &file).await,
        Command::Extract(args) => run_extract(args, &file).await,
        Command::Simulate(args) => run_simulate(args, &file).await,
        Command::Verify(args) => run_verify(args, &file).await,
        Command::Redrive(args) => run_redrive(args, &file).await,
        Command::Refresh(args) => run_refresh(args, &file).await,
        Command::Ddl(args) => run_ddl(&args, &file),
    }
}

async fn aws_settings(args: AwsArgs, file: &File) -> Result<AwsSettings, Unusable> {
    let settings = config::aws(args.region, args.endpoint_url, args.profile, file);
    settings.check().await.map_err(Unusable)?;
    Ok(settings)
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
        payloads: config::payloads(
            args.payload_hosts,
            args.payload_bytes,
            args.payload_patience,
            args.payload_private_addresses,
            file,
        )?,
    };
    let aws = aws_settings(args.aws, file).await?;
    let mut total = None;
    let lease_table = args.lease_table.or_else(|| file.lease_table.clone());
    let lease_table = lease_table.map(|text| config::parse_lease_table(&text)).transpose();
    let lease_table = lease_table.map_err(|e| Unusable(format!("--lease-table {e}")))?;
    let failover = parsed("lease-failover", args.lease_failover, &file.lease_failover, "10s", config::parse_duration)?;
    let worker = args.worker_id.unwrap_or_else(config::worker_name);
    let leases = lease_table.map(|table| leases::Options { table, worker, failover, lake: String::new() });
    let metrics = args.metrics.or_else(|| file.metrics.clone()).map(|text| {
        let address = text.parse::<std::net::SocketAddr>();
        address.map_err(|_| Unusable(format!("--metrics {text:?} is no address; write 127.0.0.1:9464")))
    });
    let metrics = metrics.transpose()?;
    let refresh_every = args.refresh_every.or_else(|| file.refresh_every.clone());
    let refresh_every = refresh_every.map(|text| config::parse_duration(&text)).transpose();
    let refresh_every = refresh_every.map_err(|e| Unusable(format!("--refresh-every {e}")))?;
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
        let found = files::expand(path)?;
        let packed = |p: &PathBuf| files::plain_bytes(p);
        total = found.files.iter().map(packed).sum::<Option<u64>>();
        ingest::Source::Files(found)
    } else {
        let message = format!("--source {source:?} is neither kinesis:<stream> nor file:<path>");
        return Err(Unusable(message).into());
    };
    let stop = terminal::stop_on_signals().context("handle signals")?;
    let place = lake;
    let lake = Store::create(&place, &aws).await?;
    let counters = Arc::new(Counters::default());
    let bar = match total {
        Some(total) => terminal::progress(Some(total), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"),
        None => terminal::progress(None, "{spinner} {bytes} {bytes_per_sec} {msg}"),
    };
    let watch = {
        let (bar, counters) = (bar.clone(), counters.clone());
        tokio::spawn(async move {
            loop {
                // Redraw interval of the bar.
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
    let _refreshing = refresh_every.map(|every| Refreshing::start(place, aws, every)).transpose()?;
    let done = tokio::select! {
        done = ingest::run(source, lake, options, counters, stop) => done.map_err(anyhow::Error::from),
        // An address that cannot be listened on fails at once, before anything is read.
        failed = served => failed.and_then(|()| anyhow::bail!("the metrics server ended")),
    };
    watch.abort();
    bar.finish_and_clear();
    let summary = done?;
    let failure = summary.failure();
    if let (Some(failure), 0, true) = (&failure, summary.records, summary.lost_bytes.is_empty()) {
        anyhow::bail!("{failure}");
    }
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
    print_line(&line)?;
    failure.map_or(Ok(()), |failure| anyhow::bail!("{failure}"))
}

/// A background refresh of an ingest, on its own thread: DataFusion blocks the thread that it computes on, and the
/// ingest loop must not wait. A refresh that is dropped midway changes nothing.
struct Refreshing(Option<tokio::runtime::Runtime>);

impl Refreshing {
    fn start(place: Location, aws: AwsSettings, every: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("refresh")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .context("start the runtime of the refresh")?;
        runtime.spawn(async move {
            // Connections belong to the runtime that created them, so the refresh opens its own store.
            match Store::open(&place, &aws).await {
                Ok(lake) => refresh_often(lake, every).await,
                Err(error) => tracing::error!(%error, "the state is not refreshed"),
            }
        });
        Ok(Self(Some(runtime)))
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Refreshes the maintained state at an interval, with its own memory limit and one thread: ingest has priority.
async fn refresh_often(lake: Store, every: Duration) {
    let limits = query::Limits { memory_bytes: 128 << 20, threads: 1, ..query::Limits::default() };
    loop {
        tokio::time::sleep(every).await;
        match refresh::run(&lake, &limits, false).await {
            Ok(report) => tracing::info!(covers = report.covers, rows = report.rows_written, "refreshed the state"),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "cannot refresh the state; queries stay exact and get slower");
            }
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// Prints a line of data to stdout. A closed reader is no error.
fn print_line(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write standard output"),
        _ => Ok(()),
    }
}

async fn run_extract(args: ExtractArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let out = args.out.map(|out| location("out", &out)).transpose()?;
    let aws = aws_settings(args.aws, file).await?;
    let lake = Store::open(&lake, &aws).await?;
    let out = match out {
        Some(out) => Some(Store::create(&out, &aws).await?),
        None => None,
    };
    if let Some(out) = out.as_ref().filter(|out| out.is_within(&lake)) {
        let message = format!("--out {out} lies in the lake {lake}, whose files it would mix with; name another place");
        return Err(Unusable(message).into());
    }
    let format = match args.format {
        FileFormat::Parquet => Format::Parquet,
        FileFormat::Csv => Format::Csv,
        FileFormat::Ndjson => Format::Ndjson,
    };
    let limits = query::Limits::default();
    let out = out.as_ref().map(|out| (out, format));
    let bar = terminal::progress(None, "{spinner} extracting {elapsed}");
    if let (Some(name), Some(out)) = (&args.consumer, out) {
        let delivery = extract::consumer::run(&lake, name, out, &limits).await;
        bar.finish_and_clear();
        let delivery = delivery?;
        terminal::say(&format!("{name}: {} new rows in {} files", delivery.rows, delivery.files));
        return print_line(&serde_json::to_string(&delivery).context("encode the report")?);
    }
    let days = match (args.date, args.from, args.to) {
        (Some(date), ..) => (date, date),
        (None, Some(from), Some(to)) if from <= to => (from, to),
        (None, Some(from), Some(to)) => {
            return Err(Unusable(format!("--from {from} is after --to {to}; exchange them")).into());
        }
        _ => {
            return Err(Unusable("give a day with --date, a range with --from and --to, or a --consumer".into()).into());
        }
    };
    let mut began = Instant::now();
    let mut told = Ok(());
    let done = |report: &extract::Report| {
        bar.suspend(|| {
            terminal::say(&format!(
                "{}: {} live keys, {} changes, {} files, {:.1} s",
                report.date,
                report.state_rows,
                report.change_rows,
                report.files,
                began.elapsed().as_secs_f64()
            ));
            if !report.stale.is_empty() {
                let stale: Vec<String> = report.stale.iter().map(ToString::to_string).collect();
                terminal::say(&format!("late rows have changed {}; --correct extracts them again", stale.join(", ")));
            }
        });
        began = Instant::now();
        let line = serde_json::to_string(report).context("encode the report").and_then(|line| print_line(&line));
        if let Err(error) = line {
            told = Err(error);
        }
    };
    let reports = extract::run(&lake, days, out, args.correct, &limits, done).await;
    bar.finish_and_clear();
    reports?;
    told?;
    if !args.no_refresh {
        let report = refresh::run(&lake, &limits, false).await;
        let report = report.context("refresh the state (the extract itself is done, as with --no-refresh)")?;
        terminal::say(&format!("the state covers version {}", report.covers));
    }
    Ok(())
}

async fn run_verify(args: VerifyArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let lake = Store::open(&lake, &aws_settings(args.aws, file).await?).await?;
    let bar = terminal::progress(None, "{spinner} verifying {elapsed}");
    let report = verify::run(&lake, args.deep).await;
    bar.finish_and_clear();
    let report = report?;
    if args.format == ReportFormat::Json {
        print_line(&serde_json::to_string(&report).context("encode the report")?)?;
    } else {
        for (name, table) in &report.tables {
            let (version, files, rows, orphans) = (table.version, table.files, table.rows, table.orphans);
            let superseded = match table.superseded {
                0 => String::new(),
                files => format!(", {files} replaced and not vacuumed"),
            };
            let cleaned = match table.log_from {
                0 => String::new(),
                first => format!(", log cleaned: nothing before version {first} is checked"),
            };
            print_line(&format!(
                "{name:13} version {version}, {files} files, {rows} rows, {orphans} orphans{superseded}{cleaned}"
            ))?;
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
    let lake = Store::open(&lake, &aws_settings(args.aws, file).await?).await?;
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

async fn run_refresh(args: RefreshArgs, file: &File) -> Result<()> {
    let lake = location("lake", &required("lake", args.lake, &file.lake)?)?;
    let lake = Store::open(&lake, &aws_settings(args.aws, file).await?).await?;
    let bar = terminal::progress(None, "{spinner} refreshing the state {elapsed}");
    let report = refresh::run(&lake, &query::Limits::default(), args.rebuild).await;
    bar.finish_and_clear();
    let report = report?;
    terminal::say(&format!(
        "read {} new files ({}), replaced {} of the state's files by {} ({} rows); it covers version {}",
        report.files_read,
        mib(report.bytes_read),
        report.files_replaced,
        report.files_written,
        report.rows_written,
        report.covers
    ));
    print_line(&serde_json::to_string(&report).context("encode the report")?)
}

fn run_ddl(args: &DdlArgs, file: &File) -> Result<()> {
    let place = required("lake", args.lake.clone(), &file.lake)?;
    let place = match location("lake", &place)? {
        // Other engines do not know the working directory of this program.
        Location::Folder(folder) => {
            if !args.engine.reads_folders() {
                let message = "--lake is a folder, and this engine reads S3 alone; give s3://bucket/prefix";
                return Err(Unusable(message.to_owned()).into());
            }
            if !folder.join("sync_records/_delta_log").is_dir() {
                let shown = folder.display();
                return Err(Unusable(format!("--lake {shown} is no lake; `synclake ingest` makes one")).into());
            }
            let folder = std::path::absolute(&folder).with_context(|| format!("find {}", folder.display()))?;
            folder.display().to_string()
        }
        _ => place,
    };
    let text = ddl::render(args.engine, place.trim_end_matches('/'), &args.database).map_err(Unusable)?;
    print_line(text.trim_end())
}

fn wire_options(args: &SimulateArgs) -> Result<simulate::wire::Options> {
    if args.aggregates > 0.0 && args.to.is_none() {
        let message = "--aggregates makes binary records, which NDJSON cannot hold: name a stream with --to";
        return Err(Unusable(message.to_owned()).into());
    }
    let payloads = match (args.oversize > 0.0, &args.payload_folder, &args.payload_url) {
        (false, None, None) => None,
        (true, Some(folder), Some(url)) => {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            Some(simulate::wire::Payloads { share: args.oversize, folder: folder.clone(), url: url.clone() })
        }
        _ => {
            let message = "--oversize, --payload-folder and --payload-url go together: give all three or none";
            return Err(Unusable(message.to_owned()).into());
        }
    };
    Ok(simulate::wire::Options { aggregates: args.aggregates, poison: args.poison, payloads })
}

async fn run_simulate(args: SimulateArgs, file: &File) -> Result<()> {
    let wire = wire_options(&args)?;
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
        wire,
    };
    let bar = terminal::progress(Some(args.events), "{bar:30} {pos}/{len} events {eta}");
    let (produced, truth) = if let Some(to) = &args.to {
        let stream = to.strip_prefix("kinesis:").filter(|s| !s.is_empty());
        let stream = stream.ok_or_else(|| Unusable(format!("--to {to:?} is not kinesis:<stream>")))?;
        let aws = aws_settings(args.aws, file).await?;
        let (events, mut received) = tokio::sync::mpsc::channel::<(String, Vec<u8>)>(1_000);
        let maker = tokio::task::spawn_blocking(move || {
            let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            simulate::run(&options, |key, data| events.blocking_send((key.to_owned(), data)).map_err(gone))
        });
        let mut publisher = simulate::publish::Publisher::new(&aws, stream).await;
        while let Some((key, data)) = received.recv().await {
            bar.inc(1);
            publisher.put(&key, data).await?;
        }
        publisher.flush().await?;
        maker.await.context("simulate")?.context("simulate")?
    } else {
        if args.out.is_none() && std::io::stdout().is_terminal() {
            let text = "events would fill this terminal; add --out FILE, or --out - to see them here";
            return Err(Unusable(text.to_owned()).into());
        }
        let path = args.out.as_deref().unwrap_or("-");
        let out: Box<dyn Write + Send> = match path {
            "-" => Box::new(std::io::stdout()),
            path => Box::new(std::fs::File::create(path).with_context(|| format!("create {path}"))?),
        };
        let mut out = std::io::BufWriter::with_capacity(1 << 20, out);
        let written = simulate::run(&options, |_, data| {
            bar.inc(1);
            out.write_all(&data)?;
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
