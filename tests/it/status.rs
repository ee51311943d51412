//! Tests of `synclake status`: its numbers are those of SQL over the lake, and it opens no data file.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{count, ingest_file, ok, refused, rows, simulate, synclake};

fn status(lake: &Path) -> Value {
    serde_json::from_str(&ok(synclake().args(["status", "--lake"]).arg(lake))).unwrap()
}

/// Returns the text of the report without the parts that depend on the clock, the place and the bytes of files. Columns
/// are two spaces apart, because the width of an age depends on the clock.
fn text_of(lake: &Path, args: &[&str]) -> String {
    let out = ok(synclake().args(["status", "--format", "human", "--lake"]).arg(lake).args(args));
    let mut shown = String::new();
    for line in out.replace(lake.to_str().unwrap(), "LAKE").lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let cells: Vec<String> =
            line.trim().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(timeless).collect();
        shown += &format!("{indent}{}\n", cells.join("  "));
    }
    shown
}

fn timeless(cell: &str) -> String {
    let is_number = |word: &str| word.trim_start_matches(">=").parse::<f64>().is_ok();
    match cell.split(' ').collect::<Vec<_>>()[..] {
        [number, "s" | "min"] if is_number(number) => return "<age>".to_owned(),
        [number, "B" | "KiB"] if is_number(number) => return cell.replace(number.trim_start_matches(">="), "<size>"),
        _ => {}
    }
    let word = |word: &str| {
        let (word, end) = word.strip_suffix(',').map_or((word, ""), |word| (word, ","));
        let is_of_stream = word.starts_with("2026-01-0");
        match (word.len(), word.get(4..5)) {
            (20, Some("-")) if word.ends_with('Z') && !is_of_stream => format!("<time>{end}"),
            (10, Some("-")) if !is_of_stream => format!("<day>{end}"),
            _ => format!("{word}{end}"),
        }
    };
    let words: String = cell.split(' ').map(word).collect::<Vec<_>>().join(" ");
    match (words.find('('), words.find(" ago)")) {
        (Some(from), Some(to)) if from < to => format!("{}<age>{}", &words[..=from], &words[to..]),
        _ => words,
    }
}

/// Ingests a part of the lines of a file.
fn ingest_part(folder: &Path, lake: &Path, events: &Path, name: &str, part: std::ops::Range<usize>) {
    let text = std::fs::read_to_string(events).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let file = folder.join(name);
    std::fs::write(&file, lines[part.start..part.end.min(lines.len())].join("\n") + "\n").unwrap();
    ingest_file(&file, lake);
}

/// Returns a lake with two pools, quarantined records, a refresh, an extract, a delivery, and then more rows.
fn lake_behind(folder: &Path) -> PathBuf {
    let args = ["--events", "900", "--seed", "12", "--pools", "2", "--days", "4", "--identities", "50"];
    let (events, _) = simulate(folder, &args);
    let lake = folder.join("lake");
    ingest_part(folder, &lake, &events, "first.ndjson", 0..600);
    let bad = folder.join("bad.ndjson");
    std::fs::write(&bad, "{}{}\n[]\nno json\n").unwrap();
    ingest_file(&bad, &lake);
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    ok(synclake().args(["extract", "--date", "2026-01-02", "--no-refresh", "--lake"]).arg(&lake));
    let out = folder.join("out");
    ok(synclake().args(["deliver", "--consumer", "billing", "--out"]).arg(&out).arg("--lake").arg(&lake));
    ingest_part(folder, &lake, &events, "second.ndjson", 600..usize::MAX);
    lake
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every number of the report equals that of SQL over the lake, and that of the folder.
#[test]
fn the_numbers_are_those_of_sql_over_the_lake() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake_behind(folder.path());
    let name = lake.to_str().unwrap();
    let report = status(&lake);
    let verified: Value =
        serde_json::from_str(&ok(synclake().args(["verify", "--format", "json", "--lake"]).arg(&lake))).unwrap();
    for table in ["sync_records", "quarantine", "daily_state", "state", "gaps"] {
        let found = &report["tables"][table];
        assert_eq!(number(&found["rows"]), count(name, &format!("select count(*) from {table}")), "{table}");
        for field in ["version", "files"] {
            assert_eq!(found[field], verified["tables"][table][field], "{table}.{field}");
        }
        assert_eq!(found["small_files"], found["files"], "{table}");
        assert_eq!(found["files_without_rows"], 0, "{table}");
        let age = number(&found["last_commit"]["age_seconds"]);
        assert!((0..600).contains(&age), "{table}: {age}");
    }
    assert_pools_and_growth(&report, &lake);
    assert_behind(&report, &folder.path().join("second.ndjson"));
    assert_advice(&report, name);
    assert_advice_ends(&report, folder.path(), &lake);
}

