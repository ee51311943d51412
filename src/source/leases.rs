//! Leases that divide the shards of one stream among several workers. They live in a DynamoDB table, in the layout of
//! the Kinesis Client Library (KCL).
//!
//! **Leases only spare work.** The commit protects the lake: a worker whose lease has passed to another worker can
//! commit nothing, whether it knows or not. So a worker keeps its leases while DynamoDB cannot be reached. A lost lease
//! stops one shard and nothing else.
//!
//! [`plan`] decides which leases to take, and [`table`] makes the conditional updates. [`keeper`] renews, takes and
//! gives back leases on its own thread, which no slow upload can starve.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::SourceError;
use crate::aws::AwsSettings;
use crate::ids::{SequenceNumber, ShardKey, StartAt};

pub mod keeper;
pub mod plan;
pub mod table;

pub use keeper::{Keeper, Offer, Standing, View};
pub(crate) use table::LeaseTable;

/// Options of the leases.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// DynamoDB table; created if it does not exist.
    pub table: String,
    /// Name of this worker in the table; must be unique.
    pub worker: String,
    /// Id of the lake whose checkpoints the table holds.
    pub lake: String,
    /// Time after which a lease that was seen unchanged has expired. Leases are renewed at a third of it.
    pub failover: Duration,
}

/// The place where an application of the KCL left a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Sequence number before the record that the checkpoint names, or the shard's end; `None` if reading had not
    /// begun.
    pub position: Option<SequenceNumber>,
    /// Number of sub-records of that record that are done; a plain record is one sub-record.
    pub parts_done: i64,
    /// Start of the shard if there is no position.
    pub from: StartAt,
}

/// Reads the checkpoints that an application of the KCL (1, 2 or 3) left. Only reads its table.
///
/// # Errors
/// The table does not exist or may not be read, or one of its checkpoints is invalid.
pub async fn import(aws: &AwsSettings, table: &str, stream: &str) -> Result<BTreeMap<ShardKey, Imported>, SourceError> {
    let leases = LeaseTable::open(aws, table, "import", Duration::from_secs(30)).await?.scan().await?;
    let mut found = BTreeMap::new();
    let mut others = BTreeSet::new();
    for lease in leases {
        let name = match stream_and_shard(&lease.key) {
            Some((of, _)) if of != stream => {
                others.insert(of.to_owned());
                continue;
            }
            Some((_, shard)) => shard,
            None => &lease.key,
        };
        let shard = ShardKey::new(stream, name)
            .ok_or_else(|| SourceError::Invalid(format!("lease table {table} holds the odd key {:?}", lease.key)))?;
        let imported = imported(&lease).ok_or_else(|| {
            let (key, checkpoint) = (&lease.key, &lease.checkpoint);
            SourceError::Invalid(format!("lease table {table}: {key} has the odd checkpoint {checkpoint:?}"))
        })?;
        found.insert(shard, imported);
    }
    if let (true, Some(_)) = (found.is_empty(), others.first()) {
        let others = others.into_iter().collect::<Vec<_>>().join(", ");
        let message =
            format!("lease table {table} holds no lease of stream {stream}, only of {others}; check the names");
        return Err(SourceError::Invalid(message));
    }
    if found.is_empty() {
        return Err(SourceError::Invalid(format!("lease table {table} holds no lease; check its name")));
    }
    Ok(found)
}

/// Returns stream and shard of a lease of an application for several streams, whose keys are
/// `account:stream:creation time:shard`.
fn stream_and_shard(key: &str) -> Option<(&str, &str)> {
    let mut parts = key.split(':');
    let (_account, stream, _created, shard) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((stream, shard))
}

/// Converts a KCL checkpoint. If the application had not begun the shard, everything that the stream still holds is
/// read. What `LATEST` meant when the application started is no longer known.
fn imported(lease: &plan::Lease) -> Option<Imported> {
    let from = StartAt::TrimHorizon;
    match lease.checkpoint.as_str() {
        plan::SHARD_END => Some(Imported { position: Some(SequenceNumber::shard_end()), parts_done: 0, from }),
        "TRIM_HORIZON" | "LATEST" | "AT_TIMESTAMP" => Some(Imported { position: None, parts_done: 0, from }),
        digits => {
            // KCL begins at the record that the checkpoint names, and skips its sub-records up to and including the
            // named one. The record may be an aggregate, even if the checkpoint names its first sub-record.
            let at = SequenceNumber::parse(digits)?;
            let parts_done = lease.checkpoint_sub_sequence.clamp(0, i64::from(u32::MAX)) + 1;
            Some(Imported { position: Some(at.before()?), parts_done, from })
        }
    }
}

/// Returns the checkpoint that stands for a position in a lease table.
fn checkpoint_word(position: Option<&SequenceNumber>) -> &str {
    match position {
        None => "TRIM_HORIZON",
        Some(position) if position.is_shard_end() => plan::SHARD_END,
        Some(position) => position.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_kcl() {
        let check = |checkpoint: &str, sub: i64| {
            imported(&plan::Lease {
                key: "shardId-000000000000".to_owned(),
                owner: None,
                counter: 1,
                checkpoint: checkpoint.to_owned(),
                checkpoint_sub_sequence: sub,
                handoff_requested_by: None,
                stream: None,
                lake: None,
                session: None,
            })
            .map(|i| (i.position.map(|p| p.to_string()), i.parts_done))
        };
        assert_eq!(check("TRIM_HORIZON", 0), Some((None, 0)));
        assert_eq!(check("LATEST", 0), Some((None, 0)));
        assert_eq!(check("4960", 0), Some((Some("4959".to_owned()), 1)));
        assert_eq!(check("4960", 3), Some((Some("4959".to_owned()), 4)));
        assert_eq!(check("SHARD_END", 0), Some((Some("9".repeat(72)), 0)));
        assert_eq!(check("nonsense", 0), None);
        let key = "123456789012:orders:1700000000:shardId-000000000000";
        assert_eq!(stream_and_shard(key), Some(("orders", "shardId-000000000000")));
        assert_eq!(stream_and_shard("shardId-000000000000"), None);
    }
}
