//! `synclake manifest`.

use anyhow::Result;
use clap::Args;
use synclake::config::File;
use synclake::lake::{LakeError, manifest};
use synclake::schema::Table;

use crate::args::{AwsArgs, ReportFormat, table};
use crate::output::{print_line, print_report, report_format};
use crate::settings::open_lake;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake manifest --lake s3://bucket/lake
  synclake manifest --lake lake --table sync_records

A manifest lists the files of a partition, for engines that read Parquet without the Delta log: Athena without Delta,
Redshift Spectrum, Hive, Presto, DuckDB. `synclake ddl --engine athena-hive|redshift|duckdb-parquet` reads manifests.
They show the lake as of this command. Once they exist, `refresh`, `extract`, `redrive`, `compact`, `vacuum` and `care`
keep them up to date; `ingest` does not, so run `care` or this command as often as such readers want new rows.")]
pub(crate) struct ManifestArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Only this table; repeat the flag for several tables.
    #[arg(long, value_name = "TABLE", value_parser = table)]
    pub table: Vec<Table>,
    /// Format of the report: one line for each table [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// Runs the command.
pub(crate) async fn run(args: ManifestArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake, args.aws, file).await?;
    if !Table::SyncRecords.exists(&lake).await? {
        return Err(LakeError::NoLake(lake.to_string()).into());
    }
    let is_wanted = |table: &Table| args.table.is_empty() || args.table.contains(table);
    for table in Table::ALL.into_iter().filter(is_wanted) {
        // A lake without a refresh has no table `state`.
        if let Some(report) = manifest::update(&lake, table).await? {
            match report_format(args.format) {
                ReportFormat::Json => print_report(&report)?,
                ReportFormat::Human => print_line(&format!(
                    "{:13} version {}, {} manifests ({} written), {} files",
                    report.table, report.version, report.manifests, report.written, report.files
                ))?,
            }
        }
    }
    Ok(())
}
