//! `synclake catalog`.

use anyhow::Result;
use clap::{Args, Subcommand};
use synclake::catalog::{self, Action, CatalogError, CatalogOptions, CatalogReport, Engine, EntryReport, Kind};
use synclake::config::{File, Unusable};

use crate::args::{AwsArgs, ReportFormat};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{aws_settings, open_lake};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  synclake catalog sync --engine athena --lake s3://bucket/lake --dry-run")]
pub(crate) enum CatalogCommand {
    /// Register the tables and views of a lake in the AWS Glue catalogue, or bring them up to date.
    Sync(CatalogSyncArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake catalog sync --engine athena --lake s3://bucket/lake
  synclake catalog sync --engine athena --lake s3://bucket/lake --dry-run     only compare
  synclake catalog sync --engine redshift --database cognito_spectrum --lake s3://bucket/lake

Athena reads the Delta tables, and gets the views. Redshift Spectrum reads the files of manifests
(`synclake manifest`), and sees only the partitions that the catalogue has: run this after each
`care`. Its views are Redshift's own: `synclake ddl --engine redshift` prints them. Each engine needs
a database of its own.

A table or view that something else made under the same name is refused; --replace takes it over.
`synclake doctor --engine ENGINE` tells when the catalogue is no longer as this command left it.")]
pub(crate) struct CatalogSyncArgs {
    /// Engine that will read the tables.
    #[arg(long, value_enum)]
    pub engine: Engine,
    /// Lake: s3://bucket/prefix.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Database of the catalogue; it is created if it does not exist.
    #[arg(long, value_name = "NAME", default_value = "cognito")]
    pub database: String,
    /// Only compare: show what would be created or changed.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace tables and views that something else made under the same names.
    #[arg(long)]
    pub replace: bool,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// Runs `synclake catalog`.
pub(crate) async fn run(command: CatalogCommand, file: &File) -> Result<()> {
    let CatalogCommand::Sync(args) = command;
    let aws = aws_settings(args.aws.clone(), file).await?;
    aws.check_region().await.map_err(Unusable)?;
    let lake = open_lake(args.lake, args.aws, file).await?;
    let options = CatalogOptions {
        engine: args.engine,
        database: args.database,
        may_replace: args.replace,
        is_dry_run: args.dry_run,
    };
    let report = catalog::sync(&lake, &aws, &options).await.map_err(|error| match error {
        CatalogError::Invalid(text) => anyhow::Error::from(Unusable(text)),
        error => error.into(),
    })?;
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report),
        ReportFormat::Human => print_text(&report),
    }
}

fn print_text(report: &CatalogReport) -> Result<()> {
    for entry in &report.entries {
        let done = match (entry.action, report.is_applied) {
            (Action::None, _) => "as it should be",
            (Action::Create, true) => "created",
            (Action::Create, false) => "is missing",
            (Action::Update, true) => "updated",
            (Action::Update, false) => "differs",
        };
        print_line(&format!("{:10} {:32} {done}", kind(entry), entry.name))?;
        for difference in &entry.differences {
            print_line(&format!("{:10} {difference}", ""))?;
        }
    }
    for table in &report.missing {
        print_line(&format!("{:10} {table:32} the lake does not have it yet", "table"))?;
    }
    Ok(())
}

fn kind(entry: &EntryReport) -> &'static str {
    match entry.kind {
        Kind::Database => "database",
        Kind::Table => "table",
        Kind::View => "view",
        Kind::Partitions => "partitions",
    }
}
