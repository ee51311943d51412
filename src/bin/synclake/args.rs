//! The command line of `synclake`, its commands and their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod extract;
mod ingest;
mod pools;
mod simulate;
mod upkeep;

pub(crate) use extract::{DeliverArgs, ExtractArgs, FileFormat};
pub(crate) use ingest::IngestArgs;
pub(crate) use pools::{
    BulkPublishCommand, BulkPublishStartArgs, BulkPublishStatusArgs, BulkPublishWaitArgs, ConsentArgs, ROLE_NAME,
    StreamCommand, StreamEnableArgs,
};
pub(crate) use simulate::SimulateArgs;
pub(crate) use upkeep::{
    CareArgs, CompactArgs, CompactTable, DdlArgs, RedriveArgs, RefreshArgs, ReportFormat, StatusArgs, VacuumArgs,
    VerifyArgs, table,
};

use crate::catalog::CatalogCommand;
use crate::doctor::{DoctorArgs, HealthArgs};
use crate::iam_policy::IamPolicyArgs;
use crate::manifest::ManifestArgs;
use crate::policy::PolicyArgs;

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
  synclake doctor --source kinesis:cognito --lake s3://bucket/lake   check everything around it
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
    /// Refresh, let old rows leave, compact and vacuum once, from cron or by hand.
    Care(CareArgs),
    /// Show or set how long rows and extracts stay.
    Policy(PolicyArgs),
    /// Write manifests for engines that read Parquet without the Delta log.
    Manifest(ManifestArgs),
    /// Print tables and views for Athena, Spark, Trino, DuckDB or Redshift.
    Ddl(DdlArgs),
    /// Register the lake in the AWS Glue catalogue, for Athena and Redshift Spectrum.
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Show and change the streaming of identity pools.
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Send all data of identity pools into their streams again.
    #[command(subcommand)]
    BulkPublish(BulkPublishCommand),
    /// Check everything that a pipeline needs, from the credentials to the lake.
    Doctor(DoctorArgs),
    /// Print the IAM policy that the commands of a role need.
    IamPolicy(IamPolicyArgs),
    /// Ask an ingest on this machine whether it is alive.
    Health(HealthArgs),
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
