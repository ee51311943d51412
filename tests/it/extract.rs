//! Tests of daily extracts and deliveries: their contents, repeated and killed runs, and manifests that make their
//! files count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::harness::{count, ingest_file, ok, rows, simulate, synclake};
use crate::vacuum::{go_on, stopped};

fn millis(day: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(&format!("{day}T12:00:00Z")).unwrap().timestamp_millis()
}

fn extract(lake: &Path, date: &str, more: &[&str]) -> Value {
    let report = ok(synclake().args(["extract", "--date", date, "--lake"]).arg(lake).args(more));
    serde_json::from_str(&report).unwrap()
}

/// An extract holds the state at the end of its day and the changes of that day, and can be repeated.
#[test]
fn a_day_holds_the_state_at_its_end_and_its_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "8000", "--seed", "5", "--days", "4"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let path = lake.to_str().unwrap();

    // The state at the end of the last day equals the oracle.
    let last = extract(&lake, "2026-01-04", &[]);
    let truth = std::fs::read_to_string(&oracle).unwrap();
    assert_eq!(last["state_rows"], truth.lines().count());
    let state = "select identity_pool_id, identity_id, dataset_name, key, value, sync_count from";
    let compare = format!(
        "{state} daily_extract where kind = 'state' and extract_date = '2026-01-04' except {state} current_state"
    );
    assert_eq!(rows(path, &compare), Vec::<Value>::new());

    // The state at the end of an earlier day equals the state of a lake without later events.
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

    // A repeated extract has the same rows, and the table holds them once.
    let again = extract(&lake, "2026-01-02", &[]);
    assert_eq!((&again["state_rows"], &again["change_rows"]), (&early["state_rows"], &early["change_rows"]));
    let in_table = count(path, "select count(*) from daily_extract where extract_date = '2026-01-02'");
    assert_eq!(in_table, early["state_rows"].as_i64().unwrap() + changes);
    assert_eq!(count(path, "select count(distinct extract_date) from daily_extract"), 2);
    // A day before all events is empty and is no error.
    assert_eq!(extract(&lake, "2020-02-29", &[])["state_rows"], 0);
}

/// Extracts of one day that run at once leave the rows of exactly one of them.
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

/// The manifest lists every file with rows and SHA-256; repeated and concurrent runs leave all listed files in place.
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
    // Of several runs at once any manifest may be the last; every file that it lists exists.
    for _ in 0..3 {
        let start = || {
            let mut command = synclake();
            command.args(["extract", "--date", "2026-01-05", "--no-refresh", "--lake"]).arg(&lake);
            command.arg("--out").arg(&out).stdout(std::process::Stdio::null()).spawn().unwrap()
        };
        let all = [start(), start(), start()];
        all.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
        let manifest = std::fs::read(out.join("extract_date=2026-01-05/_SUCCESS")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for file in manifest["files"].as_array().unwrap() {
            assert!(out.join(file["path"].as_str().unwrap()).exists(), "{file}");
        }
    }
}

/// Returns the stored rows of a day, without corrections.
fn stored(lake: &Path, day: &str) -> Vec<Value> {
    let sql = format!(
        "select kind, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count, last_modified_date \
         from daily_extract where extract_date = '{day}' and kind <> 'correction' order by 1, 2, 3, 4, 5"
    );
    rows(lake.to_str().unwrap(), &sql)
}

/// Live rows by identity, dataset and key.
type State = BTreeMap<[String; 3], Value>;

fn by_key(lake: &Path, day: &str, kind: &str) -> State {
    let sql = format!(
        "select identity_pool_id, identity_id, dataset_name, key, value, op, sync_count, last_modified_date \
         from daily_extract where extract_date = '{day}' and kind = '{kind}'"
    );
    let key = |row: &Value| ["identity_id", "dataset_name", "key"].map(|name| row[name].as_str().unwrap().to_owned());
    rows(lake.to_str().unwrap(), &sql).into_iter().map(|row| (key(&row), row)).collect()
}

