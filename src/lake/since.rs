//! What was added to a table after a version of it: the log tells, and no data file is read for it.

use std::collections::BTreeMap;

use deltalake::kernel::Action;
use futures::{StreamExt, TryStreamExt};

use super::{LakeError, Store, log};

/// Commits that are read at a time.
const READS: usize = 16;

/// The files at version `to` that hold rows which version `from` may not hold, each with the version that added it; `None`
/// when the log does not reach back that far any more.
///
/// A file that a rewrite made (`dataChange = false`) holds nothing new, unless it replaces one that does. A row may then be
/// told twice; whoever uses this must not mind.
///
/// # Errors
/// The log cannot be read.
pub async fn added(table: &Store, from: u64, to: u64) -> Result<Option<BTreeMap<String, u64>>, LakeError> {
    let mut commits = futures::stream::iter(from + 1..=to)
        .map(|version| async move { log::read_commit(table, version).await.map(|actions| (version, actions)) })
        .buffered(READS);
    let mut found = BTreeMap::new();
    while let Some((version, actions)) = commits.try_next().await? {
        let Some(actions) = actions else { return Ok(None) };
        let mut replaces = false;
        for action in &actions {
            if let Action::Remove(remove) = action {
                replaces |= found.remove(&remove.path).is_some();
            }
        }
        for action in actions {
            if let Action::Add(add) = action
                && (add.data_change || replaces)
            {
                found.insert(add.path, version);
            }
        }
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::tables::Table;
    use crate::lake::{AwsSettings, Location, parquet, paths};

    #[tokio::test]
    async fn rewrites_add_nothing_but_what_they_replace() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let table = Table::SyncRecords.store(&lake);
        let add = |path: &str, data_change: bool| {
            let mut add = parquet::add(path.to_owned(), &[], 1, 0, parquet::row_count_statistics(1));
            add.data_change = data_change;
            format!("{}\n", serde_json::json!({ "add": add }))
        };
        let remove = |path: &str| {
            format!("{}\n", serde_json::json!({"remove": {"path": path, "dataChange": false, "deletionTimestamp": 1}}))
        };
        let commits = [
            add("a", true),
            add("b", true),
            add("c", true),
            remove("a") + &add("a-compacted", false),
            remove("b") + &remove("c") + &add("bc-compacted", false),
            add("d", true),
        ];
        for (version, text) in (0..).zip(commits) {
            table.put_new(&paths::commit(version), text.into()).await.unwrap();
        }
        let since =
            async |from| added(&table, from, 5).await.unwrap().map(|found| found.into_keys().collect::<Vec<_>>());
        assert_eq!(since(5).await.unwrap(), [""; 0]);
        assert_eq!(since(2).await.unwrap(), ["d"], "what was compacted is covered");
        assert_eq!(since(1).await.unwrap(), ["bc-compacted", "d"], "c was not");
        table.delete(&paths::commit(4)).await.unwrap();
        assert_eq!(since(1).await, None);
    }
}
