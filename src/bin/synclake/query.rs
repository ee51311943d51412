//! `synclake-query`, the same file under another name: parses the command line, checks it and runs SQL.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, Parser};
use synclake::config::{self, File, Unusable};
use synclake::lake::Location;
use synclake::print::Format;
use synclake::query::{Limits, Moment, Parameters, QueryError, Scope, guard};
use synclake::shell::{self, Opening, Output, Script, Settings};
use synclake::{cpu, terminal};
use tokio::signal::unix::SignalKind;

/// Run read-only SQL over a lake.
#[derive(Debug, Parser)]
#[command(
    name = "synclake-query",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  synclake-query --lake lake                                     a shell; \\? for help
  synclake-query --lake lake -c '\\d'                             tables and views
  synclake-query --lake lake -c \"select * from current_state where identity_id = 'us-east-1:…'\"
  synclake-query --lake lake --as-of 2026-11-20 -c \"select count(*) from current_state\"
  synclake-query --lake lake --param who=us-east-1:… -c 'select * from changes where identity_id = $who'
  synclake-query --lake s3://bucket/lake -f report.sql -o report.csv
  synclake-query --lake lake -c 'select * from changes' --partition-by event_date -o s3://bucket/changes
  echo 'select count(*) from changes' | synclake-query --lake lake --format json

Without -c, -f or a terminal, SQL is read from standard input. Everything is read-only.
Exit codes: 0 done, 1 failed, 2 usage."
)]
pub(crate) struct Cli {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    lake: Option<String>,
    /// Run this SQL and exit; may be repeated.
    #[arg(short, long = "command", value_name = "SQL", allow_hyphen_values = true)]
    command: Vec<String>,
    /// Run this file and exit; may be repeated.
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Query only what the server had seen by the end of this day (UTC): YYYY-MM-DD, yesterday or today.
    #[arg(long, value_name = "DATE", value_parser = synclake::extract::parse_date)]
    as_of: Option<chrono::NaiveDate>,
    /// Query the lake as it was committed at a version of sync_records, or at a time such as 2026-11-20T15:04:05Z.
    #[arg(long, value_name = "VERSION|TIME")]
    at: Option<Moment>,
    /// Set $NAME in the statements: a number, true, false or else a text; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    param: Vec<String>,
    /// Format of results [default: what the extension of -o stands for, or table].
    #[arg(long, value_enum, env = "SYNCLAKE_FORMAT")]
    format: Option<Format>,
    /// Write the result to this file or object (s3://bucket/key), complete or not at all; - is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make -o a new folder or prefix of Parquet files, in folders named by the values of these columns.
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    partition_by: Vec<String>,
    /// Print control characters unescaped.
    #[arg(long)]
    raw: bool,
    /// In CSV, put a ' before text that a spreadsheet would treat as a formula.
    #[arg(long)]
    guard_formulas: bool,
    /// Begin CSV with a byte order mark, by which Excel knows that it is UTF-8.
    #[arg(long)]
    bom: bool,
    /// Print the time of each statement.
    #[arg(long)]
    timing: bool,
    /// Suppress all output on stderr except errors.
    #[arg(long, short)]
    quiet: bool,
    /// Limit the memory of sorts and joins; beyond it they spill to disk, in TMPDIR [default: a quarter of this
    /// machine's or container's memory, at least 1GiB].
    #[arg(long, env = "SYNCLAKE_QUERY_MEMORY", value_name = "SIZE", value_parser = config::parse_bytes)]
    memory: Option<u64>,
    /// Read settings from this file.
    #[arg(long, env = "SYNCLAKE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// AWS region.
    #[arg(long, env = "SYNCLAKE_REGION", value_name = "REGION", help_heading = "AWS")]
    region: Option<String>,
    /// Endpoint of all AWS services.
    #[arg(long, env = "SYNCLAKE_ENDPOINT_URL", value_name = "URL", help_heading = "AWS")]
    endpoint_url: Option<String>,
    /// AWS profile.
    #[arg(long, env = "SYNCLAKE_PROFILE", value_name = "NAME", help_heading = "AWS")]
    profile: Option<String>,
}

