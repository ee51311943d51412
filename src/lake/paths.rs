//! Names of all folders and files that the pipeline creates, as types.
//!
//! **Invariant: no name needs escaping, in a URL, a Hive partition or a file system.** A pool id contains a `:`.
//! Athena's `MSCK REPAIR`, Spark's file names and DataFusion's partition filters each mishandle the `:` differently. So
//! the folder name has `_` instead, and a column of the file holds the true id.

use std::fmt;

use chrono::NaiveDate;

use crate::ids::ShardKey;

/// Converts a pool id to a partition value: `us-east-1:0a1b…` becomes `us-east-1_0a1b…`.
///
/// The conversion is reversible: the part after the `:` consists of `[0-9a-f-]` only, so the last `_` was the colon.
pub fn pool_partition(identity_pool_id: &str) -> String {
    match identity_pool_id.rsplit_once(':') {
        Some((region, guid)) => format!("{region}_{guid}"),
        None => identity_pool_id.to_owned(),
    }
}

/// Converts a partition value to the pool id; the inverse of [`pool_partition`].
pub fn pool_id(partition: &str) -> String {
    match partition.rsplit_once('_') {
        Some((region, guid)) => format!("{region}:{guid}"),
        None => partition.to_owned(),
    }
}

/// Returns the Hive folder of one partition of `sync_records`, relative to the table.
pub fn sync_records_partition(pool: &str, event_date: NaiveDate) -> String {
    format!("pool={pool}/event_date={event_date}")
}

/// Returns whether every reader resolves a relative path to an object below its root.
///
/// Readers treat a path of the log as part of a URL: `\` is a separator, control characters and spaces at the ends are
/// dropped, and `?` and `#` end the path.
pub fn lies_inside(path: &str) -> bool {
    let path = path.trim_matches(' ');
    let first = path.split('/').next().unwrap_or_default();
    let is_scheme = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let has_scheme = first.split_once(':').is_some_and(|(name, _)| !name.is_empty() && is_scheme(name));
    !(path.is_empty()
        || has_scheme
        || path.starts_with('/')
        || path.chars().any(|c| c.is_control() || c == '\\')
        || path.split(['/', '?', '#']).any(|part| part == ".."))
}

/// The name of a data file that ingest wrote: its writer, its shard and its commit.
///
/// The form is `part-<stream>.<shard>-<owner>-<number>-<index>.parquet`. Read from the right, the name is unambiguous:
/// a shard contains no `.`, and the last three fields contain no `-`. The sweep after a crash relies on that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// `<stream>.<shard>`.
    pub shard: String,
    /// Token of the owner that wrote the file.
    pub owner: u64,
    /// Epoch that the shard gets by the commit of this file.
    pub epoch: u64,
    /// Index among the files of that commit.
    pub index: u64,
}

impl PartName {
    /// Creates the name of file `index` for the commit of `shard` with epoch `epoch`.
    pub fn new(shard: &ShardKey, owner: u64, epoch: u64, index: u64) -> Self {
        Self { shard: shard.to_string(), owner, epoch, index }
    }

    /// Parses a file name without a folder. Returns `None` if ingest did not write the file.
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_prefix("part-")?.strip_suffix(".parquet")?;
        let mut fields = stem.rsplitn(4, '-');
        let index = fields.next()?.parse().ok()?;
        let epoch = fields.next()?.parse().ok()?;
        let owner = fields.next()?;
        let shard = fields.next()?;
        if owner.len() != 16 || !shard.contains('.') {
            return None;
        }
        Some(Self { shard: shard.to_owned(), owner: u64::from_str_radix(owner, 16).ok()?, epoch, index })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part-{}-{:016x}-{:010}-{:05}.parquet", self.shard, self.owner, self.epoch, self.index)
    }
}

/// The name of a file that a compaction wrote: `compact-<token>-<index>.parquet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactName {
    /// Token of the run.
    pub run: u64,
    /// Index among the files of the run.
    pub index: u64,
}

