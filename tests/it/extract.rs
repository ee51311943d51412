//! Daily extracts: what they hold, that they can be run again, that their files count only by their manifest.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::harness::{count, ingest_file, ok, rows, simulate, synclake};

fn extract(lake: &Path, date: &str, more: &[&str]) -> Value {
    let report = ok(synclake().args(["extract", "--date", date, "--lake"]).arg(lake).args(more));
    serde_json::from_str(&report).unwrap()
}

#[test]
fn a_day_holds_the_state_at_its_end_and_its_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "8000", "--seed", "5", "--days", "4"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let path = lake.to_str().unwrap();

    // The end of the last day is the oracle's state.
    let last = extract(&lake, "2026-01-04", &[]);
    let truth = std::fs::read_to_string(&oracle).unwrap();
    assert_eq!(last["state_rows"], truth.lines().count());
    let state = "select identity_pool_id, identity_id, dataset_name, key, value, sync_count from";
    let compare = format!(
        "{state} daily_extract where kind = 'state' and extract_date = '2026-01-04' except {state} current_state"
    );
    assert_eq!(rows(path, &compare), Vec::<Value>::new());

    // The end of an earlier day is the state of a lake that saw nothing later.
    let until: String = std::fs::read_to_string(&events)
        .unwrap()
        .lines()
        .filter(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["lastModifiedDate"].as_i64().unwrap() < 1_767_398_400_000 // 2026-01-03
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let early_events = folder.path().join("early.ndjson");
    std::fs::write(&early_events, until).unwrap();
    let early_lake = folder.path().join("early");
    ingest_file(&early_events, &early_lake);
    let early = extract(&lake, "2026-01-02", &[]);
    assert_eq!(early["state_rows"], count(early_lake.to_str().unwrap(), "select count(*) from current_state"));
    let changes = count(path, "select count(*) from daily_changes where event_date = '2026-01-02'");
    assert_eq!(early["change_rows"], changes);
    assert!(changes > 0);

    // Again is the same, and only once in the table.
    let again = extract(&lake, "2026-01-02", &[]);
    assert_eq!((&again["state_rows"], &again["change_rows"]), (&early["state_rows"], &early["change_rows"]));
    let in_table = count(path, "select count(*) from daily_extract where extract_date = '2026-01-02'");
    assert_eq!(in_table, early["state_rows"].as_i64().unwrap() + changes);
    assert_eq!(count(path, "select count(distinct extract_date) from daily_extract"), 2);
    // A day before all is empty, and that is no error.
    assert_eq!(extract(&lake, "2020-02-29", &[])["state_rows"], 0);
}

#[test]
fn extracts_at_once_leave_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "500"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let mut command = synclake();
            command.args(["extract", "--date", "2026-01-03", "--lake"]).arg(&lake);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut run in runs {
        assert!(run.wait().unwrap().success());
    }
    let path = lake.to_str().unwrap();
    let report = extract(&lake, "2026-01-03", &[]);
    let rows = report["state_rows"].as_i64().unwrap() + report["change_rows"].as_i64().unwrap();
    assert_eq!(count(path, "select count(*) from daily_extract"), rows);
}

#[test]
fn files_count_by_their_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "500"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let out = folder.path().join("out");
    for format in ["csv", "ndjson", "parquet", "csv"] {
        let report = extract(&lake, "2026-01-05", &["--format", format, "--out", out.to_str().unwrap()]);
        let day = out.join("extract_date=2026-01-05");
        let manifest: Value = serde_json::from_slice(&std::fs::read(day.join("_SUCCESS")).unwrap()).unwrap();
        let files = manifest["files"].as_array().unwrap();
        let listed: u64 = files.iter().map(|f| f["rows"].as_u64().unwrap()).sum();
        assert_eq!(listed, report["state_rows"].as_u64().unwrap() + report["change_rows"].as_u64().unwrap());
        for file in files {
            let bytes = std::fs::read(out.join(file["path"].as_str().unwrap())).unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(file["sha256"], digest);
            if format == "ndjson" {
                assert_eq!(bytes.iter().filter(|b| **b == b'\n').count() as u64, file["rows"].as_u64().unwrap());
            }
        }
        let on_disk: usize = ["state", "changes"].iter().map(|k| std::fs::read_dir(day.join(k)).unwrap().count()).sum();
        assert_eq!(on_disk, files.len(), "files of earlier runs are gone");
    }
}
