//! `synclake stream`.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result};
use synclake::aws::AwsSettings;
use synclake::aws::identity;
use synclake::cognito::PoolId;
use synclake::config::{File, Unusable};
use synclake::streaming::{Change, EnableOptions, PlanError, PoolReport, State, Streaming};
use synclake::terminal::print_message;

use crate::args::{ConsentArgs, ReportFormat, StreamCommand, StreamEnableArgs};
use crate::output::{print_line, print_report, report_format};
use crate::settings::pool_settings;

/// The report of a change.
#[derive(Debug, serde::Serialize)]
struct ChangeReport {
    changes: Vec<Change>,
    is_applied: bool,
    #[serde(flatten)]
    after: PoolReport,
}

/// Runs `synclake stream`.
pub(crate) async fn run(command: StreamCommand, file: &File) -> Result<()> {
    match command {
        StreamCommand::Status(args) => {
            let format = report_format(args.pools.format);
            for pool in &args.pools.pool {
                let aws = pool_settings(&args.pools.aws, file, pool).await?;
                let report = Streaming::new(&aws).await.status(pool).await?;
                match format {
                    ReportFormat::Json => print_report(&report)?,
                    ReportFormat::Human => print_pool(&report)?,
                }
            }
            Ok(())
        }
        StreamCommand::Enable(args) => {
            let format = report_format(args.pools.format);
            for pool in &args.pools.pool {
                let aws = pool_settings(&args.pools.aws, file, pool).await?;
                let streaming = Streaming::new(&aws).await;
                let options = enable_options(&args, &aws, &streaming, pool).await?;
                let changes = streaming.plan_enable(pool, &options).await.map_err(usage)?;
                apply(&streaming, pool, changes, args.consent, format).await?;
            }
            Ok(())
        }
        StreamCommand::Disable(args) => {
            let format = report_format(args.pools.format);
            for pool in &args.pools.pool {
                let streaming = Streaming::new(&pool_settings(&args.pools.aws, file, pool).await?).await;
                let changes = streaming.plan_disable(pool).await.map_err(usage)?;
                apply(&streaming, pool, changes, args.consent, format).await?;
            }
            Ok(())
        }
        StreamCommand::Repair(args) => {
            let format = report_format(args.pools.format);
            let options = EnableOptions {
                may_create_stream: true,
                may_change_role: true,
                retention_hours: args.retention.retention,
                ..EnableOptions::default()
            };
            for pool in &args.pools.pool {
                let streaming = Streaming::new(&pool_settings(&args.pools.aws, file, pool).await?).await;
                if streaming.status(pool).await?.streaming == State::None {
                    let message = format!(
                        "pool {pool} has no stream to repair; run `synclake stream enable --pool {pool} --stream NAME`"
                    );
                    return Err(Unusable(message).into());
                }
                let changes = streaming.plan_enable(pool, &options).await.map_err(usage)?;
                let has_changed = apply(&streaming, pool, changes, args.consent, format).await?;
                if has_changed {
                    print_message(&format!(
                        "what changed while streaming was off is in no stream; run `synclake bulk-publish start --pool {pool}`"
                    ));
                }
            }
            Ok(())
        }
    }
}

async fn enable_options(
    args: &StreamEnableArgs,
    aws: &AwsSettings,
    streaming: &Streaming,
    pool: &PoolId,
) -> Result<EnableOptions> {
    let mut role_arn = args.role_arn.clone();
    if role_arn.is_none()
        && let Some(name) = &args.create_role
    {
        let has_role =
            streaming.status(pool).await?.configured.is_some_and(|configured| !configured.role_arn.is_empty());
        if !has_role {
            role_arn = Some(identity::caller(aws).await?.role_arn(name));
        }
    }
    Ok(EnableOptions {
        stream: args.stream.clone(),
        may_create_stream: args.create_stream,
        shards: args.shards,
        retention_hours: args.retention.retention,
        role_arn,
        may_change_role: args.create_role.is_some(),
    })
}

/// What only the user can decide is a usage error.
fn usage(error: PlanError) -> anyhow::Error {
    match error {
        PlanError::Undecided(text) => Unusable(text).into(),
        PlanError::Call(error) => error.into(),
    }
}

/// Shows the changes, asks, makes them and reports the pool. Returns whether it has changed anything.
async fn apply(
    streaming: &Streaming,
    pool: &PoolId,
    changes: Vec<Change>,
    consent: ConsentArgs,
    format: ReportFormat,
) -> Result<bool> {
    let is_applied = match changes.is_empty() {
        true => {
            print_message(&format!("pool {pool}: nothing to change"));
            false
        }
        false => {
            print_message(&format!("pool {pool}:"));
            for change in &changes {
                print_message(&format!("  - {change}"));
            }
            !consent.dry_run && (consent.yes || ask(pool)?)
        }
    };
    let after = match is_applied {
        true => streaming.apply(pool, &changes).await?,
        false => streaming.status(pool).await?,
    };
    match format {
        ReportFormat::Json => print_report(&ChangeReport { changes, is_applied, after })?,
        ReportFormat::Human => print_pool(&after)?,
    }
    Ok(is_applied)
}

fn ask(pool: &PoolId) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let message = format!("pool {pool}: nobody can be asked; give --yes to make these changes, or --dry-run");
        return Err(Unusable(message).into());
    }
    eprint!("Make these changes? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Prints a pool for people.
fn print_pool(report: &PoolReport) -> Result<()> {
    let state = match report.streaming {
        State::Enabled => "streaming is on",
        State::Disabled => "streaming is off",
        State::None => "no stream",
    };
    let push = if report.has_push_sync { "; push sync is configured" } else { "" };
    print_line(&format!("pool {}: {state}{push}", report.pool))?;
    if let Some(configured) = &report.configured {
        let stream = report.stream.as_ref().map_or("does not exist".to_owned(), |stream| {
            let mode = match stream.mode.as_deref() {
                Some("ON_DEMAND") => ", on demand",
                Some(_) => ", provisioned",
                None => "",
            };
            let key = stream.key.as_ref().map_or("not encrypted".to_owned(), |key| format!("encrypted by {key}"));
            let (status, shards, hours) = (&stream.status, stream.open_shards, stream.retention_hours);
            format!("{status}{mode}, {shards} open shards, keeps records for {hours} h, {key}")
        });
        print_line(&format!("  stream {}: {stream}", configured.stream))?;
        print_line(&format!("  role {}", configured.role_arn))?;
    }
    for finding in &report.findings {
        let kind = if finding.is_fault { "FAULT" } else { "UNKNOWN" };
        print_line(&format!("  {kind} {}; {}", finding.text, finding.remedy))?;
    }
    Ok(())
}
