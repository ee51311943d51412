//! Checks of everything that a pipeline needs, from the credentials to the lake: one line for each check, with its
//! remedy.
//!
//! A check changes nothing that lasts. The one write is an object `_doctor-<id>` below the lake, which is deleted again.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::aws::AwsSettings;
use crate::aws::call::CallError;
use crate::catalog::Engine;
use crate::cognito::PoolId;
use crate::lake::Location;

mod account;
mod bucket;
mod catalog;
mod lake;
mod leases;
mod pools;
mod stream;

/// Things to check. A thing that is not given has no checks.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// Settings of AWS, of stream, lease table and lake.
    pub aws: AwsSettings,
    /// Identity pools.
    pub pools: Vec<PoolId>,
    /// Names of the Kinesis streams.
    pub streams: Vec<String>,
    /// Lake.
    pub lake: Option<Location>,
    /// Names of the lease tables.
    pub lease_tables: Vec<String>,
    /// Engine whose tables are in the Glue catalogue, and their database.
    pub catalog: Option<(Engine, String)>,
    /// Time for ages.
    pub now: DateTime<Utc>,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// Something to look at: it costs, it may fail later, or it cannot be checked.
    Warning,
    /// Data does not arrive, is in danger, or a command fails.
    Fault,
}

/// A check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name of the check, such as `stream` or `bucket lifecycle`.
    pub check: &'static str,
    /// Result.
    pub verdict: Verdict,
    /// The finding.
    pub text: String,
    /// Advice; null if there is nothing to do.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, text: text.into(), remedy: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, text: text.into(), remedy: Some(remedy.into()) }
    }

    fn fault(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fault, text: text.into(), remedy: Some(remedy.into()) }
    }

    /// Makes the result of a failed call. A missing permission of the person who checks says nothing about the
    /// pipeline.
    fn of_error(check: &'static str, error: &CallError) -> Self {
        let (text, remedy) = (format!("{} on {}: {}", error.action, error.target, error.reason), error.remedy.clone());
        match error.is_denied() {
            true => Self::warning(check, text, remedy),
            false => Self::fault(check, text, remedy),
        }
    }
}

/// The results of all checks.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// Results, in the order of the data: account, stream, pools, bucket, lease table, lake, catalogue.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// Returns the number of checks with a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }
}

/// Runs the checks. None of them fails: an error is the result of its check.
pub async fn run(options: &DoctorOptions) -> DoctorReport {
    let mut checks = account::check(options).await;
    // Without credentials, every other check would fail for that reason.
    let is_known = !checks.iter().any(|check| check.check == account::CREDENTIALS && check.verdict == Verdict::Fault);
    let store = lake::open(options, is_known).await;
    let of_bucket = bucket::check(&store).await;
    // Without a bucket, every check of the lake would fail for that reason.
    let has_bucket = !of_bucket.iter().any(|check| check.check == bucket::BUCKET);
    let seen = lake::look(store, options, has_bucket).await;
    if is_known {
        for name in &options.streams {
            checks.extend(stream::check(options, name, &seen).await);
        }
        checks.extend(pools::check(options, &seen).await);
        checks.extend(of_bucket);
        for table in &options.lease_tables {
            checks.extend(leases::check(options, table).await);
        }
    }
    if has_bucket {
        checks.extend(lake::check(&seen).await);
        if is_known {
            checks.extend(catalog::check(options, &seen).await);
        }
    }
    DoctorReport { checks }
}

/// Returns an age as people say it.
fn spoken(age: chrono::TimeDelta) -> String {
    let seconds = age.num_seconds().max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