/// Asserts that nothing is left to do once the advised commands ran, although records stay in the quarantine.
fn assert_advice_ends(report: &Value, folder: &Path, lake: &Path) {
    assert_eq!(report["attention"]["quarantined_since_redrive"], 3);
    // A redrive of a part of the quarantine ends nothing.
    ok(synclake().args(["redrive", "--reason", "not_json", "--lake"]).arg(lake));
    assert_eq!(status(lake)["attention"]["quarantined_since_redrive"], 3);
    let run_all = |report: &Value| {
        commands(report).filter_map(|command| command.strip_prefix("synclake ")).for_each(|command| {
            ok(synclake().args(command.split(' ')));
        });
        status(lake)
    };
    // The extracts find that late rows changed an earlier day.
    let done = run_all(&run_all(report));
    assert_eq!(done["next"], json!([]));
    let attention = |report: &Value| {
        let number = |name: &str| number(&report["attention"][name]);
        (number("quarantined"), number("quarantined_since_redrive"))
    };
    assert_eq!(attention(&done), (3, 0));
    assert!(text_of(lake, &[]).contains("3 records, no redrive could decode them"));
    let version = |report: &Value| number(&report["tables"]["quarantine"]["version"]);
    ok(synclake().args(["redrive", "--lake"]).arg(lake));
    assert_eq!(version(&status(lake)), version(&done), "a repeated redrive notes nothing");
    let bad = folder.join("again.ndjson");
    std::fs::write(&bad, "[1]\n").unwrap();
    ingest_file(&bad, lake);
    let again = status(lake);
    assert_eq!(attention(&again), (4, 1));
    assert!(again["next"].to_string().contains("The quarantine has 1 record that"), "{again:#}");
}

/// Returns the commands that a report advises.
fn commands(report: &Value) -> impl Iterator<Item = &str> {
    let advised = report["next"].as_array().unwrap().iter();
    advised.flat_map(|advice| advice["commands"].as_array().unwrap()).map(|command| command.as_str().unwrap())
}

/// Asserts that pools and growth are those of SQL and of the files.
fn assert_pools_and_growth(report: &Value, lake: &Path) {
    let name = lake.to_str().unwrap();
    let pools = rows(
        name,
        "select pool, count(*) as n, cast(min(event_date) as varchar) as first, cast(max(event_date) as varchar) as last, \
         cast(cast(max(last_modified_date) as bigint) / 1000 as bigint) as newest from sync_records group by pool order by pool",
    );
    assert_eq!(pools.len(), 2);
    assert_eq!(report["pools"].as_array().unwrap().len(), 2);
    for (found, sql) in report["pools"].as_array().unwrap().iter().zip(&pools) {
        assert_eq!(
            [&found["pool"], &found["rows"], &found["first_date"], &found["last_date"]],
            [&sql["pool"], &sql["n"], &sql["first"], &sql["last"]]
        );
        let newest = chrono::DateTime::parse_from_rfc3339(found["newest_change"].as_str().unwrap()).unwrap();
        assert_eq!(newest.timestamp_millis(), number(&sql["newest"]));
        let folder = lake.join(format!("sync_records/pool={}", sql["pool"].as_str().unwrap()));
        let of_date = std::fs::read_dir(&folder).unwrap().map(|date| files(&date.unwrap().path()).len() as i64);
        assert_eq!(number(&found["files_of_date_max"]), of_date.max().unwrap());
        assert_eq!(number(&found["bytes"]), bytes(&folder));
    }
    assert_eq!(number(&report["tables"]["sync_records"]["bytes"]), bytes(&lake.join("sync_records")));

    let all = count(name, "select count(*) from sync_records");
    let growth = report["growth"].as_array().unwrap();
    assert_eq!(growth.len(), 7);
    assert!(growth.iter().all(|day| day["is_exact"] == true));
    assert_eq!(growth.iter().map(|day| number(&day["rows"])).sum::<i64>(), all);
    assert_eq!(growth.iter().map(|day| number(&day["bytes"])).sum::<i64>(), bytes(&lake.join("sync_records")));
}

