//! Logs with checkpoints of both kinds, with holes, and with numbers that no writer reaches.

use deltalake::protocol::SaveMode;
use serde_json::json;

use super::*;
use crate::aws::AwsSettings;
use crate::lake::Location;

/// Creates a table whose first commit sets an id, and whose second commit sets the id again.
async fn table(folder: &std::path::Path) -> Store {
    let lake = Store::create(&Location::Folder(folder.into()), &AwsSettings::default()).await.unwrap();
    Table::Gaps.ensure(&lake).await.unwrap();
    let table = Table::Gaps.store(&lake);
    for version in 1..=2 {
        let text = format!("{{\"txn\":{{\"appId\":\"a\",\"version\":{version}}}}}\n");
        table.put_new(&paths::commit(version), text.into()).await.unwrap();
    }
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_that_no_other_follows_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = table(folder.path()).await;
    let mut known = read_transactions(&store).await.unwrap().unwrap();
    let protocol = json!({"protocol": {
        "minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["inCommitTimestamp"],
    }});
    let first = store.get(&paths::commit(0)).await.unwrap().unwrap();
    let mut metadata = serde_json::Deserializer::from_slice(&first).into_iter::<Value>();
    let mut metadata = metadata.find_map(|action| action.ok().filter(|a| a.get("metaData").is_some())).unwrap();
    metadata["metaData"]["configuration"]["delta.enableInCommitTimestamps"] = json!("true");
    known.take(&protocol).unwrap();
    known.take(&metadata).unwrap();
    let encode = |known: &Transactions| {
        let append = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        known.encode(&store, Vec::new(), append)
    };
    known.in_commit_ms = Some(i64::MAX - 1);
    assert_eq!(encode(&known).unwrap().1, Some(i64::MAX));
    known.in_commit_ms = Some(i64::MAX);
    assert!(encode(&known).unwrap_err().to_string().contains("delta.enableInCommitTimestamps"));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_the_last_version_name_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path()).await;
    let beyond = [u64::MAX, paths::VERSION_MAX + 1];
    for number in beyond {
        table.put_new(&paths::commit(number), "{}".into()).await.unwrap();
        table.put_new(&format!("_delta_log/{number:020}.checkpoint.parquet"), "PAR1".into()).await.unwrap();
    }
    table.put(HINT, format!("{{\"version\":{},\"size\":4}}", u64::MAX).into()).await.unwrap();
    let found = read_transactions(&table).await.unwrap().unwrap();
    assert_eq!((found.version, found.next_version(&table).unwrap(), found.ids["a"]), (2, 3, 2));
    let loaded = crate::lake::snapshot::load(&table, None).await.unwrap().unwrap();
    assert_eq!(loaded.version(), Some(2), "deltalake passes over them as well");
    let last = Transactions { version: paths::VERSION_MAX, ..found };
    assert!(last.next_version(&table).unwrap_err().to_string().contains("Delta protocol"));
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_both_kinds_are_read_and_missing_ones_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path()).await;
    let whole = read_transactions(&table).await.unwrap().unwrap();
    assert_eq!((whole.version, whole.ids["a"], whole.requirements.are_known()), (2, 2, true));
    // A v2 checkpoint in JSON, with the file actions in a sidecar.
    let first = table.get(&paths::commit(0)).await.unwrap().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let state: String = first.lines().filter(|l| !l.contains("commitInfo")).map(|l| format!("{l}\n")).collect();
    let more = "{\"checkpointMetadata\":{\"version\":2}}\n{\"sidecar\":{\"path\":\"x.parquet\",\"sizeInBytes\":1,\"modificationTime\":1}}\n";
    let text = format!("{state}{more}{{\"txn\":{{\"appId\":\"b\",\"version\":7}}}}\n");
    let name = "_delta_log/00000000000000000001.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json";
    table.put_new(name, text.into()).await.unwrap();
    table.put(HINT, "{\"version\":1,\"size\":4}".into()).await.unwrap();
    let found = read_transactions(&table).await.unwrap().unwrap();
    assert_eq!((found.checkpoint, found.version, found.ids["a"], found.ids["b"]), (Some(1), 2, 2, 7));
    assert_eq!(found.requirements, whole.requirements);
    // The checkpoint disappears, and the hint stays.
    table.delete(name).await.unwrap();
    let found = read_transactions(&table).await.unwrap().unwrap();
    assert_eq!(
        (found.checkpoint, found.version, found.ids, found.requirements),
        (None, 2, whole.ids, whole.requirements)
    );
    assert_eq!(found.unusable, [HINT]);
    let loaded = crate::lake::snapshot::load(&table, None).await.unwrap().unwrap();
    assert_eq!(loaded.version(), Some(2), "deltalake passes over it as well");
    // deltalake writes a checkpoint with the requirements; the commits that it covers may then be cleaned up.
    crate::lake::snapshot::checkpoint(&table).await.unwrap();
    for version in 0..=2 {
        table.delete(&paths::commit(version)).await.unwrap();
    }
    let found = read_transactions(&table).await.unwrap().unwrap();
    assert_eq!((found.checkpoint, found.ids["a"], found.requirements.refusal(Table::Gaps, true)), (Some(2), 2, None));
}
