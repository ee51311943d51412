//! Flags of `status`, `verify`, `redrive`, `refresh`, `compact`, `vacuum`, `care` and `ddl`.

use clap::Args;
use synclake::decode::Reason;
use synclake::schema::Table;
use synclake::{config, ddl, extract, vacuum};

use super::AwsArgs;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake status --lake lake
  synclake status --lake s3://bucket/lake --verbose
  synclake status --lake s3://bucket/lake --format json | jq '.next[].text'
  synclake status --lake s3://bucket/lake --commits 50000       exact growth of a busy week
  watch -n 60 synclake status --lake s3://bucket/lake --format human

Reads only the logs of the tables, no data file. Times are those of the commits, and ages refer to
the clock of this machine. A number after >= is a lower bound. Exits with 0 if the lake could be
read, whatever there is to do.")]
pub(crate) struct StatusArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
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

Exits with 1 if it finds a fault. Orphans (files that no commit lists) are not faults: no reader
of the table sees them, and the next ingest of their shard deletes them. Gaps (records that the
stream trimmed before they were read) are reported. They are not faults of the lake, and a bulk
publish restores their data.")]
pub(crate) struct VerifyArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
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

Run it after an upgrade whose decoder accepts more records. Each record is moved once, even if the
command is killed and run again. Records that still cannot be decoded stay in the quarantine. It
may run beside an ingest.")]
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

Reads the rows added since the last refresh, and rewrites the affected files of the table state.
current_state and dataset_state are exact to the newest commit with or without a refresh; a
refresh makes them fast. Run it from cron, once an hour or once a day. It may run beside an
ingest.")]
pub(crate) struct RefreshArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Rebuild the maintained state from all rows, if its files are damaged or missing.
    #[arg(long)]
    pub rebuild: bool,
    /// With --rebuild: give up the keys whose last change left by retention. Only for a lake whose table `state` is lost,
    /// and has no backup.
    #[arg(long, requires = "rebuild")]
    pub accept_loss: bool,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake compact --lake lake --dry-run
  synclake compact --lake s3://bucket/lake --to yesterday --max-duration 30m
  synclake compact --lake lake --pool us-east-1:0a1b… --from 2026-11-01 --to 2026-11-20 --target-size 64MiB
  synclake compact --lake lake --table quarantine

Files of less than half of the target size are merged, by pool and day; those of quarantine by the
day of arrival. A refresh and an extract write whole files of state and daily_state, which need no
merging. The rows stay the same, each in its order, and no consumer gets a row again. Each group
of files is one commit, so a run that is stopped or killed keeps what it committed, and the next
run does the rest. On SIGTERM or SIGINT the program commits the groups that it is merging, and
exits with 0. It may run beside an ingest, a refresh, extracts and deliveries. Replaced files stay
until a vacuum.

With --collapse-duplicates, the files that are merged lose exact copies of changes; changes and
the current state stay the same. Given up are the shards, sequence numbers and arrivals of the
dropped copies, and count(*) of sync_records, resolved and cognito_raw_data falls. Older versions
of synclake refuse the lake from then on.")]
pub(crate) struct CompactArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Table to compact.
    #[arg(long, value_enum, default_value = "sync_records")]
    pub table: CompactTable,
    /// Only this pool, which the lake must have: its id, or its name in `synclake status`.
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
    /// Limit the memory for files and rows to this many bytes; at least 64MiB, and four
    /// times the target size.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = config::parse_bytes)]
    pub memory: u64,
    /// Keep one row of exact copies of a change, the latest one, with their number in the column `copies`.
    #[arg(long)]
    pub collapse_duplicates: bool,
    /// Report what would be merged, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Start no further group after this long.
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    pub max_duration: Option<std::time::Duration>,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake vacuum --lake s3://bucket/lake --dry-run
  synclake vacuum --lake s3://bucket/lake --dry-run --format json | jq -r '.would_delete[].path'
  synclake vacuum --lake lake --retain 30d
  synclake vacuum --lake lake --table state --table daily_state --retain 1h

Deletes files that a commit removed before the retention began, and files of killed runs that are
older and that nobody can commit any more. Versions within the retention stay readable; a query of
an older version may miss files. Commits of the log go when they are older than
delta.logRetentionDuration (90 days unless the table says otherwise) and no refresh, consumer or
extract needs them. It may run beside everything. On SIGTERM or SIGINT it ends after the current
batch.")]
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
    /// Also delete files and commits whose rows a consumer of `synclake deliver` has not got yet; such a consumer must start
    /// over.
    #[arg(long)]
    pub ignore_consumers: bool,
    /// Delete nothing, and list the files that would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// A table that can have many small files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CompactTable {
    #[value(name = "sync_records")]
    SyncRecords,
    Quarantine,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake care --lake lake
  synclake care --lake s3://bucket/lake --retain 30d --max-duration 30m
  17 * * * *  synclake care --lake s3://bucket/lake --quiet          every hour, from cron

Does what refresh, compact and vacuum do, in this order and with their defaults. After the
refresh, rows leave that are older than the lake's policy (`synclake policy`). It may run beside
everything, also beside another round: of two that replace the same files, one does. On SIGTERM or
SIGINT it commits what it is merging, and exits with 0; the next round does the rest. The report
has one object for each step. It is null for a step that did not end: a signal or an error came
before or during it.")]
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
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake ddl --engine athena --lake s3://bucket/lake --database cognito
  synclake ddl --engine athena --lake s3://bucket/lake --split statements   a file for each statement
  synclake ddl --engine dbt --lake s3://bucket/lake > models/sources.yml
  synclake ddl --engine duckdb --lake lake > lake.sql && duckdb -init lake.sql

The views have the names and columns that synclake-query has. current_state is computed from all
rows. refreshed_state is the state of the last `synclake refresh`; it is fast, and exists for
engines that read the Delta log. Engines that read plain Parquet are not exact; the first lines of
their output say why.")]
pub(crate) struct DdlArgs {
    /// Engine to print the statements for.
    #[arg(long, value_enum)]
    pub engine: ddl::Engine,
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Print the statements for a lake with collapsed copies (`compact --collapse-duplicates`). A lake in a folder is looked
    /// at without this flag.
    #[arg(long)]
    pub collapsed: bool,
    /// Database or schema of the tables and views.
    #[arg(long, value_name = "NAME", default_value = "cognito")]
    pub database: String,
    /// Write each statement into a file of this folder, which must be empty: for runners of one statement, such as Athena.
    #[arg(long, value_name = "FOLDER")]
    pub split: Option<std::path::PathBuf>,
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
