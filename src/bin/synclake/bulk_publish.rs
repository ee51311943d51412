//! `synclake bulk-publish`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use synclake::cognito::{BulkPublish, CognitoSync, PoolId};
use synclake::config::{File, Unusable};
use synclake::lake::Store;
use synclake::publishing::{self, Received};
use synclake::terminal;

use crate::args::{BulkPublishCommand, BulkPublishStartArgs, BulkPublishStatusArgs, BulkPublishWaitArgs, ReportFormat};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{location, pool_settings};

/// The report on a bulk publish.
#[derive(Debug, serde::Serialize)]
struct PublishReport {
    pool: PoolId,
    #[serde(flatten)]
    publish: BulkPublish,
    received: Option<Received>,
}

/// Runs `synclake bulk-publish`.
pub(crate) async fn run(command: BulkPublishCommand, file: &File) -> Result<()> {
    match command {
        BulkPublishCommand::Start(args) => start(args, file).await,
        BulkPublishCommand::Status(args) => status(args, file).await,
        BulkPublishCommand::Wait(args) => wait(args, file).await,
    }
}

async fn start(args: BulkPublishStartArgs, file: &File) -> Result<()> {
    let format = report_format(args.pools.format);
    for pool in &args.pools.pool {
        let cognito = CognitoSync::new(&pool_settings(&args.pools.aws, file, pool).await?).await;
        match cognito.configuration(pool).await?.streams {
            Some(stream) if stream.is_enabled => {}
            _ => bail!(
                "streaming of pool {pool} is off, so that a bulk publish would fail; run `synclake stream status --pool {pool}`"
            ),
        }
        cognito.start_bulk_publish(pool).await?;
        let publish = cognito.bulk_publish(pool).await?;
        print(&PublishReport { pool: pool.clone(), publish, received: None }, format)?;
    }
    Ok(())
}

async fn status(args: BulkPublishStatusArgs, file: &File) -> Result<()> {
    let format = report_format(args.pools.format);
    for pool in &args.pools.pool {
        let watched = Watched::new(&args.pools.aws, args.lake.clone(), file, pool).await?;
        print(&watched.report().await?, format)?;
    }
    Ok(())
}

async fn wait(args: BulkPublishWaitArgs, file: &File) -> Result<()> {
    let format = report_format(args.pools.format);
    let stop = terminal::stop_on_signals().context("listen to signals")?;
    let since = Instant::now();
    let mut failed = Vec::new();
    for pool in &args.pools.pool {
        let watched = Watched::new(&args.pools.aws, args.lake.clone(), file, pool).await?;
        let bar = terminal::progress(None, "{spinner} {msg} {elapsed}");
        let ended_early = loop {
            let (publish, read_to) = watched.progress().await?;
            let lags = watched.lake.is_some() && publish.has_succeeded() && !publishing::is_complete(&publish, read_to);
            if !publish.is_running() && !lags {
                break None;
            }
            let state = match lags {
                false => "the service publishes".to_owned(),
                true => format!("the service is done, and the stream was read up to {}", shown(read_to)),
            };
            bar.set_message(state.clone());
            let left = args.max_duration.map_or(Duration::MAX, |max| max.saturating_sub(since.elapsed()));
            match (left.is_zero(), stop.is_cancelled()) {
                (true, _) => break Some(format!("{state}; --max-duration is over")),
                (_, true) => break Some(format!("{state}; stopped by a signal")),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(args.every.min(left)) => {}
                () = stop.cancelled() => {}
            }
        };
        bar.finish_and_clear();
        let report = watched.report().await?;
        print(&report, format)?;
        if let Some(why) = ended_early {
            bail!("the bulk publish of pool {pool} is not done: {why}; run the same command again");
        }
        if !report.publish.has_succeeded() {
            let message = report.publish.message.as_deref().unwrap_or("the service does not say why");
            failed.push(match report.publish.status.as_str() {
                "NOT_STARTED" => format!("pool {pool} has none; run `synclake bulk-publish start --pool {pool}`"),
                "FAILED" => format!(
                    "that of pool {pool} failed, and some datasets may be missing: {message}; run `synclake bulk-publish start --pool {pool}`"
                ),
                status => format!("that of pool {pool} is {status}: {message}"),
            });
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("no bulk publish succeeded: {}", failed.join("; ")),
    }
}

/// A pool, and the lake that its records go to.
struct Watched {
    pool: PoolId,
    cognito: CognitoSync,
    lake: Option<Store>,
}

impl Watched {
    async fn new(aws: &crate::args::AwsArgs, lake: Option<String>, file: &File, pool: &PoolId) -> Result<Self> {
        let settings = pool_settings(aws, file, pool).await?;
        let lake = match lake.or_else(|| file.lake.clone()) {
            // A lake may be in another region than its pools.
            Some(lake) => {
                let settings = crate::settings::aws_settings(aws.clone(), file).await?;
                Some(Store::open(&location("lake", &lake)?, &settings).await?)
            }
            None => None,
        };
        Ok(Self { pool: pool.clone(), cognito: CognitoSync::new(&settings).await, lake })
    }

    /// Returns the state of the bulk publish, and up to when the stream was read. It reads no data file.
    async fn progress(&self) -> Result<(BulkPublish, Option<DateTime<Utc>>)> {
        let publish = self.cognito.bulk_publish(&self.pool).await?;
        let read_to = match &self.lake {
            Some(lake) if publish.has_succeeded() => publishing::read_to(lake, &self.stream().await?).await?,
            _ => None,
        };
        Ok((publish, read_to))
    }

    async fn report(&self) -> Result<PublishReport> {
        let publish = self.cognito.bulk_publish(&self.pool).await?;
        let received = match &self.lake {
            Some(lake) => publishing::received(lake, &self.pool, &self.stream().await?, &publish).await?,
            None => None,
        };
        Ok(PublishReport { pool: self.pool.clone(), publish, received })
    }

    /// Returns the name of the pool's stream.
    async fn stream(&self) -> Result<String> {
        let streams = self.cognito.configuration(&self.pool).await?.streams;
        let none = || Unusable(format!("pool {0} has no stream; run `synclake stream enable --pool {0}`", self.pool));
        Ok(streams.ok_or_else(none)?.stream)
    }
}

fn shown(time: Option<DateTime<Utc>>) -> String {
    time.map_or("an unknown time".to_owned(), |time| time.to_rfc3339())
}

fn print(report: &PublishReport, format: ReportFormat) -> Result<()> {
    if format == ReportFormat::Json {
        return print_report(report);
    }
    let (pool, publish) = (&report.pool, &report.publish);
    print_line(&format!(
        "pool {pool}: {}, started {}, ended {}",
        publish.status,
        shown(publish.started_at),
        shown(publish.completed_at)
    ))?;
    if let Some(message) = &publish.message {
        print_line(&format!("  {message}"))?;
    }
    let Some(got) = &report.received else { return Ok(()) };
    print_line(&format!(
        "  received since: {} datasets ({} new), {} keys, {} changes ({} copies of what the lake had), {} rows",
        got.datasets, got.new_datasets, got.keys, got.changes, got.copies, got.delivered
    ))?;
    print_line(&format!("  live datasets of the lake of which nothing arrived: {}", got.live_datasets_absent))?;
    let complete = if got.is_complete { "these counts are complete" } else { "more may come" };
    print_line(&format!("  the stream was read up to {}: {complete}", shown(got.read_to)))
}
