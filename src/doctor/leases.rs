//! The lease table of a fleet.

use super::{Check, DoctorOptions};
use crate::source::leases::LeaseTable;
use crate::timeouts::LEASE_CALL_TIMEOUT_MIN;

const LEASES: &str = "lease table";

pub(super) async fn check(options: &DoctorOptions, name: &str) -> Option<Check> {
    let table = LeaseTable::open(&options.aws, name, "doctor", LEASE_CALL_TIMEOUT_MIN * 5).await;
    let found = match table {
        Ok(table) => table.examine().await,
        Err(error) => Err(error),
    };
    Some(match found {
        Ok(None) => Check::warning(
            LEASES,
            format!("table {name} does not exist"),
            "the first worker with --lease-table creates it, and needs dynamodb:CreateTable",
        ),
        Ok(Some(leases)) => {
            let held = leases.iter().filter(|lease| lease.owner.is_some()).count();
            Check::ok(LEASES, format!("{name} has {} leases, {held} of them held by a worker", leases.len()))
        }
        Err(error) => Check::fault(LEASES, error.to_string(), "see the advice in this error"),
    })
}
