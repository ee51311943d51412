//! Tests of `synclake compact --collapse-duplicates`: fewer rows, and the same changes, states and extracts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::compact::{Lake, SMALL, commits, compact, deliver, dump, start, verify};
use crate::harness::{count, ingest_file, ok, python, rows, synclake};

/// Events with many copies, so that a partition has copies in several files.
const COPIED: [&str; 12] = [
    "--events",
    "1500",
    "--seed",
    "21",
    "--days",
    "3",
    "--identities",
    "60",
    "--bulk-copies",
    "0.1",
    "--duplicates",
    "0.3",
];
/// Tables and views with a row for each delivered copy; and `late_changes`, which knows only the arrival of the copy that stayed.
const OF_EACH_COPY: [&str; 4] = ["sync_records", "resolved", "cognito_raw_data", "late_changes"];
const DELIVERED: &str = "select sum(coalesce(copies, 1)) from sync_records";

fn collapse(lake: &Path) -> Value {
    compact(lake, &["--collapse-duplicates"])
}

/// Returns the rows of every view with the same rows before and after a collapse.
fn answers(lake: &Path) -> BTreeMap<String, Vec<String>> {
    let mut all = dump(lake);
    OF_EACH_COPY.iter().for_each(|name| drop(all.remove(*name)));
    assert!(all.len() > 5 && all["changes"].len() > 100, "{:?}", all.keys());
    all
}

#[track_caller]
fn assert_same(lake: &Path, before: &BTreeMap<String, Vec<String>>) {
    for (name, rows) in answers(lake) {
        assert_eq!(rows, before[&name], "{name}");
    }
}

fn metadata(lake: &Path) -> Vec<Value> {
    let actions = commits(lake).into_iter().flatten();
    actions.filter_map(|action| action.get("metaData").cloned()).collect()
}

fn run(lake: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(synclake().args(args).arg("--lake").arg(lake))).unwrap()
}

/// Every view that shows a change once gives the same answer, with and without the maintained state, also after more copies
/// and a second collapse. A compaction without the flag keeps what a row stands for.
#[test]
fn views_stay_the_same_with_fewer_rows() {
    let lake = Lake::new(&COPIED, 9);
    let (path, name, out) = (lake.path.as_path(), lake.name(), lake.folder.path().join("out"));
    let mut delivered = 0;
    for round in 0..3 {
        lake.parts[round * 3..round * 3 + 3].iter().for_each(|part| drop(ingest_file(part, path)));
        if round == 1 {
            // Copies of all changes so far.
            let again = lake.folder.path().join("again.ndjson");
            let text: Vec<u8> = lake.parts[..6].iter().flat_map(|part| std::fs::read(part).unwrap()).collect();
            std::fs::write(&again, text).unwrap();
            ingest_file(&again, path);
            compact(path, &["--to", "2026-01-01"]);
        }
        if round == 2 {
            run(path, &["refresh"]);
            run(path, &["extract", "--no-refresh", "--date", "2026-01-02"]);
        }
        let (before, rows_before) = (answers(path), lake.rows());
        let delivered_before = count(name, DELIVERED);
        let report = collapse(path);
        let collapsed = report["rows_collapsed"].as_i64().unwrap();
        assert!(collapsed > 0, "{report}");
        assert!(round != 1 || collapsed > rows_before / 5, "{report} of {rows_before}");
        assert_eq!((lake.rows(), count(name, DELIVERED)), (rows_before - collapsed, delivered_before));
        assert_same(path, &before);
        assert!(delivered_before > delivered);
        delivered = delivered_before;
        let changes = "select sum(copies) from changes where event_date > '2000-01-01'";
        let by_definition = "select cast(sum(copies) as bigint) as n from changes";
        let as_of = ok(crate::harness::query().args([
            "--as-of",
            "2100-01-01",
            "--format",
            "ndjson",
            "--lake",
            name,
            "-c",
            by_definition,
        ]));
        assert_eq!(
            serde_json::from_str::<Value>(&as_of).unwrap()["n"],
            count(name, changes),
            "the definition in SQL agrees"
        );
        run(path, &["refresh"]);
        assert_same_but_state(path, &before);
        let checked = verify(path);
        assert_eq!(checked["rows"], lake.rows());
    }
    assert_eq!(deliver(path, &out, "c")["rows"], lake.rows(), "a new consumer gets what is there");
    let again = run(path, &["extract", "--date", "2026-01-02"]);
    assert_eq!(again["late_rows"].as_u64().unwrap_or(0), 0, "{again}");
    lake.assert_whole();
    let upgrades = metadata(path);
    let newest = upgrades.last().unwrap();
    assert_eq!(newest["configuration"], json!({"synclake.format": "4"}));
    assert_eq!(newest["schemaString"].as_str().unwrap().matches("copies").count(), 1, "the column is added once");
    let adds = |actions: &[Value]| actions.iter().any(|action| action["add"]["path"].to_string().contains("compact-"));
    let moves = commits(path).into_iter().filter(|actions| adds(actions)).flatten();
    for action in moves.filter(|action| action["add"].is_object() || action["remove"].is_object()) {
        let file = if action["add"].is_object() { &action["add"] } else { &action["remove"] };
        assert_eq!(file["dataChange"], false, "{action}");
    }
}

