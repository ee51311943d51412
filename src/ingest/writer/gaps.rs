//! What the stream's retention trimmed, or may have trimmed, before it was read.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};

use crate::lake::tables::Table;
use crate::source::{SequenceNumber, ShardKey};

/// Workers' clocks may differ by this much, and the service trims in strides.
pub const SLACK_MS: i64 = 300_000;

/// Records of a shard that arrived in a span of time, if there were any, and were never read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// They follow this record; `None` when none was ever read.
    pub after: Option<SequenceNumber>,
    /// Everything that arrived before this was read; milliseconds, 0 if unknown.
    pub arrived_from_ms: i64,
    /// Everything that arrived at or after this was read; `None` when the whole rest of the shard is gone.
    pub arrived_until_ms: Option<i64>,
    /// When it was noted.
    pub noted_at_ms: i64,
}

/// The gap that a read shows: everything that arrived before `read_to_ms` was read, now it is `at_ms`, and the stream
/// keeps records for `retention_ms`.
pub fn between(after: Option<SequenceNumber>, read_to_ms: i64, at_ms: i64, retention_ms: i64) -> Option<Gap> {
    let horizon_ms = at_ms - retention_ms;
    (read_to_ms > 0 && read_to_ms + SLACK_MS < horizon_ms).then_some(Gap {
        after,
        arrived_from_ms: read_to_ms,
        arrived_until_ms: Some(horizon_ms),
        noted_at_ms: at_ms,
    })
}

/// A gap as a row of its table.
pub fn row(shard: &ShardKey, gap: &Gap) -> Result<RecordBatch, parquet::errors::ParquetError> {
    let instant = |ms: Option<i64>| {
        let micros = ms.map(|ms| ms.saturating_mul(1_000));
        Arc::new(TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC"))
    };
    Ok(RecordBatch::try_new(
        Table::Gaps.file_schema(),
        vec![
            Arc::new(StringArray::from(vec![shard.stream()])),
            Arc::new(StringArray::from(vec![shard.shard()])),
            Arc::new(StringArray::from(vec![gap.after.as_ref().map(SequenceNumber::as_str)])),
            instant((gap.arrived_from_ms > 0).then_some(gap.arrived_from_ms)),
            instant(gap.arrived_until_ms),
            Arc::new(BooleanArray::from(vec![gap.arrived_until_ms.is_none()])),
            instant(Some(gap.noted_at_ms)),
        ],
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_was_trimmed_unread() {
        let (day, now) = (86_400_000, 1_700_000_000_000);
        let gap = |read_to_ms| between(None, read_to_ms, now, day).map(|g| (g.arrived_from_ms, g.arrived_until_ms));
        assert_eq!(gap(now - day + 1), None, "read until just inside the retention");
        assert_eq!(gap(now - day - SLACK_MS), None, "clocks differ");
        assert_eq!(gap(now - 2 * day), Some((now - 2 * day, Some(now - day))));
        assert_eq!(gap(0), None, "never read: begun at the horizon, nothing was promised before it");
    }
}
