//! Tests of damaged tables that are computed from others: the error names the command that rebuilds them, and that
//! command works.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::harness::{assert_state_is_oracle, count, ok, query, refused, simulate, synclake, text};

const LIVE: &str = "select count(value) from current_state";

fn ask(lake: &Path) -> Output {
    query().arg("--lake").arg(lake).args(["-c", LIVE]).output().unwrap()
}

fn ingest(events: &str, lake: &Path, name: &str) {
    let file = lake.with_file_name(name);
    std::fs::write(&file, events).unwrap();
    ok(synclake().arg("ingest").args(["--source", &format!("file:{}", file.display()), "--lake"]).arg(lake));
}

/// Returns the files below a folder whose paths contain `part` and end with `end`.
fn files(folder: &Path, part: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = path.to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path, part, end));
        } else if text.contains(part) && text.ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A damaged maintained state gives an error with a remedy, and the remedy restores the right state.
#[test]
fn a_damaged_state_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "400", "--seed", "3", "--pools", "2"]);
    let lake = folder.path().join("lake");
    let events = std::fs::read_to_string(events).unwrap();
    let cut = events.match_indices('\n').nth(250).unwrap().0 + 1;
    ingest(&events[..cut], &lake, "first.ndjson");
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    let expected = count(lake.to_str().unwrap(), LIVE);

    // First the state covers all rows, later there is a tail: a query reads the state in two different ways.
    std::fs::remove_file(&files(&lake.join("state"), "state-", ".parquet")[0]).unwrap();
    let asked = ask(&lake);
    refused(&asked, 1, &["cannot read the table state", "run `synclake refresh --rebuild` to rebuild it", ".parquet"]);
    assert_eq!(text(&asked.stderr).matches("not found").count(), 1, "an error is told once");
    ok(synclake().args(["refresh", "--rebuild", "--lake"]).arg(&lake));
    assert_eq!(count(lake.to_str().unwrap(), LIVE), expected);

    ingest(&events[cut..], &lake, "second.ndjson");
    let log = files(&lake.join("state"), "_delta_log", ".json").pop().unwrap();
    let newest = files(&lake.join("state"), "state-0000000002", ".parquet");
    newest.iter().for_each(|file| std::fs::write(file, "no Parquet").unwrap());
    refused(&ask(&lake), 1, &["cannot read the table state", "run `synclake refresh --rebuild` to rebuild it"]);
    // A plan reads no data: neither the state nor the tail.
    let tail = files(&lake.join("sync_records"), "part-", ".parquet");
    let aside = |file: &PathBuf| file.with_extension("aside");
    tail.iter().for_each(|file| std::fs::rename(file, aside(file)).unwrap());
    ok(query().arg("--lake").arg(&lake).args(["-c", "explain select key, value from current_state"]));
    tail.iter().for_each(|file| std::fs::rename(aside(file), file).unwrap());
    ok(synclake().args(["refresh", "--rebuild", "--lake"]).arg(&lake));
    assert_state_is_oracle(lake.to_str().unwrap(), &[&oracle]);

    // A missing file of sync_records is no reason to rebuild the state.
    std::fs::rename(&tail[0], aside(&tail[0])).unwrap();
    let refused_rebuild = synclake().args(["refresh", "--rebuild", "--lake"]).arg(&lake).output().unwrap();
    refused(&refused_rebuild, 1, &["not found", tail[0].file_name().unwrap().to_str().unwrap()]);
    assert!(
        !text(&refused_rebuild.stderr).contains("cannot read the table state"),
        "{}",
        text(&refused_rebuild.stderr)
    );
    std::fs::rename(aside(&tail[0]), &tail[0]).unwrap();

    std::fs::write(&log, "{\"add\":").unwrap();
    let state = lake.join("state");
    let said = [state.to_str().unwrap(), "delete that folder", log.file_name().unwrap().to_str().unwrap()];
    refused(&ask(&lake), 1, &said);
    refused(&synclake().args(["refresh", "--lake"]).arg(&lake).output().unwrap(), 1, &said);
    std::fs::remove_dir_all(&state).unwrap();
    assert_state_is_oracle(lake.to_str().unwrap(), &[&oracle]);
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    assert_state_is_oracle(lake.to_str().unwrap(), &[&oracle]);
}

/// A damaged extract gives an error with a remedy; the repeated extract corrects every row, because the earlier rows
/// are unknown.
#[test]
fn a_damaged_extract_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "300", "--seed", "3", "--days", "3"]);
    let lake = folder.path().join("lake");
    ingest(&std::fs::read_to_string(events).unwrap(), &lake, "all.ndjson");
    let extract = |date: &str| {
        synclake().args(["extract", "--no-refresh", "--date", date, "--lake"]).arg(&lake).output().unwrap()
    };
    for day in ["2026-01-01", "2026-01-02"] {
        assert!(extract(day).status.success());
    }
    let day = files(&lake.join("daily_state"), "extract_date=2026-01-02", ".parquet");
    std::fs::remove_file(day.iter().find(|file| file.to_string_lossy().contains("part-state")).unwrap()).unwrap();
    let said = ["cannot read the extract of 2026-01-02", "run `synclake extract --date 2026-01-02` again"];
    refused(&extract("2026-01-03"), 1, &said);
    // Every row of the new extract counts as a correction, whatever the lost files held.
    let late = r#"{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"replace","kinesisSyncRecords":[{"key":"k","value":"v","op":"replace","syncCount":1,"lastModifiedDate":1767355200000}],"lastModifiedDate":1767355200000,"syncCount":1}"#;
    ingest(&format!("{late}\n"), &lake, "late.ndjson");
    let second = extract("2026-01-02");
    let report: serde_json::Value = serde_json::from_slice(&second.stdout).unwrap();
    let corrected = "select count(*) from daily_extract where kind = 'correction' and op <> 'remove' and extract_date = '2026-01-02'";
    assert_eq!(count(lake.to_str().unwrap(), corrected), report["state_rows"].as_i64().unwrap());
    let third = extract("2026-01-03");
    let report: serde_json::Value = serde_json::from_slice(&third.stdout).unwrap();
    let as_of = "select count(*) from current_state";
    let as_of = ok(query().args(["--as-of", "2026-01-03", "--format", "csv", "-c", as_of, "--lake"]).arg(&lake));
    assert_eq!(as_of.lines().nth(1).unwrap(), report["state_rows"].to_string());
}
