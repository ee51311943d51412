//! Tests of `synclake manifest`: readers of plain Parquet see each row once, also while files are replaced and deleted.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::compact::{Lake, SMALL};
use crate::harness::{count, ingest_file, ok, python, refused, rows, setting, synclake};
use crate::kinesis::make_bucket;

/// Returns the reports by table.
fn manifest(lake: &Path) -> Vec<Value> {
    let reports = ok(synclake().args(["manifest", "--lake"]).arg(lake));
    reports.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asks DuckDB, which reads the files that the manifests list.
fn duckdb(lake: &Path, query: &str) -> Value {
    let ddl = lake.with_file_name("duckdb.sql");
    std::fs::write(&ddl, ok(synclake().args(["ddl", "--engine", "duckdb-parquet", "--lake"]).arg(lake))).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/engines.py");
    serde_json::from_str(&ok(python().args([script, "duckdb"]).arg(ddl).arg(query))).unwrap()
}

const SUMS: &str = "select count(*) as n, sum(sync_count) as counts, count(value) as vals from sync_records";

fn assert_exact(lake: &Path, what: &str) {
    let ours = &rows(lake.to_str().unwrap(), SUMS)[0];
    assert_eq!(duckdb(lake, SUMS)[0], json!([ours["n"], ours["counts"], ours["vals"]]), "{what}");
}

fn copy(from: &Path, to: &Path) {
    ok(Command::new("cp").arg("-r").arg(from).arg(to));
}

#[test]
fn readers_of_manifests_see_each_row_once() {
    let lake = Lake::ingested(&SMALL, 6);
    assert!(!manifest(&lake.path).is_empty());
    assert_exact(&lake.path, "after ingest");
    let rows = lake.rows();
    ingest_file(&lake.made("more", &["--events", "100", "--seed", "91"]), &lake.path);
    assert_eq!(duckdb(&lake.path, "select count(*) from sync_records")[0][0], rows, "a manifest shows its own version");

    let (folder, before) =
        (lake.path.join("sync_records/_symlink_format_manifest"), lake.path.with_file_name("before"));
    manifest(&lake.path);
    copy(&folder, &before);
    ok(synclake().args(["compact", "--lake"]).arg(&lake.path));
    assert_exact(&lake.path, "after a compaction, whose replaced files are still there");

    // As if another writer had replaced the files.
    std::fs::remove_dir_all(&folder).unwrap();
    copy(&before, &folder);
    let aged = "store/clock=return(691200)";
    let vacuumed =
        ok(synclake().args(["vacuum", "--format", "json", "--lake"]).arg(&lake.path).env("FAILPOINTS", aged));
    let vacuumed: Value = serde_json::from_str(&vacuumed).unwrap();
    assert!(vacuumed["tables"]["sync_records"]["files"].as_u64().unwrap() > 0, "{vacuumed}");
    assert_exact(&lake.path, "after a vacuum");
}

#[test]
fn a_killed_update_is_made_good() {
    let lake = Lake::ingested(&SMALL, 3);
    for (round, point) in
        ["manifest/written=2*off->1*return(kill)", "manifest/record=1*return(kill)"].iter().enumerate()
    {
        ingest_file(&lake.made(point, &["--events", "200", "--seed", &format!("7{round}")]), &lake.path);
        let killed = synclake().args(["manifest", "--lake"]).arg(&lake.path).env("FAILPOINTS", point).output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}");
        let reports = manifest(&lake.path);
        assert_exact(&lake.path, point);
        let again = manifest(&lake.path);
        assert_eq!(again[0]["written"], 0, "{again:?}");
        assert_eq!((&again[0]["files"], &again[0]["version"]), (&reports[0]["files"], &reports[0]["version"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_on_s3_are_replaced_under_a_condition() {
    let lake = Lake::new(&["--events", "600", "--seed", "4", "--days", "2"], 2);
    let (name, endpoint) = ("s3://manifest-bucket/deep/lake", setting("SYNCLAKE_TEST_S3"));
    make_bucket("manifest-bucket").await;
    let run = |args: &[&str]| ok(synclake().args(args).args(["--lake", name, "--endpoint-url", &endpoint]));
    let first = |text: String| serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap();
    for (number, part) in lake.parts.iter().enumerate() {
        run(&["ingest", "--source", &format!("file:{}", part.display())]);
        let written = first(run(&["manifest"]));
        assert_eq!(written["table"], "sync_records");
        assert!(written["written"].as_u64().unwrap() > 0, "round {number}: {written}");
        assert_eq!(first(run(&["manifest"]))["written"], 0);
    }
    let pool = rows(name, "select pool, event_date from sync_records limit 1").remove(0);
    let (pool, date) = (pool["pool"].as_str().unwrap(), pool["event_date"].as_str().unwrap());
    let path = format!("deep/lake/sync_records/_symlink_format_manifest/pool={pool}/event_date={date}/manifest");
    let text = ok(Command::new("curl").args(["-sf", &format!("{endpoint}/manifest-bucket/{path}")]));
    let below = format!("{name}/sync_records/pool={pool}/event_date={date}/part-");
    assert!(text.lines().count() > 0 && text.lines().all(|line| line.starts_with(&below)), "{text}");
    assert_eq!(count(name, "select count(*) from sync_records"), count(name, "select sum(copies) from changes"));
}

#[test]
fn no_lake_has_no_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let asked = synclake().args(["manifest", "--lake"]).arg(folder.path()).output().unwrap();
    refused(&asked, 1, &["is not a lake"]);
}
