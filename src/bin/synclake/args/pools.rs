//! Flags of `stream` and `bulk-publish`.

use clap::{Args, Subcommand};
use synclake::cognito::PoolId;
use synclake::config;

use super::{AwsArgs, ReportFormat};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  synclake stream status --pool us-east-1:0a1b2c3d-…
  synclake stream enable --pool us-east-1:0a1b2c3d-… --stream cognito --create-stream --create-role --dry-run
  synclake stream repair --pool us-east-1:0a1b2c3d-… --yes

Cognito Sync turns streaming off by itself when the stream is deleted or the role fails, and tells
nobody. The region is that of the pool, which its id begins with.")]
pub(crate) enum StreamCommand {
    /// Show whether pools stream, and what keeps their records from arriving.
    Status(StreamStatusArgs),
    /// Turn streaming on: set stream and role of a pool, and create them on request.
    Enable(StreamEnableArgs),
    /// Turn streaming off. Stream, role and records stay.
    Disable(StreamDisableArgs),
    /// Mend what turned streaming off: a deleted stream, a role that is gone or fails.
    Repair(StreamRepairArgs),
}

/// Name of a created role.
pub(crate) const ROLE_NAME: &str = "synclake-cognito-stream";

/// The pools of a command, and its report.
#[derive(Debug, Args)]
pub(crate) struct PoolsArgs {
    /// Id of an identity pool; repeat the flag for several pools.
    #[arg(long, value_name = "POOL", required = true, value_parser = PoolId::parse)]
    pub pool: Vec<PoolId>,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// Whether changes are made.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ConsentArgs {
    /// Show the changes, and make none.
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Make the changes without asking.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake stream status --pool us-east-1:0a1b2c3d-…
  synclake stream status --pool us-east-1:0a1b2c3d-… --format json | jq -r '.findings[].remedy'

Prints one report for each pool, and exits with 0 whatever it finds. `synclake doctor` exits with 1
on a fault.")]
pub(crate) struct StreamStatusArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake stream enable --pool us-east-1:0a1b2c3d-…
  synclake stream enable --pool us-east-1:0a1b2c3d-… --stream cognito --role-arn arn:aws:iam::123456789012:role/cognito
  synclake stream enable --pool us-east-1:0a1b2c3d-… --stream cognito --create-stream --create-role

Shows the changes and asks before it makes them; --yes makes them without asking. Push sync of the
pool stays as it is. A created role lets cognito-sync.amazonaws.com write into this stream alone.
A stream carries only what changes from now on: `synclake bulk-publish` sends the rest.")]
pub(crate) struct StreamEnableArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
    /// Kinesis stream, in the region of the pool [default: the one that the pool has].
    #[arg(long, value_name = "NAME", value_parser = stream_name)]
    pub stream: Option<String>,
    /// Create the stream if it does not exist.
    #[arg(long)]
    pub create_stream: bool,
    /// Shards of a created stream; without the flag it is on demand.
    #[arg(long, value_name = "COUNT", requires = "create_stream", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub shards: Option<i32>,
    #[command(flatten)]
    pub retention: StreamRetentionArgs,
    /// Role by which Cognito Sync writes [default: the one that the pool has].
    #[arg(long, value_name = "ARN", value_parser = role_arn)]
    pub role_arn: Option<String>,
    /// Create the role if it does not exist, or change its policies if they do not suffice. NAME is for a pool
    /// without a role [default: synclake-cognito-stream].
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = ROLE_NAME, value_parser = role_name)]
    pub create_role: Option<String>,
    #[command(flatten)]
    pub consent: ConsentArgs,
}

/// The retention of a created stream.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct StreamRetentionArgs {
    /// How long a created stream keeps a record, from 1d to 365d: what is older is lost to a worker that did not run.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = stream_retention)]
    pub retention: i32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake stream disable --pool us-east-1:0a1b2c3d-…

Changes of datasets are not sent while streaming is off. After it is on again, a bulk publish sends
the data as it is then; the changes between are lost.")]
pub(crate) struct StreamDisableArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
    #[command(flatten)]
    pub consent: ConsentArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake stream repair --pool us-east-1:0a1b2c3d-… --dry-run
  synclake stream repair --pool us-east-1:0a1b2c3d-… --yes

