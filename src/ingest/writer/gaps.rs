//! Gaps: records that the stream's retention trimmed, or may have trimmed, before they were read.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};

use crate::ids::{SequenceNumber, ShardKey};
use crate::schema::Table;

/// Tolerance for the clocks of the workers, and for the strides in which the service trims.
pub(super) const SLACK_MS: i64 = 300_000;

/// A time span of a shard whose records, if there were any, were never read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// Last record before the gap; `None` if none was ever read.
    pub after: Option<SequenceNumber>,
    /// Everything that arrived before this time was read; milliseconds, 0 if unknown.
    pub arrived_from_ms: i64,
    /// Everything that arrived at or after this time was read, or cannot have existed; `None` if unknown.
    pub arrived_until_ms: Option<i64>,
    /// Whether the whole rest of the shard is gone.
    pub whole_rest: bool,
    /// When the gap was recorded.
    pub noted_at_ms: i64,
    /// Why the records are gone.
    pub cause: GapCause,
}

/// Why records are gone before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapCause {
    /// The stream's retention trimmed them.
    Retention,
    /// The stream was deleted, and created again under its name.
    Deleted,
}

impl GapCause {
    /// Returns the text for the log.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Retention => {
                "records were trimmed by the stream's retention before they were read; raise the retention"
            }
            Self::Deleted => {
                "the stream was deleted before all records of this shard were read; later records may be lost"
            }
        }
    }
}

/// Returns the gap that a deleted stream leaves in a shard with the watermark `read_to_ms`. `created_ms` is the
/// creation time of the stream that now has the name.
pub(super) fn until_deleted(
    after: Option<SequenceNumber>,
    read_to_ms: i64,
    created_ms: i64,
    noted_at_ms: i64,
) -> Option<Gap> {
    (read_to_ms + SLACK_MS < created_ms).then_some(Gap {
        after,
        arrived_from_ms: read_to_ms,
        arrived_until_ms: Some(created_ms),
        whole_rest: true,
        noted_at_ms,
        cause: GapCause::Deleted,
    })
}

/// Returns the gap that a read at `at_ms` reveals in a shard with the watermark `read_to_ms`, if the stream keeps
/// records for `retention_ms`.
pub(super) fn between(after: Option<SequenceNumber>, read_to_ms: i64, at_ms: i64, retention_ms: i64) -> Option<Gap> {
    let horizon_ms = at_ms - retention_ms;
    (read_to_ms > 0 && read_to_ms + SLACK_MS < horizon_ms).then_some(Gap {
        after,
        arrived_from_ms: read_to_ms,
        arrived_until_ms: Some(horizon_ms),
        whole_rest: false,
        noted_at_ms: at_ms,
        cause: GapCause::Retention,
    })
}

/// Returns a gap as a row of the table `gaps`.
pub(super) fn row(shard: &ShardKey, gap: &Gap) -> Result<RecordBatch, parquet::errors::ParquetError> {
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
            Arc::new(BooleanArray::from(vec![gap.whole_rest])),
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

    #[test]
    fn a_deleted_stream_leaves_a_gap_only_where_it_was_not_read_to_its_end() {
        let gap = |read_to_ms| until_deleted(None, read_to_ms, 1_700_000_000_000, 5).map(|g| g.arrived_from_ms);
        assert_eq!(gap(1_700_000_000_000 - SLACK_MS), None);
        assert_eq!(gap(1_600_000_000_000), Some(1_600_000_000_000));
        assert_eq!(gap(0), Some(0), "begun and never read");
    }
}
