//! Sums over the active files of a table, by partition.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::lake::since::is_named_by_us;
use crate::lake::snapshot::ListedFile;
use crate::schema::Table;

/// A file below this size is small.
const SMALL_BYTES: u64 = 16 << 20;

/// Sums over files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct FileSums {
    /// Rows of the files whose rows the log states.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Files whose rows the log does not state.
    pub files_without_rows: u64,
    /// Average size of a file, in bytes; 0 without files.
    pub file_bytes_average: u64,
    /// Files below 16 MiB.
    pub small_files: u64,
    /// Small files that share their partition with another small file.
    pub mergeable_files: u64,
    /// Partitions that hold mergeable files.
    pub mergeable_partitions: u64,
    /// Most small files of one partition.
    pub small_files_of_partition_max: u64,
}

/// A pool of `sync_records`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolStatus {
    /// Value of the partition column; null for rows without a pool.
    pub pool: Option<String>,
    /// Sums over its files.
    #[serde(flatten)]
    pub sums: FileSums,
    /// The oldest `event_date`.
    pub first_date: Option<NaiveDate>,
    /// The newest `event_date`.
    pub last_date: Option<NaiveDate>,
    /// The newest `last_modified_date`, by the statistics of the files; null if they lack it.
    #[serde(serialize_with = "optional_instant")]
    pub newest_change: Option<DateTime<Utc>>,
    /// Most files of one partition of the pool.
    pub files_of_date_max: u64,
    /// The date of that partition.
    pub date_of_most_files: Option<NaiveDate>,
}

fn optional_instant<S: serde::Serializer>(at: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.serialize_some(&at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        None => serializer.serialize_none(),
    }
}

/// Sums over the files of one partition.
#[derive(Debug, Default, Clone, Copy)]
struct Partition {
    rows: u64,
    bytes: u64,
    files: u64,
    files_without_rows: u64,
    small: u64,
}

impl Partition {
    fn sums<'a>(all: impl Iterator<Item = &'a Self>) -> FileSums {
        let mut sums = FileSums::default();
        for one in all {
            // The log of a foreign writer may state any number.
            sums.rows = sums.rows.saturating_add(one.rows);
            sums.bytes = sums.bytes.saturating_add(one.bytes);
            sums.files += one.files;
            sums.files_without_rows += one.files_without_rows;
            sums.small_files += one.small;
            sums.small_files_of_partition_max = sums.small_files_of_partition_max.max(one.small);
            if one.small > 1 {
                sums.mergeable_files += one.small;
                sums.mergeable_partitions += 1;
            }
        }
        sums.file_bytes_average = sums.bytes.checked_div(sums.files).unwrap_or(0);
        sums
    }
}

type PartitionKey = (Option<String>, Option<NaiveDate>);

/// The active files of a table.
#[derive(Debug, Default)]
pub(super) struct TableFiles {
    partitions: BTreeMap<PartitionKey, Partition>,
    newest_change: BTreeMap<Option<String>, DateTime<Utc>>,
    /// Rows and bytes of files as ingest or redrive wrote them, by the UTC day on which they were written.
    pub written: BTreeMap<NaiveDate, (u64, u64)>,
    /// Time at which the newest file was written.
    pub last_written_ms: Option<i64>,
}

/// The statistics of a file that count here. Statistics of any other form count as missing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statistics {
    num_records: Option<u64>,
    max_values: Option<MaxValues>,
}

#[derive(Debug, Default, Deserialize)]
struct MaxValues {
    last_modified_date: Option<String>,
}

impl TableFiles {
    /// Counts a file.
    pub(super) fn add(&mut self, table: Table, file: &ListedFile) {
        let of_partition = |column: &str| file.partition.get(column).cloned().flatten();
        let mut key: PartitionKey = (None, None);
        for column in table.partition_columns() {
            match *column {
                "pool" => key.0 = of_partition(column),
                _ => key.1 = of_partition(column).and_then(|date| date.parse().ok()),
            }
        }
        let text = file.statistics.as_deref();
        let statistics: Statistics = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let rows = statistics.num_records.map(|rows| rows.saturating_sub(file.deleted));
        let newest = statistics.max_values.and_then(|max| time_of(&max.last_modified_date?));
        if let Some(newest) = newest {
            let known = self.newest_change.entry(key.0.clone()).or_insert(newest);
            *known = newest.max(*known);
        }
        self.last_written_ms = self.last_written_ms.max(Some(file.modified_ms));
        let day = DateTime::from_timestamp_millis(file.modified_ms).map(|at| at.date_naive());
        if let Some(day) = day.filter(|_| is_named_by_us(&file.path)) {
            let (day_rows, day_bytes) = self.written.entry(day).or_default();
            *day_rows = day_rows.saturating_add(rows.unwrap_or(0));
            *day_bytes = day_bytes.saturating_add(file.size);
        }
        let sums = self.partitions.entry(key).or_default();
        sums.rows = sums.rows.saturating_add(rows.unwrap_or(0));
        sums.bytes = sums.bytes.saturating_add(file.size);
        sums.files += 1;
        sums.files_without_rows += u64::from(rows.is_none());
        sums.small += u64::from(file.size < SMALL_BYTES);
    }