Creates the stream and the role again under their names, gives the role its policies, and turns
streaming on. It changes only what is wrong. Then run `synclake bulk-publish start`: what changed
while streaming was off is in no stream.")]
pub(crate) struct StreamRepairArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
    #[command(flatten)]
    pub retention: StreamRetentionArgs,
    #[command(flatten)]
    pub consent: ConsentArgs,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  synclake bulk-publish start --pool us-east-1:0a1b2c3d-…
  synclake bulk-publish wait --pool us-east-1:0a1b2c3d-… --lake s3://bucket/lake
  synclake bulk-publish status --pool us-east-1:0a1b2c3d-… --lake s3://bucket/lake

A bulk publish sends every dataset of the pool into its stream again, as it is now. The service runs
one at a time, and allows one success in 24 hours.")]
pub(crate) enum BulkPublishCommand {
    /// Start a bulk publish.
    Start(BulkPublishStartArgs),
    /// Show the newest bulk publish, and what of it the lake has.
    Status(BulkPublishStatusArgs),
    /// Wait until the newest bulk publish has ended and the lake has its records.
    Wait(BulkPublishWaitArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake bulk-publish start --pool us-east-1:0a1b2c3d-… && synclake bulk-publish wait --pool us-east-1:0a1b2c3d-…

Fails if the pool does not stream, one is running, or one succeeded within 24 hours.")]
pub(crate) struct BulkPublishStartArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake bulk-publish status --pool us-east-1:0a1b2c3d-…
  synclake bulk-publish status --pool us-east-1:0a1b2c3d-… --lake s3://bucket/lake --format json | jq .received

With a lake, the report counts the rows of the pool that arrived since the bulk publish began:
their changes, those that the lake had before (copies), and the live datasets of the lake that did
not arrive. The counts are final when `is_complete` is true: then every shard was read past the end
of the bulk publish.")]
pub(crate) struct BulkPublishStatusArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
    /// Lake to compare with: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake bulk-publish wait --pool us-east-1:0a1b2c3d-… --lake s3://bucket/lake --max-duration 6h

Without a lake, it waits for the service alone. With a lake, it also waits until an ingest has read
every shard past the end of the bulk publish. Exits with 1 if the bulk publish failed, or was not
done within --max-duration.")]
pub(crate) struct BulkPublishWaitArgs {
    #[command(flatten)]
    pub pools: PoolsArgs,
    /// Lake to compare with: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Time between two questions to the service.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::parse_duration)]
    pub every: std::time::Duration,
    /// Give up after this long.
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    pub max_duration: Option<std::time::Duration>,
}

/// Parses the retention of a stream into hours.
fn stream_retention(text: &str) -> Result<i32, String> {
    let seconds = humantime::parse_duration(text).ok().map(|duration| duration.as_secs());
    let hours = seconds.filter(|seconds| seconds % 3_600 == 0).and_then(|seconds| i32::try_from(seconds / 3_600).ok());
    hours.filter(|hours| (24..=8_760).contains(hours)).ok_or_else(|| {
        format!("{text:?} is no retention of a stream; write 1d to 365d in whole hours, such as 7d or 36h")
    })
}

fn stream_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match (1..=128).contains(&text.len()) && text.chars().all(is_name) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a stream: 1 to 128 of [A-Za-z0-9_.-]")),
    }
}

fn role_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(is_name) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a role: 1 to 64 of [A-Za-z0-9_+=,.@-]")),
    }
}

fn role_arn(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let is_arn = match &parts[..] {
        ["arn", partition, "iam", "", account, role] => {
            partition.starts_with("aws")
                && account.len() == 12
                && account.bytes().all(|b| b.is_ascii_digit())
                && role.strip_prefix("role/").is_some_and(|name| !name.is_empty() && !name.ends_with('/'))
        }
        _ => false,
    };
    match is_arn {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no ARN of a role, such as arn:aws:iam::123456789012:role/name")),
    }
}
