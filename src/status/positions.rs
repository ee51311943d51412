//! How far each source was read: shards of streams one by one, files together.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::ids::ShardKey;
use crate::lake::ledger::{ShardState, decode_state};
use crate::lake::log::Transactions;
use crate::source::files;

use super::history::{History, is_of_shard};
use super::{Moment, StatusOptions};

/// A stream, or all files together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceStatus {
    /// Name of the stream; `file` for files.
    pub source: String,
    /// Whether these are files. A file has neither an end nor a watermark, because it may grow.
    pub is_files: bool,
    /// Shards, or files.
    pub shards: u64,
    /// Shards of a stream that were not read to their end.
    pub open: u64,
    /// Shards that were read to their end.
    pub ended: u64,
    /// The newest commit of one of them; null if it is not among the commits that were read.
    pub last_commit: Option<Moment>,
    /// The oldest watermark of the open shards: every record that arrived before this time was read. Null for files, or
    /// if the watermark of an open shard is unknown.
    pub read_to: Option<Moment>,
    /// The shards of a stream. Files are listed with `--verbose` only.
    pub shards_listed: Vec<ShardStatus>,
}

/// A shard of a stream, or a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShardStatus {
    /// Shard id.
    pub shard: String,
    /// Whether the shard was read to its end.
    pub is_ended: bool,
    /// Its newest commit; null if it is not among the commits that were read.
    pub last_commit: Option<Moment>,
    /// Watermark: every record that arrived before this time was read. Null if unknown.
    pub read_to: Option<Moment>,
    /// Its commits so far, fences included; with `--verbose` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Token of its owner; with `--verbose` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u64>,
    /// Its position; with `--verbose` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

impl SourceStatus {
    /// Returns the transaction ids of the open shards.
    pub(super) fn open_ids(&self) -> impl Iterator<Item = String> {
        let open = self.shards_listed.iter().filter(|shard| !self.is_files && !shard.is_ended);
        open.map(|shard| id_of(&self.source, &shard.shard))
    }
}

fn id_of(source: &str, shard: &str) -> String {
    format!("ingest/{source}/{shard}")
}

impl ShardStatus {
    fn new(key: &ShardKey, state: &ShardState, is_verbose: bool, now: DateTime<Utc>) -> Self {
        let is_known = state.read_to_ms > 0 && !state.is_ended();
        let position = state.position.as_ref().filter(|_| !state.is_ended());
        Self {
            shard: key.shard().to_owned(),
            is_ended: state.is_ended(),
            last_commit: None,
            read_to: Some(state.read_to_ms).filter(|_| is_known).and_then(|ms| Moment::new(ms, now)),
            epoch: is_verbose.then_some(state.epoch),
            owner: is_verbose.then_some(state.owner),
            position: position.filter(|_| is_verbose).map(ToString::to_string),
        }
    }
}

/// Returns the sources that the log knows, without their commits.
pub(super) fn sources(known: &Transactions, options: &StatusOptions) -> Vec<SourceStatus> {
    let mut by_source: BTreeMap<String, Vec<ShardStatus>> = BTreeMap::new();
    for id in known.ids.keys().filter(|id| is_of_shard(id)) {
        let parts = id.strip_prefix("ingest/").and_then(|rest| rest.split_once('/'));
        let Some(key) = parts.and_then(|(stream, shard)| ShardKey::new(stream, shard)) else { continue };
        let Some(state) = decode_state(known, &key) else { continue };
        let shard = ShardStatus::new(&key, &state, options.verbose, options.now);
        by_source.entry(key.stream().to_owned()).or_default().push(shard);
    }
    by_source.into_iter().map(|(source, shards)| source_of(source, shards)).collect()
}

fn source_of(source: String, mut shards: Vec<ShardStatus>) -> SourceStatus {
    shards.sort_by(|a, b| a.shard.cmp(&b.shard));
    let is_files = source == files::STREAM;
    let open = || shards.iter().filter(|shard| !shard.is_ended && !is_files);
    let read_to = open().map(|shard| shard.read_to).collect::<Option<Vec<Moment>>>();
    SourceStatus {
        source,
        is_files,
        shards: shards.len() as u64,
        open: open().count() as u64,
        ended: shards.iter().filter(|shard| shard.is_ended).count() as u64,
        last_commit: None,
        read_to: read_to.into_iter().flatten().min_by_key(|moment| moment.at),
        shards_listed: shards,
    }
}

/// Enters the newest commits, and drops the files unless they are wanted.
pub(super) fn enter_commits(sources: &mut [SourceStatus], history: &History, options: &StatusOptions) {
    for source in sources {
        for shard in &mut source.shards_listed {
            let ms = history.last_commit_ms(&id_of(&source.source, &shard.shard));
            shard.last_commit = ms.and_then(|ms| Moment::new(ms, options.now));
        }
        source.last_commit =
            source.shards_listed.iter().filter_map(|shard| shard.last_commit).max_by_key(|commit| commit.at);
        if source.is_files && !options.verbose {
            source.shards_listed = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SequenceNumber, StartAt};
    use crate::lake::ledger::encode_state;

    #[test]
    fn the_slowest_open_shard_says_how_far_a_stream_was_read() {
        let mut known = Transactions::default();
        let mut enter = |stream: &str, shard: &str, position: Option<SequenceNumber>, read_to_ms: i64| {
            let state =
                ShardState { epoch: 4, owner: 7, position, from: StartAt::TrimHorizon, read_to_ms, parts_done: 0 };
            known.ids.extend(encode_state(&ShardKey::new(stream, shard).unwrap(), &state).unwrap());
        };
        enter("s", "ended", Some(SequenceNumber::shard_end()), 1_000);
        enter("s", "slow", Some(SequenceNumber::from_u64(3)), 100_000);
        enter("s", "fast", Some(SequenceNumber::from_u64(9)), 200_000);
        enter("new", "unread", None, 0);
        enter("file", "a", Some(SequenceNumber::from_u64(5)), 0);
        let now = DateTime::from_timestamp_millis(300_000).unwrap();
        let mut options = StatusOptions { lake: "lake".into(), commits_max: 10, verbose: false, now };
        let found = sources(&known, &options);
        let shown: Vec<_> = found
            .iter()
            .map(|s| (s.source.as_str(), s.shards, s.open, s.ended, s.read_to.map(|moment| moment.age_seconds)))
            .collect();
        assert_eq!(shown, [("file", 1, 0, 0, None), ("new", 1, 1, 0, None), ("s", 3, 2, 1, Some(200))]);
        assert_eq!(found[2].shards_listed[0].epoch, None, "epochs are for --verbose");
        options.verbose = true;
        let verbose = &sources(&known, &options)[2].shards_listed[2];
        assert_eq!((verbose.shard.as_str(), verbose.epoch, verbose.position.as_deref()), ("slow", Some(4), Some("3")));
    }
}
