//! Tests of a lake on which another Delta writer works too. They write its commits by hand, as Spark and delta-rs
//! write them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query::Limits;
use synclake::query::state::refresh;

use crate::harness::{count, ingest_file, ok, python, refused, simulate, synclake};

fn log(lake: &Path, table: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(lake.join(table).join("_delta_log")).unwrap().map(|entry| entry.unwrap().path());
    let mut commits: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    commits.sort();
    commits
}

fn actions(commit: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(commit).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the active files of a table by path.
pub(crate) fn listed(lake: &Path, table: &str) -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    for action in log(lake, table).iter().flat_map(|commit| actions(commit)) {
        let path = |action: &Value| action["path"].as_str().unwrap().to_owned();
        if action["remove"].is_object() {
            files.remove(&path(&action["remove"]));
        }
        if action["add"].is_object() {
            files.insert(path(&action["add"]), action["add"].clone());
        }
    }
    files
}

/// Returns the newest protocol or metadata action of a table.
pub(crate) fn newest(lake: &Path, table: &str, name: &str) -> Value {
    let all: Vec<Value> = log(lake, table).iter().flat_map(|commit| actions(commit)).collect();
    all.iter().rev().find(|action| action[name].is_object()).unwrap().clone()
}

pub(crate) fn commit(lake: &Path, table: &str, operation: &str, actions: &[Value]) {
    let next = log(lake, table).len();
    let info = json!({"commitInfo": {"operation": operation, "timestamp": 1}});
    let text: String = [info].iter().chain(actions).map(|action| format!("{action}\n")).collect();
    std::fs::write(lake.join(table).join(format!("_delta_log/{next:020}.json")), text).unwrap();
}

pub(crate) fn remove(add: &Value, data_change: bool) -> Value {
    json!({"remove": {
        "path": add["path"], "dataChange": data_change, "deletionTimestamp": 1_767_000_000_000_i64,
        "extendedFileMetadata": true, "partitionValues": add["partitionValues"], "size": add["size"],
    }})
}

/// Copies a data file under another name and returns its `add` action.
pub(crate) fn copy(lake: &Path, add: &Value, data_change: bool) -> Value {
    let (mut add, from) = (add.clone(), add["path"].as_str().unwrap());
    let to = format!("{}/compacted-{}", from.rsplit_once('/').unwrap().0, from.rsplit_once('/').unwrap().1);
    std::fs::copy(lake.join("sync_records").join(from), lake.join("sync_records").join(&to)).unwrap();
    add["path"] = to.into();
    add["dataChange"] = data_change.into();
    add.as_object_mut().unwrap().remove("tags");
    json!({ "add": add })
}

/// Returns a lake of a first file of events, and a function that ingests a second file.
pub(crate) fn lake(folder: &Path) -> (PathBuf, impl Fn()) {
    let (events, _) = simulate(folder, &["--events", "600", "--seed", "8", "--days", "3"]);
    let text = std::fs::read_to_string(&events).unwrap();
    let half = text[..text.len() / 2].rfind('\n').unwrap() + 1;
    let (first, second) = (folder.join("first.ndjson"), folder.join("second.ndjson"));
    std::fs::write(&first, &text[..half]).unwrap();
    std::fs::write(&second, &text[half..]).unwrap();
    let lake = folder.join("lake");
    ingest_file(&first, &lake);
    let at = lake.clone();
    (lake, move || drop(ingest_file(&second, &at)))
}

pub(crate) fn consume(lake: &Path, out: &Path) -> Value {
    let mut command = synclake();
    command.args(["deliver", "--consumer", "c", "--format", "ndjson", "--out"]).arg(out).arg("--lake").arg(lake);
    serde_json::from_str(&ok(&mut command)).unwrap()
}

