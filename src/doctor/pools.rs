//! The identity pools: whether they stream into this stream, and whether their changes arrive.

use chrono::{DateTime, TimeDelta, Utc};

use super::lake::Seen;
use super::{Check, DoctorOptions, spoken};
use crate::aws::AwsSettings;
use crate::cognito::{CognitoSync, PoolId, PoolUsage};
use crate::streaming::{PoolReport, Streaming};

const POOL: &str = "pool";
const SILENCE: &str = "pool silence";
/// A change needs no longer from the pool to the lake; the service counts usage with some delay, too.
const ARRIVAL_MAX: TimeDelta = TimeDelta::hours(2);

pub(super) async fn check(options: &DoctorOptions, seen: &Seen) -> Vec<Check> {
    let mut checks = Vec::new();
    for pool in &options.pools {
        let aws = AwsSettings { region: Some(pool.region().to_owned()), ..options.aws.clone() };
        let report = match Streaming::new(&aws).await.status(pool).await {
            Ok(report) => report,
            Err(error) => {
                checks.push(Check::of_error(POOL, &error));
                continue;
            }
        };
        checks.extend(streams(&report, options));
        match CognitoSync::new(&aws).await.usage(pool).await {
            Ok(usage) => checks.extend(silence(pool, &report, &usage, seen, options.now)),
            Err(error) => checks.push(Check::of_error(SILENCE, &error)),
        }
    }
    checks
}

fn streams(report: &PoolReport, options: &DoctorOptions) -> Vec<Check> {
    let pool = &report.pool;
    let mut checks: Vec<Check> = Vec::new();
    if let Some(region) = options.aws.region.as_deref().filter(|region| *region != pool.region()) {
        let text = format!("pool {pool} is in {}, and the region is set to {region}", pool.region());
        let remedy = "leave the region out, or correct the pool: its stream is in its own region";
        checks.push(Check::fault(POOL, text, remedy));
    }
    for finding in &report.findings {
        let text = format!("pool {pool}: {}", finding.text);
        checks.push(match finding.is_fault {
            true => Check::fault(POOL, text, &finding.remedy),
            false => Check::warning(POOL, text, &finding.remedy),
        });
    }
    if let (Some(configured), Some(first)) = (&report.configured, options.streams.first())
        && !options.streams.contains(&configured.stream)
    {
        let (read, stream) = (options.streams.join(", "), &configured.stream);
        let text = format!("pool {pool} streams into {stream}, and the source is {read}");
        let remedy = format!("read kinesis:{stream}, or run `synclake stream enable --pool {pool} --stream {first}`");
        checks.push(Check::fault(POOL, text, remedy));
    }
    if checks.is_empty() {
        let stream = report.configured.as_ref().map(|configured| configured.stream.as_str()).unwrap_or_default();
        checks.push(Check::ok(POOL, format!("pool {pool} streams into {stream}, and its role may write")));
    }
    checks
}

/// Compares the last change that the service knows with the newest change in the lake. Silence alone is no fault: a pool
/// may rest.
fn silence(pool: &PoolId, report: &PoolReport, usage: &PoolUsage, seen: &Seen, now: DateTime<Utc>) -> Option<Check> {
    if !seen.is_wanted() {
        return None;
    }
    let Some(lake) = seen.report() else {
        return Some(Check::warning(
            SILENCE,
            format!("pool {pool}: the lake cannot be compared"),
            "make the lake readable",
        ));
    };
    let folder = pool.as_str().replace(':', "_");
    let newest = lake.pools.iter().find(|found| found.pool.as_deref() == Some(&folder));
    let newest = newest.and_then(|found| found.newest_change);
    let sessions = usage.sync_sessions.map_or(String::new(), |n| format!(", {n} sync sessions so far"));
    let Some(changed) = usage.last_modified else {
        return Some(Check::ok(SILENCE, format!("the service states no change of pool {pool}{sessions}")));
    };
    let stream = report.configured.as_ref().map(|configured| configured.stream.as_str()).unwrap_or_default();
    let read_to = seen.read_to(stream);
    let told = |at: DateTime<Utc>| format!("{} ({} ago)", at.format("%Y-%m-%d %H:%M UTC"), spoken(now - at));
    let text = format!("pool {pool} changed last at {}{sessions}", told(changed));
    let is_missing = newest.is_none_or(|newest| changed - newest > ARRIVAL_MAX);
    let newest = newest.map_or("the lake has no change of it".to_owned(), |newest| {
        format!("the newest change in the lake is of {}", told(newest))
    });
    Some(match (is_missing, read_to) {
        (false, _) => Check::ok(SILENCE, format!("{text}; {newest}")),
        // What is not read yet is not missing.
        (true, Some(read_to)) if read_to < changed + ARRIVAL_MAX => {
            Check::ok(SILENCE, format!("{text}; {newest}, and the stream was read up to {}", told(read_to)))
        }
        (true, _) => Check::warning(
            SILENCE,
            format!("{text}; {newest}: records are missing, or only devices that read have synchronized"),
            format!("run `synclake stream status --pool {pool}`, then `synclake bulk-publish start --pool {pool}`"),
        ),
    })
}
