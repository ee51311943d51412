//! Credentials, region and clock.

use super::{Check, DoctorOptions};
use crate::aws::identity;
use crate::lake::Location;

/// The check of the credentials.
pub(super) const CREDENTIALS: &str = "credentials";
/// AWS refuses signatures of a clock that is wrong by more.
const CLOCK_OFF_FAULT_SECONDS: i64 = 300;
const CLOCK_OFF_WARNING_SECONDS: i64 = 60;

pub(super) async fn check(options: &DoctorOptions) -> Vec<Check> {
    let is_local = matches!(options.lake, None | Some(Location::Folder(_)));
    if is_local && options.pools.is_empty() && options.streams.is_empty() && options.lease_tables.is_empty() {
        return Vec::new();
    }
    let mut checks = Vec::new();
    let pool_region = options.pools.first().map(|pool| pool.region().to_owned());
    match options.aws.load().await.region() {
        Some(region) => checks.push(Check::ok("region", region.as_ref())),
        None if pool_region.is_some() && options.streams.is_empty() && is_local => {}
        None => checks.push(Check::fault("region", "no AWS region found", "give --region or set AWS_REGION")),
    }
    let mut aws = options.aws.clone();
    if aws.load().await.region().is_none() {
        aws.region = Some(pool_region.unwrap_or_else(|| "us-east-1".to_owned()));
    }
    let (caller, ahead) = match identity::caller_and_clock(&aws).await {
        Ok(found) => found,
        Err(error) => {
            checks.push(Check::fault(CREDENTIALS, error.reason, error.remedy));
            return checks;
        }
    };
    checks.push(Check::ok(CREDENTIALS, format!("{} in account {}", caller.arn, caller.account)));
    let Some(ahead) = ahead else { return checks };
    let seconds = ahead.num_seconds();
    let off =
        format!("the clock of this machine is {} s {}", seconds.abs(), if seconds < 0 { "behind" } else { "ahead" });
    checks.push(match seconds.abs() {
        off_by if off_by >= CLOCK_OFF_FAULT_SECONDS => {
            Check::fault("clock", off, "set the clock, and run chrony or ntpd: AWS refuses requests of a wrong clock")
        }
        off_by if off_by >= CLOCK_OFF_WARNING_SECONDS => Check::warning("clock", off, "run chrony or ntpd"),
        _ => Check::ok("clock", "agrees with AWS to a minute"),
    });
    checks
}
