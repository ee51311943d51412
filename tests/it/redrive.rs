//! Tests of `synclake redrive`: quarantined records are decoded again, and each is then in the lake once.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    assert_every_event_once, assert_state_is_oracle, count, ingest_file, ok, refused, rows, simulate, synclake,
};

/// Failpoint that makes the decoder refuse records with this text, until it is "fixed".
const POISON: &str = "poison=return(us-east-1:1)";

fn ingest(events: &Path, lake: &Path, failpoints: &str) -> std::process::Output {
    let source = format!("file:{}", events.display());
    let mut command = synclake();
    command.args(["ingest", "--source", &source, "--lake"]).arg(lake).env("FAILPOINTS", failpoints);
    command.args(["--memory", "64MiB", "--flush-bytes", "256KiB"]).output().unwrap()
}

fn redrive(lake: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(synclake().arg("redrive").arg("--lake").arg(lake).args(args))).unwrap()
}

/// A redrive moves each record once, however often it is killed, and leaves no file behind.
#[test]
fn what_was_refused_is_moved_once_however_often_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "3000", "--seed", "9", "--identities", "60"]);
    let lake = folder.path().join("lake");
    let name = lake.to_str().unwrap();
    assert!(ingest(&events, &lake, POISON).status.success());
    let bad = folder.path().join("bad.ndjson");
    std::fs::write(&bad, "{}{}\n[]\n").unwrap();
    ingest_file(&bad, &lake);
    let refused_first = count(name, "select count(*) from quarantine");
    let poisoned = refused_first - 2;
    assert!(poisoned > 50, "{poisoned}");
    let files = "select count(distinct arrived_date) from quarantine";
    assert_eq!(count(name, files), 1);

    // The decoder is not fixed yet, so nothing moves.
    let still = ok(synclake().arg("redrive").arg("--lake").arg(&lake).env("FAILPOINTS", POISON));
    let still: Value = serde_json::from_str(&still).unwrap();
    assert_eq!((&still["examined"], &still["moved"]), (&refused_first.into(), &0.into()));
    assert_eq!(still["left"]["invalid_field"], poisoned);
    // The filters exclude every record that could move.
    assert_eq!(redrive(&lake, &["--reason", "not_json"])["moved"], 0);
    assert_eq!(redrive(&lake, &["--since", "2100-01-01"])["examined"], 0);

    // Each run is killed at another step, and the next run starts again.
    for point in ["apart/before", "apart/after", "move/before", "move/after", "done"] {
        let killed = synclake()
            .arg("redrive")
            .arg("--lake")
            .arg(&lake)
            .env("FAILPOINTS", format!("redrive/{point}=1*return(kill)"))
            .output()
            .unwrap();
        assert_eq!(killed.status.code(), None, "{point}");
    }
    redrive(&lake, &[]);
    assert_eq!(redrive(&lake, &[])["moved"], 0);
    assert_eq!(count(name, "select count(*) from quarantine"), 2);
    assert_state_is_oracle(name, &[&oracle]);
    assert_every_event_once(name, &events);
    let report = ok(synclake().args(["verify", "--lake", name, "--format", "json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["faults"], json!([]));
    let on_disk = walk(&lake.join("sync_records"));
    assert_eq!(report["tables"]["sync_records"]["files"], on_disk, "nothing is left of the killed ones");
}

/// Returns the number of data files below a folder.
fn walk(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count = |path: std::path::PathBuf| match path.file_name().unwrap().to_str().unwrap() {
        "_delta_log" => 0,
        _ if path.is_dir() => walk(&path),
        name => usize::from(name.ends_with(".parquet")),
    };
    entries.map(count).sum()
}

/// A redrive skips records quarantined beyond the position of `sync_records`. The next ingest reads them again, so an
/// earlier redrive would double them.
#[test]
fn what_is_ahead_of_its_shard_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "400", "--seed", "4", "--identities", "30"]);
    let lake = folder.path().join("lake");
    let name = lake.to_str().unwrap();
    let killed = ingest(&events, &lake, &format!("{POISON};quarantine/after=1*return(kill)"));
    assert_eq!(killed.status.code(), None);
    assert!(count(name, "select count(*) from quarantine") > 0);
    assert_eq!(redrive(&lake, &[])["examined"], 0);
    // The decoder is fixed now, and the ingest reads the records again.
    assert!(ingest(&events, &lake, "").status.success());
    let moved = redrive(&lake, &[]);
    assert!(moved["moved"].as_i64().unwrap() > 0, "{moved}");
    assert_eq!(count(name, "select count(*) from quarantine"), 0);
    assert_every_event_once(name, &events);
    assert_state_is_oracle(name, &[&oracle]);
}

/// Redrives that run at once move each record once.
#[test]
fn several_at_once_move_each_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "2000", "--seed", "5", "--identities", "40"]);
    let lake = folder.path().join("lake");
    let name = lake.to_str().unwrap();
    assert!(ingest(&events, &lake, POISON).status.success());
    let poisoned = count(name, "select count(*) from quarantine");
    let runs: Vec<_> = (0..3)
        .map(|_| {
            let mut command = synclake();
            command.arg("redrive").arg("--lake").arg(&lake).stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut moved = 0;
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success());
        moved += serde_json::from_slice::<Value>(&output.stdout).unwrap()["moved"].as_i64().unwrap();
    }
    moved += redrive(&lake, &[])["moved"].as_i64().unwrap();
    assert_eq!(moved, poisoned);
    assert_every_event_once(name, &events);
    assert_state_is_oracle(name, &[&oracle]);
}

/// `redrive` rejects unknown reasons, invalid dates and folders without a lake, and accepts an empty quarantine.
#[test]
fn what_cannot_be_asked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| synclake().arg("redrive").arg("--lake").arg(folder.path()).args(args).output().unwrap();
    refused(&run(&["--reason", "nonsense"]), 2, &["nonsense", "not_utf8"]);
    refused(&run(&["--since", "2026-13-01"]), 2, &["2026-13-01"]);
    refused(&run(&[]), 1, &["is not a lake"]);
    let lake = folder.path().join("lake");
    let (events, _) = simulate(folder.path(), &["--events", "10"]);
    ingest_file(&events, &lake);
    assert_eq!(redrive(&lake, &[])["examined"], 0);
    assert!(rows(lake.to_str().unwrap(), "select * from quarantine").is_empty());
}
