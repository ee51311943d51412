//! Tests of `synclake vacuum`. Where files must be old, `FAILPOINTS=store/clock=return(SECONDS)` puts the clock of the
//! store ahead: then everything that exists is that old.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::compact::Lake;
use crate::harness::{count, ingest_file, ok, python, query, refused, rows, setting, simulate, synclake, text};
use crate::kinesis::make_bucket;
use crate::writers::{commit, consume, copy, lake as two_files, listed, newest as newest_action, remove};

const DAY: &str = "2026-01-02";
/// The clock of the store, eight days ahead.
const LATER: &str = "store/clock=return(691200)";

/// Adds the lake, and the address of the server if the lake is on S3.
fn at(command: &mut Command, lake: &str) {
    command.args(["--lake", lake]);
    if lake.starts_with("s3://") {
        command.args(["--endpoint-url", &setting("SYNCLAKE_TEST_S3")]);
    }
}

fn run(lake: &str, args: &[&str]) -> String {
    let mut command = synclake();
    at(command.args(args), lake);
    ok(&mut command)
}

/// Vacuums and returns the report.
fn report(lake: &str, failpoints: &str, more: &[&str]) -> Value {
    let mut command = synclake();
    at(command.arg("vacuum").args(more).env("FAILPOINTS", failpoints), lake);
    serde_json::from_str(&ok(&mut command)).unwrap()
}

fn sum(report: &Value, name: &str) -> u64 {
    report["tables"].as_object().unwrap().values().map(|table| table[name].as_u64().unwrap()).sum()
}

/// Returns all files of a local lake, without its logs.
fn files(lake: &Path) -> BTreeSet<String> {
    fn add(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("_delta_log") => {}
                true => add(root, &path, found),
                false => drop(found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned())),
            }
        }
    }
    let mut found = BTreeSet::new();
    add(lake, lake, &mut found);
    found
}

/// Returns the rows of all views and tables, sorted.
fn contents(lake: &str) -> Vec<Vec<String>> {
    let views = ["sync_records", "current_state", "dataset_state", "changes", "daily_changes", "daily_extract"];
    let of = |view: &str| {
        let mut rows: Vec<String> = rows(lake, &format!("select * from {view}")).iter().map(Value::to_string).collect();
        rows.sort();
        rows
    };
    views.into_iter().chain(["daily_state", "quarantine", "gaps"]).map(of).collect()
}

fn verify(lake: &str) -> Value {
    serde_json::from_str(&run(lake, &["verify", "--deep", "--format", "json"])).unwrap()
}

/// Ingests two files; refreshes after each of them, and extracts a day twice.
fn worked_on(folder: &Path, lake: &str) {
    let (events, _) = simulate(folder, &["--events", "300", "--days", "2"]);
    let all = std::fs::read_to_string(&events).unwrap();
    let half = all[..all.len() / 2].rfind('\n').unwrap() + 1;
    for part in [&all[..half], &all[half..]] {
        std::fs::write(&events, part).unwrap();
        run(lake, &["ingest", "--source", &format!("file:{}", events.display())]);
        run(lake, &["refresh"]);
        run(lake, &["extract", "--no-refresh", "--date", DAY]);
    }
}

/// Deletes what a lake does not need any more, in a dry run first, and checks that nothing is missing then.
fn replaced_files_go(lake: &str) -> BTreeSet<String> {
    let before = contents(lake);
    let young = report(lake, "", &["--retain", "1h"]);
    assert_eq!((sum(&young, "files"), sum(&young, "bytes")), (0, 0), "nothing is old: {young}");
    assert!(sum(&young, "kept_recent") > 0, "{young}");
    let dry_report = report(lake, LATER, &["--dry-run"]);
    let place = |file: &Value| format!("{}/{}", file["table"].as_str().unwrap(), file["path"].as_str().unwrap());
    let named_by =
        |report: &Value| -> BTreeSet<String> { report["would_delete"].as_array().unwrap().iter().map(place).collect() };
    let named = named_by(&dry_report);
    assert!(named.iter().any(|path| path.starts_with("state/")), "{named:?}");
    assert!(named.iter().any(|path| path.starts_with("daily_state/")), "{named:?}");
    assert_eq!(named_by(&report(lake, LATER, &["--dry-run"])), named, "a dry run deletes nothing");
    let done = report(lake, LATER, &[]);
    assert_eq!((&done["dry_run"], &dry_report["dry_run"]), (&json!(false), &json!(true)));
    assert_eq!(done["tables"], dry_report["tables"]);
    assert_eq!(sum(&done, "files"), named.len() as u64);
    assert_eq!(sum(&report(lake, LATER, &[]), "files"), 0, "nothing is left to do");
    assert_eq!(report(lake, LATER, &["--dry-run"])["would_delete"], json!([]));
    assert_eq!(contents(lake), before);
    let verified = verify(lake);
    assert_eq!(verified["faults"], json!([]));
    let superseded: u64 =
        verified["tables"].as_object().unwrap().values().map(|table| table["superseded"].as_u64().unwrap()).sum();
    assert_eq!(superseded, 0);
    named
}

