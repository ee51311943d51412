//! Finds commits that removed a file again: rows that were moved twice are there twice.
//!
//! delta-rs (1.6) commits an OPTIMIZE although another compaction moved the rows of its files meanwhile: its conflict check
//! passes over removals without a change of data. Compactions of synclake make it fail (`lake/replace.rs: move_rows`); two
//! OPTIMIZEs of delta-rs, or a rewrite by an older synclake, do not.

use std::collections::{BTreeMap, HashMap};

use deltalake::kernel::Action;

/// Files that commits removed, and removals of a file that was gone already.
#[derive(Default)]
pub(super) struct Removals {
    /// Removed files, with the version that removed them.
    gone: HashMap<String, u64>,
    /// The first such file of each version that removed one again, with the version that had removed it.
    again: BTreeMap<u64, (String, u64)>,
}

impl Removals {
    /// Notes the next commit of a log.
    pub(super) fn note(&mut self, version: u64, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Remove(remove) => {
                    if let Some(before) = self.gone.insert(remove.path.clone(), version) {
                        self.again.entry(version).or_insert_with(|| (remove.path.clone(), before));
                    }
                }
                Action::CommitInfo(info) if info.operation.as_deref() == Some("RESTORE") => {
                    let to = info.operation_parameters.as_ref().and_then(|named| named.get("version"));
                    let to = to.and_then(|version| version.as_u64().or_else(|| version.as_str()?.parse().ok()));
                    self.again.retain(|version, _| to.is_none_or(|to| *version <= to));
                }
                _ => {}
            }
        }
        // A RESTORE lists a file again, and a new deletion vector lists a file that the same commit removes.
        for action in actions {
            if let Action::Add(add) = action {
                self.gone.remove(&add.path);
            }
        }
    }

    /// Returns what was removed twice, and was not restored since, one line for each commit.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        self.again.iter().map(|(version, (path, before))| {
            format!(
                "version {version}: it removed {path}, which version {before} had removed already, and added rows that were \
                 there: they may be there twice; compare with version {last}, and RESTORE it if they are",
                last = version.saturating_sub(1)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn remove(path: &str) -> Value {
        json!({"remove": {"path": path, "dataChange": false, "deletionTimestamp": 0}})
    }

    fn add(path: &str) -> Value {
        json!({"add": {"path": path, "partitionValues": {}, "size": 1, "modificationTime": 0, "dataChange": false}})
    }

    fn restore(to: Value) -> Value {
        json!({"commitInfo": {"operation": "RESTORE", "operationParameters": {"version": to}}})
    }

    /// Returns the versions of the faults of a log of these commits.
    fn faults(commits: &[&[Value]]) -> Vec<String> {
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
        let twice: Vec<Vec<Value>> = vec![
            vec![add("a"), add("b")],
            vec![remove("a"), remove("b"), add("c")],
            vec![remove("b"), remove("a"), add("d")],
        ];
        let with = |more: &[Value]| {
            let all: Vec<&[Value]> = twice.iter().map(Vec::as_slice).chain([more]).collect();
            faults(&all)
        };
        let found = with(&[]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("version 2: it removed b, which version 1 had removed already"), "{}", found[0]);
        assert_eq!(with(&[restore(json!("1")), remove("d")]), Vec::<String>::new());
        assert_eq!(with(&[restore(json!(1)), remove("d")]), Vec::<String>::new());
        assert_eq!(with(&[restore(json!(2))]).len(), 1, "it restores the doubled version");
    }

    #[test]
    fn a_file_that_is_listed_again_can_be_removed_again() {
        assert!(faults(&[&[add("a")], &[remove("a"), add("a")], &[remove("a")]]).is_empty(), "a deletion vector");
        assert!(faults(&[&[add("a")], &[remove("a")], &[add("a")], &[remove("a")]]).is_empty(), "a RESTORE");
    }
}
