//! The lineage of a stream's shards: which shards may be read now, and which were trimmed unread.
//!
//! Resharding closes a shard and opens children. **Invariant: a child is read only after every parent that is read at
//! all has been committed to its end**, and from its own beginning. The ledger determines which shards are read at all:
//! those that it knows, and those of which it knows no descendant. A known descendant means that reading began later
//! than this shard, with `--from latest`.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{SequenceNumber, ShardKey, StartAt};

/// The start of a stream that the lake has never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Oldest record that the stream still holds.
    TrimHorizon,
    /// Records that arrive from now on.
    Latest,
    /// First record at or after this time, in milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// A shard as the stream lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedShard {
    /// Key of the shard.
    pub shard: ShardKey,
    /// Parents of the shard, listed or not.
    pub parents: Vec<ShardKey>,
    /// Whether the shard takes no more records.
    pub closed: bool,
    /// Lower bound of the sequence numbers of the shard.
    pub starts: Option<SequenceNumber>,
}

/// The ledger's state of a shard, as far as lineage needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Last committed position.
    pub position: Option<SequenceNumber>,
    /// Start of reading.
    pub from: StartAt,
}

impl Progress {
    /// Returns whether the shard is committed to its end.
    pub fn is_ended(&self) -> bool {
        SequenceNumber::is_end_of(&self.position)
    }
}

/// Returns the shards that may be read now, each with its start: the ledger's own, or that of a new shard.
pub fn ready(
    listed: &[ListedShard],
    ledger: &BTreeMap<ShardKey, Progress>,
    from: From,
    now_ms: i64,
) -> Vec<(ShardKey, StartAt)> {
    if ledger.is_empty() && from == From::Latest {
        let open = listed.iter().filter(|s| !s.closed);
        return open.map(|s| (s.shard.clone(), StartAt::Timestamp(now_ms))).collect();
    }
    let begin = match from {
        From::TrimHorizon | From::Latest => StartAt::TrimHorizon,
        // In the ledger, 0 stands for the horizon.
        From::Timestamp(ms) => StartAt::Timestamp(ms.max(1)),
    };
    let names: BTreeSet<&ShardKey> = listed.iter().map(|s| &s.shard).collect();
    let skipped = ancestors(listed, ledger);
    let ended = |shard: &ShardKey| ledger.get(shard).is_some_and(Progress::is_ended);
    let mut found = Vec::new();
    for shard in listed {
        if ended(&shard.shard) {
            continue;
        }
        if let Some(progress) = ledger.get(&shard.shard) {
            found.push((shard.shard.clone(), progress.from));
            continue;
        }
        if skipped.contains(&shard.shard) {
            continue;
        }
        let waits = shard.parents.iter().any(|p| names.contains(p) && !skipped.contains(p) && !ended(p));
        if waits {
            continue;
        }
        found.push((shard.shard.clone(), begin));
    }
    found
}

/// Returns the shards that were not read to their end and that the stream no longer lists: retention has trimmed the
/// rest of them. Considers only shards that the ledger had `before` the listing began. If another worker has begun a
/// shard since, the listing may be too old to contain it.
pub fn trimmed(
    listed: &[ListedShard],
    ledger: &BTreeMap<ShardKey, Progress>,
    before: &BTreeSet<ShardKey>,
) -> Vec<ShardKey> {
    let names: BTreeSet<&ShardKey> = listed.iter().map(|s| &s.shard).collect();
    let is_gone =
        |(shard, p): &(&ShardKey, &Progress)| !p.is_ended() && !names.contains(shard) && before.contains(*shard);
    ledger.iter().filter(is_gone).map(|(shard, _)| shard.clone()).collect()
}