    /// Returns the sums over all files.
    pub(super) fn sums(&self) -> FileSums {
        Partition::sums(self.partitions.values())
    }

    /// Returns the newest date of a partition.
    pub(super) fn newest_date(&self) -> Option<NaiveDate> {
        self.partitions.keys().filter_map(|(_, date)| *date).max()
    }

    /// Returns the dates of all partitions.
    pub(super) fn dates(&self) -> BTreeSet<NaiveDate> {
        self.partitions.keys().filter_map(|(_, date)| *date).collect()
    }

    /// Returns the pools, by name.
    pub(super) fn pools(&self) -> Vec<PoolStatus> {
        let mut by_pool: BTreeMap<&Option<String>, Vec<(Option<NaiveDate>, &Partition)>> = BTreeMap::new();
        for ((pool, date), sums) in &self.partitions {
            by_pool.entry(pool).or_default().push((*date, sums));
        }
        let pool = |(pool, dates): (&Option<String>, Vec<(Option<NaiveDate>, &Partition)>)| {
            let most = dates.iter().max_by_key(|(date, sums)| (sums.files, *date));
            PoolStatus {
                pool: pool.clone(),
                sums: Partition::sums(dates.iter().map(|(_, sums)| *sums)),
                first_date: dates.iter().filter_map(|(date, _)| *date).min(),
                last_date: dates.iter().filter_map(|(date, _)| *date).max(),
                newest_change: self.newest_change.get(pool).copied(),
                files_of_date_max: most.map_or(0, |(_, sums)| sums.files),
                date_of_most_files: most.and_then(|(date, _)| *date),
            }
        };
        by_pool.into_iter().map(pool).collect()
    }
}

/// Parses a time of the statistics. Some writers omit the time zone, which is UTC.
fn time_of(text: &str) -> Option<DateTime<Utc>> {
    let zoned = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc());
    zoned.ok().or_else(|| text.parse::<NaiveDateTime>().ok().map(|at| at.and_utc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pool: &str, date: &str, size: u64, statistics: Option<&str>) -> ListedFile {
        let partition = [("pool", pool), ("event_date", date)];
        ListedFile {
            path: format!("pool={pool}/event_date={date}/{size}.parquet"),
            partition: partition.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).into_iter().collect(),
            size,
            modified_ms: 5,
            deleted: 1,
            statistics: statistics.map(str::to_owned),
        }
    }

    #[test]
    fn files_without_usable_statistics_are_counted_apart() {
        let mut files = TableFiles::default();
        let whole = r#"{"numRecords":11,"maxValues":{"last_modified_date":"2026-01-02T03:04:05.678Z"}}"#;
        let rounded = r#"{"numRecords":3,"maxValues":{"last_modified_date":"2026-01-02T03:04:06"}}"#;
        let broken = [None, Some("no JSON"), Some(r#"{"numRecords":-1}"#), Some(r#"{"numRecords":"x"}"#)];
        for statistics in [Some(whole), Some(rounded)].into_iter().chain(broken) {
            files.add(Table::SyncRecords, &file("a", "2026-01-02", 10, statistics));
        }
        let sums = files.sums();
        assert_eq!((sums.rows, sums.files, sums.files_without_rows), (12, 6, 4), "a deletion vector took one row each");
        let newest = files.pools()[0].newest_change.unwrap();
        assert_eq!(newest.to_rfc3339_opts(SecondsFormat::Secs, true), "2026-01-02T03:04:06Z");
    }

    #[test]
    fn only_small_files_of_one_partition_can_be_merged() {
        let mut files = TableFiles::default();
        for (pool, date, size) in [
            ("a", "2026-01-01", SMALL_BYTES),
            ("a", "2026-01-01", SMALL_BYTES - 1),
            ("a", "2026-01-02", 1),
            ("a", "2026-01-02", 2),
            ("a", "2026-01-02", 3),
            ("b", "2026-01-02", 1),
        ] {
            files.add(Table::SyncRecords, &file(pool, date, size, Some(r#"{"numRecords":2}"#)));
        }
        let sums = files.sums();
        assert_eq!((sums.files, sums.small_files, sums.mergeable_files, sums.mergeable_partitions), (6, 5, 3, 1));
        assert_eq!(sums.small_files_of_partition_max, 3);
        let pools = files.pools();
        assert_eq!((pools[0].files_of_date_max, pools[0].date_of_most_files), (3, "2026-01-02".parse().ok()));
        assert_eq!(pools[1].sums.mergeable_files, 0);
    }
}