/// Applies the corrections of a day to an earlier version of that day, as its user would.
fn corrected(mut state: State, corrections: &State) -> State {
    for (key, row) in corrections {
        match row["op"].as_str() {
            Some("remove") => drop(state.remove(key)),
            _ => drop(state.insert(key.clone(), row.clone())),
        }
    }
    state
}

const DAYS: [&str; 4] = ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"];

/// Writes a stream of four days into four files, with late rows in later files than their day's.
fn four_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let args = ["--events", "6000", "--seed", "11", "--days", "4", "--identities", "200", "--late", "0.05"];
    let (events, _) = simulate(folder, &args);
    let text = std::fs::read_to_string(events).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let quarter = lines.len().div_ceil(4);
    let write = |(n, lines): (usize, &[&str])| {
        let path = folder.join(format!("{n}.ndjson"));
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        path
    };
    lines.chunks(quarter).enumerate().map(write).collect()
}

/// An extract that builds on the day before equals an extract from all rows, and late rows are reported and corrected.
#[test]
fn a_day_from_the_day_before_is_a_day_from_all_rows() {
    let folder = tempfile::tempdir().unwrap();
    let files = four_files(folder.path());
    let (lake, whole) = (folder.path().join("lake"), folder.path().join("whole"));
    let mut late = 0;
    for (day, file) in DAYS.iter().zip(&files) {
        ingest_file(file, &lake);
        ingest_file(file, &whole);
        let report = extract(&lake, day, &[]);
        assert_eq!(report["base"].is_null(), *day == DAYS[0], "{report}");
        late += report["late_rows"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
        assert_eq!(report["late_rows"] == serde_json::json!({}), report["stale"] == serde_json::json!([]));
    }
    assert!(late > 50, "{late}");
    // Extract the last day first, so that no day has an earlier one to build on.
    for day in DAYS.iter().rev() {
        let report = extract(&whole, day, &[]);
        assert!(report["base"].is_null(), "{report}");
    }
    assert_eq!(stored(&lake, DAYS[3]), stored(&whole, DAYS[3]));
    // Days that late rows changed stay as they are until they are extracted again.
    assert_ne!(stored(&lake, DAYS[0]), stored(&whole, DAYS[0]));
    let more = folder.path().join("more.ndjson");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    std::fs::write(&more, text.lines().next().unwrap().to_owned() + "\n\n").unwrap();
    ingest_file(&more, &lake);
    // Late rows are reported once; runs without `--correct` keep the stale days.
    assert_eq!(extract(&lake, "2026-01-05", &[])["stale"], serde_json::json!(DAYS));
    let report = extract(&lake, "2026-01-06", &[]);
    assert_eq!((&report["late_rows"], &report["stale"]), (&serde_json::json!({}), &serde_json::json!(DAYS)));
    let first: Vec<State> = DAYS.iter().map(|day| by_key(&lake, day, "state")).collect();
    let report = extract(&lake, "2026-01-06", &["--correct"]);
    assert_eq!(report["corrected"], serde_json::json!(DAYS), "{report}");
    assert_eq!(extract(&lake, "2026-01-06", &["--correct"])["corrected"], serde_json::json!([]));
    for day in DAYS {
        assert_eq!(stored(&lake, day), stored(&whole, day), "{day}");
    }
    // A repeated extract of an earlier day reports that later days are stale now.
    let late = folder.path().join("late.ndjson");
    std::fs::write(&late, format!(" {}\n", text.lines().nth(1).unwrap())).unwrap();
    ingest_file(&late, &lake);
    assert_eq!(
        extract(&lake, DAYS[2], &[])["stale"],
        serde_json::json!([DAYS[0], DAYS[1], DAYS[3], "2026-01-05", "2026-01-06"])
    );
    // No further row is new to these days; their earlier corrections are kept.
    for (day, first) in DAYS.iter().zip(first) {
        let second = by_key(&lake, day, "state");
        let corrections = by_key(&lake, day, "correction");
        assert_eq!(corrections.is_empty(), first == second, "{day}");
        assert!(corrections.len() < second.len() / 2, "{} of {}", corrections.len(), second.len());
        assert_eq!(corrected(first.clone(), &corrections), second, "{day}");
        // Change the value of a key, and remove a dataset that has a value.
        let key = second.keys().next().unwrap();
        let removed = second.keys().find(|other| other[..2] != key[..2]).unwrap();
        let file = folder.path().join(format!("{day}.ndjson"));
        let event = |of: &[String; 3], dataset_op: &str, records: Value| {
            serde_json::json!({
                "identityPoolId": second[of]["identity_pool_id"], "identityId": of[0], "dataSetName": of[1], "operation": dataset_op,
                "kinesisSyncRecords": records, "lastModifiedDate": millis(day), "payloadType": "Inline", "syncCount": 999,
            })
        };
        let record = serde_json::json!([{
            "key": key[2], "value": "corrected", "op": "replace", "syncCount": 999, "lastModifiedDate": millis(day),
            "deviceLastModifiedDate": millis(day),
        }]);
        let lines = format!("{}\n{}\n", event(key, "replace", record), event(removed, "remove", Value::Null));
        std::fs::write(&file, lines).unwrap();
        ingest_file(&file, &lake);
        let out = folder.path().join("out");
        let report = extract(&lake, day, &["--out", out.to_str().unwrap(), "--format", "ndjson"]);
        let third = by_key(&lake, day, "state");
        let corrections = by_key(&lake, day, "correction");
        assert_eq!(report["corrections"], corrections.len());
        assert_eq!(corrections[removed]["op"], "remove");
        assert_eq!(corrections[key]["value"], "corrected");
        for earlier in [first, second.clone()] {
            assert_eq!(corrected(earlier, &corrections), third, "{day}");
        }
        let manifest = std::fs::read(out.join(format!("extract_date={day}/_SUCCESS"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let listed = manifest["files"].as_array().unwrap().iter().filter(|file| file["kind"] == "corrections");
        assert_eq!(listed.map(|file| file["rows"].as_u64().unwrap()).sum::<u64>(), corrections.len() as u64);
    }
    // A range extracts each of its days, each from the day before.
    let range = folder.path().join("range");
    files.iter().for_each(|file| drop(ingest_file(file, &range)));
    let lines = ok(synclake().args(["extract", "--from", DAYS[0], "--to", DAYS[3], "--lake"]).arg(&range));
    let bases: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["base"].clone()).collect();
    assert_eq!(bases, [Value::Null, DAYS[0].into(), DAYS[1].into(), DAYS[2].into()]);
    for day in DAYS {
        assert_eq!(stored(&range, day), stored(&whole, day), "{day}");
    }
    // The command that `status` advises for all stale days extracts them again.
    let extracts = || -> Value { serde_json::from_str(&ok(synclake().args(["status", "--lake"]).arg(&lake))).unwrap() };
    let report = extracts();
    assert!(report["extracts"]["stale"].as_array().unwrap().len() > 1, "{report:#}");
    let advised = report["next"].as_array().unwrap().iter().flat_map(|advice| advice["commands"].as_array().unwrap());
    let advised = advised.map(|command| command.as_str().unwrap()).find(|command| command.contains("synclake extract"));
    ok(synclake().args(advised.unwrap().split(' ').skip(1)));
    assert_eq!(extracts()["extracts"]["stale"], serde_json::json!([]));
}

/// A consumer gets every row once and in order, although its runs are killed or run at once.
#[test]
fn a_consumer_gets_every_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, out) = (folder.path().join("lake"), folder.path().join("feed"));
    let consume = || {
        let mut command = synclake();
        command.args(["deliver", "--consumer", "warehouse", "--format", "ndjson", "--out"]).arg(&out);
        command.arg("--lake").arg(&lake);
        command
    };
    for file in four_files(folder.path()) {
        ingest_file(&file, &lake);
        // The first run dies with the intent committed, the second with the files written, the third with the cursor
        // moved (its intent exists already).
        for point in ["commit/after", "consumer/written", "commit/after"] {
            let killed = consume().env("FAILPOINTS", format!("{point}=1*return(kill)")).output().unwrap();
            assert_eq!(killed.status.code(), None, "{point}");
        }
        let at_once: Vec<_> = (0..2).map(|_| consume().stdout(std::process::Stdio::null()).spawn().unwrap()).collect();
        at_once.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    }
    let mut earlier_name = synclake();
    earlier_name.args(["extract", "--consumer", "warehouse", "--format", "ndjson", "--out"]).arg(&out);
    ok(earlier_name.arg("--lake").arg(&lake));
    let last: Value = serde_json::from_str(&ok(&mut consume())).unwrap();
    assert_eq!((&last["rows"], &last["manifest"]), (&0.into(), &Value::Null), "nothing is new");
    let mut delivered = Vec::new();
    let mut next = 0;
    let mut folders: Vec<_> =
        std::fs::read_dir(out.join("consumer=warehouse")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for delivery in folders {
        let manifest: Value = serde_json::from_slice(&std::fs::read(delivery.join("_SUCCESS")).unwrap()).unwrap();
        assert_eq!(manifest["from"].as_u64().map_or(0, |from| from + 1), next, "one follows the other");
        next = manifest["to"].as_u64().unwrap() + 1;
        for file in manifest["files"].as_array().unwrap() {
            let text = std::fs::read_to_string(out.join(file["path"].as_str().unwrap())).unwrap();
            delivered.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
    }
    let key = |row: &Value| format!("{}/{}/{}", row["shard_id"], row["sequence_number"], row["record_index"]);
    let mut got: Vec<String> = delivered.iter().map(key).collect();
    let sql = "select shard_id, sequence_number, record_index from sync_records";
    let mut all: Vec<String> = rows(lake.to_str().unwrap(), sql).iter().map(key).collect();
    got.sort();
    all.sort();
    assert_eq!(got, all);
    let refused = |command: &str, args: &[&str], parts: &[&str]| {
        let output = synclake().args([command, "--lake"]).arg(&lake).args(args).output().unwrap();
        crate::harness::refused(&output, 2, parts);
    };
    refused("deliver", &["--consumer", "a/b", "--out", "o"], &["a/b", "A-Za-z0-9"]);
    refused("deliver", &["--consumer", "a"], &["--out"]);
    refused("deliver", &["--out", "o"], &["--consumer"]);
    refused("extract", &[], &["--date", "--from"]);
    refused("extract", &["--from", "2026-01-02", "--to", "2026-01-01"], &["2026-01-02", "exchange"]);
    let inside = lake.join("daily_state");
    let inside = inside.to_str().unwrap();
    refused("extract", &["--date", "2026-01-01", "--out", inside], &["daily_state", "lies in the lake"]);
    refused("deliver", &["--consumer", "a", "--out", inside], &["daily_state", "lies in the lake"]);
    // A started delivery must be finished with the options that it started with.
    ingest_file(&folder.path().join("events.ndjson"), &lake);
    let killed = consume().env("FAILPOINTS", "consumer/written=1*return(kill)").output().unwrap();
    assert_eq!(killed.status.code(), None);
    let mut other = synclake();
    other.args(["deliver", "--consumer", "warehouse", "--format", "csv", "--out"]).arg(&out).arg("--lake").arg(&lake);
    crate::harness::refused(&other.output().unwrap(), 1, &["warehouse", "--format", "once more"]);
    ok(&mut consume());
    ok(&mut other);
    a_forgotten_consumer_begins_anew(&lake, &folder.path().join("anew"));
}

/// A forgotten consumer is not reported any more, and its next delivery has all rows.
fn a_forgotten_consumer_begins_anew(lake: &Path, out: &Path) {
    let run = |args: &[&str]| synclake().args(["deliver", "--lake"]).arg(lake).args(args).output().unwrap();
    let consumers = || -> Value {
        let report = ok(synclake().args(["status", "--lake"]).arg(lake));
        serde_json::from_str::<Value>(&report).unwrap()["consumers"].clone()
    };
    assert_eq!(consumers()[0]["consumer"], "warehouse");
    crate::harness::refused(&run(&["--forget", "search"]), 1, &["no consumer search", "its consumers: warehouse"]);
    crate::harness::refused(&run(&["--forget", "warehouse", "--out", "o"]), 2, &["--forget", "--out"]);
    let forgotten: Value = serde_json::from_slice(&run(&["--forget", "warehouse"]).stdout).unwrap();
    assert_eq!(forgotten["forgotten"], "warehouse");
    assert!(forgotten["version"].is_u64(), "{forgotten}");
    assert_eq!(consumers(), serde_json::json!([]));
    crate::harness::refused(&run(&["--forget", "warehouse"]), 1, &["no consumer warehouse", "its consumers: none"]);
    ok(synclake().args(["verify", "--lake"]).arg(lake));
    let again = run(&["--consumer", "warehouse", "--out", out.to_str().unwrap()]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    let all = count(lake.to_str().unwrap(), "select count(*) from sync_records");
    assert_eq!((&again["from"], &again["rows"]), (&Value::Null, &all.into()));
    assert_eq!(consumers()[0]["consumer"], "warehouse");

    // One that is forgotten during its delivery does not come back.
    let mut late = synclake();
    late.args(["deliver", "--consumer", "late", "--lake"]).arg(lake).arg("--out").arg(out.with_file_name("late"));
    let late = stopped(late.env("FAILPOINTS", "consumer/written=1*return(stop)"));
    assert!(run(&["--forget", "late"]).status.success());
    go_on(&late);
    crate::harness::refused(
        &late.wait_with_output().unwrap(),
        1,
        &["consumer late was forgotten during this delivery"],
    );
    assert_eq!(consumers().as_array().unwrap().len(), 1);
}

/// Files of a killed extract are swept after a week; files that any version lists or listed stay.
#[test]
fn a_killed_extract_leaves_nothing_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "200", "--days", "2"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let of_day = lake.join("daily_state").join(format!("extract_date={}", DAYS[0]));
    let files = || -> BTreeSet<std::path::PathBuf> {
        let pools = std::fs::read_dir(&of_day).unwrap().map(|pool| pool.unwrap().path());
        let files = pools.flat_map(|pool| std::fs::read_dir(pool).unwrap()).map(|file| file.unwrap().path());
        files.collect()
    };
    extract(&lake, DAYS[0], &[]);
    let first = files();
    extract(&lake, DAYS[0], &[]);
    let listed = files();
    assert!(listed.is_superset(&first));
    let mut killed = synclake();
    killed.args(["extract", "--date", DAYS[0], "--lake"]).arg(&lake).env("FAILPOINTS", "file/after=1*return(kill)");
    assert_eq!(killed.output().unwrap().status.code(), None);
    let left = files();
    assert!(left.len() > listed.len());
    extract(&lake, DAYS[1], &[]);
    assert_eq!(files(), left, "too young to be judged");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 86_400);
    for file in &left {
        std::fs::File::options().append(true).open(file).unwrap().set_modified(long_ago).unwrap();
    }
    extract(&lake, DAYS[1], &[]);
    assert_eq!(files(), listed);
}

/// Wherever a run is killed, the manifest says no more than the table holds, and every file that it lists exists.
#[test]
fn a_manifest_is_never_ahead_of_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let files = four_files(folder.path());
    let (lake, out) = (folder.path().join("lake"), folder.path().join("out"));
    let day = DAYS[3];
    let of_day = ["extract", "--no-refresh", "--date", day, "--format", "ndjson"];
    let manifest = || -> Value {
        serde_json::from_slice(&std::fs::read(out.join(format!("extract_date={day}/_SUCCESS"))).unwrap()).unwrap()
    };
    let in_table = || {
        count(
            lake.to_str().unwrap(),
            &format!("select count(*) from daily_state where kind = 'state' and extract_date = '{day}'"),
        )
    };
    files[..3].iter().for_each(|file| drop(ingest_file(file, &lake)));
    ok(synclake().args(of_day).arg("--out").arg(&out).arg("--lake").arg(&lake));
    let first = manifest();
    ingest_file(&files[3], &lake);
    for (point, is_committed) in [("commit/before", false), ("commit/after", true), ("extract/committed", true)] {
        let mut run = synclake();
        run.args(of_day).arg("--out").arg(&out).arg("--lake").arg(&lake);
        let killed = run.env("FAILPOINTS", format!("{point}=1*return(kill)")).output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}");
        assert_eq!(manifest(), first, "{point}");
        assert_eq!(in_table() == first["state_rows"], !is_committed, "{point}");
        for file in first["files"].as_array().unwrap() {
            assert!(out.join(file["path"].as_str().unwrap()).exists(), "{point}: {file}");
        }
    }
    ok(synclake().args(of_day).arg("--out").arg(&out).arg("--lake").arg(&lake));
    assert_eq!(manifest()["state_rows"], in_table());
}