/// Replaced files of the state and of extracts go once they are older than the retention, and all rows stay.
#[test]
fn what_no_version_within_the_retention_lists_goes() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let path = lake.to_str().unwrap();
    worked_on(folder.path(), path);
    let before = files(&lake);
    let named = replaced_files_go(path);
    assert_eq!(files(&lake), before.difference(&named).cloned().collect());
    // delta-rs reads what is left, and finds nothing to vacuum. It also names files that are gone already.
    let script = "import os, sys, tables; from deltalake import DeltaTable\n\
        for table in sys.argv[2:]:\n    place = sys.argv[1] + '/' + table; t = DeltaTable(place); tables.read(place)\n    \
        dead = t.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False, full=True)\n    \
        print(sum(os.path.exists(place + '/' + path) for path in dead))";
    let tables = ["sync_records", "state", "daily_state"];
    assert_eq!(ok(python().args(["-c", script, path]).args(tables)), "0\n0\n0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_on_s3_is_vacuumed_like_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    make_bucket("vacuum-bucket").await;
    worked_on(folder.path(), "s3://vacuum-bucket/deep/lake");
    replaced_files_go("s3://vacuum-bucket/deep/lake");
}

/// A removal counts by the later one of its two times: the one that its writer gave, and the one of the commit's object.
#[test]
fn a_removal_is_as_old_as_the_later_one_of_its_times() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = two_files(folder.path());
    let path = lake.to_str().unwrap();
    let (old_name, add) = listed(&lake, "sync_records").pop_first().unwrap();
    // Its writer says that the file was removed long ago.
    let moved = [remove(&add, false), copy(&lake, &add, false)];
    commit(&lake, "sync_records", "OPTIMIZE", &moved);
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 86_400);
    let age = |path: &Path| std::fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
    let old = lake.join("sync_records").join(&old_name);
    age(&old);
    let kept = report(path, "", &[]);
    assert_eq!(sum(&kept, "files"), 0, "the commit is young: {kept}");
    for entry in std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap() {
        age(&entry.unwrap().path());
    }
    let kept = report(path, "", &["--retain", "3000d"]);
    assert_eq!(sum(&kept, "files"), 0, "the retention is longer than that: {kept}");
    let done = report(path, "", &[]);
    assert_eq!(sum(&done, "files"), 1, "{done}");
    assert!(!old.exists());
    assert_eq!(verify(path)["faults"], json!([]));
}

/// Starts an ingest that stops itself between the last file and the commit that lists it.
fn stopped_before_commit(events: &Path, lake: &Path) -> std::process::Child {
    let source = format!("file:{}", events.display());
    let mut command = synclake();
    command.args(["ingest", "--source", &source, "--lake"]).arg(lake).env("FAILPOINTS", "commit/before=1*return(stop)");
    stopped(&mut command)
}