/// Stack size: planning recurses as deep as the statement, and every statement that the guard accepts fits.
const STACK_BYTES: usize = 512 << 20;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let (cli, matches): (Cli, ArgMatches) = terminal::parse();
    // Outages are logged, because a waiting user wants to know the reason.
    terminal::init_logs(if cli.quiet { "error" } else { "error,synclake::lake::s3=warn" });
    // A panic inside a library becomes an error of its query. A backtrace would only hide the error message.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|v| v == "0") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    // Each thread of the runtime has such a stack, as do the main thread and a few threads of libraries.
    let stacks = (cpu::processors() + 4) as u64 * STACK_BYTES as u64;
    if let Err(error) = terminal::check_address_space(stacks + (1 << 30)) {
        return terminal::fail(&error);
    }
    let done = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let plan = plan(cli, &matches)?;
        let Some(texts) = plan.texts else {
            let left = shell::repl(&plan.opening, &plan.name, plan.settings);
            // Ctrl-C may have ended a result a moment ago.
            shell::discard_unfinished();
            return Ok(left?);
        };
        let runtime = plan.opening.runtime().context("start the runtime")?;
        let interrupts = terminal::Interrupts::install(&ENDS).context("listen for signals")?;
        interrupts.set(Some(Box::new(|signal| {
            IS_ENDED.store(true, Ordering::SeqCst);
            shell::discard_unfinished();
            // The exit code that shells use for a signal.
            std::process::exit(128 + signal);
        })));
        let result = runtime.block_on(shell::run(&plan.opening, &texts, plan.settings)).map_err(anyhow::Error::from);
        // The signal ends the program with its own exit code; what fails meanwhile is its consequence.
        while IS_ENDED.load(Ordering::SeqCst) {
            std::thread::park();
        }
        if result.is_err() {
            shell::discard_unfinished();
        }
        runtime.shutdown_timeout(synclake::timeouts::SHUTDOWN_TIMEOUT);
        result
    });
    let done = done.map(std::thread::JoinHandle::join);
    match done {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => {
            let gone = error.downcast_ref::<QueryError>().is_some_and(QueryError::is_broken_pipe);
            if gone {
                return ExitCode::SUCCESS;
            }
            let code = terminal::fail(&error);
            let excerpt = error.downcast_ref::<QueryError>().and_then(QueryError::excerpt);
            if let Some(excerpt) = excerpt.filter(|_| std::io::stderr().is_terminal()) {
                terminal::write_line(excerpt);
            }
            code
        }
        Ok(Err(_)) => terminal::fail(&anyhow::anyhow!("the query ended in a bug; please report it with its SQL")),
        Err(error) => terminal::fail(&anyhow::Error::from(error).context("start a thread")),
    }
}

/// Whether a signal ends the program.
static IS_ENDED: AtomicBool = AtomicBool::new(false);
/// Signals that end a query; its partial output is removed.
const ENDS: [SignalKind; 3] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// The checked command line.
struct Plan {
    opening: Opening,
    /// Name of the lake as shown to the user.
    name: String,
    settings: Settings,
    /// SQL texts to run; `None` for a shell.
    texts: Option<Vec<Script>>,
}