/// The files and the manifest of a delivery are on disk before they get their names, and get them before the cursor
/// moves.
#[test]
fn a_delivery_is_durable_before_its_cursor_moves() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "50", "--days", "1"]);
    let (lake, out) = (folder.path().join("lake"), folder.path().join("feed"));
    ingest_file(&events, &lake);
    let staged = |name: &str| -> Vec<String> {
        let place = out.join(format!("consumer={name}"));
        let entries = std::fs::read_dir(place).into_iter().flatten().map(|entry| entry.unwrap().path());
        let names = entries.flat_map(|version| std::fs::read_dir(version).unwrap());
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".tmp")).map(|name| name.split('.').nth(1).unwrap().to_owned()).collect()
    };
    let mut seen = BTreeSet::new();
    // Each run is killed at a later staged file than the run before, each with its own consumer.
    for writes in 0.. {
        let name = format!("c{writes}");
        let mut run = synclake();
        run.args(["deliver", "--consumer", &name, "--out"]).arg(&out).arg("--lake").arg(&lake);
        let run = run
            .env("FAILPOINTS", format!("file/staged={writes}*off->1*return(kill)").replace("=0*off->", "="))
            .output();
        let run = run.unwrap();
        if run.status.success() {
            break;
        }
        assert_eq!(run.status.code(), None);
        seen.extend(staged(&name));
        assert!(writes < 20);
    }
    assert_eq!(seen, ["_SUCCESS", "part-00000"].map(str::to_owned).into());
}

