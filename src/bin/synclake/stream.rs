//! `synclake stream`.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use synclake::aws::AwsSettings;
use synclake::aws::identity;
use synclake::cognito::PoolId;
use synclake::config::{File, Unusable};
use synclake::streaming::{Change, EnableOptions, PlanError, PoolReport, State, Streaming};
use synclake::terminal::{print_message, write_line};

use crate::args::{ConsentArgs, ROLE_NAME, ReportFormat, StreamCommand, StreamEnableArgs};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{of_each, pool_settings};

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
    let pools = match &command {
        StreamCommand::Status(args) => &args.pools,
        StreamCommand::Enable(args) => &args.pools,
        StreamCommand::Disable(args) => &args.pools,
        StreamCommand::Repair(args) => &args.pools,
    };
    let format = report_format(pools.format);
    of_each(&pools.pool, async |pool| {
        let aws = pool_settings(&pools.aws, file, pool).await?;
        let streaming = Streaming::new(&aws).await;
        match &command {
            StreamCommand::Status(_) => print(&streaming.status(pool).await?, format),
            StreamCommand::Enable(args) => {
                let options = enable_options(args, &aws, &streaming, pool).await?;
                let changes = streaming.plan_enable(pool, &options).await.map_err(usage)?;
                let done = apply(&streaming, pool, changes, args.consent, format).await?;
                works(&done)?;
                if done.is_applied {
                    print_message(&format!(
                        "the stream gets changes from now on; `synclake bulk-publish start --pool {pool}` publishes what the pool holds already"
                    ));
                }
                Ok(())
            }
            StreamCommand::Disable(args) => {
                let changes = streaming.plan_disable(pool).await.map_err(usage)?;
                apply(&streaming, pool, changes, args.consent, format).await.map(drop)
            }
            StreamCommand::Repair(args) => {
                if streaming.status(pool).await?.streaming == State::None {
                    let message = format!(
                        "pool {pool} has no stream to repair; run `synclake stream enable --pool {pool} --stream NAME`"
                    );
                    return Err(Unusable(message).into());
                }
                let options = EnableOptions {
                    may_create_stream: true,
                    may_change_role: true,
                    retention_hours: args.retention.retention,
                    ..EnableOptions::default()
                };
                let changes = streaming.plan_enable(pool, &options).await.map_err(usage)?;
                let done = apply(&streaming, pool, changes, args.consent, format).await?;
                if done.is_applied {
                    print_message(&format!(
                        "what changed while streaming was off is in no stream; run `synclake bulk-publish start --pool {pool}`"
                    ));
                }
                works(&done)
            }
        }
    })
    .await
}

/// Fails if a pool was changed, and its records still do not arrive.
fn works(done: &ChangeReport) -> Result<()> {
    let fault = done.after.findings.iter().find(|finding| finding.is_fault).filter(|_| done.is_applied);
    match fault {
        None => Ok(()),
        Some(finding) => bail!(
            "pool {} was changed, and its records still do not arrive: {}; {}",
            done.after.pool,
            finding.text,
            finding.remedy
        ),
    }
}

async fn enable_options(
    args: &StreamEnableArgs,
    aws: &AwsSettings,
    streaming: &Streaming,
    pool: &PoolId,
) -> Result<EnableOptions> {
    let mut role_arn = args.role_arn.clone();
    if let Some(arn) = &role_arn {
        if args.create_role.as_deref().is_some_and(|name| name != ROLE_NAME) {
            let message = "--create-role NAME and --role-arn name two roles; give --create-role without a name to change that one";
            return Err(Unusable(message.to_owned()).into());
        }
        let account = identity::caller(aws).await?.account;
        if arn.split(':').nth(4) != Some(&account) {
            let message =
                format!("--role-arn {arn} is of another account than these credentials, {account}; give a role of it");
            return Err(Unusable(message).into());
        }
    } else if let Some(name) = &args.create_role {
        let configured = streaming.status(pool).await?.configured;
        if configured.is_none_or(|configured| configured.role_arn.is_empty()) {
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

/// Turns an open decision of the user into a usage error.
fn usage(error: PlanError) -> anyhow::Error {
    match error {
        PlanError::Undecided(text) => Unusable(text).into(),
        PlanError::Call(error) => error.into(),
    }
}

/// Shows the changes, asks, makes them and reports the pool.
async fn apply(
    streaming: &Streaming,
    pool: &PoolId,
    changes: Vec<Change>,
    consent: ConsentArgs,
    format: ReportFormat,
) -> Result<ChangeReport> {
    // A user who is asked must see the changes, also with --quiet.
    let show: fn(&str) = if consent.yes || consent.dry_run { print_message } else { write_line };
    let is_applied = match changes.is_empty() {
        true => {
            print_message(&format!("pool {pool}: nothing to change"));
            false
        }
        false => {
            show(&format!("pool {pool}:"));
            let would = if consent.dry_run { "would " } else { "" };
            changes.iter().for_each(|change| show(&format!("  - {would}{change}")));
            !consent.dry_run && (consent.yes || ask(pool)?)
        }
    };
    let after = match is_applied {
        true => streaming.apply(pool, &changes).await?,
        false => streaming.status(pool).await?,
    };
    let report = ChangeReport { changes, is_applied, after };
    match format {
        ReportFormat::Json => print_report(&report)?,
        ReportFormat::Human => print_pool(&report.after)?,
    }
    Ok(report)
}

fn print(report: &PoolReport, format: ReportFormat) -> Result<()> {
    match format {
        ReportFormat::Json => print_report(report),
        ReportFormat::Human => print_pool(report),
    }
}

fn ask(pool: &PoolId) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let message = format!("pool {pool}: nobody can be asked; give --yes to make these changes, or --dry-run");
        return Err(Unusable(message).into());
    }
    // A question that cannot be written is answered by no.
    let _ = write!(std::io::stderr(), "Make these changes? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Prints a pool for people.
fn print_pool(report: &PoolReport) -> Result<()> {
    let state = match report.streaming {
        State::Enabled if report.is_faulty() => "streaming is on, and records do not arrive",
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