/// Starts a command, and waits until a failpoint has stopped it.
pub(crate) fn stopped(command: &mut Command) -> std::process::Child {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let is_stopped = || std::fs::read_to_string(&stat).unwrap().rsplit_once(')').unwrap().1.starts_with(" T");
    let began = std::time::Instant::now();
    while !is_stopped() {
        assert!(began.elapsed() < Duration::from_secs(60), "the program did not stop itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// Lets a stopped program go on.
pub(crate) fn go_on(child: &std::process::Child) {
    assert!(Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap().success());
}

/// Files that a writer has written and not committed stay, however long the writer sleeps in between.
#[test]
fn a_file_that_may_still_be_committed_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = two_files(folder.path());
    let path = lake.to_str().unwrap();
    let second = folder.path().join("second.ndjson");
    let before = files(&lake);
    let sleeping = stopped_before_commit(&second, &lake);
    let written: BTreeSet<String> = files(&lake).difference(&before).cloned().collect();
    assert!(!written.is_empty());
    let young = report(path, "", &["--retain", "1h"]);
    assert_eq!(sum(&young, "files"), 0, "{young}");
    let old = report(path, "store/clock=return(31536000)", &["--retain", "1h"]);
    assert_eq!((sum(&old, "files"), sum(&old, "kept_pending")), (0, written.len() as u64), "{old}");
    go_on(&sleeping);
    let output = sleeping.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(verify(path)["faults"], json!([]));
    assert!(written.iter().all(|file| listed(&lake, "sync_records").contains_key(&file["sync_records/".len()..])));
    let events = std::fs::read_to_string(folder.path().join("events.ndjson")).unwrap().lines().count();
    assert_eq!(
        count(path, "select count(*) from (select distinct shard_id, sequence_number from sync_records)"),
        events as i64
    );
}

/// Files of killed runs go once nobody can commit them any more. Nothing else is touched.
#[test]
fn leftovers_of_killed_runs_go() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = two_files(folder.path());
    let path = lake.to_str().unwrap();
    let killed = |args: &[&str], failpoint: &str| {
        let before = files(&lake);
        let output = synclake().args(args).args(["--lake", path]).env("FAILPOINTS", failpoint).output().unwrap();
        assert_eq!(output.status.code(), None, "{failpoint}: {}", text(&output.stderr));
        let left: BTreeSet<String> = files(&lake).difference(&before).cloned().collect();
        assert!(!left.is_empty(), "{failpoint}");
        left
    };
    let source = format!("file:{}", folder.path().join("second.ndjson").display());
    let of_ingest = killed(&["ingest", "--source", &source], "commit/before=1*return(kill)");
    let of_refresh = killed(&["refresh"], "refresh/before=1*return(kill)");
    let of_extract = killed(&["extract", "--no-refresh", "--date", DAY], "file/after=1*return(kill)");
    let foreign = ["part-00000-0b5f.c000.snappy.parquet", "deletion_vector_0b5f.bin", "pool=p/.part-1.parquet.0f.tmp"];
    let kept = ["notes.txt", "_temporary/part-0.parquet", ".part-0.parquet.crc", "_delta_log/part-0.parquet"];
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("part-0.parquet"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, lake.join("sync_records/link")).unwrap();
    for name in foreign.iter().chain(&kept) {
        let place = lake.join("sync_records").join(name);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, "x").unwrap();
    }
    let retain = ["--retain", "1h"];
    assert_eq!(sum(&report(path, "", &retain), "files"), 0, "all are young");
    let hours = report(path, "store/clock=return(7200)", &retain);
    assert_eq!(sum(&hours, "files"), 0, "two hours tell nothing of files whose names tell nothing: {hours}");
    let old = report(path, LATER, &retain);
    let pending = (of_ingest.len() + of_refresh.len()) as u64;
    assert_eq!(sum(&old, "kept_pending"), pending, "their writers may be asleep: {old}");
    assert_eq!(sum(&old, "files"), (of_extract.len() + foreign.len()) as u64, "{old}");
    // The next runs take over the shard and the version; their own sweeps are refused.
    let unswept = |args: &[&str]| {
        ok(synclake().args(args).args(["--lake", path]).env("FAILPOINTS", "store/delete=return"));
    };
    unswept(&["ingest", "--source", &source]);
    unswept(&["refresh"]);
    assert!(of_ingest.union(&of_refresh).all(|file| lake.join(file).exists()));
    let old = report(path, LATER, &retain);
    assert_eq!((sum(&old, "files"), sum(&old, "kept_pending")), (pending, 0), "{old}");
    let left = files(&lake);
    assert!(of_ingest.union(&of_refresh).chain(&of_extract).all(|file| !left.contains(file)));
    assert!(foreign.iter().all(|name| !lake.join("sync_records").join(name).exists()));
    assert!(kept.iter().all(|name| lake.join("sync_records").join(name).exists()));
    assert!(outside.join("part-0.parquet").exists());
    more();
    let verified = verify(path);
    assert_eq!((&verified["faults"], &verified["tables"]["sync_records"]["orphans"]), (&json!([]), &json!(0)));
}

/// A deletion vector stays as long as a version within the retention needs it.
#[test]
fn deletion_vectors_stay_with_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = two_files(folder.path());
    let path = lake.to_str().unwrap();
    let vector = |digit: u8| format!("sync_records/ab/deletion_vector_{}.bin", uuid(digit));
    std::fs::create_dir_all(lake.join("sync_records/ab")).unwrap();
    [0, 1, 2].iter().for_each(|digit| std::fs::write(lake.join(vector(*digit)), "x").unwrap());
    let features = json!(["deletionVectors"]);
    let protocol = json!({"protocol": {
        "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features,
    }});
    let add = listed(&lake, "sync_records").into_values().next().unwrap();
    // Vector 0 is replaced by vector 1 in a later commit, and no commit lists vector 2.
    let mut before = vec![protocol, remove(&add, true)];
    for digit in [0, 1] {
        let mut next = add.clone();
        let id = format!("ab{}", z85_of(digit));
        next["deletionVector"] = json!({
            "storageType": "u", "pathOrInlineDv": id, "offset": 1, "sizeInBytes": 34, "cardinality": 1,
        });
        before.push(json!({ "add": next }));
        commit(&lake, "sync_records", "DELETE", &before);
        let mut gone = remove(&next, true);
        gone["remove"]["deletionVector"] = next["deletionVector"].clone();
        before = vec![gone];
    }
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 86_400);
    for digit in [0, 1, 2] {
        let file = std::fs::File::options().append(true).open(lake.join(vector(digit))).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let there = || [0, 1, 2].map(|digit| lake.join(vector(digit)).exists());
    report(path, "", &[]);
    assert_eq!(there(), [true, true, false]);
    report(path, LATER, &[]);
    assert_eq!(there(), [false, true, false]);
}

