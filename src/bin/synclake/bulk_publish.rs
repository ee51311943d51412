//! `synclake bulk-publish`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use indicatif::ProgressBar;
use synclake::aws::call::CallError;
use synclake::cognito::{BulkPublish, CognitoSync, PoolId};
use synclake::config::{File, Unusable};
use synclake::lake::Store;
use synclake::publishing::{self, Received};
use synclake::terminal;

use crate::args::{BulkPublishCommand, BulkPublishStartArgs, BulkPublishStatusArgs, BulkPublishWaitArgs, ReportFormat};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{location, of_each, pool_settings};

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
    of_each(&args.pools.pool, async |pool| {
        let cognito = CognitoSync::new(&pool_settings(&args.pools.aws, file, pool).await?).await;
        match cognito.configuration(pool).await?.streams {
            Some(stream) if stream.is_enabled => {}
            _ => bail!(
                "streaming of pool {pool} is off, so that a bulk publish would fail; run `synclake stream status --pool {pool}`"
            ),
        }
        cognito.start_bulk_publish(pool).await?;
        let publish = cognito.bulk_publish(pool).await?;
        print(&PublishReport { pool: pool.clone(), publish, received: None }, format)
    })
    .await
}

async fn status(args: BulkPublishStatusArgs, file: &File) -> Result<()> {
    let format = report_format(args.pools.format);
    of_each(&args.pools.pool, async |pool| {
        let watched = Watched::new(&args.pools.aws, args.lake.clone(), file, pool).await?;
        print(&watched.report().await?, format)
    })
    .await
}

async fn wait(args: BulkPublishWaitArgs, file: &File) -> Result<()> {
    let format = report_format(args.pools.format);
    let stop = terminal::stop_on_signals().context("listen to signals")?;
    let until = args.max_duration.map(|max| tokio::time::Instant::now() + max);
    of_each(&args.pools.pool, async |pool| {
        let watched = Watched::new(&args.pools.aws, args.lake.clone(), file, pool).await?;
        let bar = terminal::progress(None, "{spinner} {msg} {elapsed}");
        let mut state = "nothing is known yet".to_owned();
        let ended_early = tokio::select! {
            done = watched.follow(args.every, &bar, &mut state) => done.map(|()| None),
            () = passed(until) => Ok(Some("--max-duration is over")),
            () = stop.cancelled() => Ok(Some("stopped by a signal")),
        };
        bar.finish_and_clear();
        if let Some(why) = ended_early? {
            bail!("the bulk publish of pool {pool} is not done: {state}; {why}; run the same command again");
        }
        let report = watched.report().await?;
        print(&report, format)?;
        let message = report.publish.message.as_deref().unwrap_or("the service does not say why");
        match report.publish.status.as_str() {
            "SUCCEEDED" => Ok(()),
            "NOT_STARTED" => bail!("pool {pool} has no bulk publish; run `synclake bulk-publish start --pool {pool}`"),
            "FAILED" => bail!(
                "the bulk publish of pool {pool} failed, and some datasets may be missing: {message}; run `synclake bulk-publish start --pool {pool}`"
            ),
            status => bail!("the bulk publish of pool {pool} is {status}: {message}"),
        }
    })
    .await
}

/// Waits until a time, or for ever.
async fn passed(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
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

    /// Waits until the bulk publish has ended, and the lake was read past its end. A call that fails for a while is
    /// repeated. It reads no data file. `state` says how far it is.
    async fn follow(&self, every: Duration, bar: &ProgressBar, state: &mut String) -> Result<()> {
        loop {
            match self.progress().await {
                Ok(None) => return Ok(()),
                Ok(Some(now)) => *state = now,
                Err(error) if error.downcast_ref::<CallError>().is_some_and(CallError::may_pass) => {
                    *state = format!("the service fails: {}", terminal::chain(error.as_ref()));
                }
                Err(error) => return Err(error),
            }
            bar.set_message(state.clone());
            tokio::time::sleep(every).await;
        }
    }

    /// Returns how far the bulk publish is; `None` if it is done.
    async fn progress(&self) -> Result<Option<String>> {
        // The lake is looked at from the beginning: a wrong one is told at once.
        let read_to = match &self.lake {
            Some(lake) => publishing::read_to(lake, &self.stream().await?).await?,
            None => None,
        };
        let publish = self.cognito.bulk_publish(&self.pool).await?;
        if publish.is_running() {
            return Ok(Some("the service publishes".to_owned()));
        }
        let lags = self.lake.is_some() && publish.has_succeeded() && !publishing::is_complete(&publish, read_to);
        Ok(lags.then(|| match read_to {
            Some(_) => format!("the service is done, and the stream was read up to {}", shown(read_to)),
            None => {
                "the service is done, and the lake has no open shard of the stream: does a worker read it?".to_owned()
            }
        }))
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
    time.map_or("-".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
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
        // The service's own words, without characters that could steer a terminal.
        print_line(&format!("  {message:?}"))?;
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
