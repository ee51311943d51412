//! Finds commits of other writers after which rows are there twice, or are gone although no ingest reads them again.
//!
//! delta-rs (1.6) commits an OPTIMIZE although another compaction moved the rows of its files meanwhile: its conflict check
//! passes over removals without a change of data. Compactions of synclake make it fail (`lake/replace.rs: move_rows`); two
//! OPTIMIZEs of delta-rs, or a rewrite by an older synclake, do not.
//!
//! A RESTORE takes back the files of later commits, and leaves the positions that those committed.

use std::collections::{BTreeMap, HashMap};

use deltalake::kernel::Action;

use crate::lake::paths::{PartName, is_staged};

/// The files that ingest or a redrive added, by version.
type Ingested = BTreeMap<u64, usize>;

/// The removals of a log, judged commit by commit.
#[derive(Default)]
pub(super) struct Removals {
    /// Removed files, with the version that removed them.
    gone: HashMap<String, u64>,
    /// The first file of each version that removed one again, with the version that had removed it.
    again: BTreeMap<u64, (String, u64)>,
    /// The files that no RESTORE took back.
    ingested: Ingested,
    /// By the version of a RESTORE: the version that it restored, and the files that it took back.
    taken_back: BTreeMap<u64, (u64, Ingested)>,
}

impl Removals {
    /// Notes the next commit of a log.
    pub(super) fn note(&mut self, version: u64, actions: &[Action]) {
        let restored = actions.iter().find_map(restored_version);
        let mut added = 0;
        for action in actions {
            match action {
                Action::Remove(remove) => {
                    if let Some(before) = self.gone.insert(remove.path.clone(), version) {
                        self.again.entry(version).or_insert_with(|| (remove.path.clone(), before));
                    }
                }
                Action::Add(add) => added += usize::from(add.data_change && is_ingested(&add.path)),
                _ => {}
            }
        }
        // A RESTORE lists a file again, and a new deletion vector lists a file that the same commit removes.
        for action in actions {
            if let Action::Add(add) = action {
                self.gone.remove(&add.path);
            }
        }
        match restored {
            Some(Some(to)) => self.restore(version, to),
            // It restores the version of a time, which is not known here.
            Some(None) => {}
            None if added > 0 => drop(self.ingested.insert(version, added)),
            None => {}
        }
    }

    fn restore(&mut self, version: u64, to: u64) {
        self.again.retain(|version, _| *version <= to);
        // Earlier RESTOREs that are taken back themselves.
        for (_, (_, back)) in self.taken_back.split_off(&to.saturating_add(1)) {
            self.ingested.extend(back);
        }
        let gone = self.ingested.split_off(&to.saturating_add(1));
        if !gone.is_empty() {
            self.taken_back.insert(version, (to, gone));
        }
    }

    /// Returns what is there twice, and what was taken back, one line for each commit.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        let twice = self.again.iter().map(|(version, (path, before))| {
            let last = version.saturating_sub(1);
            let remedy = match self.ingested.range(version..).next() {
                None => format!("RESTORE version {last} if they are, before more rows come"),
                Some((next, _)) => format!(
                    "if they are, overwrite the partitions of its files with their distinct rows (a RESTORE would take back \
                     the rows that came since version {next})"
                ),
            };
            format!(
                "version {version}: it removed {path}, which version {before} had removed already, and added rows that were \
                 there: they may be there twice; compare with version {last}, and {remedy}"
            )
        });
        let taken_back = self.taken_back.iter().map(|(version, (to, gone))| {
            let files: usize = gone.values().sum();
            let (first, last) = (gone.keys().next().unwrap_or(to), gone.keys().next_back().unwrap_or(to));
            format!(
                "version {version}: a RESTORE of version {to} took back {files} files with rows that versions {first} to {last} \
                 had added, and no ingest reads them again; RESTORE version {} to have them back",
                version.saturating_sub(1)
            )
        });
        twice.chain(taken_back)
    }
}

/// Returns whether ingest or a redrive gave a data file its name.
fn is_ingested(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| PartName::parse(name).is_some()) || is_staged(path)
}

