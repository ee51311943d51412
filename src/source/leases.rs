//! Who reads which shard, when several workers read one stream: leases in a DynamoDB table, as the Kinesis Client
//! Library lays them out.
//!
//! **Leases only spare work.** What protects the lake is the commit: a worker whose lease has passed to another can
//! commit nothing, whether it knows or not. So a lease is kept while DynamoDB cannot be reached, and a lease that is
//! lost stops one shard and nothing else.
//!
//! [`plan`] decides whose turn it is, [`table`] makes the conditional updates, [`keeper`] renews, takes and gives back
//! on a thread of its own, which no slow upload can starve.

use std::collections::BTreeMap;
use std::time::Duration;

use super::SourceError;
use crate::aws::AwsSettings;
use crate::ids::{SequenceNumber, ShardKey, StartAt};

pub mod keeper;
pub mod plan;
pub mod table;

pub use keeper::{Keeper, Offer, Standing, View};
use table::LeaseTable;

/// How leases are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The DynamoDB table; made if it is not there.
    pub table: String,
    /// This worker's name in it; one of a kind.
    pub worker: String,
    /// The lake whose checkpoints it holds: the number that is its own.
    pub lake: String,
    /// A lease that was seen unchanged for this long has expired. Renewed at a third of it.
    pub failover: Duration,
}

/// Where an application of the Kinesis Client Library left a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The number before the record that its checkpoint names, or the end; `None` when it had not begun.
    pub position: Option<SequenceNumber>,
    /// How many parts of that record are done: a plain record is one part.
    pub parts_done: i64,
    /// Where to begin then.
    pub from: StartAt,
}

/// Reads the checkpoints that an application of the Kinesis Client Library (1, 2 or 3) left. Its table is only read.
///
/// # Errors
/// There is no such table, it may not be read, or a checkpoint in it makes no sense.
pub async fn import(aws: &AwsSettings, table: &str, stream: &str) -> Result<BTreeMap<ShardKey, Imported>, SourceError> {
    let leases = LeaseTable::open(aws, table, "import", Duration::from_secs(30)).await?.scan().await?;
    let mut found = BTreeMap::new();
    for lease in leases {
        let shard = ShardKey::new(stream, &lease.key)
            .ok_or_else(|| SourceError::Invalid(format!("lease table {table} holds the odd key {:?}", lease.key)))?;
        let imported = imported(&lease).ok_or_else(|| {
            let (key, checkpoint) = (&lease.key, &lease.checkpoint);
            SourceError::Invalid(format!("lease table {table}: {key} has the odd checkpoint {checkpoint:?}"))
        })?;
        found.insert(shard, imported);
    }
    if found.is_empty() {
        return Err(SourceError::Invalid(format!("lease table {table} holds no lease; check its name")));
    }
    Ok(found)
}

/// What a checkpoint of KCL means to us. Where it had begun nothing, everything that the stream still holds is read:
/// what `LATEST` meant to it when it started cannot be known any more.
fn imported(lease: &plan::Lease) -> Option<Imported> {
    let from = StartAt::TrimHorizon;
    match lease.checkpoint.as_str() {
        plan::SHARD_END => Some(Imported { position: Some(SequenceNumber::shard_end()), parts_done: 0, from }),
        "TRIM_HORIZON" | "LATEST" | "AT_TIMESTAMP" => Some(Imported { position: None, parts_done: 0, from }),
        digits => {
            // KCL begins at the record that the checkpoint names, and passes over its parts up to the one that is named: the
            // record may be an aggregate, also when that is its first part.
            let at = SequenceNumber::parse(digits)?;
            let parts_done = lease.checkpoint_sub_sequence.clamp(0, i64::from(u32::MAX)) + 1;
            Some(Imported { position: Some(at.before()?), parts_done, from })
        }
    }
}

/// The word for a position in a lease table.
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
                asked_by: None,
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
    }
}
