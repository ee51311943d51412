//! The command line of `synclake` and its help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use synclake::decode::Reason;
use synclake::schema::Table;
use synclake::{config, ddl, extract, vacuum};

use crate::manifest::ManifestArgs;

/// Export Amazon Cognito Sync streams to a Parquet lake, each record exactly once.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "\
Examples:
  synclake simulate --events 10000 --out events.ndjson      generate a stream
  synclake ingest --source file:events.ndjson --lake lake   read it into a lake
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake
  synclake extract --lake lake --date yesterday             write a daily extract
  synclake-query --lake lake -c 'select * from current_state limit 5'

Settings come from flags, then SYNCLAKE_… variables, then a TOML file (--config, or ./synclake.toml).
Exit codes: 0 done, 1 failed, 2 usage."
)]
pub(crate) struct Cli {
    /// Read settings from this file.
    #[arg(long, global = true, env = "SYNCLAKE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Suppress all output on stderr except errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read a stream or files into a lake; run again to continue after the last commit.
    Ingest(Box<IngestArgs>),
    /// Write the state at the end of a day, and the changes of that day.
    Extract(ExtractArgs),
    /// Write the rows that are new for a consumer, each once.
    Deliver(DeliverArgs),
    /// Generate a realistic stream from a seed.
    Simulate(SimulateArgs),
    /// Show the status of a lake, and what to do next.
    Status(StatusArgs),
    /// Check the lake's integrity.
    Verify(VerifyArgs),
    /// Decode the quarantined records again, and move those that now succeed.
    Redrive(RedriveArgs),
    /// Update the maintained state, so that querying the current state costs only what changed since.
    Refresh(RefreshArgs),
    /// Merge small files of sync_records into sorted files of a target size.
    Compact(CompactArgs),
    /// Delete files that no version of a table within the retention lists.
    Vacuum(VacuumArgs),
    /// Refresh, compact and vacuum once, from cron or by hand.
    Care(CareArgs),
    /// Write manifests for engines that read Parquet without the Delta log.
    Manifest(ManifestArgs),
    /// Print tables and views for Athena, Spark, Trino, DuckDB or Redshift.
    Ddl(DdlArgs),
}

/// How to reach AWS. Unset values, and credentials, come from the usual AWS configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct AwsArgs {
    /// AWS region.
    #[arg(long, env = "SYNCLAKE_REGION", value_name = "REGION", help_heading = "AWS")]
    pub region: Option<String>,
    /// Endpoint of all AWS services, for private endpoints and local servers.
    #[arg(long, env = "SYNCLAKE_ENDPOINT_URL", value_name = "URL", help_heading = "AWS")]
    pub endpoint_url: Option<String>,
    /// AWS profile.
    #[arg(long, env = "SYNCLAKE_PROFILE", value_name = "NAME", help_heading = "AWS")]
    pub profile: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake ingest --source file:events.ndjson.gz --lake lake
  zcat *.gz | synclake ingest --source file:- --lake lake
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --until-idle 1m
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --lease-table dynamodb:synclake-cognito