/// Returns the version that a RESTORE restored, `None` inside if it names none; `None` for every other action.
fn restored_version(action: &Action) -> Option<Option<u64>> {
    let Action::CommitInfo(info) = action else { return None };
    if info.operation.as_deref() != Some("RESTORE") {
        return None;
    }
    let to = info.operation_parameters.as_ref().and_then(|named| named.get("version"));
    Some(to.and_then(|version| version.as_u64().or_else(|| version.as_str()?.parse().ok())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PART: &str =
        "pool=p/event_date=2026-01-01/part-s.shardId-000000000000-0011223344556677-0000000001-00000.parquet";

    fn remove(path: &str) -> Value {
        json!({"remove": {"path": path, "dataChange": false, "deletionTimestamp": 0}})
    }

    fn added(path: &str, data_change: bool) -> Value {
        let add = json!({
            "path": path, "partitionValues": {}, "size": 1, "modificationTime": 0, "dataChange": data_change,
        });
        json!({ "add": add })
    }

    fn add(path: &str) -> Value {
        added(path, false)
    }

    fn restore(to: Value) -> Value {
        json!({"commitInfo": {"operation": "RESTORE", "operationParameters": {"version": to}}})
    }

    /// Returns the faults of a log of these commits.
    fn faults(commits: &[Vec<Value>]) -> Vec<String> {
        let mut removals = Removals::default();
        for (version, actions) in (0..).zip(commits) {
            let actions: Vec<Action> =
                actions.iter().map(|action| serde_json::from_value(action.clone()).unwrap()).collect();
            removals.note(version, &actions);
        }
        removals.faults().collect()
    }

    #[test]
    fn rows_that_were_moved_twice_are_told_until_they_are_restored() {
        let twice = [
            vec![add("a"), add("b")],
            vec![remove("a"), remove("b"), add("c")],
            vec![remove("b"), remove("a"), add("d")],
        ];
        let with = |more: Vec<Value>| faults(&[&twice[..], &[more]].concat());
        let found = with(vec![]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("version 2: it removed b, which version 1 had removed already"), "{}", found[0]);
        assert!(found[0].ends_with("RESTORE version 1 if they are, before more rows come"), "{}", found[0]);
        assert_eq!(with(vec![restore(json!("1")), remove("d")]), Vec::<String>::new());
        assert_eq!(with(vec![restore(json!(1)), remove("d")]), Vec::<String>::new());
        assert_eq!(with(vec![restore(json!(2))]).len(), 1, "it restores the doubled version");
        let later = with(vec![added(PART, true)]);
        assert!(later[0].contains("a RESTORE would take back the rows that came since version 3"), "{}", later[0]);
    }

    #[test]
    fn rows_that_a_restore_took_back_are_told_until_they_are_there_again() {
        let taken_back = [
            vec![added("a", true)],
            vec![added(PART, true)],
            vec![added(&PART.replace("00000.", "00001."), true), added(&PART.replace("00000.", "00002."), true)],
            vec![restore(json!(0)), remove(PART)],
        ];
        let found = faults(&taken_back);
        let expected = "version 3: a RESTORE of version 0 took back 3 files with rows that versions 1 to 2 had added, and no \
                        ingest reads them again; RESTORE version 2 to have them back";
        assert_eq!(found, [expected]);
        let with = |more: Vec<Value>| faults(&[&taken_back[..], &[more]].concat());
        assert_eq!(with(vec![restore(json!(2)), added(PART, true)]), Vec::<String>::new());
        assert_eq!(with(vec![restore(json!(1)), added(PART, true)]).len(), 1, "version 2 is still gone");
        let compacted = [&taken_back[..2], &[vec![remove("a"), add("c")], vec![restore(json!(1))]]].concat();
        assert_eq!(
            faults(&compacted),
            Vec::<String>::new(),
            "a RESTORE of the version before a compaction loses nothing"
        );
    }

    #[test]
    fn a_file_that_is_listed_again_can_be_removed_again() {
        let (listed, removed) = (vec![add("a")], vec![remove("a")]);
        let vector = vec![remove("a"), add("a")];
        assert!(faults(&[listed.clone(), vector, removed.clone()]).is_empty(), "a deletion vector");
        assert!(faults(&[listed.clone(), removed.clone(), listed, removed]).is_empty(), "a RESTORE");
    }
}
