//! Flags of `extract` and `deliver`.

use clap::Args;
use synclake::extract;

use super::AwsArgs;

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
  synclake deliver --lake lake --forget warehouse

Writes the rows added since the last delivery into feed/consumer=warehouse/versions=<from>-<to>/. A delivery is complete
once its folder has _SUCCESS. After a failure, run the same command again: it writes the same files.")]
pub(crate) struct DeliverArgs {
    /// Name of the consumer: 1 to 64 of [A-Za-z0-9_-].
    #[arg(long, value_name = "NAME", value_parser = extract::consumer::parse_name, required_unless_present = "forget")]
    pub consumer: Option<String>,
    /// Deliver nothing, and forget this consumer: it is not reported as behind, and vacuum keeps no file for it. Under
    /// its name, a later delivery begins with all rows.
    #[arg(long, value_name = "NAME", value_parser = extract::consumer::parse_name,
          conflicts_with_all = ["consumer", "out", "format"])]
    pub forget: Option<String>,
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Write the deliveries below this folder or s3:// prefix.
    #[arg(long, value_name = "URL", required_unless_present = "forget")]
    pub out: Option<String>,
    /// Format of the files.
    #[arg(long, value_enum, default_value = "parquet")]
    pub format: FileFormat,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum FileFormat {
    Parquet,
    Csv,
    Ndjson,
}