/// A consumer gets only new rows, also after another writer compacted delivered and new files.
#[test]
fn a_compaction_between_deliveries_delivers_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = lake(folder.path());
    let (path, out) = (lake.to_str().unwrap().to_owned(), folder.path().join("out"));
    let delivered = listed(&lake, "sync_records");
    let rows = || count(&path, "select count(*) from sync_records");
    let before = rows();
    assert_eq!(consume(&lake, &out)["rows"], before);
    more();
    let all = listed(&lake, "sync_records");
    let old = delivered.values().next().unwrap();
    let new = all.values().find(|add| !delivered.contains_key(add["path"].as_str().unwrap())).unwrap();
    let moved: Vec<Value> = [old, new].iter().flat_map(|add| [remove(add, false), copy(&lake, add, false)]).collect();
    commit(&lake, "sync_records", "OPTIMIZE", &moved);
    assert_eq!(consume(&lake, &out)["rows"], rows() - before);
    // Until a vacuum, the compacted files stay in the folder: `verify` counts them as superseded and not as orphans.
    let report: Value =
        serde_json::from_str(&ok(synclake().args(["verify", "--deep", "--format", "json", "--lake"]).arg(&lake)))
            .unwrap();
    assert_eq!(
        (&report["tables"]["sync_records"]["superseded"], &report["tables"]["sync_records"]["orphans"]),
        (&2.into(), &0.into())
    );
}

/// Rows that another writer deletes disappear from the state, are not delivered again, and make extracts that hold
/// them stale.
#[test]
fn what_is_deleted_is_gone_and_is_not_delivered_again() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = lake(folder.path());
    let (path, out) = (lake.to_str().unwrap().to_owned(), folder.path().join("out"));
    let extract = |day: &str| -> Value {
        let report = ok(synclake().args(["extract", "--no-refresh", "--date", day, "--lake"]).arg(&lake));
        serde_json::from_str(&report).unwrap()
    };
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    extract("2026-01-02");
    consume(&lake, &out);
    let files = listed(&lake, "sync_records");
    let (first, second) = (files.values().next().unwrap(), files.values().nth(1).unwrap());
    commit(&lake, "sync_records", "DELETE", &[remove(first, true), remove(second, true), copy(&lake, second, true)]);
    let delivery = consume(&lake, &out);
    assert_eq!((&delivery["rows"], &delivery["changed"][0]["operation"]), (&0.into(), &"DELETE".into()));
    more();
    let from_all = ok(crate::harness::query()
        .args(["--as-of", "2026-12-31", "--format", "csv", "-c", "select count(*) from current_state", "--lake"])
        .arg(&lake));
    let live = |path: &str| count(path, "select count(*) from current_state");
    assert_eq!(from_all.lines().nth(1).unwrap(), live(&path).to_string(), "before the refresh");
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    assert_eq!(from_all.lines().nth(1).unwrap(), live(&path).to_string(), "after it");
    let report = extract("2026-01-03");
    assert!(report["base"].is_null() && report["stale"] == json!(["2026-01-02"]), "{report}");
}

/// A state whose refresh recorded no version, as one that another program began and did not end, does not count: what came
/// after its rows is unknown.
#[test]
fn a_state_that_records_no_version_is_not_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = lake(folder.path());
    more();
    let live = || count(lake.to_str().unwrap(), "select count(*) from current_state");
    let before = live();
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    for commit in log(&lake, "state") {
        let kept = actions(&commit).into_iter().filter(|action| action["txn"]["appId"] != "refresh/state");
        std::fs::write(&commit, kept.map(|action| format!("{action}\n")).collect::<String>()).unwrap();
    }
    let files = listed(&lake, "state");
    commit(&lake, "state", "DELETE", &[remove(files.values().next().unwrap(), true)]);
    assert_eq!(live(), before, "the deletion is of the state alone");
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    assert_eq!(live(), before, "after the state was made anew");
}

/// After another writer deletes rows of a day's extract, the next day does not build on that extract.
#[test]
fn an_extract_that_another_writer_changed_is_no_base() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    let extract = |day: &str| -> Value {
        let report = ok(synclake().args(["extract", "--no-refresh", "--date", day, "--lake"]).arg(&lake));
        serde_json::from_str(&report).unwrap()
    };
    let of_day = |day: &str, kind: &str| -> Value {
        let files = listed(&lake, "daily_state");
        let path = |path: &str| path.starts_with(&format!("extract_date={day}/")) && path.contains(kind);
        files.iter().find(|(name, _)| path(name)).unwrap().1.clone()
    };
    extract("2026-01-01");
    extract("2026-01-02");
    let right = extract("2026-01-03");
    assert_eq!(right["base"], "2026-01-02");
    // Retention deletes an extract on which no other extract builds.
    commit(&lake, "daily_state", "DELETE", &[remove(&of_day("2026-01-01", "part-state"), true)]);
    assert_eq!(extract("2026-01-03")["base"], "2026-01-02");
    commit(&lake, "daily_state", "DELETE", &[remove(&of_day("2026-01-02", "part-state"), true)]);
    let again = extract("2026-01-03");
    assert!(again["base"].is_null(), "{again}");
    assert_eq!(again["state_rows"], right["state_rows"]);
    // An older copy of the extract, as RESTORE brings back, is no base either.
    let files = of_day("2026-01-03", "part-state");
    commit(&lake, "daily_state", "RESTORE", &[json!({ "add": files })]);
    assert!(extract("2026-01-04")["base"].is_null());
}