Files are identified by content: a file is not read twice, and a file that has grown is continued.
Workers with the same --lease-table share the shards, and replace workers that die.
On SIGTERM or SIGINT the program commits the records it has read, returns its leases, and exits with 0.")]
pub(crate) struct IngestArgs {
    /// kinesis:<stream>, file:<path> (NDJSON, .gz, .zst, or a folder of them), or file:- for standard input.
    #[arg(long, env = "SYNCLAKE_SOURCE", value_name = "SOURCE")]
    pub source: Option<String>,
    /// Lake: s3://bucket/prefix, or a folder. Created if missing.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Where to start a stream that the lake does not know: trim-horizon (default), latest, or a time such as
    /// 2026-11-20T00:00:00Z.
    #[arg(long, env = "SYNCLAKE_FROM", value_name = "WHERE")]
    pub from: Option<String>,
    /// Stop once every shard has had nothing to read for this long.
    #[arg(long, env = "SYNCLAKE_UNTIL_IDLE", value_name = "DURATION")]
    pub until_idle: Option<String>,
    /// Limit the buffers to this many bytes [default: 256MiB].
    #[arg(long, env = "SYNCLAKE_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Commit after this many bytes of records [default: 2GiB].
    #[arg(long, env = "SYNCLAKE_FLUSH_BYTES", value_name = "SIZE")]
    pub flush_bytes: Option<String>,
    /// Commit after this long [default: 60s].
    #[arg(long, alias = "flush-age", env = "SYNCLAKE_FLUSH_INTERVAL", value_name = "DURATION")]
    pub flush_interval: Option<String>,
    /// Also refresh the maintained state at this interval, in the background; see `synclake refresh`.
    #[arg(long, env = "SYNCLAKE_REFRESH_EVERY", value_name = "DURATION")]
    pub refresh_every: Option<String>,
    /// Share the stream's shards with other workers: dynamodb:<table>, created if missing.
    #[arg(long, env = "SYNCLAKE_LEASE_TABLE", value_name = "TABLE", help_heading = "Fleet")]
    pub lease_table: Option<String>,
    /// Treat a lease as expired after this long without a renewal [default: 10s].
    #[arg(long, env = "SYNCLAKE_LEASE_FAILOVER", value_name = "DURATION", help_heading = "Fleet")]
    pub lease_failover: Option<String>,
    /// Name of this worker in the lease table [default: derived from the host name].
    #[arg(long, env = "SYNCLAKE_WORKER_ID", value_name = "NAME", help_heading = "Fleet")]
    pub worker_id: Option<String>,
    /// Start a stream that the lake does not know at the checkpoints of a Kinesis Client Library application: the name
    /// of its DynamoDB table, which is only read.
    #[arg(long, value_name = "TABLE", help_heading = "Fleet")]
    pub import_kcl_checkpoints: Option<String>,
    /// Also fetch oversize payloads from these hosts, besides S3: host, host:port, http://host:port, *.suffix.
    #[arg(long, env = "SYNCLAKE_PAYLOAD_HOSTS", value_name = "HOST", value_delimiter = ',', help_heading = "Payloads")]
    pub payload_hosts: Option<Vec<String>>,
    /// Limit the size of a payload, decompressed [default: 16MiB].
    #[arg(long, env = "SYNCLAKE_PAYLOAD_BYTES", value_name = "SIZE", help_heading = "Payloads")]
    pub payload_bytes: Option<String>,
    /// Retry a payload for this long, and never after its URL expires. While its host is unreachable, retry until the
    /// URL expires [default: 15m; on 5xx responses, until the URL expires].
    #[arg(
        long,
        alias = "payload-patience",
        env = "SYNCLAKE_PAYLOAD_TIMEOUT",
        value_name = "DURATION",
        help_heading = "Payloads"
    )]
    pub payload_timeout: Option<String>,
    /// Allow payload hosts with private addresses, such as an S3 endpoint in a VPC.
    #[arg(long, env = "SYNCLAKE_PAYLOAD_PRIVATE_ADDRESSES", help_heading = "Payloads")]
    pub payload_private_addresses: bool,
    /// Serve /metrics, /healthz and /readyz at this address, such as 127.0.0.1:9464.
    #[arg(long, env = "SYNCLAKE_METRICS", value_name = "ADDRESS", help_heading = "Monitoring")]
    pub metrics: Option<String>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake extract --lake lake --date 2026-11-20
  synclake extract --lake s3://bucket/lake --date yesterday --out s3://bucket/extracts --format csv
  synclake extract --lake lake --from 2026-11-01 --to 2026-11-20

