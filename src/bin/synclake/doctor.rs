//! `synclake doctor`, and `synclake health`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use synclake::catalog::Engine;
use synclake::cognito::PoolId;
use synclake::config::{File, Sources, Unusable, lease_table_of, parse_lease_table, parse_metrics};
use synclake::doctor::{self, DoctorOptions, Verdict};
use synclake::terminal;

use crate::args::{AwsArgs, ReportFormat};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{aws_settings, location};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake doctor --lake s3://bucket/lake
  synclake doctor --lake s3://bucket/lake --source kinesis:cognito --lease-table dynamodb:synclake-cognito \\
    --pool us-east-1:0a1b2c3d-…
  synclake doctor --lake s3://bucket/lake --engine athena
  synclake doctor --lake lake --format json | jq '.checks[] | select(.verdict != \"ok\")'

Checks what is given: credentials, region and clock; the stream; streaming of each pool, its role
and its silence; the bucket; the lease table; the lake; the catalogue of an engine. Each check is
ok, a warning or a fault, with its remedy. Nothing is changed: the one write is an object below the lake, which is deleted again.
Exits with 1 if there is a fault.")]
pub(crate) struct DoctorArgs {
    /// Lake: s3://bucket/prefix, or a folder.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Stream: kinesis:<stream>; repeat the flag for several streams.
    #[arg(long, env = "SYNCLAKE_SOURCE", value_name = "SOURCE")]
    pub source: Vec<String>,
    /// Lease table of a fleet: dynamodb:<table>.
    #[arg(long, env = "SYNCLAKE_LEASE_TABLE", value_name = "TABLE")]
    pub lease_table: Option<String>,
    /// Id of an identity pool; repeat the flag for several pools.
    #[arg(long, value_name = "POOL", value_parser = PoolId::parse)]
    pub pool: Vec<PoolId>,
    /// Engine for which `catalog sync` registered the lake in the Glue catalogue.
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Database of the catalogue.
    #[arg(long, value_name = "NAME", default_value = "cognito", requires = "engine")]
    pub database: String,
    /// Format of the report [default: human on a terminal, json otherwise].
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

/// Runs `synclake doctor`.
pub(crate) async fn run(args: DoctorArgs, file: &File) -> Result<()> {
    let lake = args.lake.or_else(|| file.lake.clone()).map(|lake| location("lake", &lake)).transpose()?;
    let sources = Sources::of(args.source, file);
    let streams = Sources::streams(&sources);
    if let Some(other) = sources.iter().find(|source| !source.starts_with("kinesis:") && !source.starts_with("file:")) {
        return Err(Unusable(format!("--source {other:?} is neither kinesis:<stream> nor file:<path>")).into());
    }
    let table = args.lease_table.or_else(|| file.lease_table.clone());
    let table = table.map(|table| parse_lease_table(&table)).transpose();
    let table = table.map_err(|error| Unusable(format!("--lease-table {error}")))?;
    let lease_tables = match (table, &streams[..]) {
        (None, _) => Vec::new(),
        (Some(table), []) => vec![table],
        (Some(table), streams) => {
            let of = |stream: &String| lease_table_of(&table, stream, streams.len());
            streams.iter().map(of).collect::<Result<_, _>>()?
        }
    };
    if lake.is_none() && streams.is_empty() && lease_tables.is_empty() && args.pool.is_empty() {
        return Err(Unusable("nothing to check; give --lake, --source, --lease-table or --pool".to_owned()).into());
    }
    if args.engine.is_some() && lake.is_none() {
        return Err(Unusable("--engine compares the catalogue with a lake; give --lake".to_owned()).into());
    }
    let aws = aws_settings(args.aws, file).await?;
    let catalog = args.engine.map(|engine| (engine, args.database));
    let options =
        DoctorOptions { aws, pools: args.pool, streams, lake, lease_tables, catalog, now: chrono::Utc::now() };
    let bar = terminal::progress(None, "{spinner} checking {elapsed}");
    let report = doctor::run(&options).await;
    bar.finish_and_clear();
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report)?,
        ReportFormat::Human => {
            for check in &report.checks {
                let verdict = match check.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "warning",
                    Verdict::Fault => "FAULT",
                };
                print_line(&format!("{verdict:8} {:19} {}", check.check, check.text))?;
                if let Some(remedy) = &check.remedy {
                    print_line(&format!("{:28} {remedy}", ""))?;
                }
            }
        }
    }
    match report.count(Verdict::Fault) {
        0 => Ok(()),
        1 => bail!("1 fault, listed on standard output"),
        faults => bail!("{faults} faults, listed on standard output"),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake health
  synclake health 127.0.0.1:9464

Asks /healthz of an ingest with --metrics ADDRESS: the health check of a container. Exits with 1 if
it does not answer, or if its loop stands still.")]
pub(crate) struct HealthArgs {
    /// Address of the metrics [default: that of the settings, else 127.0.0.1:9464].
    #[arg(value_name = "ADDRESS", env = "SYNCLAKE_METRICS")]
    pub address: Option<String>,
}

/// Time for the answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(4);

/// Runs `synclake health`.
pub(crate) async fn health(args: HealthArgs, file: &File) -> Result<()> {
    let metrics = args.address.or_else(|| file.metrics.clone()).map(|text| parse_metrics(&text)).transpose();
    let address = metrics.map_err(Unusable)?.and_then(|metrics| metrics.address);
    let mut address = address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{address}/healthz");
    let client = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build().context("build the client")?;
    let asked = async {
        let answer = client.get(&url).send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.text().await?))
    };
    let (status, text) = asked.await.map_err(|error| {
        // The last cause says what happened; the others repeat the address.
        let cause = anyhow::Error::from(error);
        anyhow!("no ingest answers at {url} ({}); is --metrics set?", cause.root_cause())
    })?;
    match (status.is_success(), text.trim_end()) {
        (true, "ok") => print_line("ok"),
        (true, _) => bail!("{url} answered {status}, and is no ingest; check the address"),
        (false, text) => bail!("{url} answered {status}: {text}"),
    }
}
