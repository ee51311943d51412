//! The tables of a lake: their names and their columns.
//!
//! The columns are the contract with every reader. `schemas/*.json` holds the expected columns, and a test compares
//! them.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// The format of new tables. A table states its format by the property [`FORMAT_PROPERTY`]; a
/// table without it has format 1. A version of synclake reads and writes tables up to [`FORMAT_MAX`].
///
/// | format | what came with it |
/// |---|---|
/// | 1 | |
/// | 2 | `source` of `sync_records` |
/// | 3 | rows left `sync_records` by retention: a program that does not know it would compute the state without them |
/// | 4 | `copies`: a program that does not know it would count the collapsed copies of a change as none |
pub const FORMAT: u64 = 2;
/// The format of a table from which rows left by retention.
pub(crate) const FORMAT_EXPIRED: u64 = 3;
/// The format of a table of which copies of changes were collapsed.
pub(crate) const FORMAT_COLLAPSED: u64 = 4;
/// The newest format that this version reads and writes.
pub const FORMAT_MAX: u64 = FORMAT_COLLAPSED;
/// The table property that states the format.
pub const FORMAT_PROPERTY: &str = "synclake.format";
/// Columns that came after format 1. The first writer that knows such a column adds it to a table that lacks it; until
/// then, and in older files, its values are null.
pub(crate) const ADDED: [(Table, &str); 1] = [(Table::SyncRecords, "source")];

/// The column of `sync_records` that counts the exact copies of a row, the row included; null means 1. A table and a file have
/// it only if copies were collapsed. Queries always see it.
pub(crate) const COPIES: &str = "copies";

/// A table of the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Every change, append-only.
    SyncRecords,
    /// Quarantined records, with their decode errors.
    Quarantine,
    /// Daily extracts.
    DailyState,
    /// Gaps: records that retention may have trimmed before they were read.
    Gaps,
    /// The latest change of each key, as of a version of `sync_records`.
    State,
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

static SYNC_RECORDS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("pool", DataType::Utf8, true),
        Field::new("event_date", DataType::Date32, true),
        Field::new("identity_pool_id", DataType::Utf8, true),
        Field::new("identity_id", DataType::Utf8, true),
        Field::new("dataset_name", DataType::Utf8, true),
        Field::new("operation", DataType::Utf8, true),
        Field::new("key", DataType::Utf8, true),
        Field::new("value", DataType::Utf8, true),
        Field::new("op", DataType::Utf8, true),
        Field::new("sync_count", DataType::Int64, true),
        Field::new("last_modified_date", instant(), true),
        Field::new("device_last_modified_date", instant(), true),
        Field::new("event_sync_count", DataType::Int64, true),
        Field::new("event_last_modified_date", instant(), true),
        Field::new("shard_id", DataType::Utf8, true),
        Field::new("sequence_number", DataType::Utf8, true),
        Field::new("sub_sequence", DataType::Int64, true),
        Field::new("record_index", DataType::Int32, true),
        Field::new("arrived_at", instant(), true),
        Field::new("extra", DataType::Utf8, true),
        Field::new("source", DataType::Utf8, true),
    ]))
});

static COLLAPSED_RECORDS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let copies = Arc::new(Field::new(COPIES, DataType::Int64, true));
    Arc::new(Schema::new(SYNC_RECORDS.fields().iter().cloned().chain([copies]).collect::<Vec<_>>()))
});

static QUARANTINE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("arrived_date", DataType::Date32, true),
        Field::new("stream", DataType::Utf8, true),
        Field::new("shard_id", DataType::Utf8, true),
        Field::new("sequence_number", DataType::Utf8, true),
        Field::new("sub_sequence", DataType::Int64, true),
        Field::new("arrived_at", instant(), true),
        Field::new("reason", DataType::Utf8, true),
        Field::new("detail", DataType::Utf8, true),
        Field::new("raw", DataType::Binary, true),
    ]))
});

static DAILY_STATE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("extract_date", DataType::Date32, true),
        Field::new("pool", DataType::Utf8, true),
        Field::new("kind", DataType::Utf8, true),
        Field::new("identity_pool_id", DataType::Utf8, true),
        Field::new("identity_id", DataType::Utf8, true),
        Field::new("dataset_name", DataType::Utf8, true),
        Field::new("key", DataType::Utf8, true),
        Field::new("value", DataType::Utf8, true),
        Field::new("op", DataType::Utf8, true),
        Field::new("sync_count", DataType::Int64, true),
        Field::new("last_modified_date", instant(), true),
        Field::new("device_last_modified_date", instant(), true),
        Field::new("is_after_removal", DataType::Boolean, true),
        Field::new("shard_id", DataType::Utf8, true),
        Field::new("sequence_number", DataType::Utf8, true),
        Field::new("sub_sequence", DataType::Int64, true),
        Field::new("record_index", DataType::Int32, true),
        Field::new("arrived_at", instant(), true),
    ]))
});