A day is computed from the extract of an earlier day and the rows added since. Running the command again for a date
replaces that date atomically; rows of the kind correction hold the differences. The report has one line of JSON for each
day. It lists late rows, the extracted days that they change, and whether every shard was read to the end of the day.")]
pub(crate) struct ExtractArgs {
    /// Day to extract (UTC): YYYY-MM-DD, yesterday or today.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date, conflicts_with_all = ["from", "to"])]
    pub date: Option<chrono::NaiveDate>,
    /// First day of a range.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date, requires = "to")]
    pub from: Option<chrono::NaiveDate>,
    /// Last day of the range.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date, requires = "from")]
    pub to: Option<chrono::NaiveDate>,
    /// Do not refresh the maintained state after the extract; see `synclake refresh`.
    #[arg(long)]
    pub no_refresh: bool,
    /// Also extract again the days that late rows have changed: earlier days first, later days last.
    #[arg(long)]
    pub correct: bool,
    /// The earlier name of `synclake deliver`.
    #[arg(long, hide = true, value_name = "NAME", value_parser = extract::consumer::parse_name,
          conflicts_with_all = ["date", "from", "to", "correct", "no_refresh"], requires = "out")]
    pub consumer: Option<String>,
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Also write files below this folder or s3:// prefix, with a _SUCCESS manifest.
    #[arg(long, value_name = "URL")]
    pub out: Option<String>,
    /// Format of the files.
    #[arg(long, value_enum, default_value = "parquet")]
    pub format: FileFormat,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake deliver --lake lake --consumer warehouse --out feed --format ndjson
  synclake deliver --lake s3://bucket/lake --consumer search --out s3://bucket/feed

