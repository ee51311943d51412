//! Deleting what a crashed owner wrote and never committed.
//!
//! **Invariant: a file is deleted only if ingest named it for a shard that we fenced, for a commit whose number is at
//! most the fence's, and no commit lists it.** No such commit can succeed any more. Our own files have higher numbers,
//! and files of other shards are not ours to judge.

use std::collections::BTreeMap;

use super::paths::PartName;
use super::{LakeError, Store, snapshot};
use crate::source::ShardKey;

/// Deletes the leftovers of the fenced shards in one table; returns how many there were.
///
/// # Errors
/// The store failed, or the credentials may not list or delete. Nothing depends on it: the leftovers stay invisible.
pub async fn sweep(table: &Store, fences: &BTreeMap<ShardKey, u64>) -> Result<usize, LakeError> {
    let fences: BTreeMap<String, u64> = fences.iter().map(|(shard, number)| (shard.to_string(), *number)).collect();
    let listed = table.list("").await?;
    let candidates: Vec<String> = listed
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| {
            let name = path.rsplit('/').next().and_then(PartName::parse);
            name.is_some_and(|name| fences.get(&name.shard).is_some_and(|fence| name.number <= *fence))
        })
        .collect();
    if candidates.is_empty() {
        return Ok(0);
    }
    // Loaded after the listing: what was committed before it is seen as live.
    let Some(loaded) = snapshot::load(table, None).await? else { return Ok(0) };
    let live = snapshot::live_files(table, &loaded).await?;
    let mut swept = 0;
    for path in candidates.iter().filter(|path| !live.contains(*path)) {
        table.delete(path).await?;
        swept += 1;
    }
    Ok(swept)
}