/// Returns every shard that the ledger does not know, but of which it knows a descendant.
fn ancestors(listed: &[ListedShard], ledger: &BTreeMap<ShardKey, Progress>) -> BTreeSet<ShardKey> {
    let parents: BTreeMap<&ShardKey, &[ShardKey]> = listed.iter().map(|s| (&s.shard, s.parents.as_slice())).collect();
    let mut found = BTreeSet::new();
    let mut todo: Vec<&ShardKey> = ledger.keys().collect();
    while let Some(shard) = todo.pop() {
        for parent in parents.get(shard).copied().unwrap_or_default() {
            if !ledger.contains_key(parent) && found.insert(parent.clone()) {
                todo.push(parent);
            }
        }
    }
    found
}

/// Returns whether a position of the ledger cannot belong to its listed shard: it is before the first record of the
/// shard, or is the end of an open shard.
pub(super) fn contradicts(listed: &[ListedShard], ledger: &BTreeMap<ShardKey, Progress>) -> bool {
    listed.iter().any(|shard| match ledger.get(&shard.shard).and_then(|progress| progress.position.as_ref()) {
        None => false,
        Some(position) if position.is_shard_end() => !shard.closed,
        Some(position) => shard.starts.as_ref().is_some_and(|starts| position < starts),
    })
}

