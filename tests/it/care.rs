//! Tests of `synclake care`, and of the care beside an ingest.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::compact::{Lake, SMALL};
use crate::harness::{count, ingest_file, ok, refused, synclake, text};

/// A round of care refreshes, merges and vacuums. The next one finds nothing to do.
#[test]
fn a_round_of_care_leaves_nothing_to_do() {
    let lake = Lake::ingested(&SMALL, 6);
    let care = || -> Value {
        let report = ok(synclake().args(["care", "--lake"]).arg(&lake.path));
        serde_json::from_str(&report).unwrap()
    };
    let (rows, first) = (lake.rows(), care());
    assert!(first["refresh"]["rows_written"].as_u64().unwrap() > 0, "{first}");
    let number = |name: &str| first["compact"][name].as_u64().unwrap();
    assert!(number("files_removed") > 2 * number("files_added"), "{first}");
    assert_eq!(first["vacuum"]["tables"]["sync_records"]["files"], 0, "replaced files stay for a week: {first}");
    assert_eq!(lake.rows(), rows);
    lake.assert_whole();
    let status: Value = serde_json::from_str(&ok(synclake().args(["status", "--lake"]).arg(&lake.path))).unwrap();
    assert!(number("groups") > 0, "{first}");
    // Opening the lake reads the files that are left, not all that ever were.
    let log = lake.path.join("sync_records/_delta_log");
    let hint: Value = serde_json::from_slice(&std::fs::read(log.join("_last_checkpoint")).unwrap()).unwrap();
    assert_eq!(hint["numOfAddFiles"], status["tables"]["sync_records"]["files"], "{hint}");
    assert_eq!(hint["version"], status["tables"]["sync_records"]["version"]);
    assert_eq!(status["state"]["behind"], json!({"commits": 0, "rows": 0, "is_exact": true}));
    let second = care();
    assert_eq!((&second["refresh"]["files_read"], &second["compact"]["groups"]), (&json!(0), &json!(0)), "{second}");
    lake.assert_whole();
    let output = synclake().args(["care", "--retain", "1m", "--lake"]).arg(&lake.path).output().unwrap();
    refused(&output, 2, &["shorter than 1h"]);
}

/// An ingest with `--care` keeps its lake at few files, and two of them take turns.
#[test]
fn an_ingest_cares_for_its_lake() {
    let lake = Lake::new(&["--events", "1100", "--seed", "17", "--days", "2", "--pools", "1"], 22);
    ingest_file(&lake.parts[0], &lake.path);
    let mut command = synclake();
    command.args(["ingest", "--source", "file:-", "--flush-interval", "100ms", "--care", "full", "--care-every", "1s"]);
    command.arg("--lake").arg(&lake.path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut feed = child.stdin.take().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = |operation: &str| {
        let commits = std::fs::read_dir(lake.path.join("sync_records/_delta_log")).unwrap();
        let texts = commits.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
        texts.filter(|text| text.contains(operation)).count()
    };
    // Each part is committed, and merged by a round, before the next one.
    for (number, part) in lake.parts[..12].iter().enumerate().skip(1) {
        std::io::Write::write_all(&mut feed, &std::fs::read(part).unwrap()).unwrap();
        while number % 4 == 0 && log("\"operation\":\"OPTIMIZE\"") < number / 4 {
            assert!(Instant::now() < deadline, "no round of care merges files");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    drop(feed);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(log("care/turn") > 1);
    assert!(count(lake.name(), "select count(*) from state") > 0, "it refreshes, too");
    // What the next round does is no work for the operator.
    for part in &lake.parts[12..] {
        let source = format!("file:{}", part.display());
        ok(synclake().args(["ingest", "--care", "off", "--source", &source, "--lake"]).arg(&lake.path));
    }
    let status: Value = serde_json::from_str(&ok(synclake().args(["status", "--lake"]).arg(&lake.path))).unwrap();
    assert!(status["tables"]["sync_records"]["small_files_of_partition_max"].as_u64().unwrap() >= 8, "{status}");
    assert!(status["care"]["age_seconds"].as_i64().unwrap() < 600, "{status}");
    let advised = status["next"].to_string();
    assert!(!advised.contains("synclake compact") && !advised.contains("synclake refresh"), "{advised}");
    lake.assert_whole();
}

/// Short ingests care for their lake too: the one that makes the 64th version does a round when it is done.
#[test]
fn short_ingests_care_for_their_lake() {
    let lake = Lake::new(&["--events", "400", "--seed", "19", "--days", "1", "--pools", "1"], 35);
    let merged = |run: &str| {
        let status: Value = serde_json::from_str(&ok(synclake().args(["status", "--lake"]).arg(&lake.path))).unwrap();
        (status["tables"]["sync_records"]["files"].as_u64().unwrap(), status["state"].is_object(), run.to_owned())
    };
    let ingest = |part: &Path, more: &[&str]| {
        let mut command = synclake();
        command.args(["ingest", "--source", &format!("file:{}", part.display())]).args(more);
        command.arg("--lake").arg(&lake.path).output().unwrap()
    };
    lake.parts[..33].iter().for_each(|part| drop(ingest(part, &["--care", "off"])));
    let before = merged("without care");
    assert!(before.0 >= 33 && !before.1, "{before:?}");
    let output = ingest(&lake.parts[33], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let after = merged("with care");
    assert!(after.0 < 5 && after.1, "{after:?}: {}", text(&output.stderr));
    // The next round comes after as many versions again.
    ingest(&lake.parts[34], &[]);
    assert!(merged("the next").0 > after.0);
    lake.assert_whole();
}