/// An ingest keeps in-commit timestamps, and rejects an unsupported table feature before it writes anything.
#[test]
fn terms_that_are_not_kept_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    let more = folder.path().join("second.ndjson");
    let ingest = || {
        let source = format!("file:{}", more.display());
        synclake().args(["ingest", "--source", &source, "--lake"]).arg(&lake).output().unwrap()
    };
    // In-commit timestamps are supported.
    let mut metadata = newest(&lake, "sync_records", "metaData");
    metadata["metaData"]["configuration"]["delta.enableInCommitTimestamps"] = "true".into();
    let timed =
        json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["inCommitTimestamp"]}});
    let far_ms = 4_000_000_000_000_i64;
    let next = log(&lake, "sync_records").len();
    let info = json!({"commitInfo": {"operation": "SET TBLPROPERTIES", "inCommitTimestamp": far_ms}});
    let text: String = [info, metadata, timed].iter().map(|action| format!("{action}\n")).collect();
    std::fs::write(lake.join(format!("sync_records/_delta_log/{next:020}.json")), text).unwrap();
    assert!(ingest().status.success());
    let times: Vec<i64> = log(&lake, "sync_records")[next..]
        .iter()
        .map(|commit| actions(commit)[0]["commitInfo"]["inCommitTimestamp"].as_i64().unwrap())
        .collect();
    assert!(times.len() > 1 && times.is_sorted_by(|a, b| a < b), "{times:?}");
    // An unknown feature is rejected.
    let protocol =
        json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["rowTracking"]}});
    commit(&lake, "sync_records", "UPGRADE PROTOCOL", &[protocol]);
    let (files, commits) = (listed(&lake, "sync_records"), log(&lake, "sync_records").len());
    std::fs::write(&more, std::fs::read_to_string(&more).unwrap() + "{}\n").unwrap();
    refused(&ingest(), 1, &["sync_records", "rowTracking", "rowTrackingSuspended"]);
    assert_eq!((listed(&lake, "sync_records"), log(&lake, "sync_records").len()), (files, commits));
}

/// A table whose rows cannot be read is refused by name by every reader, and not in the words of a library.
#[test]
fn rows_that_cannot_be_read_are_refused_by_readers() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    let readers = || {
        let mut asked = crate::harness::query();
        asked.args(["-c", "select count(*) from sync_records", "--lake"]).arg(&lake);
        let mut extract = synclake();
        extract.args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake);
        let mut deliver = synclake();
        deliver.args(["deliver", "--consumer", "c", "--out"]).arg(folder.path().join("out")).arg("--lake").arg(&lake);
        [asked, extract, deliver].map(|mut command| command.output().unwrap())
    };
    let before = log(&lake, "daily_state").len();
    let features = ["typeWidening"];
    let widened = json!({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features,
        "writerFeatures": features}});
    commit(&lake, "sync_records", "SET TBLPROPERTIES", &[widened]);
    for output in readers() {
        refused(&output, 1, &["sync_records", "typeWidening", "DROP FEATURE"]);
    }
    std::fs::remove_file(log(&lake, "sync_records").pop().unwrap()).unwrap();
    let mut renamed = newest(&lake, "sync_records", "metaData");
    let schema = renamed["metaData"]["schemaString"].as_str().unwrap().replace("\"value\"", "\"mapped\"");
    renamed["metaData"]["schemaString"] = schema.into();
    commit(&lake, "sync_records", "RENAME COLUMN", &[renamed]);
    for output in readers() {
        refused(&output, 1, &["sync_records", "column value was dropped or renamed", "RESTORE"]);
    }
    // Nothing was written, so everything goes on once that is undone.
    assert_eq!(log(&lake, "daily_state").len(), before);
    std::fs::remove_file(log(&lake, "sync_records").pop().unwrap()).unwrap();
    for output in readers() {
        assert!(output.status.success(), "{}", crate::harness::text(&output.stderr));
    }
}

