//! Helpers that run the programs and read what they wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) fn synclake() -> Command {
    program(env!("CARGO_BIN_EXE_synclake"))
}

pub(crate) fn query() -> Command {
    program(env!("CARGO_BIN_EXE_synclake-query"))
}

/// Returns a command that does not inherit the tester's own settings.
fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if (name.starts_with("SYNCLAKE_") && !name.starts_with("SYNCLAKE_TEST_")) || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    command
}

/// Returns a variable that `make test` puts into the environment.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run the tests with `make test`"))
}

/// Returns Python with the packages of the tests and the modules of tests/tools.
pub(crate) fn python() -> Command {
    let mut python = Command::new(setting("SYNCLAKE_TEST_PYTHON"));
    python.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools"));
    python
}

#[track_caller]
pub(crate) fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts the exit code, a one-line error that contains all of `parts`, and an empty stdout.
#[track_caller]
pub(crate) fn refused(output: &Output, code: i32, parts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let first = error.lines().next().unwrap_or_default();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    assert!(first.starts_with("error: "), "{error}");
    // clap adds a hint and its usage line; synclake's own errors are one line.
    assert!(code == 2 || error.lines().count() == 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

pub(crate) fn simulate(folder: &Path, args: &[&str]) -> (PathBuf, PathBuf) {
    let (events, oracle) = (folder.join("events.ndjson"), folder.join("oracle.ndjson"));
    ok(synclake().arg("simulate").args(args).arg("--out").arg(&events).arg("--oracle").arg(&oracle));
    (events, oracle)
}

pub(crate) fn ingest_file(events: &Path, lake: &Path) -> Value {
    let source = format!("file:{}", events.display());
    let summary = ok(synclake().args(["ingest", "--source", &source, "--lake"]).arg(lake));
    serde_json::from_str(&summary).unwrap()
}

/// Returns the rows of a query over a lake, as JSON objects.
#[track_caller]
pub(crate) fn rows(lake: &str, sql: &str) -> Vec<Value> {
    let mut command = query();
    if lake.starts_with("s3://") {
        command.args(["--endpoint-url", &setting("SYNCLAKE_TEST_S3")]);
    }
    let out = ok(command.args(["--lake", lake, "--format", "ndjson", "-c", sql]));
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
pub(crate) fn count(lake: &str, sql: &str) -> i64 {
    rows(lake, sql)[0].as_object().unwrap().values().next().unwrap().as_i64().unwrap()
}

/// Asserts that `current_state` equals the oracles, row for row.
#[track_caller]
pub(crate) fn assert_state_is_oracle(lake: &str, oracles: &[&Path]) {
    let key = |row: &Value| {
        let part = |name: &str| row[name].as_str().unwrap().to_owned();
        (part("identity_pool_id"), part("identity_id"), part("dataset_name"), part("key"))
    };
    let mut truth = BTreeMap::new();
    for oracle in oracles {
        for line in std::fs::read_to_string(oracle).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            assert!(truth.insert(key(&row), row).is_none());
        }
    }
    let state = rows(
        lake,
        "select identity_pool_id, identity_id, dataset_name, key, value, sync_count, \
         cast(cast(last_modified_date as bigint) / 1000 as bigint) as last_modified_date from current_state",
    );
    assert_eq!(state.len(), truth.len());
    for row in state {
        let key = key(&row);
        assert_eq!(Some(&row), truth.get(&key), "{key:?}");
    }
}

/// Asserts that the lake holds each event of the file once: the count and the keys of its rows, by sequence number.
pub(crate) fn assert_every_event_once(lake: &str, events: &Path) {
    let text = std::fs::read_to_string(events).unwrap();
    let mut expected = BTreeMap::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        offset += line.len();
        let event: Value = serde_json::from_str(line).unwrap();
        let records = event["kinesisSyncRecords"].as_array().cloned().unwrap_or_default();
        let keys: String = records.iter().map(|r| r["key"].as_str().unwrap()).collect::<Vec<_>>().join("\u{1}");
        expected.insert(offset.to_string(), (records.len().max(1) as i64, keys));
    }
    let found = rows(
        lake,
        "select sequence_number, count(*) as n, \
         coalesce(string_agg(key, chr(1) order by record_index), '') as keys \
         from sync_records group by sequence_number",
    );
    assert_eq!(found.len(), expected.len());
    for row in found {
        let sequence_number = row["sequence_number"].as_str().unwrap();
        let (n, keys) = &expected[sequence_number];
        assert_eq!((row["n"].as_i64().unwrap(), row["keys"].as_str().unwrap()), (*n, keys.as_str()));
    }
}
