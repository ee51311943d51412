//! Tests of `synclake compact --table quarantine`: fewer files, the same records, and a redrive moves each of them once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{assert_state_is_oracle, count, ok, refused, rows, simulate, synclake, text};

/// Failpoint that makes the decoder refuse records with this text, until it is "fixed".
const POISON: &str = "poison=return(us-east-1:1)";
/// All columns of the quarantine, in one order.
const RECORDS: &str = "select * from quarantine order by stream, shard_id, sequence_number";

/// A lake whose quarantine has a file of each of several ingests.
struct Lake {
    folder: tempfile::TempDir,
    path: PathBuf,
    events: PathBuf,
    oracle: PathBuf,
}

impl Lake {
    fn new(ingests: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (events, oracle) = simulate(folder.path(), &["--events", "1200", "--seed", "17", "--identities", "40"]);
        let path = folder.path().join("lake");
        let text = std::fs::read_to_string(&events).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (number, lines) in lines.chunks(lines.len().div_ceil(ingests)).enumerate() {
            let part = folder.path().join(format!("part{number}.ndjson"));
            std::fs::write(&part, lines.concat()).unwrap();
            let mut command = synclake();
            command
                .args(["ingest", "--care", "off", "--source", &format!("file:{}", part.display()), "--lake"])
                .arg(&path);
            ok(command.env("FAILPOINTS", POISON));
        }
        Self { folder, path, events, oracle }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Runs a command of the program on the lake, and returns its report.
    #[track_caller]
    fn run(&self, args: &[&str]) -> Value {
        serde_json::from_str(&ok(synclake().args(args).arg("--lake").arg(&self.path))).unwrap()
    }

    fn compact(&self) -> Value {
        self.run(&["compact", "--table", "quarantine"])
    }

    fn files(&self) -> u64 {
        self.run(&["status", "--format", "json"])["tables"]["quarantine"]["files"].as_u64().unwrap()
    }

    /// Asserts that every row is in `sync_records` once, and none in the quarantine.
    #[track_caller]
    fn assert_all_moved(&self) {
        assert_eq!(count(self.name(), "select count(*) from quarantine"), 0);
        let text = std::fs::read_to_string(&self.events).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let rows: usize = events.map(|event| event["kinesisSyncRecords"].as_array().map_or(0, Vec::len).max(1)).sum();
        let distinct = "select count(distinct struct(shard_id, sequence_number, record_index)) from sync_records";
        for sql in ["select count(*) from sync_records", distinct] {
            assert_eq!(count(self.name(), sql), rows as i64, "{sql}");
        }
        assert_state_is_oracle(self.name(), &[&self.oracle]);
        assert_eq!(self.run(&["verify", "--deep", "--format", "json"])["faults"], json!([]));
    }
}

/// Returns whether a folder has a file whose name begins so, at any depth.
fn has_file(folder: &Path, prefix: &str) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let path = entry.path();
            if path.is_dir() {
                has_file(&path, prefix)
            } else {
                entry.file_name().to_string_lossy().starts_with(prefix)
            }
        })
    })
}

/// The records stay as they are, a status does not take them for new ones, and a redrive moves each of them once.
#[test]
fn small_files_of_the_quarantine_become_one() {
    let lake = Lake::new(12);
    assert_eq!(lake.files(), 12);
    let still = ok(synclake().arg("redrive").arg("--lake").arg(&lake.path).env("FAILPOINTS", POISON));
    assert_eq!(serde_json::from_str::<Value>(&still).unwrap()["moved"], 0);
    let records = rows(lake.name(), RECORDS);
    assert!(records.len() > 50, "{}", records.len());

    let planned = lake.run(&["compact", "--table", "quarantine", "--dry-run"]);
    assert_eq!((&planned["files_removed"], lake.files()), (&json!(12), 12));
    let advice = lake.run(&["status", "--format", "json"])["next"].to_string();
    assert!(advice.contains("compact --lake") && advice.contains("--table quarantine"), "{advice}");
    let done = lake.compact();
    assert_eq!(
        (&done["files_removed"], &done["files_added"], &done["rows"]),
        (&json!(12), &json!(1), &json!(records.len()))
    );
    assert_eq!(lake.files(), 1);
    assert_eq!(rows(lake.name(), RECORDS), records);
    let status = lake.run(&["status", "--format", "json"]);
    assert_eq!(status["attention"]["quarantined_since_redrive"], 0, "a compaction brings no new records");
    assert_eq!(lake.compact()["groups"], 0, "one file has nothing to be merged with");

    assert_eq!(lake.run(&["redrive"])["moved"], records.len());
    lake.assert_all_moved();
}

