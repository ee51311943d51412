//! Every name that the pipeline gives to a folder or a file, as types.
//!
//! Invariant: no name needs escaping, in a URL, a Hive partition or a file system. A pool id holds a `:`, which
//! Athena's `MSCK REPAIR`, Spark's file names and DataFusion's partition filters each get wrong in their own way, so
//! the folder carries `_` in its place and the true id is a column of the file.

use std::fmt;

use chrono::NaiveDate;

use crate::ids::ShardKey;

/// A pool id as a partition value: `us-east-1:0a1b…` becomes `us-east-1_0a1b…`.
///
/// Reversible, because the part after the `:` is made of `[0-9a-f-]` only: the last `_` was the colon.
pub fn pool_partition(identity_pool_id: &str) -> String {
    match identity_pool_id.rsplit_once(':') {
        Some((region, guid)) => format!("{region}_{guid}"),
        None => identity_pool_id.to_owned(),
    }
}

/// The pool id of a partition value; the inverse of [`pool_partition`].
pub fn pool_id(partition: &str) -> String {
    match partition.rsplit_once('_') {
        Some((region, guid)) => format!("{region}:{guid}"),
        None => partition.to_owned(),
    }
}

/// A Hive folder of one partition of `sync_records`, relative to the table.
pub fn sync_records_partition(pool: &str, event_date: NaiveDate) -> String {
    format!("pool={pool}/event_date={event_date}")
}

/// Whether a path names something below the root that it is relative to, for every reader of it.
///
/// A path of a log is read as part of a URL: `\` is a separator there, control characters and spaces at its ends go, and
/// `?` and `#` end it.
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

/// Name of a data file that ingest wrote: who wrote it, for which commit of which shard.
///
/// `part-<stream>.<shard>-<owner>-<number>-<index>.parquet`. The name is unambiguous read from the right, because a
/// shard holds no `.` and the last three fields hold no `-`. The sweep after a crash relies on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// `<stream>.<shard>`.
    pub shard: String,
    /// Token of the owner that wrote the file.
    pub owner: u64,
    /// Number of the commit that the file was written for.
    pub number: u64,
    /// Position among the files of that commit.
    pub index: u64,
}

impl PartName {
    /// The name for file `index` of commit `number` of `shard`.
    pub fn new(shard: &ShardKey, owner: u64, number: u64, index: u64) -> Self {
        Self { shard: shard.to_string(), owner, number, index }
    }

    /// Reads a file name (no folder); `None` when ingest did not write it.
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_prefix("part-")?.strip_suffix(".parquet")?;
        let mut fields = stem.rsplitn(4, '-');
        let index = fields.next()?.parse().ok()?;
        let number = fields.next()?.parse().ok()?;
        let owner = fields.next()?;
        let shard = fields.next()?;
        if owner.len() != 16 || !shard.contains('.') {
            return None;
        }
        Some(Self { shard: shard.to_owned(), owner: u64::from_str_radix(owner, 16).ok()?, number, index })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part-{}-{:016x}-{:010}-{:05}.parquet", self.shard, self.owner, self.number, self.index)
    }
}

/// The object of one commit, relative to the table.
pub fn commit(version: u64) -> String {
    format!("_delta_log/{version:020}.json")
}

/// The version that a commit object's file name stands for; `None` for every other file of the log.
pub fn commit_version(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(".json")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
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
        assert_eq!(commit(12), "_delta_log/00000000000000000012.json");
        assert_eq!(commit_version("00000000000000000012.json"), Some(12));
        assert_eq!(commit_version("00000000000000000012.checkpoint.parquet"), None);
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