/// An extract ends with a refresh, so it asks whether the table `state` can be written before it writes anything.
#[test]
fn an_extract_writes_nothing_if_the_refresh_after_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    let mut checked = newest(&lake, "state", "metaData");
    checked["metaData"]["configuration"]["delta.constraints.positive"] = "sync_count > 0".into();
    commit(&lake, "state", "ADD CONSTRAINT", &[checked]);
    let before = log(&lake, "daily_state").len();
    let extract = |more: &[&str]| {
        synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake).args(more).output().unwrap()
    };
    refused(&extract(&[]), 1, &["--no-refresh", "CHECK constraint positive", "DROP CONSTRAINT"]);
    assert_eq!(log(&lake, "daily_state").len(), before);
    assert!(extract(&["--no-refresh"]).status.success());
    assert!(log(&lake, "daily_state").len() > before);
}

/// A log that lists a file outside of its table is rejected, so that a query cannot read foreign files.
#[test]
fn a_log_that_leads_out_of_its_table_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    std::fs::write(folder.path().join("secret.parquet"), "x").unwrap();
    let (_, add) = listed(&lake, "sync_records").into_iter().next().unwrap();
    for outside in ["../../secret.parquet", "file:///etc/passwd", "%2e%2e/%2e%2e/secret.parquet"] {
        let mut add = add.clone();
        add["path"] = outside.into();
        commit(&lake, "sync_records", "WRITE", &[json!({ "add": add })]);
        let mut asked = crate::harness::query();
        asked.args(["-c", "select count(*) from changes", "--lake"]).arg(&lake);
        refused(&asked.output().unwrap(), 1, &["outside of the table"]);
        std::fs::remove_file(log(&lake, "sync_records").pop().unwrap()).unwrap();
    }
}

/// An ingest does not recreate a lost `sync_records` while tables computed from it exist.
#[test]
fn sync_records_is_not_made_anew_beside_what_was_made_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = lake(folder.path());
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    std::fs::remove_dir_all(lake.join("sync_records")).unwrap();
    let source = format!("file:{}", folder.path().join("first.ndjson").display());
    let again = synclake().args(["ingest", "--source", &source, "--lake"]).arg(&lake).output().unwrap();
    refused(&again, 1, &["sync_records", "--lake"]);
    assert!(!lake.join("sync_records/_delta_log").exists());
}

/// Returns a deletion vector file that deletes the first row of a data file, and the size of its bitmap. All data
/// files share it.
fn deletion_vector() -> (Vec<u8>, i32) {
    let words: [&[u8]; 8] = [
        &1_681_511_377_u32.to_le_bytes(), // magic number of the portable form
        &1_u64.to_le_bytes(),             // number of bitmaps
        &0_u32.to_le_bytes(),             // high 32 bits of the first bitmap
        &12_346_u32.to_le_bytes(),        // no runs
        &1_u32.to_le_bytes(),             // number of containers
        &[0, 0, 0, 0],                    // container key, and its cardinality minus one
        &16_u32.to_le_bytes(),            // offset of the container
        &[0, 0],                          // row 0
    ];
    let bitmap = words.concat();
    let mut crc = flate2::Crc::new();
    crc.update(&bitmap);
    let size = i32::try_from(bitmap.len()).unwrap();
    ([&[1][..], &size.to_be_bytes(), &bitmap, &crc.sum().to_be_bytes()].concat(), size)
}

/// Deletes a row of each file by a deletion vector.
fn delete_a_row_of_each(lake: &Path, files: &BTreeMap<String, Value>) {
    let (bytes, size) = deletion_vector();
    let name = "deletion_vector_00000000-0000-0000-0000-000000000000.bin";
    std::fs::write(lake.join("sync_records").join(name), bytes).unwrap();
    let features = json!(["deletionVectors"]);
    let mut all = vec![json!({"protocol": {
        "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features,
    }})];
    for add in files.values() {
        all.push(remove(add, true));
        let mut add = add.clone();
        add["deletionVector"] = json!({
            "storageType": "u", "pathOrInlineDv": "00000000000000000000", "offset": 1, "sizeInBytes": size, "cardinality": 1,
        });
        all.push(json!({ "add": add }));
    }
    commit(lake, "sync_records", "DELETE", &all);
}