/// A refresh makes the table `state`; everything else stays.
#[track_caller]
fn assert_same_but_state(lake: &Path, before: &BTreeMap<String, Vec<String>>) {
    for (name, rows) in answers(lake).into_iter().filter(|(name, _)| name != "state") {
        assert_eq!(rows, before[&name], "{name}");
    }
}

/// A consumer gets the rows as they were delivered, although they were collapsed since.
#[test]
fn a_consumer_gets_the_rows_from_before_the_collapse() {
    let lake = Lake::new(&COPIED, 6);
    let (path, out) = (lake.path.as_path(), lake.folder.path().join("out"));
    lake.parts[..3].iter().for_each(|part| drop(ingest_file(part, path)));
    let first = lake.rows();
    assert_eq!(deliver(path, &out, "c")["rows"], first);
    lake.parts[3..].iter().for_each(|part| drop(ingest_file(part, path)));
    let all = lake.rows();
    assert!(collapse(path)["rows_collapsed"].as_i64().unwrap() > 0);
    assert_eq!(deliver(path, &out, "c")["rows"], all - first);
    assert_eq!(deliver(path, &out, "c")["rows"], 0);
}

/// Without copies, nothing changes but the files.
#[test]
fn a_lake_without_copies_keeps_its_format() {
    let unique = ["--bulk-copies", "0", "--duplicates", "0"];
    let lake = Lake::ingested(&[&SMALL[..], &unique].concat(), 4);
    let before = dump(&lake.path);
    let report = collapse(&lake.path);
    assert_eq!(report["rows_collapsed"], 0, "{report}");
    assert!(report["groups"].as_u64().unwrap() > 0);
    assert_eq!(dump(&lake.path), before);
    for metadata in metadata(&lake.path) {
        assert_eq!(metadata["configuration"], json!({"synclake.format": "2"}));
        assert!(!metadata["schemaString"].as_str().unwrap().contains("copies"));
    }
    assert_eq!(compact(&lake.path, &[]).get("rows_collapsed"), None, "a compaction does not say what it does not do");
}

/// Two collapses of the same files, and one that is killed, lose and double nothing.
#[test]
fn of_two_collapses_one_succeeds_for_each_group() {
    let lake = Lake::ingested(&COPIED, 6);
    let (before, all) = (answers(&lake.path), lake.rows());
    let mut killed = synclake();
    killed.args(["compact", "--collapse-duplicates", "--lake"]).arg(&lake.path);
    killed.env("FAILPOINTS", "compact/before=1*return(kill)").stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(killed.status().unwrap().code(), None);
    assert_same(&lake.path, &before);
    let mut plain = start(&lake.path, "compact/before=1*sleep(2000)");
    let report = collapse(&lake.path);
    assert!(plain.wait().unwrap().success());
    assert!(report["groups"].as_u64().unwrap() > 0, "{report}");
    assert_same(&lake.path, &before);
    assert_eq!(count(lake.name(), DELIVERED), all);
    lake.assert_whole();
}

/// The views for other engines count collapsed copies, and name the column only if the lake has it.
#[test]
fn other_engines_count_collapsed_copies() {
    let lake = Lake::ingested(&COPIED, 5);
    let (path, name) = (lake.path.as_path(), lake.name());
    let sql = "select count(*) as n, cast(sum(copies) as bigint) as copies from changes";
    let ours = rows(name, sql)[0].clone();
    for is_collapsed in [false, true] {
        if is_collapsed {
            collapse(path);
            ok(synclake().args(["manifest", "--lake"]).arg(path));
        }
        run_engines(&lake, is_collapsed, sql, &ours);
    }
}

fn run_engines(lake: &Lake, is_collapsed: bool, sql: &str, ours: &Value) {
    ok(synclake().args(["refresh", "--lake"]).arg(&lake.path));
    ok(synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake.path));
    ok(synclake().args(["manifest", "--lake"]).arg(&lake.path));
    for engine in ["duckdb", "duckdb-parquet"] {
        let text = ok(synclake().args(["ddl", "--engine", engine, "--lake"]).arg(&lake.path));
        assert_eq!(text.contains("coalesce(copies"), is_collapsed);
        let ddl = lake.folder.path().join(engine);
        std::fs::write(&ddl, text).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/engines.py");
        let found: Value = serde_json::from_str(&ok(python().args([script, "duckdb"]).arg(ddl).arg(sql))).unwrap();
        assert_eq!(found[0], json!([ours["n"], ours["copies"]]), "{engine}");
    }
}