fn plan(cli: Cli, matches: &ArgMatches) -> Result<Plan> {
    let file = File::load(cli.config.as_deref())?;
    let name = cli.lake.or_else(|| file.lake.clone()).ok_or_else(|| {
        Unusable("--lake is missing; give it as a flag, as SYNCLAKE_LAKE or in the settings file".to_owned())
    })?;
    let location: Location = name.parse().map_err(|e| Unusable(format!("--lake {e}")))?;
    let interactive = cli.command.is_empty() && cli.file.is_empty() && std::io::stdin().is_terminal();
    let output = cli.output.filter(|path| {
        !["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path.as_os_str() == *name)
    });
    let to_terminal = output.is_none() && std::io::stdout().is_terminal();
    let output = output.map(Output::new).transpose().map_err(|error| Unusable(error.to_string()))?;
    // The variable is for whoever names no file: the name of a file says more.
    let is_given = matches.value_source("format") != Some(ValueSource::EnvVariable);
    let is_named = output.as_ref().is_some_and(|output| output.format().is_some()) || !cli.partition_by.is_empty();
    let format = cli.format.filter(|_| is_given || !is_named);
    if let Some(format) = format.filter(|format| format.is_binary() && to_terminal) {
        return Err(Unusable(format!("--format {} is binary; add -o FILE", format.name())).into());
    }
    if !cli.partition_by.is_empty() && output.is_none() {
        return Err(Unusable("--partition-by needs a folder; add -o FOLDER or -o s3://bucket/prefix".to_owned()).into());
    }
    if !cli.partition_by.is_empty() && format.is_some_and(|format| format != Format::Parquet) {
        return Err(Unusable("--partition-by writes Parquet; leave --format out".to_owned()).into());
    }
    if interactive && output.is_some() {
        return Err(Unusable("-o needs -c, -f or SQL on standard input".to_owned()).into());
    }
    let settings = Settings {
        format,
        raw: cli.raw,
        guards_formulas: cli.guard_formulas,
        has_bom: cli.bom,
        output,
        partition_by: cli.partition_by.iter().map(|name| name.trim().to_owned()).collect(),
        timing: cli.timing || (interactive && std::io::stderr().is_terminal()),
        quiet: cli.quiet,
        scope: Scope { at: cli.at, as_of: cli.as_of },
        parameters: Parameters::read(&cli.param).map_err(Unusable)?,
        ..Settings::default()
    };
    // A table is what there is without a choice, and a command may choose CSV later.
    let is_csv = settings.result_format() == Format::Csv || (format.is_none() && settings.output.is_none());
    for (flag, is_given) in [("--bom", cli.bom), ("--guard-formulas", cli.guard_formulas)] {
        if is_given && !is_csv {
            return Err(Unusable(format!("{flag} is for CSV; add --format csv, or leave {flag} out")).into());
        }
    }
    let mut limits = Limits::default();
    if let Some(bytes) = cli.memory {
        limits.memory_bytes = usize::try_from(bytes)
            .map_err(|_| Unusable(format!("--memory must be at most {} bytes on this machine", usize::MAX)))?;
    }
    // Only the matches know the order of the command line.
    let places = |flag| matches.indices_of(flag).into_iter().flatten();
    let commands = cli.command.into_iter().map(Script::of);
    let mut texts: Vec<(usize, Script)> = places("command").zip(commands).collect();
    for (place, path) in places("file").zip(&cli.file) {
        texts.push((place, Script::read(path)?));
    }
    texts.sort_by_key(|(place, _)| *place);
    let mut texts: Vec<Script> = texts.into_iter().map(|(_, text)| text).collect();
    if texts.is_empty() && !interactive {
        let mut text = Vec::new();
        // One byte over the limit suffices to detect a text that is too long.
        let limit = 8 * guard::TEXT_BYTES_MAX as u64 + 1;
        std::io::stdin().take(limit).read_to_end(&mut text).context("read standard input")?;
        let text = String::from_utf8(text);
        let text = text.map_err(|_| anyhow::anyhow!("standard input is not UTF-8; convert it with iconv"))?;
        texts.push(Script::of(text));
    }
    if texts.len() > 1 && settings.output.is_some() {
        return Err(Unusable("-o takes one statement; a file holds one result".to_owned()).into());
    }
    let aws = config::aws(cli.region, cli.endpoint_url, cli.profile, &file);
    let checking = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    checking.block_on(aws.check()).map_err(Unusable)?;
    let opening = Opening { location, aws, limits, stack_bytes: STACK_BYTES };
    Ok(Plan { opening, name, settings, texts: (!interactive).then_some(texts) })
}
