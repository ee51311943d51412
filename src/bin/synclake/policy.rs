//! `synclake policy`.

use anyhow::Result;
use clap::Args;
use synclake::config::{File, Unusable};
use synclake::retain::{
    self, ExpireReport, ExpiredRows, POOL_DEFAULT, PolicyChange, PolicyReport, Retain, TablePolicy,
};
use synclake::schema::Table;

use crate::args::{AwsArgs, ReportFormat};
use crate::output::{mib, print_line, print_report, report_format};
use crate::settings::open_lake;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake policy --lake lake
  synclake policy --lake s3://bucket/lake --retain 400d
  synclake policy --lake s3://bucket/lake --retain 30d --pool us-east-1:0a1b…
  synclake policy --lake s3://bucket/lake --retain 90d --table daily_state

Shows the policy, and sets one part of it with --retain. The policy is stored in the lake, as properties of its tables.
`synclake care`, and `synclake ingest --care full`, let the days leave that are older: their rows are no longer in
sync_records, and a vacuum deletes their files. The current state keeps the latest change of every key, however old it is.
Rows wait until the state, all consumers and the newest extract have them. The newest extract always stays.")]
pub(crate) struct PolicyArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Keep rows for this many days after their date, at least 7d, such as 400d; `forever` deletes nothing; `default` gives
    /// a pool the policy of the table again.
    #[arg(long, value_name = "DAYS", value_parser = retention)]
    pub retain: Option<Retention>,
    /// Table whose rows leave [default: sync_records].
    #[arg(long, value_enum, requires = "retain")]
    pub table: Option<PolicyTable>,
    /// Only this pool of sync_records, which the lake must have: its id, or its name in `synclake status`.
    #[arg(long, value_name = "POOL", requires = "retain")]
    pub pool: Option<String>,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// A table with a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PolicyTable {
    #[value(name = "sync_records")]
    SyncRecords,
    #[value(name = "daily_state")]
    DailyState,
}

/// The value of `--retain`; `None` for a pool that has the policy of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention(Option<Retain>);

fn retention(text: &str) -> Result<Retention, String> {
    match text {
        POOL_DEFAULT => Ok(Retention(None)),
        _ => retain::parse_retain(text).map(|retain| Retention(Some(retain))),
    }
}

/// Runs the command.
pub(crate) async fn run(args: PolicyArgs, file: &File) -> Result<()> {
    let table = match args.table {
        Some(PolicyTable::DailyState) => Table::DailyState,
        Some(PolicyTable::SyncRecords) | None => Table::SyncRecords,
    };
    if table == Table::DailyState && args.pool.is_some() {
        return Err(Unusable("--pool does not apply to daily_state; a day leaves with all its pools".to_owned()).into());
    }
    if args.retain == Some(Retention(None)) && args.pool.is_none() {
        let what = match table {
            Table::DailyState => "--retain default is for a pool of sync_records; --retain forever keeps every extract",
            _ => "--retain default needs --pool; --retain forever deletes nothing",
        };
        return Err(Unusable(what.to_owned()).into());
    }
    let lake = open_lake(args.lake, args.aws, file).await?;
    if let Some(Retention(retain)) = args.retain {
        retain::set(&lake, &PolicyChange { table, pool: args.pool, retain }).await?;
    }
    let report = retain::read(&lake).await?;
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report),
        ReportFormat::Human => print_policy(&report),
    }
}

/// Prints the policy for people.
fn print_policy(report: &PolicyReport) -> Result<()> {
    for (name, policy) in [("sync_records", &report.sync_records), ("daily_state", &report.daily_state)] {
        print_line(&format!("{name:13} {}", days(policy)))?;
        for (pool, retain) in &policy.pools {
            print_line(&format!("{:13} pool {pool}: {retain}", ""))?;
        }
    }
    for (pool, date) in &report.complete_from {
        print_line(&format!("pool {pool} has all rows from {date} on"))?;
    }
    Ok(())
}

fn days(policy: &TablePolicy) -> String {
    policy.retain.unwrap_or(Retain::Forever).to_string()
}

/// Prints what left, for people.
pub(crate) fn print_expiry(report: &ExpireReport) -> Result<()> {
    print_line(&expiry_summary("sync_records", &report.sync_records))?;
    print_line(&expiry_summary("daily_state", &report.daily_state))
}

fn expiry_summary(table: &str, left: &ExpiredRows) -> String {
    let mut text = format!(
        "{} files ({}, {} rows) of {} partitions left {table} by retention",
        left.files,
        mib(left.bytes),
        left.rows,
        left.partitions
    );
    for (reason, files) in &left.waiting {
        let what = match *reason {
            "not_refreshed" => "a refresh",
            "not_delivered" => "`synclake deliver`, or `deliver --forget`, of a consumer",
            _ => "`synclake extract`",
        };
        text += &format!("; {files} wait for {what}");
    }
    text
}
