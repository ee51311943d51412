//! Tests of lakes that other versions of synclake wrote: older ones are read and upgraded, newer ones are refused.
//! `tests/fixtures/lakes` has a small lake of each format.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{assert_state_is_oracle, count, ingest_file, ok, python, refused, rows, synclake};

const OF_FORMAT_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lakes/format-1");
/// Rows of that lake.
const ROWS: i64 = 203;

fn copy(folder: &Path) -> PathBuf {
    let lake = folder.join("lake");
    ok(Command::new("cp").arg("-r").arg(format!("{OF_FORMAT_1}/lake")).arg(&lake));
    lake
}

fn metadata(lake: &Path) -> Vec<Value> {
    let log = lake.join("sync_records/_delta_log");
    let mut commits: Vec<_> = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    commits.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    commits.sort();
    let text: Vec<u8> = commits.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let actions = serde_json::Deserializer::from_slice(&text).into_iter::<Value>().map(Result::unwrap);
    actions.filter_map(|action| action.get("metaData").cloned()).collect()
}

fn run(lake: &Path, args: &[&str]) -> String {
    ok(synclake().args(args).arg("--lake").arg(lake))
}

#[test]
fn a_lake_of_format_1_is_read_and_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    let lake = copy(folder.path());
    let name = lake.to_str().unwrap();
    let sources = |filter: &str| count(name, &format!("select count(*) from sync_records where {filter}"));
    assert_eq!((sources("true"), sources("source is null"), sources("source = 'a'")), (ROWS, ROWS, 0), "it is read");
    assert_eq!(rows(name, "select source, key, pool from sync_records limit 3").len(), 3);
    assert_eq!(count(name, "select sum(copies) from changes"), ROWS);
    for command in ["refresh", "status", "verify", "vacuum"] {
        run(&lake, &[command]);
    }
    assert_eq!(metadata(&lake).len(), 1, "readers change nothing");

    let later = PathBuf::from(OF_FORMAT_1).join("later.ndjson");
    ingest_file(&later, &lake);
    let upgraded = metadata(&lake);
    assert_eq!(upgraded.len(), 2, "the first writer upgrades it, once");
    assert_eq!(upgraded[1]["configuration"], json!({"synclake.format": "2"}));
    assert_eq!((&upgraded[0]["id"], &upgraded[0]["name"]), (&upgraded[1]["id"], &upgraded[1]["name"]));
    assert_eq!(sources("source is null"), ROWS, "old rows stay as they are");
    assert_eq!(sources("source = shard_id"), sources("true") - ROWS);
    let all = sources("true");
    assert!(all > ROWS);

    let oracle = PathBuf::from(OF_FORMAT_1).join("oracle.ndjson");
    assert_state_is_oracle(name, &[&oracle]);
    run(&lake, &["refresh"]);
    run(&lake, &["extract", "--date", "2026-01-02"]);
    let out = folder.path().join("out");
    let delivered = run(&lake, &["deliver", "--consumer", "finance", "--out", out.to_str().unwrap()]);
    let delivered: Value = serde_json::from_str(&delivered).unwrap();
    assert_eq!(delivered["rows"], all - ROWS, "the consumer got the others from the older version");
    let compacted: Value = serde_json::from_str(&run(&lake, &["compact"])).unwrap();
    assert!(compacted["files_removed"].as_u64().unwrap() >= 3, "old and new files are merged: {compacted}");
    assert_eq!((sources("source is null"), sources("source = shard_id")), (ROWS, all - ROWS));
    assert_state_is_oracle(name, &[&oracle]);
    run(&lake, &["verify", "--deep"]);
    let repeated = metadata(&lake);
    assert!(repeated.len() > 2 && repeated[1..].iter().all(|stated| *stated == repeated[1]), "compactions repeat it");
}

/// Other readers see the files of both formats.
#[test]
fn other_readers_see_an_upgraded_lake() {
    let folder = tempfile::tempdir().unwrap();
    let lake = copy(folder.path());
    ingest_file(&PathBuf::from(OF_FORMAT_1).join("later.ndjson"), &lake);
    run(&lake, &["manifest"]);
    let sql = "select count(*) as n, count(source) as sources from sync_records";
    let ours = &rows(lake.to_str().unwrap(), sql)[0];
    for engine in ["duckdb", "duckdb-parquet"] {
        let ddl = folder.path().join(engine);
        run(&lake, &["refresh"]);
        std::fs::write(&ddl, run(&lake, &["ddl", "--engine", engine])).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/engines.py");
        let found = ok(python().args([script, "duckdb"]).arg(ddl).arg(sql));
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found[0], json!([ours["n"], ours["sources"]]), "{engine}");
    }
}

#[test]
fn a_lake_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lake = copy(folder.path());
    let mut newer = metadata(&lake).remove(0);
    newer["configuration"] = json!({"synclake.format": "9"});
    let commit = lake.join("sync_records/_delta_log/00000000000000000003.json");
    std::fs::write(&commit, json!({ "metaData": newer }).to_string() + "\n").unwrap();
    let later = format!("file:{OF_FORMAT_1}/later.ndjson");
    let out = folder.path().join("out");
    let deliver = ["deliver", "--consumer", "finance", "--out", out.to_str().unwrap()];
    let commands: [&[&str]; 10] = [
        &["ingest", "--source", &later],
        &["refresh"],
        &["extract", "--date", "2026-01-02"],
        &deliver,
        &["redrive"],
        &["status"],
        &["verify"],
        &["compact"],
        &["vacuum"],
        &["manifest"],
    ];
    let parts = ["it has format \"9\" of synclake", "upgrade synclake"];
    for command in commands {
        let output = synclake().args(command).arg("--lake").arg(&lake).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        refused(&output, 1, &parts);
    }
    let asked = crate::harness::query().arg("--lake").arg(&lake).args(["-c", "select 1 from sync_records"]).output();
    refused(&asked.unwrap(), 1, &parts);
    assert_eq!(std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap().count(), 4, "nothing was written");
}