/// Asserts that state, extracts and the consumer lack the rows of the second part.
fn assert_behind(report: &Value, second: &Path) {
    // The second part came after the refresh, the extract and the delivery.
    let second = std::fs::read_to_string(second).unwrap();
    let events = second.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let tail: i64 =
        events.map(|event| event["kinesisSyncRecords"].as_array().map_or(1, |r| r.len().max(1)) as i64).sum();
    assert!(tail > 0);
    // The fence of the ingest adds no rows.
    let behind = json!({"commits": 1, "rows": tail, "is_exact": true});
    assert_eq!(number(&report["tables"]["sync_records"]["version"]) - number(&report["state"]["covers"]), 2);
    assert_eq!(report["state"]["behind"], behind);
    assert_eq!(report["extracts"]["behind"], behind);
    assert_eq!((&report["extracts"]["last_date"], &report["extracts"]["days"]), (&json!("2026-01-02"), &json!(1)));
    let consumer = &report["consumers"][0];
    assert_eq!((&consumer["consumer"], &consumer["behind"]), (&json!("billing"), &behind));
    assert!(consumer["delivered"].is_object() && report["state"]["refreshed"].is_object(), "{report:#}");
}

/// Asserts what needs attention, and that the advised queries run.
fn assert_advice(report: &Value, name: &str) {
    let attention = &report["attention"];
    let newest = rows(name, "select cast(max(arrived_date) as varchar) as newest from quarantine");
    assert_eq!((number(&attention["quarantined"]), number(&attention["gaps"])), (3, 0));
    assert_eq!(attention["quarantined_newest_date"], newest[0]["newest"]);
    let sources = report["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1);
    assert_eq!(
        (&sources[0]["source"], &sources[0]["shards"], &sources[0]["is_files"]),
        (&json!("file"), &json!(3), &json!(true))
    );
    let advised = report["next"].to_string();
    for command in ["synclake refresh", "synclake redrive", "from quarantine group by reason", "synclake extract"] {
        assert!(advised.contains(command), "{command:?} is not in {advised}");
    }
    // The advised extract is of all missing days.
    assert_eq!(report["extracts"]["missing"], json!(["2026-01-03", "2026-01-04"]));
    assert!(commands(report).any(|command| command.ends_with("--from 2026-01-03 --to 2026-01-04")), "{advised}");
    // Each advised query runs.
    for command in commands(report) {
        if let Some(sql) = command.strip_prefix("synclake-query").and_then(|rest| rest.split('"').nth(1)) {
            assert_eq!(number(&rows(name, sql).iter().map(|row| number(&row["records"])).sum::<i64>().into()), 3);
        }
    }
}

/// Returns the Parquet files below a folder, without those of a log.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("_delta_log") => {}
            true => found.extend(files(&path)),
            false => found.extend(path.extension().is_some_and(|e| e == "parquet").then_some(path)),
        }
    }
    found
}

fn bytes(folder: &Path) -> i64 {
    files(folder).iter().map(|file| i64::try_from(file.metadata().unwrap().len()).unwrap()).sum()
}

/// The text shows every block. Without data files it is the same: the logs alone are read.
#[test]
fn the_text_is_short_and_needs_no_data_file() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake_behind(folder.path());
    let whole = text_of(&lake, &[]);
    insta::assert_snapshot!("status", whole);
    let data = files(&lake);
    assert!(data.len() > 10, "{}", data.len());
    for file in data {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(text_of(&lake, &[]), whole);
    let verbose = text_of(&lake, &["--verbose"]);
    assert!(
        verbose.contains("epoch") && verbose.lines().filter(|line| line.contains("  file-")).count() == 3,
        "{verbose}"
    );
}

/// Commits of another writer without statistics, times or clean values are counted as far as they go.
#[test]
fn commits_of_another_writer_do_not_fail() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "50", "--seed", "3"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let before = status(&lake);
    assert_eq!(before["next"], json!([]), "there is nothing to do");
    let table = &before["tables"]["sync_records"];
    let version = number(&table["version"]) + 1;
    let add = |path: &str, pool: Value, date: Value, stats: Value| {
        let partition = json!({"pool": pool, "event_date": date});
        let mut add = json!({"add": {
            "path": path, "partitionValues": partition, "size": 100, "modificationTime": 1, "dataChange": true,
        }});
        if !stats.is_null() {
            add["add"]["stats"] = stats;
        }
        add
    };
    let actions = [
        add("pool=a/x.parquet", json!("a\u{1b}[31m\n"), json!("2026-01-01"), Value::Null),
        add("pool=b/y.parquet", Value::Null, Value::Null, json!("{}")),
        add("pool=c/z.parquet", json!("c"), json!("2026-01-01"), json!("{\"numRecords\":7}")),
    ];
    let text: String = actions.iter().map(|action| format!("{action}\n")).collect();
    std::fs::write(lake.join(format!("sync_records/_delta_log/{version:020}.json")), text).unwrap();

    let report = status(&lake);
    let found = &report["tables"]["sync_records"];
    assert_eq!(found["files_without_rows"], 2);
    assert_eq!(number(&found["rows"]), number(&table["rows"]) + 7);
    assert_eq!(number(&found["files"]), number(&table["files"]) + 3);
    assert_eq!(report["pools"][0]["pool"], Value::Null);
    assert_eq!((&report["pools"][0]["first_date"], &report["pools"][0]["newest_change"]), (&Value::Null, &Value::Null));
    let shown = text_of(&lake, &[]);
    assert!(!shown.contains('\u{1b}'), "no name steers the terminal");
    assert!(shown.contains("sync_records: the log does not state the rows of 2 files"), "{shown}");
    assert!(shown.contains(&format!(">={}", number(&found["rows"]))), "{shown}");
}