/// Returns the identifier whose bytes are all the same.
fn uuid(byte: u8) -> String {
    [4, 2, 2, 2, 6].map(|bytes| format!("{byte:02x}").repeat(bytes)).join("-")
}

/// Returns the same identifier as the log encodes it: groups of five digits to the base 85.
fn z85_of(byte: u8) -> String {
    let mut number = u32::from_be_bytes([byte; 4]);
    let mut digits = [b'0'; 5];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
            [(number % 85) as usize];
        number /= 85;
    }
    text(&digits).repeat(4)
}

/// Files that a compaction replaced stay until every consumer has their rows.
#[test]
fn a_consumer_gets_its_rows_also_after_a_vacuum() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, more) = two_files(folder.path());
    let (path, out) = (lake.to_str().unwrap(), folder.path().join("out"));
    let delivered = consume(&lake, &out)["rows"].as_i64().unwrap();
    let old = listed(&lake, "sync_records");
    more();
    let compacted: Vec<Value> = listed(&lake, "sync_records").into_values().collect();
    let moved: Vec<Value> = compacted.iter().flat_map(|add| [remove(add, false), copy(&lake, add, false)]).collect();
    commit(&lake, "sync_records", "OPTIMIZE", &moved);
    let done = report(path, LATER, &["--table", "sync_records"]);
    let kept = (compacted.len() - old.len()) as u64;
    assert_eq!((sum(&done, "files"), sum(&done, "kept_undelivered")), (old.len() as u64, kept), "{done}");
    let all = count(path, "select count(*) from sync_records");
    assert_eq!(consume(&lake, &out)["rows"], all - delivered);
    let done = report(path, LATER, &["--table", "sync_records"]);
    assert_eq!((sum(&done, "files"), sum(&done, "kept_undelivered")), (kept, 0), "{done}");
    // A consumer that does not matter any more.
    let more = copy(&lake, &listed(&lake, "sync_records").into_values().next().unwrap(), true);
    commit(&lake, "sync_records", "WRITE", std::slice::from_ref(&more));
    commit(&lake, "sync_records", "OPTIMIZE", &[remove(&more["add"], false)]);
    assert_eq!(sum(&report(path, LATER, &[]), "kept_undelivered"), 1);
    let ignoring = ["--table", "sync_records", "--ignore-consumers", "--dry-run"];
    assert_eq!(sum(&report(path, LATER, &ignoring), "files"), 1);
    run(path, &["deliver", "--forget", "c"]);
    assert_eq!(sum(&report(path, LATER, &["--table", "sync_records"]), "files"), 1);
}

/// A missing file is explained, and a signal ends a vacuum after its batch.
#[test]
fn what_is_said_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let path = lake.to_str().unwrap();
    for short in ["59m", "0s"] {
        let output = synclake().args(["vacuum", "--retain", short, "--lake", path]).output().unwrap();
        refused(&output, 2, &["--retain", "is shorter than 1h"]);
    }
    let output = synclake().args(["vacuum", "--table", "nothing", "--lake", path]).output().unwrap();
    refused(&output, 2, &["is no table; there are sync_records"]);
    std::fs::create_dir(&lake).unwrap();
    refused(&synclake().args(["vacuum", "--lake", path]).output().unwrap(), 1, &["is not a lake"]);
    let (events, _) = simulate(folder.path(), &["--events", "5"]);
    let young = folder.path().join("young");
    ingest_file(&events, &young);
    std::fs::remove_dir_all(young.join("state")).unwrap();
    let output = synclake().args(["vacuum", "--table", "state", "--lake"]).arg(&young).output().unwrap();
    assert_eq!(text(&output.stderr), "state does not exist yet, so there is nothing to delete\n");
    worked_on(folder.path(), path);
    let denied = format!("{LATER};store/delete=return");
    let output = synclake().args(["vacuum", "--lake", path]).env("FAILPOINTS", denied).output().unwrap();
    refused(&output, 1, &["a test refuses it"]);
    let stopped = report(path, &format!("{LATER};vacuum/batch=1*return(terminate)"), &[]);
    assert_eq!(stopped["stopped"], true, "{stopped}");
    assert_eq!(stopped["tables"].as_object().unwrap().len(), 3, "daily_state, the third table, is the first batch");
    assert!(sum(&stopped, "files") > 0, "{stopped}");
    let printed = run(path, &["vacuum", "--format", "human"]);
    assert_eq!(printed.lines().count(), 5, "{printed}");
    assert!(printed.contains("deleted 0 files (0.0 MiB), "), "{printed}");
    assert!(printed.contains(" kept for versions since "), "{printed}");
    let active = listed(&lake, "sync_records").into_keys().next().unwrap();
    std::fs::remove_file(lake.join("sync_records").join(&active)).unwrap();
    let output = query().args(["--lake", path, "-c", "select sum(sync_count) from sync_records"]).output().unwrap();
    refused(&output, 1, &[&active, "a vacuum deletes files that only versions older than its retention list (7 days"]);
    assert!(!ingest_file(&folder.path().join("events.ndjson"), &lake).is_null());
}