/// A round of care merges them too.
#[test]
fn care_merges_the_quarantine() {
    let lake = Lake::new(6);
    let records = rows(lake.name(), RECORDS);
    let done = lake.run(&["care"]);
    assert_eq!(done["compact_quarantine"]["files_removed"], 6);
    assert_eq!((lake.files(), rows(lake.name(), RECORDS)), (1, records));
}

/// The files that a killed redrive staged stay as they are: the next run knows them by their names.
#[test]
fn what_a_redrive_staged_is_left_to_it() {
    let lake = Lake::new(5);
    let killed = synclake()
        .arg("redrive")
        .arg("--lake")
        .arg(&lake.path)
        .env("FAILPOINTS", "redrive/move/after=1*return(kill)")
        .output()
        .unwrap();
    assert_eq!(killed.status.code(), None);
    // One file is staged, and its records are in sync_records already: merged with others they would come again.
    assert_eq!(lake.compact()["files_removed"], 4);
    lake.run(&["redrive"]);
    lake.assert_all_moved();
}

/// A redrive whose file a compaction replaces meanwhile reads the records again in their new file.
#[test]
fn a_redrive_beside_a_compaction_moves_everything() {
    let lake = Lake::new(5);
    let waiting = count(lake.name(), "select count(*) from quarantine");
    let mut command = synclake();
    command.arg("redrive").arg("--lake").arg(&lake.path).env("FAILPOINTS", "redrive/apart/before=1*sleep(3000)");
    let redrive = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !has_file(&lake.path.join("quarantine"), "redrive-") {
        assert!(began.elapsed() < Duration::from_secs(60), "the redrive staged nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(lake.compact()["files_removed"], 5);
    let output = redrive.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["moved"], waiting);
    lake.assert_all_moved();
}

/// A compaction that is killed at any step loses no record and doubles none.
#[test]
fn a_killed_compaction_changes_nothing() {
    let lake = Lake::new(8);
    let records = rows(lake.name(), RECORDS);
    for point in ["compact/written", "compact/before", "compact/after"] {
        let mut command = synclake();
        command.args(["compact", "--table", "quarantine", "--lake"]).arg(&lake.path);
        let killed = command.env("FAILPOINTS", format!("{point}=1*return(kill)")).output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}");
        assert_eq!(rows(lake.name(), RECORDS), records, "{point}");
    }
    assert_eq!(lake.files(), 1, "the last one was killed after its commit");
    lake.run(&["redrive"]);
    lake.assert_all_moved();
}

/// Flags that this table has no use for are refused.
#[test]
fn what_cannot_be_asked_of_the_quarantine_is_refused() {
    let lake = Lake::new(1);
    let run = |args: &[&str]| synclake().args(["compact", "--lake"]).arg(&lake.path).args(args).output().unwrap();
    refused(&run(&["--table", "quarantine", "--pool", "us-east-1:1"]), 2, &["--pool", "not divided by pools"]);
    refused(&run(&["--table", "state"]), 2, &["state", "quarantine"]);
    refused(
        &synclake().args(["compact", "--table", "quarantine", "--lake"]).arg(lake.folder.path()).output().unwrap(),
        1,
        &["is not a lake"],
    );
}
