//! Tests that an ingest can be killed anywhere and resumed, and every change is in the lake once.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{assert_every_event_once, assert_state_is_oracle, count, ingest_file, ok, simulate, synclake};
use crate::trimming::has_parquet;

/// An ingest that is killed in the middle of its work loses and doubles no event. Each round kills it later after a
/// commit.
#[test]
fn sigkill_midway_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) =
        simulate(folder.path(), &["--events", "200000", "--seed", "7", "--pools", "3", "--days", "5"]);
    let lake = folder.path().join("lake");
    let source = format!("file:{}", events.display());
    let log = lake.join("sync_records/_delta_log");
    let mut killed = 0;
    for round in 0..6u64 {
        let before = std::fs::read_dir(&log).map_or(0, |d| d.count());
        let mut child = synclake()
            .args(["ingest", "--source", &source, "--memory", "64MiB", "--flush-bytes", "16MiB", "--lake"])
            .arg(&lake)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Wait for a fence and a commit, then kill anywhere in the next commit.
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::read_dir(&log).map_or(0, |d| d.count()) < before + 2 {
            assert!(Instant::now() < deadline, "no commit in a minute");
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::yield_now();
        }
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_millis(37 * round) {
            std::hint::spin_loop();
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        child.wait().unwrap();
    }
    assert!(killed >= 3, "only {killed} were killed before they were done");
    let last = ingest_file(&events, &lake);
    assert_eq!(last["quarantined"], serde_json::json!({}));
    let lake = lake.to_str().unwrap();
    assert_every_event_once(lake, &events);
    assert_state_is_oracle(lake, &[&oracle]);
    assert_eq!(ingest_file(&events, lake.as_ref())["records"], 0);
    let report = ok(synclake().args(["verify", "--format", "json", "--lake", lake]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["tables"]["sync_records"]["orphans"], 0, "what the killed left behind was swept by those after");
}

/// On SIGTERM an ingest commits everything that it reports as read and exits with 0.
#[test]
fn sigterm_commits_and_exits_well() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "60000", "--seed", "3"]);
    let lake = folder.path().join("lake");
    let source = format!("file:{}", events.display());
    let child = synclake()
        .args(["ingest", "--source", &source, "--memory", "64MiB", "--flush-bytes", "8MiB", "--lake"])
        .arg(&lake)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lake.join("sync_records/_delta_log/00000000000000000002.json").exists() {
        assert!(Instant::now() < deadline, "no commit in a minute");
        std::thread::yield_now();
    }
    for _ in 0..2 {
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = count(lake.to_str().unwrap(), "select count(*) from sync_records");
    assert_eq!(summary["rows"], rows, "what it says it read is committed");
    ingest_file(&events, &lake);
    assert_every_event_once(lake.to_str().unwrap(), &events);
    assert_state_is_oracle(lake.to_str().unwrap(), &[&oracle]);
}

/// A second signal ends the process at once, even if a commit hangs. Signals within one second count as one.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "100"]);
    let source = format!("file:{}", events.display());
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let lake = folder.path().join(signal);
        let mut child = synclake()
            .args(["ingest", "--source", &source, "--lake"])
            .arg(&lake)
            .env("FAILPOINTS", "commit/before=sleep(60000)")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The commit of this file hangs.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_parquet(&lake) {
            assert!(Instant::now() < deadline, "no file in a minute");
            std::thread::yield_now();
        }
        let first = Instant::now();
        let status = loop {
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            // After a first signal alone, a run may take 20 s to end.
            if first.elapsed() > Duration::from_secs(15) {
                child.kill().unwrap();
            }
        };
        let took = first.elapsed();
        assert_eq!(status.code(), Some(code), "{signal}, after {took:?}");
        assert!(took >= Duration::from_secs(1), "{signal}, after {took:?}");
    }
}