/// Returns the versions of the objects of a log whose names end so.
fn versions(lake: &Path, ending: &str) -> Vec<u64> {
    let names = std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<u64> = names.filter_map(|name| name.strip_suffix(ending)?.parse().ok()).collect();
    found.sort_unstable();
    found
}

#[test]
fn superseded_checkpoints_go_and_every_version_stays_readable() {
    const CHECKPOINT: &str = ".checkpoint.parquet";
    let lake = Lake::new(&["--events", "300", "--seed", "8", "--pools", "1", "--days", "2"], 8);
    let path = lake.path.to_str().unwrap();
    let fill = |part: usize| {
        idle_commits(&lake.path, "sync_records", 20);
        ingest_file(&lake.parts[part], &lake.path);
    };
    ingest_file(&lake.parts[0], &lake.path);
    (1..5).for_each(fill);
    let (before, commits, rows) = (versions(&lake.path, CHECKPOINT), versions(&lake.path, ".json"), lake.rows());
    assert!(before.len() >= 4, "{before:?}");
    let young = report(path, "store/clock=return(60)", &[]);
    assert_eq!(young["tables"]["sync_records"]["checkpoints"], 0, "a reader may be on its way: {young}");
    let dry = report(path, LATER, &["--dry-run"]);
    assert_eq!(versions(&lake.path, CHECKPOINT), before);
    let done = report(path, LATER, &[]);
    for report in [dry, done] {
        assert_eq!(report["tables"]["sync_records"]["checkpoints"], before.len() - 3, "{report}");
    }
    let kept = [&before[..1], &before[before.len() - 2..]].concat();
    assert_eq!(versions(&lake.path, CHECKPOINT), kept, "the first one of the month, and the newest two");
    assert_eq!(versions(&lake.path, ".json"), commits, "no commit has expired");

    let each = "import sys; from deltalake import DeltaTable as T; t = sys.argv[1]
for v in range(T(t).version() + 1): T(t, version=v).file_uris()";
    ok(python().args(["-c", each]).arg(lake.path.join("sync_records")));
    let out = tempfile::tempdir().unwrap();
    assert_eq!(consume(&lake.path, out.path())["rows"], rows);
    run(path, &["verify"]);

    // Another writer cleans up the commits before the first of them: from now on it is the beginning.
    let first = versions(&lake.path, CHECKPOINT)[0];
    for version in commits.iter().filter(|version| **version < first) {
        std::fs::remove_file(lake.path.join(format!("sync_records/_delta_log/{version:020}.json"))).unwrap();
    }
    (5..8).for_each(fill);
    let all = lake.rows();
    report(path, LATER, &[]);
    let left = versions(&lake.path, CHECKPOINT);
    assert_eq!((left.len(), left[0]), (3, first), "{left:?}");
    let since = each.replace("range(", &format!("range({first}, "));
    ok(python().args(["-c", &since]).arg(lake.path.join("sync_records")));
    assert_eq!(lake.rows(), all);
}

/// The clock of the store, more than the log's retention ahead.
const MONTHS_LATER: &str = "store/clock=return(9000000)";

/// Commits that only move the version, as a worker of a quiet stream makes them.
fn idle_commits(lake: &Path, table: &str, count: u64) {
    let log = lake.join(table).join("_delta_log");
    let names = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let newest: u64 = names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).max().unwrap();
    for version in newest + 1..=newest + count {
        let info = json!({"commitInfo": {"operation": "WRITE", "timestamp": 1}}).to_string();
        std::fs::write(log.join(format!("{version:020}.json")), info + "\n").unwrap();
    }
}

fn ingest_alone(lake: &Lake, part: usize) {
    let source = format!("file:{}", lake.parts[part].display());
    ok(synclake().args(["ingest", "--care", "off", "--source", &source, "--lake"]).arg(&lake.path));
}

/// Returns a lake whose log has several checkpoints, and of which nothing was derived.
fn long_log() -> Lake {
    let lake = Lake::new(&["--events", "300", "--seed", "8", "--pools", "1", "--days", "2"], 8);
    for part in 0..5 {
        // Care would refresh the state, which needs commits.
        ingest_alone(&lake, part);
        idle_commits(&lake.path, "sync_records", 20);
    }
    lake
}

fn deliver(lake: &str, consumer: &str, out: &Path, failpoints: &str) -> std::process::Output {
    let mut command = synclake();
    command.args(["deliver", "--consumer", consumer, "--format", "ndjson", "--lake", lake, "--out"]).arg(out);
    command.env("FAILPOINTS", failpoints).output().unwrap()
}

