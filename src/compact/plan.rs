//! Selects the files to merge, from the log alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::NaiveDate;

use crate::lake::paths::{is_staged, pool_partition};
use crate::lake::snapshot::ActiveFile;

use super::CompactOptions;

/// A file to merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Path in the table.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Rows, if the log states them.
    pub rows: Option<u64>,
    /// SHA-256 of the bytes, if the log states it.
    pub sha256: Option<String>,
}

/// Files of one partition that become one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Names and values of the partition columns.
    pub partition: Vec<(&'static str, String)>,
    /// The files.
    pub sources: Vec<Source>,
}

impl Group {
    /// Returns the folder of the partition in the table.
    pub(super) fn folder(&self) -> String {
        let parts: Vec<String> = self.partition.iter().map(|(name, value)| format!("{name}={value}")).collect();
        parts.join("/")
    }

    /// Returns the bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }
}

/// The groups to merge, and the files that are left alone.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The groups, by partition.
    pub groups: Vec<Group>,
    /// Small files that are left alone, by the reason.
    pub left: BTreeMap<String, u64>,
    /// Files of the selected partitions.
    pub files: u64,
}

/// A file is small if it has less than this part of the target size.
const SMALL_PART: u64 = 2;

/// Plans from the active files of a version, and their digests. Files of `unfit` are left alone.
pub(super) fn plan(
    files: Vec<ActiveFile>,
    mut digests: HashMap<String, String>,
    options: &CompactOptions,
    unfit: &HashSet<String>,
) -> Plan {
    let mut plan = Plan::default();
    let columns = options.table.partition_columns();
    let mut partitions: BTreeMap<Vec<(&str, String)>, Vec<Source>> = BTreeMap::new();
    let wanted_pool = options.pool.as_deref().map(pool_partition);
    for file in files {
        let value = |name: &str| file.partition.get(name).cloned().flatten();
        let (pool, date) =
            (value("pool"), columns.iter().find(|name| name.ends_with("_date")).and_then(|name| value(name)));
        let day = date.as_deref().and_then(|date| date.parse::<NaiveDate>().ok());
        let is_wanted = wanted_pool.as_ref().is_none_or(|wanted| pool.as_ref() == Some(wanted))
            && options.from.is_none_or(|from| day.is_some_and(|day| day >= from))
            && options.to.is_none_or(|to| day.is_some_and(|day| day <= to));
        if !is_wanted {
            continue;
        }
        plan.files += 1;
        // A redrive knows the files that it staged by their names.
        let is_small = file.size < options.target_bytes / SMALL_PART;
        if !is_small || unfit.contains(&file.path) || is_staged(&file.path) {
            continue;
        }
        let mut leave = |reason: &str| *plan.left.entry(reason.to_owned()).or_default() += 1;
        if file.remove.deletion_vector.is_some() {
            leave("has a deletion vector");
            continue;
        }
        let values = columns.iter().map(|name| Some((*name, value(name).filter(|value| is_plain(value))?)));
        let Some(partition) = values.collect::<Option<Vec<_>>>().filter(|_| day.is_some()) else {
            leave("has a partition value that no file name can hold");
            continue;
        };
        let rows = file.statistics["numRecords"].as_u64();
        let source = Source { bytes: file.size, rows, sha256: digests.remove(&file.path), path: file.path };
        partitions.entry(partition).or_default().push(source);
    }
    for (partition, sources) in partitions {
        for sources in packed(sources, options.target_bytes) {
            plan.groups.push(Group { partition: partition.clone(), sources });
        }
    }
    plan
}

/// Returns whether a partition value can be a part of a path as it is.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) && value != ".."
}

/// Packs files into groups of at least two files and at most `target_bytes`, smallest files first.
fn packed(mut sources: Vec<Source>, target_bytes: u64) -> Vec<Vec<Source>> {
    sources.sort_by(|a, b| (a.bytes, &a.path).cmp(&(b.bytes, &b.path)));
    let (mut groups, mut bytes) = (Vec::<Vec<Source>>::new(), 0);
    for source in sources {
        match groups.last_mut().filter(|_| bytes + source.bytes <= target_bytes) {
            Some(group) => {
                bytes += source.bytes;
                group.push(source);
            }
            None => {
                bytes = source.bytes;
                groups.push(vec![source]);
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, bytes: u64) -> Source {
        Source { path: path.to_owned(), bytes, rows: Some(1), sha256: None }
    }

    #[test]
    fn groups_have_at_least_two_files_and_at_most_the_target() {
        let groups = packed(vec![source("d", 40), source("a", 10), source("c", 45), source("b", 30)], 100);
        assert_eq!(groups, [vec![source("a", 10), source("b", 30), source("d", 40)]], "the fourth file stays");
        assert_eq!(packed(vec![source("a", 10)], 100), Vec::<Vec<Source>>::new());
        let many = (0..10_000).map(|n| source(&format!("{n:05}"), 7)).collect();
        let groups = packed(many, 100);
        assert!(groups.iter().all(|group| group.iter().map(|s| s.bytes).sum::<u64>() <= 100 && group.len() > 1));
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 10_000);
    }

    #[test]
    fn plain_values() {
        assert!(is_plain("us-east-1_0a1b") && !is_plain("us-east-1:0a") && !is_plain("..") && !is_plain("a/b"));
    }
}