static GAPS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("stream", DataType::Utf8, true),
        Field::new("shard_id", DataType::Utf8, true),
        Field::new("after_sequence_number", DataType::Utf8, true),
        Field::new("arrived_from", instant(), true),
        Field::new("arrived_until", instant(), true),
        Field::new("whole_rest", DataType::Boolean, true),
        Field::new("noted_at", instant(), true),
    ]))
});

static STATE: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("pool", DataType::Utf8, true),
        Field::new("identity_pool_id", DataType::Utf8, true),
        Field::new("identity_id", DataType::Utf8, true),
        Field::new("dataset_name", DataType::Utf8, true),
        Field::new("key", DataType::Utf8, true),
        Field::new("value", DataType::Utf8, true),
        Field::new("op", DataType::Utf8, true),
        Field::new("sync_count", DataType::Int64, true),
        Field::new("last_modified_date", instant(), true),
        Field::new("device_last_modified_date", instant(), true),
        Field::new("is_after_removal", DataType::Boolean, true),
        Field::new("shard_id", DataType::Utf8, true),
        Field::new("sequence_number", DataType::Utf8, true),
        Field::new("sub_sequence", DataType::Int64, true),
        Field::new("record_index", DataType::Int32, true),
        Field::new("arrived_at", instant(), true),
    ]))
});

impl Table {
    /// All tables.
    pub const ALL: [Table; 5] = [Table::SyncRecords, Table::Quarantine, Table::DailyState, Table::Gaps, Table::State];

    /// Returns the folder below the lake's root, which is also the name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::SyncRecords => "sync_records",
            Self::Quarantine => "quarantine",
            Self::DailyState => "daily_state",
            Self::Gaps => "gaps",
            Self::State => "state",
        }
    }

    /// Returns whether a column came after format 1, so that older tables lack it.
    pub(crate) fn is_added(self, column: &str) -> bool {
        ADDED.contains(&(self, column))
    }

    /// Returns the table that has these partition columns.
    pub(crate) fn partitioned_by(columns: &[String]) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.partition_columns() == columns)
    }

    /// Returns the columns, partition columns first.
    pub fn schema(self) -> SchemaRef {
        match self {
            Self::SyncRecords => SYNC_RECORDS.clone(),
            Self::Quarantine => QUARANTINE.clone(),
            Self::DailyState => DAILY_STATE.clone(),
            Self::Gaps => GAPS.clone(),
            Self::State => STATE.clone(),
        }
    }

    /// Returns the columns that queries see: also those that only some lakes have.
    pub fn query_schema(self) -> SchemaRef {
        match self {
            Self::SyncRecords => COLLAPSED_RECORDS.clone(),
            _ => self.schema(),
        }
    }

    /// Returns the names of the partition columns.
    pub fn partition_columns(self) -> &'static [&'static str] {
        match self {
            Self::SyncRecords => &["pool", "event_date"],
            Self::Quarantine => &["arrived_date"],
            Self::DailyState => &["extract_date", "pool"],
            Self::Gaps => &[],
            Self::State => &["pool"],
        }
    }

    /// Returns the columns that are stored in the files: all except the partition columns.
    pub fn file_schema(self) -> SchemaRef {
        self.without_partitions(&self.schema())
    }

    /// Returns the columns of a file in which copies were collapsed.
    pub(crate) fn collapsed_file_schema(self) -> SchemaRef {
        self.without_partitions(&self.query_schema())
    }

    fn without_partitions(self, schema: &Schema) -> SchemaRef {
        let partitions = self.partition_columns();
        let stored = schema.fields().iter().filter(|field| !partitions.contains(&field.name().as_str()));
        Arc::new(Schema::new(stored.cloned().collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_match_the_golden_schemas() {
        for table in Table::ALL {
            let columns: Vec<_> = table
                .schema()
                .fields()
                .iter()
                .map(|f| serde_json::json!({"name": f.name(), "type": f.data_type().to_string()}))
                .collect();
            let actual = serde_json::json!({"table": table.name(), "partitioned_by": table.partition_columns(), "columns": columns});
            let path = format!("{}/schemas/{}.json", env!("CARGO_MANIFEST_DIR"), table.name());
            let golden = std::fs::read_to_string(&path).unwrap_or_default();
            let golden: serde_json::Value = serde_json::from_str(&golden).unwrap_or_default();
            assert_eq!(golden, actual, "{path} should hold\n{actual:#}");
        }
    }
}