fn delivered(lake: &str, consumer: &str, out: &Path) -> i64 {
    let output = deliver(lake, consumer, out, "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["rows"].as_i64().unwrap()
}

/// Every version that the log still has can be read by delta-rs, and it reads all rows.
fn assert_read_by_others(lake: &Lake) {
    let script = "import glob, sys, tables; from deltalake import DeltaTable as T; t = sys.argv[1]
first = min(int(p[-25:-5]) for p in glob.glob(t + '/_delta_log/*.json'))
for v in range(first, T(t).version() + 1): T(t, version=v).file_uris()
print(tables.read(t).num_rows)";
    let rows = ok(python().args(["-c", script]).arg(lake.path.join("sync_records")));
    assert_eq!(rows.trim().parse::<i64>().unwrap(), lake.rows());
}

/// Expired commits go, and everybody goes on as before.
#[test]
fn expired_commits_go_and_all_commands_go_on() {
    let lake = long_log();
    let (path, out) = (lake.name(), tempfile::tempdir().unwrap());
    run(path, &["refresh"]);
    run(path, &["extract", "--no-refresh", "--date", DAY]);
    assert_eq!(delivered(path, "old", &out.path().join("old")), lake.rows());
    let before = contents(path);
    let commits = versions(&lake.path, ".json");
    let log = lake.path.join("sync_records/_delta_log");
    for beside in ["00000000000000000003.crc", ".00000000000000000003.json.crc"] {
        std::fs::write(log.join(beside), "x").unwrap();
    }
    let young = report(path, LATER, &[]);
    assert_eq!((sum(&young, "commits"), sum(&young, "kept_commits")), (0, 0), "{young}");
    let dry = report(path, MONTHS_LATER, &["--dry-run"]);
    assert_eq!(versions(&lake.path, ".json"), commits);
    let done = report(path, MONTHS_LATER, &[]);
    assert_eq!(done["tables"], dry["tables"]);
    let (left, first) = (versions(&lake.path, ".json"), versions(&lake.path, ".checkpoint.parquet")[0]);
    assert!(first > 40 && left == (first..=*commits.last().unwrap()).collect::<Vec<_>>(), "{first}: {left:?}");
    assert_eq!(sum(&done, "commits"), first, "{done}");
    assert!(!log.join("00000000000000000003.crc").exists() && !log.join(".00000000000000000003.json.crc").exists());
    assert_eq!(sum(&report(path, MONTHS_LATER, &[]), "commits"), 0, "nothing is left to do");

    assert_eq!(contents(path), before);
    assert_read_by_others(&lake);
    let verified = verify(path);
    let from = &verified["tables"]["sync_records"]["log_from"];
    assert_eq!((&verified["faults"], from), (&json!([]), &json!(first)));
    let files = verified["tables"]["sync_records"]["files"].as_u64().unwrap();
    let printed = run(path, &["verify", "--format", "human"]);
    assert!(printed.contains(&format!("log cleaned: nothing before version {first} is checked")), "{printed}");
    run(path, &["status"]);
    let rows = lake.rows();
    (5..8).for_each(|part| ingest_alone(&lake, part));
    let new = verify(path)["tables"]["sync_records"]["files"].as_u64().unwrap() - files;
    let refreshed: Value = serde_json::from_str(&run(path, &["refresh"])).unwrap();
    assert_eq!(refreshed["files_read"], new, "only the new files are read");
    run(path, &["extract", "--no-refresh", "--date", DAY]);
    run(path, &["extract", "--no-refresh", "--date", "2026-01-03"]);
    assert_eq!(delivered(path, "old", &out.path().join("old")), lake.rows() - rows);
    assert_eq!(delivered(path, "new", &out.path().join("new")), lake.rows());
    lake.assert_whole();
    assert_read_by_others(&lake);
}

/// Whoever reads commits one by one keeps those that it has not passed, and a table may keep all of them.
#[test]
fn commits_stay_for_those_who_read_them() {
    let lake = long_log();
    let (path, out) = (lake.name(), tempfile::tempdir().unwrap());
    let metadata = newest_action(&lake.path, "sync_records", "metaData");
    let unfinished = || {
        let output = deliver(path, "c", out.path(), "consumer/written=1*return(kill)");
        assert_eq!(output.status.code(), None, "{}", text(&output.stderr));
    };
    let newest = || *versions(&lake.path, ".json").last().unwrap();
    let first = || versions(&lake.path, ".json")[0];
    let more = |part: usize| {
        (0..2).for_each(|half| {
            idle_commits(&lake.path, "sync_records", 20);
            ingest_file(&lake.parts[part + half], &lake.path);
        });
    };
    let vacuumed = |more: &[&str]| {
        let done = report(path, MONTHS_LATER, &[&["--table", "sync_records"], more].concat());
        (sum(&done, "commits"), sum(&done, "kept_commits"))
    };
    // The first delivery of a consumer is not finished: it reads the version that it reaches.
    unfinished();
    let (needed, rows) = (newest(), lake.rows());
    more(5);
    let (gone, kept) = vacuumed(&[]);
    assert!(gone > 0 && kept >= 20 && first() <= needed, "{gone} {kept}");
    assert_eq!(delivered(path, "c", out.path()), rows);
    // It is at that version, and its second delivery is not finished.
    unfinished();
    let (gone, kept) = vacuumed(&[]);
    assert!(gone == 0 && kept >= 20 && first() <= needed, "{gone} {kept}");
    assert_eq!(delivered(path, "c", out.path()), lake.rows() - rows);
    // The state and the newest extracts are behind, one after the other.
    run(path, &["refresh"]);
    run(path, &["extract", "--no-refresh", "--date", "2026-01-01"]);
    run(path, &["extract", "--no-refresh", "--date", DAY]);
    vacuumed(&[]);
    let covered = newest();
    idle_commits(&lake.path, "sync_records", 41);
    ingest_file(&lake.parts[7], &lake.path);
    idle_commits(&lake.path, "sync_records", 41);
    ingest_file(&lake.made("late", &["--events", "20", "--seed", "9"]), &lake.path);
    let held = |by: &str| {
        let (gone, kept) = vacuumed(&[]);
        assert!(kept >= 20 && first() <= covered, "{by}: {gone} {kept}");
    };
    held("the consumer, the state and the extracts");
    let all = contents(path);
    delivered(path, "c", out.path());
    held("the state and the extracts");
    run(path, &["refresh"]);
    held("the extracts");
    run(path, &["extract", "--no-refresh", "--date", DAY]);
    held("the extract before the newest one");
    assert_eq!(contents(path)[..5], all[..5]);
    run(path, &["extract", "--no-refresh", "--date", "2026-01-03"]);

    let set = |value: &str| {
        let mut metadata = metadata.clone();
        metadata["metaData"]["configuration"]["delta.enableExpiredLogCleanup"] = value.into();
        let next = lake.path.join(format!("sync_records/_delta_log/{:020}.json", newest() + 1));
        std::fs::write(next, metadata.to_string() + "\n").unwrap();
    };
    set("false");
    assert_eq!(vacuumed(&[]), (0, 0));
    set("true");
    let (gone, kept) = vacuumed(&[]);
    assert!(gone >= 40 && kept == 0 && first() > covered, "{gone} {kept}");
    assert_eq!(verify(path)["faults"], json!([]));
    // A consumer that does not matter any more.
    idle_commits(&lake.path, "sync_records", 41);
    ingest_file(&lake.made("last", &["--events", "20", "--seed", "10"]), &lake.path);
    run(path, &["refresh"]);
    run(path, &["extract", "--no-refresh", "--date", DAY]);
    run(path, &["extract", "--no-refresh", "--date", "2026-01-03"]);
    let (gone, kept) = vacuumed(&["--dry-run"]);
    assert!(gone == 0 && kept > 0, "{gone} {kept}");
    let (gone, kept) = vacuumed(&["--dry-run", "--ignore-consumers"]);
    assert!(gone > 0 && kept == 0, "{gone} {kept}");
}

/// A clean-up that is killed leaves a log without a hole, and the next one goes on. A writer that slept meanwhile commits
/// at the top.
#[test]
fn a_killed_clean_up_leaves_no_hole() {
    let lake = Lake::new(&["--events", "300", "--seed", "8", "--pools", "1", "--days", "2"], 8);
    let path = lake.name();
    ingest_file(&lake.parts[0], &lake.path);
    let sleeping = stopped_before_commit(&lake.parts[1], &lake.path);
    let awakes_at = versions(&lake.path, ".json").last().unwrap() + 1;
    for part in 2..5 {
        idle_commits(&lake.path, "sync_records", 20);
        ingest_file(&lake.parts[part], &lake.path);
    }
    let (all, rows) = (versions(&lake.path, ".json"), lake.rows());
    for _ in 0..2 {
        let before = versions(&lake.path, ".json")[0];
        let failpoints = format!("{MONTHS_LATER};vacuum/commit=9*off->1*return(kill)");
        let mut command = synclake();
        let output = command.args(["vacuum", "--lake", path]).env("FAILPOINTS", failpoints).output().unwrap();
        assert_eq!(output.status.code(), None, "{}", text(&output.stderr));
        let left = versions(&lake.path, ".json");
        assert!((before + 8..=before + 9).contains(&left[0]), "{before}: {left:?}");
        assert_eq!(left, (left[0]..=*all.last().unwrap()).collect::<Vec<_>>(), "there is no hole");
        assert_eq!(lake.rows(), rows);
        assert_eq!(verify(path)["faults"], json!([]));
    }
    assert!(sum(&report(path, MONTHS_LATER, &[]), "commits") > 0);
    assert!(versions(&lake.path, ".json")[0] > awakes_at);
    go_on(&sleeping);
    let output = sleeping.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(versions(&lake.path, ".json")[0] > awakes_at, "nothing is left where nobody looks");
    (5..8).for_each(|part| drop(ingest_file(&lake.parts[part], &lake.path)));
    lake.assert_whole();
    assert_read_by_others(&lake);
}

/// A checkpoint that cannot be read is no beginning: the log begins at an earlier one.
#[test]
fn a_log_begins_at_a_checkpoint_that_can_be_read() {
    let lake = long_log();
    let checkpoints = versions(&lake.path, ".checkpoint.parquet");
    let (newest, rows) = (*checkpoints.last().unwrap(), lake.rows());
    let damaged = lake.path.join(format!("sync_records/_delta_log/{newest:020}.checkpoint.parquet"));
    std::fs::write(damaged, "PAR1").unwrap();
    assert!(sum(&report(lake.name(), MONTHS_LATER, &["--table", "sync_records"]), "commits") > 0);
    let first = versions(&lake.path, ".json")[0];
    assert_eq!(first, checkpoints[checkpoints.len() - 2], "{checkpoints:?}");
    assert_eq!(lake.rows(), rows);
}

/// Temporary files of killed writers go from a folder, and nothing else.
#[test]
fn temporary_files_of_killed_writers_go() {
    let folder = tempfile::tempdir().unwrap();
    let (lake, _) = two_files(folder.path());
    let path = lake.to_str().unwrap();
    let table = lake.join("sync_records");
    let token = "0011223344556677";
    let dead = [
        format!("_delta_log/.00000000000000000010.json.{token}.tmp"),
        "_delta_log/00000000000000000010.checkpoint.parquet#1".to_owned(),
        format!("_symlink_format_manifest/pool=p/.manifest.{token}.tmp"),
        "pool=p/part-0.parquet#2".to_owned(),
    ];
    let kept = ["notes#1", "_temporary/part-0.parquet#1", "_delta_log/.00000000000000000010.json.crc", "pool=p/.x.tmp"];
    for name in dead.iter().map(String::as_str).chain(kept) {
        std::fs::create_dir_all(table.join(name).parent().unwrap()).unwrap();
        std::fs::write(table.join(name), "12").unwrap();
    }
    let hours = "store/clock=return(7200)";
    assert_eq!(sum(&report(path, hours, &["--retain", "1h"]), "uploads"), 0, "a writer may be at work for a day");
    assert_eq!(sum(&report(path, LATER, &["--dry-run"]), "uploads"), 4);
    let done = report(path, LATER, &[]);
    assert_eq!((sum(&done, "uploads"), sum(&done, "upload_bytes")), (4, 8), "{done}");
    assert!(dead.iter().all(|name| !table.join(name).exists()));
    assert!(kept.iter().all(|name| table.join(name).exists()));
    assert_eq!(verify(path)["faults"], json!([]));
}

/// Runs curl against the S3 server.
fn curl(method: &str, path: &str) -> String {
    ok(Command::new("curl").args(["-sf", "-X", method, &format!("{}/{path}", setting("SYNCLAKE_TEST_S3"))]))
}

/// Multipart uploads that never ended are aborted, and no younger ones, none of other places, and in no dry run.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_never_ended_are_aborted() {
    let folder = tempfile::tempdir().unwrap();
    make_bucket("uploads-bucket").await;
    let lake = "s3://uploads-bucket/deep/lake";
    let (events, _) = simulate(folder.path(), &["--events", "20"]);
    run(lake, &["ingest", "--source", &format!("file:{}", events.display())]);
    for key in
        ["deep/lake/sync_records/pool=p/part-0.parquet", "deep/lake/state/a.parquet", "deep/lake2/sync_records/b"]
    {
        curl("POST", &format!("uploads-bucket/{key}?uploads="));
    }
    run(lake, &["refresh"]);
    let left = || curl("GET", "uploads-bucket?uploads=").matches("<Upload>").count();
    assert_eq!(sum(&report(lake, "store/clock=return(7200)", &["--retain", "1h"]), "uploads"), 0);
    assert_eq!(sum(&report(lake, LATER, &["--dry-run"]), "uploads"), 2);
    assert_eq!(left(), 3);
    let done = report(lake, LATER, &[]);
    let of = |table: &str| done["tables"][table]["uploads"].as_u64().unwrap();
    assert_eq!((of("sync_records"), of("state"), sum(&done, "uploads"), left()), (1, 1, 2, 1), "{done}");
    assert_eq!(sum(&report(lake, LATER, &[]), "uploads"), 0);

    // Credentials that may do everything else.
    curl("POST", "uploads-bucket/deep/lake/gaps/a.parquet?uploads=");
    for (method, permission) in [("GET", "s3:ListBucketMultipartUploads"), ("DELETE", "s3:AbortMultipartUpload")] {
        let endpoint = crate::stores::refusing(method, "upload").await;
        let mut command = synclake();
        command.args(["vacuum", "--format", "json", "--lake", lake, "--endpoint-url", &endpoint]);
        let output = command.env("FAILPOINTS", LATER).output().unwrap();
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(permission), "{log}");
        assert_eq!(sum(&serde_json::from_slice(&output.stdout).unwrap(), "uploads"), 0);
    }
    assert_eq!(left(), 2);
}