/// A user who may write but not delete gets the work done, and a warning about the files that are left.
#[test]
fn what_cannot_be_deleted_fails_nothing_that_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let files = four_files(folder.path());
    let (lake, out) = (folder.path().join("lake"), folder.path().join("out"));
    let run = |args: &[&str], failpoints: &str| {
        let mut run = synclake();
        run.args(args).arg("--lake").arg(&lake).env("FAILPOINTS", failpoints);
        run.output().unwrap()
    };
    let bad = folder.path().join("bad.ndjson");
    let line = std::fs::read_to_string(&files[1]).unwrap().lines().next().unwrap().to_owned();
    std::fs::write(&bad, line + "\n").unwrap();
    let source = format!("file:{}", bad.display());
    let poisoned = run(&["ingest", "--source", &source], "poison=return(identityPoolId)");
    assert!(poisoned.status.success());
    ingest_file(&files[0], &lake);
    // Each run leaves files that the next run would delete.
    assert_eq!(run(&["refresh"], "commit/before=1*return(kill)").status.code(), None);
    assert_eq!(run(&["redrive"], "redrive/move/before=1*return(kill)").status.code(), None);
    let day = ["extract", "--no-refresh", "--date", DAYS[0], "--out", out.to_str().unwrap()];
    ok(synclake().args(day).arg("--lake").arg(&lake));
    for (args, left) in [
        (&["refresh"][..], "left files of the state"),
        (&["redrive"], "left files of sync_records"),
        (&day, "left files of earlier runs"),
    ] {
        let refused = run(args, "store/delete=return");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(stderr.contains(left), "{args:?}: {stderr}");
    }
    let lake = lake.to_str().unwrap();
    assert_eq!(count(lake, "select count(*) from quarantine"), 0);
    let truth = "select count(*) from (select * from current_state)";
    assert!(count(lake, truth) > 0);
    ok(synclake().args(["verify", "--lake", lake]));
}
