use std::sync::{Arc, Mutex};

use super::*;
use crate::aws::AwsSettings;
use crate::lake::store::tests::{Request, in_memory, watched};
use crate::lake::{Location, files, replace};

async fn lake(folder: &std::path::Path) -> Store {
    let lake = Store::create(&Location::Folder(folder.into()), &AwsSettings::default()).await.unwrap();
    Table::State.ensure(&lake).await.unwrap();
    lake
}

/// Commits a version that adds a file of a pool.
async fn add(lake: &Store, version: u64, pool: &str) -> String {
    let path = format!("pool={pool}/file-{version}.parquet");
    let file = files::add(path.clone(), &[("pool", pool.to_owned())], 1, 0, serde_json::json!({}));
    assert!(replace::commit_version(lake, Table::State, version, vec![], vec![file], vec![]).await.unwrap());
    path
}

fn manifest(folder: &std::path::Path, pool: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(format!("state/{FOLDER}/pool={pool}/manifest"))).unwrap();
    text.lines().map(|line| line.rsplit_once("/state/").unwrap().1.to_owned()).collect()
}

#[tokio::test]
async fn a_manifest_has_the_active_files_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    let (a, b) = (add(&lake, 1, "a").await, add(&lake, 2, "b").await);
    follow(&lake, Table::State).await.unwrap();
    assert!(!folder.path().join("state").join(FOLDER).exists(), "nobody asked for manifests");
    let report = update(&lake, Table::State).await.unwrap().unwrap();
    assert_eq!((report.version, report.manifests, report.written, report.files), (2, 2, 2, 2));
    assert_eq!((manifest(folder.path(), "a"), manifest(folder.path(), "b")), (vec![a.clone()], vec![b]));

    // The files of one pool change, and those of the other one go.
    let second = add(&lake, 3, "a").await;
    let store = Table::State.store(&lake);
    let loaded = snapshot::load(&store, None).await.unwrap().unwrap();
    let gone = snapshot::files(&store, &loaded).await.unwrap().into_iter().find(|f| f.path.contains("=b")).unwrap();
    assert!(replace::commit_version(&lake, Table::State, 4, vec![gone.remove], vec![], vec![]).await.unwrap());
    follow(&lake, Table::State).await.unwrap();
    assert_eq!((manifest(folder.path(), "a"), manifest(folder.path(), "b")), (vec![a.clone(), second.clone()], vec![]));
    let report = update(&lake, Table::State).await.unwrap().unwrap();
    assert_eq!((report.version, report.manifests, report.written, report.files), (4, 2, 0, 2));

    // The update of a table without files counts: its first files are listed, too.
    Table::Quarantine.ensure(&lake).await.unwrap();
    assert_eq!(update(&lake, Table::Quarantine).await.unwrap().unwrap().manifests, 0);
    let file = files::add(
        "arrived_date=2026-01-01/a.parquet".to_owned(),
        &[("arrived_date", "2026-01-01".to_owned())],
        1,
        0,
        serde_json::json!({}),
    );
    assert!(replace::commit_version(&lake, Table::Quarantine, 1, vec![], vec![file], vec![]).await.unwrap());
    std::fs::remove_file(folder.path().join("quarantine").join(RECORD)).unwrap();
    follow(&lake, Table::Quarantine).await.unwrap();
    assert_eq!(update(&lake, Table::Quarantine).await.unwrap().unwrap().files, 1);
    assert!(folder.path().join(format!("quarantine/{FOLDER}/arrived_date=2026-01-01/manifest")).exists());

    // What is not as the record says is written again.
    std::fs::write(folder.path().join(format!("state/{FOLDER}/pool=a/manifest")), "").unwrap();
    assert_eq!(update(&lake, Table::State).await.unwrap().unwrap().written, 1);
    assert_eq!(manifest(folder.path(), "a"), [a, second]);
    assert_eq!(update(&lake, Table::Gaps).await.unwrap(), None);
}

/// Another process updates the manifests, from a newer version, while a writer is between its look at the log and its
/// first manifest.
async fn overtaken(plain: &Store) -> Vec<String> {
    Table::State.ensure(plain).await.unwrap();
    add(plain, 1, "a").await;
    let other = Arc::new(Mutex::new(Some(plain.clone())));
    let before = {
        let other = other.clone();
        move |request| {
            let is_manifest = matches!(&request, Request::Write(path) if path.ends_with("/manifest"));
            let other = is_manifest.then(|| other.lock().unwrap().take()).flatten();
            Box::pin(async move {
                let Some(other) = other else { return };
                add(&other, 2, "a").await;
                update(&other, Table::State).await.unwrap();
            }) as futures::future::BoxFuture<'static, ()>
        }
    };
    update(&watched(plain, Box::new(before)), Table::State).await.unwrap();
    let path = format!("{FOLDER}/pool=a/manifest");
    let text = Table::State.store(plain).get(&path).await.unwrap().unwrap();
    std::str::from_utf8(&text).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn updates_of_a_folder_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    add(&lake, 1, "a").await;
    let held = Table::State.store(&lake).lock(LOCK).await.unwrap();
    let waiting = tokio::spawn({
        let lake = lake.clone();
        async move { update(&lake, Table::State).await.unwrap().unwrap() }
    });
    let second = std::fs::File::open(folder.path().join("state").join(LOCK)).unwrap();
    assert!(second.try_lock().is_err());
    add(&lake, 2, "a").await;
    drop(held);
    assert_eq!(waiting.await.unwrap().files, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_writer_brings_no_older_list_back() {
    let files = overtaken(&in_memory()).await;
    assert_eq!(files, ["1", "2"].map(|n| format!("s3://tests/lake/state/pool=a/file-{n}.parquet")));
}