/// Files that got deletion vectors while they were merged, or before, are not compacted: no deleted row comes back.
#[test]
fn rows_deleted_by_vectors_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = lake(folder.path());
    more();
    let path = lake.to_str().unwrap();
    let (before, files) = (count(path, "select count(*) from sync_records"), listed(&lake, "sync_records"));
    let report = |output: std::process::Output| -> Value { serde_json::from_slice(&output.stdout).unwrap() };
    let mut compact = synclake();
    compact.args(["compact", "--lake"]).arg(&lake);
    let planned = report(compact.arg("--dry-run").output().unwrap());
    let mut compact = synclake();
    compact.args(["compact", "--lake"]).arg(&lake);
    compact.env("FAILPOINTS", "compact/before=1*sleep(6000)").stdout(std::process::Stdio::piped());
    let compacting = compact.spawn().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !std::fs::read_dir(lake.join("sync_records")).unwrap().any(|pool| has_compacted(&pool.unwrap().path())) {
        assert!(std::time::Instant::now() < deadline, "no file in a minute");
    }
    delete_a_row_of_each(&lake, &files);
    let raced = report(compacting.wait_with_output().unwrap());
    assert_eq!((&raced["groups"], &raced["groups_changed"]), (&0.into(), &planned["groups"]));
    let later = report(compact.env_remove("FAILPOINTS").output().unwrap());
    assert_eq!(later["files_left"], json!({ "has a deletion vector": files.len() }));
    assert_eq!(count(path, "select count(*) from sync_records"), before - files.len() as i64);
    let verified = ok(synclake().args(["verify", "--format", "json", "--lake"]).arg(&lake));
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!((&verified["faults"], &verified["tables"]["sync_records"]["orphans"]), (&json!([]), &0.into()));
}

fn has_compacted(pool: &Path) -> bool {
    let days = std::fs::read_dir(pool).into_iter().flatten().map(|day| day.unwrap().path());
    let mut names =
        days.flat_map(|day| std::fs::read_dir(day).into_iter().flatten()).map(|file| file.unwrap().file_name());
    names.any(|name| name.to_string_lossy().starts_with("compact-"))
}

/// A refresh does not deadlock when there are more deletion vectors than threads that wait for them.
#[test]
fn no_thread_waits_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "900", "--seed", "8", "--days", "20"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    let path = lake.to_str().unwrap();
    let (before, files) = (count(path, "select count(*) from sync_records"), listed(&lake, "sync_records"));
    assert!(files.len() > 16);
    delete_a_row_of_each(&lake, &files);
    let (done, ends) = std::sync::mpsc::channel();
    let at = lake.clone();
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().worker_threads(2).max_blocking_threads(1).thread_stack_size(16 << 20);
        let refreshed = builder.build().unwrap().block_on(async {
            let lake = Store::open(&Location::Folder(at), &AwsSettings::default()).await.unwrap();
            refresh::run(&lake, &Limits::default(), false).await.unwrap()
        });
        done.send(refreshed).unwrap();
    });
    let report = ends.recv_timeout(Duration::from_secs(120)).expect("the refresh waits for itself");
    assert_eq!(report.covered, None, "what the state held of them is gone");
    assert_eq!(count(path, "select count(*) from sync_records"), before - files.len() as i64);
    ok(synclake().args(["verify", "--lake"]).arg(&lake));
}

/// delta-rs may work on all tables beside every synclake command, also with kills (scenario: tests/chaos/foreign.py).
#[test]
fn delta_rs_is_welcome_on_every_table() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/foreign.py");
    let output = python().args([script, env!("CARGO_BIN_EXE_synclake")]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["faults"], &summary["verify_exit"]), (&json!(0), &json!(0)), "{summary}");
    for done in ["compact sync_records", "z_order state", "update sync_records", "checkpoint daily_state", "kills"] {
        assert!(summary["seen"][done].as_u64() > Some(0), "nothing of {done} was seen: {summary}");
    }
}