Writes the rows added since the last delivery into feed/consumer=warehouse/versions=<from>-<to>/. A delivery is complete
once its folder has _SUCCESS. After a failure, run the same command again: it writes the same files.")]
pub(crate) struct DeliverArgs {
    /// Name of the consumer: 1 to 64 of [A-Za-z0-9_-].
    #[arg(long, value_name = "NAME", value_parser = extract::consumer::parse_name)]
    pub consumer: String,
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Write the deliveries below this folder or s3:// prefix.
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// Format of the files.
    #[arg(long, value_enum, default_value = "parquet")]
    pub format: FileFormat,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake status --lake lake
  synclake status --lake s3://bucket/lake --verbose
  synclake status --lake s3://bucket/lake --format json | jq '.next[].text'
  synclake status --lake s3://bucket/lake --commits 50000       exact growth of a busy week
  watch -n 60 synclake status --lake s3://bucket/lake

Reads only the logs of the tables, no data file. Times are those of the commits, and ages refer to the clock of this
machine. A number after >= is a lower bound. Exits with 0 if the lake could be read, whatever there is to do.")]
pub(crate) struct StatusArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Format of the report.
    #[arg(long, value_enum, default_value = "human")]
    pub format: ReportFormat,
    /// Also list all pools, ended shards and single files, with epochs, owners and positions.
    #[arg(long)]
    pub verbose: bool,
    /// Read at most this many of the newest commits, for growth, last commits of shards and rows behind.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub commits: u32,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake verify --lake lake
  synclake verify --lake s3://bucket/lake --format json
  synclake verify --lake lake --deep

Exits with 1 if it finds a fault. Orphans (files that no commit lists) are not faults: no reader of the table sees them,
and the next ingest of their shard deletes them. Gaps (records that the stream trimmed before they were read) are
reported. They are not faults of the lake, and a bulk publish restores their data.")]
pub(crate) struct VerifyArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Format of the report.
    #[arg(long, value_enum, default_value = "human")]
    pub format: ReportFormat,
    /// Also check the bytes of every file against the digest in its commit.
    #[arg(long)]
    pub deep: bool,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake redrive --lake lake
  synclake redrive --lake s3://bucket/lake --reason invalid_field --reason invalid_id --since 2026-11-01

Run it after an upgrade whose decoder accepts more records. Each record is moved once, even if the command is killed and
run again. Records that still cannot be decoded stay in the quarantine. It may run beside an ingest.")]
pub(crate) struct RedriveArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Only decode records with this reason; repeat the flag for several reasons.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Vec<Reason>,
    /// Only decode records that arrived at or after this time: YYYY-MM-DD (UTC) or 2026-11-20T08:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = config::parse_time)]
    pub since: Option<chrono::DateTime<chrono::Utc>>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake refresh --lake s3://bucket/lake

Reads the rows added since the last refresh, and rewrites the affected files of the table state. current_state and
dataset_state are exact to the newest commit with or without a refresh; a refresh makes them fast. Run it from cron, once
an hour or once a day. It may run beside an ingest.")]
pub(crate) struct RefreshArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Rebuild the maintained state from all rows, if its files are damaged or missing.
    #[arg(long)]
    pub rebuild: bool,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake compact --lake lake --dry-run
  synclake compact --lake s3://bucket/lake --to yesterday --max-duration 30m
  synclake compact --lake lake --pool us-east-1:0a1b… --from 2026-11-01 --to 2026-11-20 --target-size 64MiB

Files of less than half of the target size are merged, by pool and day. The rows stay the same, each in its order, and no
consumer gets a row again. Each group of files is one commit, so a run that is stopped or killed keeps what it committed,
and the next run does the rest. On SIGTERM or SIGINT the program commits the groups that it is merging, and exits with 0.
It may run beside an ingest, a refresh, extracts and deliveries. Replaced files stay until a vacuum.")]
pub(crate) struct CompactArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Table to compact.
    #[arg(long, value_enum, default_value = "sync_records")]
    pub table: CompactTable,
    /// Only this pool.
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// First day (UTC): YYYY-MM-DD, yesterday or today.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date)]
    pub from: Option<chrono::NaiveDate>,
    /// Last day.
    #[arg(long, value_name = "DATE", value_parser = extract::parse_date)]
    pub to: Option<chrono::NaiveDate>,
    /// Size of the new files, compressed.
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = config::parse_bytes)]
    pub target_size: u64,
    /// Limit the memory for files and rows to this many bytes; at least four times the target size.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = config::parse_bytes)]
    pub memory: u64,
    /// Report what would be merged, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Start no further group after this long.
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    pub max_duration: Option<std::time::Duration>,
    /// Format of the report.
    #[arg(long, value_enum, default_value = "json")]
    pub format: ReportFormat,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake vacuum --lake s3://bucket/lake --dry-run
  synclake vacuum --lake lake --retain 30d
  synclake vacuum --lake lake --table state --table daily_state --retain 1h

Deletes files that a commit removed before the retention began, and files of killed runs that are older and that nobody
can commit any more. Versions within the retention stay readable; a query of an older version may miss files. It may run
beside everything. On SIGTERM or SIGINT it ends after the current batch.")]
pub(crate) struct VacuumArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Only this table; repeat the flag for several tables.
    #[arg(long, value_name = "TABLE", value_parser = table)]
    pub table: Vec<Table>,
    /// Keep every file that a version of this last time lists, at least 1h.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = vacuum::parse_retention)]
    pub retain: std::time::Duration,
    /// Also delete files whose rows a consumer of `synclake deliver` has not got yet; such a consumer must start over.
    #[arg(long)]
    pub ignore_consumers: bool,
    /// Delete nothing, and list the files that would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Format of the report.
    #[arg(long, value_enum, default_value = "human")]
    pub format: ReportFormat,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// A table whose files can be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CompactTable {
    #[value(name = "sync_records")]
    SyncRecords,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake care --lake lake
  synclake care --lake s3://bucket/lake --retain 30d --max-duration 30m
  17 * * * *  synclake care --lake s3://bucket/lake --quiet          every hour, from cron