/// Returns a shard of a circular lineage, if there is one: a shard that is its own ancestor, or a descendant of one. No
/// shard of such a lineage could ever be read.
pub(super) fn circular(listed: &[ListedShard]) -> Option<&ShardKey> {
    let mut waits: BTreeMap<&ShardKey, usize> = listed.iter().map(|s| (&s.shard, 0)).collect();
    let mut children: BTreeMap<&ShardKey, Vec<&ShardKey>> = BTreeMap::new();
    for shard in listed {
        for parent in shard.parents.iter().filter(|parent| waits.contains_key(parent)).collect::<Vec<_>>() {
            children.entry(parent).or_default().push(&shard.shard);
            if let Some(waits) = waits.get_mut(&shard.shard) {
                *waits += 1;
            }
        }
    }
    let mut free: Vec<&ShardKey> = waits.iter().filter(|(_, n)| **n == 0).map(|(shard, _)| *shard).collect();
    while let Some(shard) = free.pop() {
        waits.remove(shard);
        for child in children.get(shard).into_iter().flatten() {
            if let Some(n) = waits.get_mut(child) {
                *n -= 1;
                if *n == 0 {
                    free.push(child);
                }
            }
        }
    }
    waits.keys().next().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ShardKey {
        ShardKey::new("s", name).unwrap()
    }

    fn listed(spec: &[(&str, &[&str], bool)]) -> Vec<ListedShard> {
        let shard = |(name, parents, closed): &(&str, &[&str], bool)| ListedShard {
            shard: key(name),
            parents: parents.iter().map(|p| key(p)).collect(),
            closed: *closed,
            starts: SequenceNumber::parse("100"),
        };
        spec.iter().map(shard).collect()
    }

    fn ledger(spec: &[(&str, &str)]) -> BTreeMap<ShardKey, Progress> {
        let position = |text: &str| match text {
            "end" => Some(SequenceNumber::shard_end()),
            "" => None,
            digits => SequenceNumber::parse(digits),
        };
        let progress = |text| Progress { position: position(text), from: StartAt::TrimHorizon };
        spec.iter().map(|(name, text)| (key(name), progress(text))).collect()
    }

    #[track_caller]
    fn check(shards: &[(&str, &[&str], bool)], known: &[(&str, &str)], from: From, expected: &[&str]) {
        let found = ready(&listed(shards), &ledger(known), from, 7);
        let found: Vec<_> = found.iter().map(|(s, _)| s.shard().to_owned()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn children_wait_for_parents() {
        // a splits into b and c; c and d merge into e.
        let shards: &[(&str, &[&str], bool)] =
            &[("a", &[], true), ("d", &[], true), ("b", &["a"], false), ("c", &["a"], true), ("e", &["c", "d"], false)];
        let from = From::TrimHorizon;
        check(shards, &[], from, &["a", "d"]);
        check(shards, &[("a", "5"), ("d", "")], from, &["a", "d"]);
        check(shards, &[("a", "end"), ("d", "7")], from, &["d", "b", "c"]);
        check(shards, &[("a", "5"), ("d", "end")], from, &["a"]);
        check(shards, &[("a", "end"), ("d", "end"), ("b", ""), ("c", "9")], from, &["b", "c"]);
        check(shards, &[("a", "end"), ("d", "end"), ("b", "1"), ("c", "end")], from, &["b", "e"]);
    }

    #[test]
    fn a_lineage_that_bites_its_tail_is_found() {
        let found = |shards: &[(&str, &[&str], bool)]| circular(&listed(shards)).map(|s| s.shard().to_owned());
        assert_eq!(
            found(&[("a", &[], true), ("d", &["gone"], true), ("b", &["a"], false), ("c", &["a", "d"], false)]),
            None
        );
        assert_eq!(found(&[("a", &["a"], false)]).as_deref(), Some("a"));
        assert_eq!(found(&[("x", &[], false), ("a", &["b"], false), ("b", &["a"], false)]).as_deref(), Some("a"));
    }

    #[test]
    fn positions_of_another_stream_are_known() {
        let other =
            |shards: &[(&str, &[&str], bool)], known: &[(&str, &str)]| contradicts(&listed(shards), &ledger(known));
        assert!(other(&[("a", &[], false)], &[("a", "99")]), "before its first record");
        assert!(other(&[("a", &[], false)], &[("a", "end")]), "ended, and open");
        assert!(!other(&[("a", &[], false)], &[("a", "100")]));
        assert!(!other(&[("a", &[], true)], &[("a", "end")]));
        assert!(!other(&[("a", &[], false)], &[("a", ""), ("gone", "7")]), "nothing read, or trimmed");
    }

    #[test]
    fn latest_reads_no_ancestor_ever_and_every_descendant() {
        let shards: &[(&str, &[&str], bool)] = &[("a", &[], true), ("b", &["a"], false), ("c", &["a"], false)];
        check(shards, &[], From::Latest, &["b", "c"]);
        check(shards, &[("b", ""), ("c", "3")], From::Latest, &["b", "c"]);
        let split: &[(&str, &[&str], bool)] =
            &[("a", &[], true), ("b", &["a"], true), ("c", &["a"], false), ("d", &["b"], false)];
        check(split, &[("b", "end"), ("c", "3")], From::Latest, &["c", "d"]);
        let started = ready(&listed(shards), &ledger(&[]), From::Latest, 7);
        assert!(started.iter().all(|(_, at)| *at == StartAt::Timestamp(7)));
    }

    #[test]
    fn a_lineage_that_aged_out_is_taken_up_at_what_is_left() {
        // The ledger knows only a. The stream lists neither a nor, in the first case, its child b.
        check(&[("c", &["b"], true), ("d", &["c"], false)], &[("a", "5")], From::TrimHorizon, &["c"]);
        check(&[("b", &["a"], false)], &[("a", "5")], From::TrimHorizon, &["b"]);
        // Every trimmed shard that was not read to its end is reported.
        let gone = |shards: &[(&str, &[&str], bool)], known: &[(&str, &str)], before: &[&str]| {
            trimmed(&listed(shards), &ledger(known), &before.iter().map(|name| key(name)).collect())
        };
        assert_eq!(gone(&[("b", &["a"], false)], &[("a", "5"), ("b", "")], &["a"]), [key("a")]);
        assert_eq!(gone(&[("b", &["a"], false)], &[("a", "end"), ("b", "9")], &["a", "b"]), []);
        // Another worker ended a and began its child b while the listing was in flight.
        assert_eq!(gone(&[("a", &[], true)], &[("a", "end"), ("b", "9")], &["a"]), []);
    }
}