/// With fewer commits, numbers that need the others are lower bounds, and the report says so.
#[test]
fn fewer_commits_give_lower_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake_behind(folder.path());
    let args = ["status", "--format", "json", "--commits", "1", "--lake"];
    let report: Value = serde_json::from_str(&ok(synclake().args(args).arg(&lake))).unwrap();
    assert_eq!(report["commits_read"], 1);
    let today = &report["growth"][6];
    assert_eq!(today["is_exact"], false);
    // No file was rewritten, so the bound from the files is the whole.
    assert_eq!(today["rows"], report["tables"]["sync_records"]["rows"]);
    assert_eq!(report["state"]["behind"]["is_exact"], false);
    assert!(text_of(&lake, &["--commits", "1"]).contains("only the newest 1 commits were read"));
}

/// A stream whose worker is gone is reported, with its watermark.
#[test]
fn a_stream_without_a_worker_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "20"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let log = lake.join("sync_records/_delta_log");
    let version = std::fs::read_dir(&log).unwrap().count() as u64;
    let hours_ago = |hours: i64| chrono::Utc::now().timestamp_millis() - hours * 3_600_000;
    let txn = |id: &str, value: i64| {
        format!("{}\n", json!({"txn": {"appId": format!("ingest/cognito/{id}"), "version": value}}))
    };
    let info = json!({"commitInfo": {"operation": "WRITE", "timestamp": hours_ago(5)}});
    let shard = |name: &str, read_to: i64| {
        let ids = [("", 3), ("/owner", 77), ("/from", 0), ("/read_to", read_to), ("/parts", 0)];
        ids.map(|(suffix, value)| txn(&format!("{name}{suffix}"), value)).concat()
    };
    let text = format!("{info}\n{}{}", shard("shard-0", hours_ago(6)), shard("shard-1", hours_ago(5)));
    std::fs::write(log.join(format!("{version:020}.json")), text).unwrap();

    let report = status(&lake);
    let stream = &report["sources"][0];
    assert_eq!((&stream["source"], &stream["open"], &stream["ended"]), (&json!("cognito"), &json!(2), &json!(0)));
    assert_eq!(number(&stream["read_to"]["age_seconds"]) / 3_600, 6);
    assert_eq!(number(&stream["last_commit"]["age_seconds"]) / 3_600, 5);
    assert_eq!(stream["shards_listed"][0].get("epoch"), None);
    let advice = report["next"][0]["text"].as_str().unwrap();
    assert!(advice.contains("Shard shard-0 and 1 more of stream cognito"), "{advice}");
    let shown = text_of(&lake, &[]);
    assert!(shown.contains("STREAM cognito  2 shards, 2 open, 0 ended") && shown.contains("6 h 0 min"), "{shown}");
}

/// Without a lake there is one clear error; an unusable flag is a usage error.
#[test]
fn a_folder_without_a_lake_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let status =
        |lake: &Path, args: &[&str]| synclake().args(["status", "--lake"]).arg(lake).args(args).output().unwrap();
    refused(&status(folder.path(), &[]), 1, &["is not a lake: it has no tables"]);
    refused(&status(&folder.path().join("no"), &[]), 1, &["does not exist"]);
    refused(&status(folder.path(), &["--commits", "0"]), 2, &["--commits"]);
    refused(&synclake().arg("status").output().unwrap(), 2, &["--lake is missing"]);
    let (events, _) = simulate(folder.path(), &["--events", "5"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    std::fs::write(lake.join("sync_records/_delta_log/00000000000000000001.json"), "{").unwrap();
    refused(&status(&lake, &[]), 1, &["is corrupt", "00000000000000000001.json", "restore that object from a backup"]);
}
