//! The state of a shard, and its encoding in transaction ids.

use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::lake::LakeError;
use crate::lake::log::{self, Transactions};

const LIMB_DIGITS: usize = 18;

/// The state of a shard in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    /// Epoch: the number of commits of this shard so far, fences included.
    pub epoch: u64,
    /// Token of the owner.
    pub owner: u64,
    /// The last committed position; `None` if nothing was read yet.
    pub position: Option<SequenceNumber>,
    /// Where reading begins as long as there is no position.
    pub from: StartAt,
    /// Watermark: every record that arrived before this time was received. In milliseconds since the Unix epoch; 0 if
    /// unknown. Records after the watermark that retention trims were never read.
    pub read_to_ms: i64,
    /// Done sub-records of the record right after the position. Only a checkpoint of the Kinesis Client Library sets
    /// this, because it may lie inside an aggregate. 0 as soon as the position has moved.
    pub parts_done: i64,
}

impl ShardState {
    /// Returns whether the shard is committed to its end.
    pub fn is_ended(&self) -> bool {
        SequenceNumber::is_end_of(&self.position)
    }
}

fn app_id(shard: &ShardKey) -> String {
    format!("ingest/{}/{}", shard.stream(), shard.shard())
}

/// Encodes the state of a shard as transaction ids.
///
/// # Errors
/// The epoch or the owner's token is no value of a transaction id.
pub(crate) fn encode_state(shard: &ShardKey, state: &ShardState) -> Result<Vec<(String, i64)>, LakeError> {
    let id = app_id(shard);
    let from = match state.from {
        StartAt::TrimHorizon => 0,
        StartAt::Timestamp(ms) => ms.max(1),
    };
    let mut ids = vec![
        (format!("{id}/owner"), log::id_value(state.owner)?),
        (format!("{id}/from"), from),
        (format!("{id}/read_to"), state.read_to_ms),
        (format!("{id}/parts"), state.parts_done),
    ];
    if let Some(position) = &state.position {
        let digits = format!("{:0>width$}", position.as_str(), width = LIMB_DIGITS * 4);
        ids.extend((0..4).map(|limb| {
            let part = &digits[limb * LIMB_DIGITS..(limb + 1) * LIMB_DIGITS];
            (format!("{id}/seq{limb}"), part.parse().unwrap_or_default())
        }));
    }
    ids.push((id, log::id_value(state.epoch)?));
    Ok(ids)
}

/// Decodes the state of a shard from the transaction ids of a log. Returns `None` if the log does not know the shard.
pub fn decode_state(known: &Transactions, shard: &ShardKey) -> Option<ShardState> {
    let id = app_id(shard);
    let get = |suffix: &str| known.ids.get(&format!("{id}{suffix}")).copied();
    let number = get("")?;
    let limbs: Option<Vec<i64>> = (0..4).map(|limb| get(&format!("/seq{limb}"))).collect();
    let position = limbs.and_then(|limbs| {
        let digits: String = limbs.iter().map(|l| format!("{l:0LIMB_DIGITS$}")).collect();
        let digits = digits.trim_start_matches('0');
        SequenceNumber::parse(if digits.is_empty() { "0" } else { digits })
    });
    let from = match get("/from").unwrap_or(0) {
        0 => StartAt::TrimHorizon,
        ms => StartAt::Timestamp(ms),
    };
    Some(ShardState {
        epoch: u64::try_from(number).ok()?,
        owner: u64::try_from(get("/owner")?).ok()?,
        position,
        from,
        // Older logs have no such id.
        read_to_ms: get("/read_to").unwrap_or(0),
        parts_done: get("/parts").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_the_limbs() {
        let seq = "49590338271490256608559692538361571095921575989136588898";
        for digits in ["0", "7", "1000000000000000000", seq, &"9".repeat(72)] {
            let state = ShardState {
                epoch: 3,
                owner: 5,
                position: Some(SequenceNumber::parse(digits).unwrap()),
                from: StartAt::Timestamp(9),
                read_to_ms: 1_424_801_824_343,
                parts_done: 2,
            };
            let known = Transactions {
                version: 1,
                checkpoint: None,
                ids: encode_state(&ShardKey::new("stream", "a").unwrap(), &state).unwrap().into_iter().collect(),
                ..Transactions::default()
            };
            assert_eq!(decode_state(&known, &ShardKey::new("stream", "a").unwrap()), Some(state));
        }
    }

    /// A state that does not fit is refused, because another value would name another epoch or owner.
    #[test]
    fn numbers_beyond_an_i64_are_refused() {
        let shard = ShardKey::new("stream", "a").unwrap();
        for (epoch, owner, fits) in [(i64::MAX as u64, 5, true), (1 << 63, 5, false), (3, u64::MAX, false)] {
            let from = StartAt::TrimHorizon;
            let state = ShardState { epoch, owner, position: None, from, read_to_ms: 0, parts_done: 0 };
            assert_eq!(encode_state(&shard, &state).is_ok(), fits, "{epoch} {owner}");
        }
    }
}