impl CompactName {
    /// Parses a file name without a folder. Returns `None` if no compaction wrote the file.
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_prefix("compact-")?.strip_suffix(".parquet")?;
        let (run, index) = stem.split_once('-')?;
        let run = (run.len() == 16).then(|| u64::from_str_radix(run, 16).ok()).flatten()?;
        Some(Self { run, index: index.parse().ok()? })
    }
}

impl fmt::Display for CompactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compact-{:016x}-{:05}.parquet", self.run, self.index)
    }
}

/// Returns whether synclake gave a data file of `sync_records` its name (without a folder).
pub fn is_ours(file_name: &str) -> bool {
    PartName::parse(file_name).is_some() || CompactName::parse(file_name).is_some()
}

/// The prefix of the names of files that a redrive staged.
pub(crate) const STAGED_PREFIX: &str = "redrive-";

/// Returns whether a redrive staged a file of `quarantine`, by its path.
pub(crate) fn is_staged(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(STAGED_PREFIX))
}

/// Returns the path of the commit object of a version, relative to the table.
pub fn commit(version: u64) -> String {
    format!("_delta_log/{version:020}.json")
}

/// The largest version of a log. The Delta protocol stores a version as an i64.
pub const VERSION_MAX: u64 = i64::MAX as u64;

/// Returns the version of a commit object's file name, or `None` for every other file of the log. A number above
/// [`VERSION_MAX`] is no version.
pub fn commit_version(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(".json")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten().filter(|version| *version <= VERSION_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_names() {
        let pool = pool_partition("us-east-1:0a1b-2c");
        assert_eq!(pool, "us-east-1_0a1b-2c");
        assert_eq!(pool_id(&pool), "us-east-1:0a1b-2c");
        assert_eq!(pool_id(&pool_partition("a_b:0")), "a_b:0");
        let date = NaiveDate::from_ymd_opt(2026, 11, 20).unwrap();
        assert_eq!(sync_records_partition(&pool, date), "pool=us-east-1_0a1b-2c/event_date=2026-11-20");
        let shard = ShardKey::new("my-stream.v2", "shardId-000000000003").unwrap();
        let name = PartName::new(&shard, 0xab, 7, 2);
        assert_eq!(
            name.to_string(),
            "part-my-stream.v2.shardId-000000000003-00000000000000ab-0000000007-00002.parquet"
        );
        assert_eq!(PartName::parse(&name.to_string()), Some(name));
        assert_eq!(PartName::parse("part-00000-abc.snappy.parquet"), None);
        let name = CompactName { run: 0xab, index: 7 };
        assert_eq!(name.to_string(), "compact-00000000000000ab-00007.parquet");
        assert_eq!(CompactName::parse(&name.to_string()), Some(name));
        assert_eq!(CompactName::parse("compact-ab-00007.parquet"), None);
        assert_eq!(commit(12), "_delta_log/00000000000000000012.json");
        assert_eq!(commit_version("00000000000000000012.json"), Some(12));
        assert_eq!(commit_version("00000000000000000012.checkpoint.parquet"), None);
        assert_eq!(commit_version("09223372036854775807.json"), Some(VERSION_MAX));
        for none in ["09223372036854775808.json", "18446744073709551615.json", "99999999999999999999.json"] {
            assert_eq!(commit_version(none), None);
        }
    }

    #[test]
    fn what_lies_inside() {
        for inside in ["a", "pool=us-east-1_0a/event_date=2026-01-01/part-s.a-1.parquet", "a..b/..c", "pool=a:b/x"] {
            assert!(lies_inside(inside), "{inside}");
        }
        let outside =
            ["", "..", "a/../../b", "/etc/passwd", "//host/x", "file:///etc/passwd", " file:///x", "s3://b/x", "..\\x"];
        for outside in outside.into_iter().chain([".\t./x", "a/..?x", "..#x"]) {
            assert!(!lies_inside(outside), "{outside}");
        }
    }
}