Does what refresh, compact and vacuum do, in this order and with their defaults. It may run beside everything, also beside
another round: of two that replace the same files, one does. On SIGTERM or SIGINT it commits what it is merging, and exits
with 0; the next round does the rest. The report has one object for each step, null for a step that was not begun.")]
pub(crate) struct CareArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Keep every file that a version of this last time lists, at least 1h.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = vacuum::parse_retention)]
    pub retain: std::time::Duration,
    /// Start to merge no further files after this long.
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    pub max_duration: Option<std::time::Duration>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake ddl --engine athena --lake s3://bucket/lake --database cognito
  synclake ddl --engine duckdb --lake lake > lake.sql && duckdb -init lake.sql

The views have the names and columns that synclake-query has. current_state is computed from all rows. refreshed_state is
the state of the last `synclake refresh`; it is fast, and exists for engines that read the Delta log. Engines that read
plain Parquet are not exact; the first lines of their output say why.")]
pub(crate) struct DdlArgs {
    /// Engine to print the statements for.
    #[arg(long, value_enum)]
    pub engine: ddl::Engine,
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Database or schema of the tables and views.
    #[arg(long, value_name = "NAME", default_value = "cognito")]
    pub database: String,
}

pub(crate) fn table(text: &str) -> Result<Table, String> {
    let known = || Table::ALL.map(Table::name).join(", ");
    let found = Table::ALL.into_iter().find(|table| table.name() == text);
    found.ok_or_else(|| format!("{text:?} is no table; there are {}", known()))
}

fn reason(text: &str) -> Result<Reason, String> {
    let known = || Reason::ALL.map(Reason::as_str).join(", ");
    Reason::parse(text).ok_or_else(|| format!("{text:?} is no reason; there are {}", known()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum FileFormat {
    Parquet,
    Csv,
    Ndjson,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake simulate --events 200000 --seed 7 --out events.ndjson --oracle truth.ndjson
  synclake simulate --events 1000 --to kinesis:cognito --endpoint-url http://127.0.0.1:4567")]
pub(crate) struct SimulateArgs {
    /// Number of synchronizations, not counting copies.
    #[arg(long, default_value_t = 10_000)]
    pub events: u64,
    /// Seed; the same seed and options generate the same stream.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of identity pools.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pools: u32,
    /// Number of identities.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub identities: u32,
    /// Number of days over which to spread the events.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// First day.
    #[arg(long, default_value = "2026-01-01", value_parser = extract::parse_date)]
    pub start: chrono::NaiveDate,
    /// Share of events that are delivered twice.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    pub duplicates: f64,
    /// Most later events that may overtake an event.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub reorder: u64,
    /// Share of events that arrive very late.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub late: f64,
    /// Share of events that remove a whole dataset.
    #[arg(long, default_value_t = 0.005, value_parser = share)]
    pub dataset_removals: f64,
    /// Share of events that are followed by a bulk-publish copy of a user's datasets.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub bulk_copies: f64,
    /// Typical length of a value, in characters.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub value_chars: u32,
    /// Share of records that are aggregates of the Kinesis Producer Library; needs --to.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub aggregates: f64,
    /// Share of records that are followed by a record that cannot be decoded.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub poison: f64,
    /// Share of events whose records are stored behind a URL; needs --payload-folder and --payload-url.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub oversize: f64,
    /// Write the files behind those URLs to this folder.
    #[arg(long, value_name = "FOLDER", help_heading = "Wire")]
    pub payload_folder: Option<PathBuf>,
    /// Prefix of those URLs: the address at which you serve the folder.
    #[arg(long, value_name = "URL", help_heading = "Wire")]
    pub payload_url: Option<String>,
    /// Write the stream to this file as NDJSON; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    pub out: Option<String>,
    /// Write the stream to kinesis:<stream>.
    #[arg(long, value_name = "STREAM")]
    pub to: Option<String>,
    /// Write the true current state to this file as NDJSON.
    #[arg(long, value_name = "FILE")]
    pub oracle: Option<PathBuf>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| (0.0..=1.0).contains(v));
    value.ok_or_else(|| format!("{text:?} is not a number between 0 and 1"))
}
