//! Sweeps: deleting files that a crashed writer left behind.
//!
//! **Invariant: [`sweep`] deletes a file only if all of this holds:** ingest named the file for a shard that this
//! writer fenced or that ended; its epoch is at most the shard's epoch at that time; no commit lists it. No commit with
//! such a file can succeed any more. The writer's own files have higher epochs. [`sweep`] leaves files of other shards
//! alone.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use object_store::ObjectMeta;

use super::paths::{CompactName, PartName};
use super::{LakeError, Store, snapshot};
use crate::ids::ShardKey;

/// Deletes the leftover files of the fenced shards in one table. Returns the number of deleted files.
///
/// # Errors
/// The store failed, or the credentials do not allow listing or deleting. Nothing depends on a sweep: leftovers stay
/// invisible.
pub(crate) async fn sweep(table: &Store, fences: &BTreeMap<ShardKey, u64>) -> Result<usize, LakeError> {
    let fences: BTreeMap<String, u64> = fences.iter().map(|(shard, number)| (shard.to_string(), *number)).collect();
    let is_behind = |name: &str| {
        let name = PartName::parse(published_name(name));
        name.is_some_and(|name| fences.get(&name.shard).is_some_and(|fence| name.epoch <= *fence))
    };
    delete_unlisted(table, |name, _| is_behind(name)).await
}

/// Deletes the leftover files of a commit that was made: files named `<stem>-…` that no commit lists.
///
/// This is sound only for a commit that happens once ([`super::ledger::Ledger::commit_once`]): no other attempt can
/// succeed any more.
///
/// # Errors
/// As [`sweep`].
pub(crate) async fn sweep_attempts(table: &Store, stem: &str) -> Result<usize, LakeError> {
    let is_attempt = |name: &str| published_name(name).strip_prefix(stem).is_some_and(|rest| rest.starts_with('-'));
    delete_unlisted(table, |name, _| is_attempt(name)).await
}

/// Deletes data files older than a week that no commit lists. No run takes a week from its first file to its commit.
///
/// # Errors
/// As [`sweep`].
pub(crate) async fn sweep_forgotten(table: &Store) -> Result<usize, LakeError> {
    let long_ago = chrono::Utc::now() - chrono::Duration::days(7);
    let is_ours = |name: &str| published_name(name).starts_with("part-") && published_name(name).ends_with(".parquet");
    delete_unlisted(table, |name, object| is_ours(name) && object.last_modified < long_ago).await
}

/// Deletes files of compactions older than a week that no commit lists.
///
/// # Errors
/// As [`sweep`].
pub(crate) async fn sweep_compactions(table: &Store) -> Result<usize, LakeError> {
    let long_ago = chrono::Utc::now() - chrono::Duration::days(7);
    let is_ours = |name: &str| CompactName::parse(published_name(name)).is_some();
    delete_unlisted(table, |name, object| is_ours(name) && object.last_modified < long_ago).await
}

/// Deletes the candidate files that no commit lists or recently removed. `is_candidate` judges a file by its name and
/// the store's metadata. The caller must ensure that no later commit can list a candidate.
///
/// # Errors
/// As [`sweep`].
pub(crate) async fn delete_unlisted(
    table: &Store,
    is_candidate: impl Fn(&str, &ObjectMeta) -> bool,
) -> Result<usize, LakeError> {
    // Memory holds the candidates only, never all names of the table.
    let mut dead = BTreeSet::new();
    let mut objects = table.listed("", None);
    while let Some((path, object)) = objects.try_next().await? {
        if path.rsplit('/').next().is_some_and(|name| is_candidate(name, &object)) {
            dead.insert(path);
        }
    }
    if dead.is_empty() {
        return Ok(0);
    }
    // The table is loaded after the listing, so files committed before the listing count as active.
    let Some(loaded) = snapshot::load(table, None).await? else { return Ok(0) };
    snapshot::retain_unlisted(table, &loaded, &mut dead).await?;
    for path in &dead {
        table.delete(path).await?;
    }
    Ok(dead.len())
}

/// Returns the final name of a staged file of a local folder (`.<name>.<token>.tmp`), or the name itself.
pub(crate) fn published_name(name: &str) -> &str {
    let staged = name.strip_prefix('.').and_then(|n| n.strip_suffix(".tmp")).and_then(|n| n.rsplit_once('.'));
    staged.map_or(name, |(published, _)| published)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::ids::{SequenceNumber, StartAt};
    use crate::lake::ledger::{Ledger, Step};
    use crate::lake::{Location, files};
    use crate::schema::Table;

    #[tokio::test]
    async fn only_what_can_never_be_committed_goes() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let table = Table::SyncRecords.store(&lake);
        let (mine, other) = (ShardKey::new("s", "a").unwrap(), ShardKey::new("s", "b").unwrap());
        let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let held = ledger.fence(&[(mine.clone(), StartAt::TrimHorizon)], 7).await.unwrap().remove(&mine).unwrap();
        let place = |name: &str| format!("pool=p_0/event_date=2026-01-01/{name}");
        let name = |shard: &ShardKey, number| place(&PartName::new(shard, 7, number, 0).to_string());
        let (live, dead, next, foreign) = (name(&mine, 2), name(&mine, 1), name(&mine, 4), name(&other, 1));
        let staged = place(&format!(".{}.0011223344556677.tmp", PartName::new(&mine, 7, 2, 9)));
        let users = place("part-00000.parquet");
        for path in [&live, &dead, &next, &foreign, &staged, &users] {
            table.put_new(path, "x".into()).await.unwrap();
        }
        let values = [("pool", "p_0".to_owned()), ("event_date", "2026-01-01".to_owned())];
        let file = files::add(live.clone(), &values, 1, 0, serde_json::json!({}));
        let mut next_state = held.clone();
        next_state.epoch += 1;
        next_state.position = SequenceNumber::parse("5");
        let step = Step { shard: mine.clone(), expected: Some(held), next: next_state };
        ledger.commit(vec![file], &[step]).await.unwrap();
        let fence = ledger.fence(&[(mine.clone(), StartAt::TrimHorizon)], 8).await.unwrap()[&mine].epoch;
        assert_eq!(fence, 3);
        assert_eq!(sweep(&table, &BTreeMap::from([(mine, fence)])).await.unwrap(), 2);
        let left: Vec<_> = table.list("pool=p_0").await.unwrap().into_iter().map(|(path, _)| path).collect();
        for (path, stays) in
            [(&live, true), (&dead, false), (&next, true), (&foreign, true), (&staged, false), (&users, true)]
        {
            assert_eq!(left.contains(path), stays, "{path}");
        }
    }
}
