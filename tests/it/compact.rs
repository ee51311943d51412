//! Tests of `synclake compact`: fewer files, the same rows, and no reader of changes gets a row again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    assert_every_event_once, assert_state_is_oracle, count, ingest_file, ok, python, query, refused, rows, setting,
    simulate, synclake, text,
};
use crate::kinesis::make_bucket;

/// Splits a file of events into files of about as many lines.
fn parts(events: &Path, parts: usize) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(events).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let part = |(number, lines): (usize, &[&str])| {
        let path = events.with_file_name(format!("part{number}.ndjson"));
        std::fs::write(&path, lines.concat()).unwrap();
        path
    };
    lines.chunks(lines.len().div_ceil(parts)).enumerate().map(part).collect()
}

/// A lake of several small ingests.
pub(crate) struct Lake {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
    oracle: PathBuf,
    pub parts: Vec<PathBuf>,
}

impl Lake {
    /// Prepares the events, and ingests none.
    pub(crate) fn new(args: &[&str], count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (events, oracle) = simulate(folder.path(), args);
        let (path, parts) = (folder.path().join("lake"), parts(&events, count));
        Self { folder, path, oracle, parts }
    }

    pub(crate) fn ingested(args: &[&str], count: usize) -> Self {
        let lake = Self::new(args, count);
        lake.parts.iter().for_each(|part| drop(ingest_file(part, &lake.path)));
        lake
    }

    /// Simulates other events, and returns their file.
    pub(crate) fn made(&self, name: &str, args: &[&str]) -> PathBuf {
        let folder = self.folder.path().join(name.replace('/', "-"));
        std::fs::create_dir(&folder).unwrap();
        simulate(&folder, args).0
    }

    pub(crate) fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn rows(&self) -> i64 {
        count(self.name(), "select count(*) from sync_records")
    }

    /// Asserts that the lake is intact, and holds each event once.
    #[track_caller]
    pub(crate) fn assert_whole(&self) {
        assert_state_is_oracle(self.name(), &[&self.oracle]);
        verify(&self.path);
    }
}

pub(crate) const SMALL: [&str; 8] = ["--events", "2400", "--seed", "11", "--days", "3", "--identities", "120"];

pub(crate) fn compact(lake: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(synclake().args(["compact", "--lake"]).arg(lake).args(args))).unwrap()
}

/// Starts a compaction with failpoints.
pub(crate) fn start(lake: &Path, failpoints: &str) -> Child {
    let mut command = synclake();
    command.args(["compact", "--lake"]).arg(lake).env("FAILPOINTS", failpoints);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn report(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn verify(lake: &Path) -> Value {
    let report = ok(synclake().args(["verify", "--deep", "--format", "json", "--lake"]).arg(lake));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["faults"], json!([]));
    report["tables"]["sync_records"].clone()
}

pub(crate) fn commits(lake: &Path) -> Vec<Vec<Value>> {
    let log = std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap().map(|entry| entry.unwrap().path());
    let mut commits: Vec<PathBuf> = log.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    commits.sort();
    let actions = |text: String| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    commits.iter().map(|path| actions(std::fs::read_to_string(path).unwrap())).collect()
}

/// Returns the names of all files below a folder, with their sizes.
fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => drop(found.insert(path, entry.metadata().unwrap().len())),
        }
    }
    found
}

/// Returns the rows of every table and view, sorted.
pub(crate) fn dump(lake: &Path) -> BTreeMap<String, Vec<String>> {
    let listed = ok(query().arg("--lake").arg(lake).args(["-c", "\\d"]));
    let names = listed.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned());
    let rows_of = |name: &String| {
        let mut rows: Vec<String> =
            rows(lake.to_str().unwrap(), &format!("select * from {name}")).iter().map(Value::to_string).collect();
        rows.sort();
        rows
    };
    names.map(|name| (rows_of(&name), name)).map(|(rows, name)| (name, rows)).collect()
}

pub(crate) fn deliver(lake: &Path, out: &Path, consumer: &str) -> Value {
    let mut command = synclake();
    command.args(["deliver", "--consumer", consumer, "--format", "ndjson", "--out"]).arg(out).arg("--lake").arg(lake);
    serde_json::from_str(&ok(&mut command)).unwrap()
}

/// After a compaction there are fewer files, every table and view has the same rows, the lake is intact, and consumers,
/// refreshes and extracts find nothing new.
#[test]
fn fewer_files_hold_the_same_rows() {
    let lake = Lake::ingested(&SMALL, 12);
    let (path, out) = (lake.path.as_path(), lake.folder.path().join("out"));
    ok(synclake().args(["refresh", "--lake"]).arg(path));
    let extract = |day: &str| -> Value {
        serde_json::from_str(&ok(synclake().args(["extract", "--no-refresh", "--date", day, "--lake"]).arg(path)))
            .unwrap()
    };
    extract("2026-01-02");
    assert_eq!(deliver(path, &out, "c")["rows"], lake.rows());
    let (before, on_disk) = (dump(path), files(path));

    let plan = compact(path, &["--dry-run"]);
    assert_eq!(files(path), on_disk, "a dry run changes nothing");
    let report = compact(path, &[]);
    for name in ["groups", "files", "files_removed", "bytes_removed", "files_added", "rows"] {
        assert_eq!(report[name], plan[name], "{name}");
    }
    let is_bound = |report: &Value| report["is_bytes_added_bound"].clone();
    assert_eq!((is_bound(&plan), is_bound(&report)), (true.into(), false.into()));
    assert!(report["bytes_added"].as_u64() <= plan["bytes_added"].as_u64(), "{report} {plan}");
    assert_eq!((&report["rows"], &report["files_left"]), (&lake.rows().into(), &json!({})));
    let checked = verify(path);
    assert_eq!((&checked["files"], &checked["orphans"]), (&report["files_added"], &0.into()));
    assert!(checked["superseded"].as_u64().unwrap() >= 20 && checked["files"].as_u64().unwrap() <= 12, "{checked}");
    for (name, rows) in dump(path) {
        assert_eq!(rows, before[&name], "{name}");
    }
    lake.assert_whole();

    // Each commit of the compaction says that it changes no data.
    let moves: Vec<Value> = commits(path)
        .into_iter()
        .filter(|actions| actions.iter().any(|action| action["remove"].is_object()))
        .flatten()
        .collect();
    assert!(moves.iter().any(|action| action["commitInfo"]["operation"] == "OPTIMIZE"));
    let of = |kind: &str| moves.iter().filter(|action| action[kind].is_object()).map(|a| a[kind].clone()).collect();
    let (adds, removes): (Vec<Value>, Vec<Value>) = (of("add"), of("remove"));
    assert_eq!(
        (adds.len() as u64, removes.len() as u64),
        (report["files_added"].as_u64().unwrap(), report["files_removed"].as_u64().unwrap())
    );
    assert!(adds.iter().chain(&removes).all(|action| action["dataChange"] == false));

    // Nothing is new for readers of changes.
    assert_eq!(deliver(path, &out, "c")["rows"], 0);
    let refreshed: Value = serde_json::from_str(&ok(synclake().args(["refresh", "--lake"]).arg(path))).unwrap();
    assert_eq!((&refreshed["files_read"], &refreshed["rows_written"]), (&0.into(), &0.into()));
    let again = extract("2026-01-02");
    assert_eq!(again["late_rows"].as_u64().unwrap_or(0), 0, "{again}");
    assert_eq!(compact(path, &[])["groups"], 0, "one file per partition is left");
    for (name, rows) in dump(path).iter().filter(|(name, _)| *name != "daily_extract" && *name != "daily_state") {
        assert_eq!(rows, &before[name], "{name}");
    }
}

/// Files that a consumer got and files that it did not get become one file: it gets only the new rows, once.
#[test]
fn a_consumer_gets_new_rows_of_merged_files_once() {
    let lake = Lake::new(&SMALL, 10);
    let (path, out) = (lake.path.as_path(), lake.folder.path().join("out"));
    lake.parts[..5].iter().for_each(|part| drop(ingest_file(part, path)));
    let first = lake.rows();
    assert_eq!(deliver(path, &out, "c")["rows"], first);
    ok(synclake().args(["refresh", "--lake"]).arg(path));
    lake.parts[5..].iter().for_each(|part| drop(ingest_file(part, path)));
    assert!(compact(path, &[])["groups"].as_u64().unwrap() > 0);
    assert_state_is_oracle(lake.name(), &[&lake.oracle]);
    assert_eq!(deliver(path, &out, "c")["rows"], lake.rows() - first);
    assert_eq!(deliver(path, &out, "c")["rows"], 0);
    assert_eq!(deliver(path, &out, "new")["rows"], lake.rows(), "a consumer that comes later gets every row");
    ok(synclake().args(["refresh", "--lake"]).arg(path));
    lake.assert_whole();
}

/// Compactions beside an ingest lose and double nothing.
#[test]
fn ingests_commit_beside_compactions() {
    let folder = tempfile::tempdir().unwrap();
    let (events, oracle) = simulate(folder.path(), &["--events", "12000", "--seed", "3", "--days", "3"]);
    let lake = folder.path().join("lake");
    let source = format!("file:{}", events.display());
    let mut ingest = synclake();
    ingest.args(["ingest", "--source", &source, "--memory", "64MiB", "--flush-bytes", "128KiB", "--lake"]).arg(&lake);
    // Each commit waits a little, so that compactions come in between.
    ingest.env("FAILPOINTS", "commit/before=sleep(100)").stdout(Stdio::null()).stderr(Stdio::null());
    let mut ingest = ingest.spawn().unwrap();
    let (mut groups, deadline) = (0, Instant::now() + Duration::from_secs(300));
    while ingest.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the ingest ends");
        let output = synclake().args(["compact", "--lake"]).arg(&lake).output().unwrap();
        if let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) {
            groups += report["groups"].as_u64().unwrap();
        }
    }
    assert!(ingest.wait().unwrap().success());
    assert!(groups > 3, "only {groups} groups were merged beside the ingest");
    compact(&lake, &[]);
    let name = lake.to_str().unwrap();
    assert_every_event_once(name, &events);
    assert_state_is_oracle(name, &[&oracle]);
    assert_eq!(verify(&lake)["orphans"], 0);
}

/// Of two compactions that merge the same files, one succeeds for each group, and the other leaves no file.
#[test]
fn of_two_compactions_one_succeeds() {
    let lake = Lake::ingested(&SMALL, 8);
    let planned = compact(&lake.path, &["--dry-run"]);
    let (rows, before) = (lake.rows(), dump(&lake.path));
    let both = [(); 2].map(|()| start(&lake.path, "compact/before=1*sleep(4000)")).map(report);
    let sum = |name: &str| both.iter().map(|report| report[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("groups"), planned["groups"].as_u64().unwrap());
    assert_eq!(sum("rows"), u64::try_from(rows).unwrap());
    assert!(sum("groups_changed") > 0, "{both:?}");
    let checked = verify(&lake.path);
    assert_eq!((&checked["orphans"], &checked["files"]), (&0.into(), &planned["files_added"]));
    assert_eq!(dump(&lake.path), before);
    lake.assert_whole();
}

/// A compaction that is killed at any step loses and doubles nothing, and the next one does the rest.
#[test]
fn killed_compactions_lose_and_double_nothing() {
    let lake = Lake::ingested(&SMALL, 6);
    let before = dump(&lake.path);
    let planned = compact(&lake.path, &["--dry-run"]);
    let points = [
        "file/before",
        "file/after",
        "compact/written",
        "compact/before",
        "commit/before",
        "commit/after",
        "compact/after",
    ];
    for point in points {
        let killed = start(&lake.path, &format!("{point}=1*return(kill)")).wait_with_output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}: {}", text(&killed.stderr));
        assert_eq!(dump(&lake.path)["sync_records"], before["sync_records"], "{point}");
        verify(&lake.path);
    }
    let left = compact(&lake.path, &["--dry-run"])["groups"].as_u64().unwrap();
    assert!(left >= 1 && left < planned["groups"].as_u64().unwrap(), "what was committed stays: {left}");
    assert_eq!(compact(&lake.path, &[])["groups"], left);
    let checked = verify(&lake.path);
    assert_eq!(checked["files"], planned["files_added"]);
    // At most one file per group at work of each killed run. A sweep deletes them when they are a week old.
    let processors = std::thread::available_parallelism().unwrap().get() as u64 + 2;
    assert!((1..=points.len() as u64 * processors).contains(&checked["orphans"].as_u64().unwrap()), "{checked}");
    assert_eq!(dump(&lake.path), before);
    let (old, log) = (std::time::SystemTime::now() - Duration::from_secs(8 * 86_400), commits(&lake.path).len());
    for path in files(&lake.path.join("sync_records")).into_keys() {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(compact(&lake.path, &[])["groups"], 0);
    let checked = verify(&lake.path);
    assert_eq!((&checked["orphans"], commits(&lake.path).len()), (&0.into(), log));
    assert!(checked["superseded"].as_u64().unwrap() > 0, "older versions keep their files");
    lake.assert_whole();
}

/// On SIGTERM a compaction commits what it merges, and exits with 0. A time limit ends it too.
#[test]
fn a_signal_or_a_time_limit_ends_a_compaction_between_groups() {
    let lake = Lake::ingested(&["--events", "1500", "--seed", "5", "--days", "12", "--identities", "60"], 3);
    let planned = compact(&lake.path, &["--dry-run"])["groups"].as_u64().unwrap();
    let before = commits(&lake.path).len();
    let child = start(&lake.path, "compact/after=sleep(1500)");
    let deadline = Instant::now() + Duration::from_secs(60);
    while commits(&lake.path).len() == before {
        assert!(Instant::now() < deadline, "no commit in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let stopped = report(child);
    let number = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert!(number(&stopped, "groups") >= 1 && number(&stopped, "groups_left") >= 1, "{stopped}");
    assert_eq!(number(&stopped, "groups") + number(&stopped, "groups_left"), planned);
    let in_no_time = compact(&lake.path, &["--max-duration", "1ns"]);
    assert_eq!((&in_no_time["groups"], &in_no_time["groups_left"]), (&0.into(), &stopped["groups_left"]));
    assert_eq!(compact(&lake.path, &[])["groups"], stopped["groups_left"]);
    lake.assert_whole();
}

/// Runs Python with delta-rs on a table; `table` is its path.
fn delta_rs(lake: &Path, script: &str) -> String {
    let script = format!(
        "import sys, deltalake, tables\nfrom deltalake import DeltaTable, write_deltalake\npath = sys.argv[1]\n{script}"
    );
    ok(python().args(["-c", &script]).arg(lake.join("sync_records")))
}

const DELTA_RS_DUMP: &str = "\
table = tables.read(path)
print('\\n'.join(sorted(str(row) for row in table.to_pylist())))";

/// An OPTIMIZE of delta-rs that read the table before a compaction does not add the rows once more.
#[test]
fn delta_rs_does_not_move_rows_that_were_moved() {
    let lake = Lake::ingested(&SMALL, 6);
    let before = dump(&lake.path);
    let program = synclake().get_program().to_owned();
    let script = format!(
        "import subprocess, os
table = DeltaTable(path)
subprocess.run([{program:?}, 'compact', '--quiet', '--lake', os.path.dirname(path)], check=True, stdout=subprocess.DEVNULL)
try:
    table.optimize.compact()
except deltalake.exceptions.CommitFailedError as error:
    print(error)
table = DeltaTable(path)
print(table.optimize.compact(target_size=1 << 30)['numFilesRemoved'])"
    );
    let said = delta_rs(&lake.path, &script);
    assert!(said.contains("etadata"), "the first OPTIMIZE fails: {said}");
    assert_eq!(dump(&lake.path), before);
    lake.assert_whole();
}

/// delta-rs reads the same rows from a compacted table, and from its files alone after a vacuum; files that delta-rs
/// wrote in another order are merged into the order of ingest.
#[test]
fn other_readers_see_the_same_rows() {
    let lake = Lake::new(&SMALL, 6);
    lake.parts[..5].iter().for_each(|part| drop(ingest_file(part, &lake.path)));
    let (before, theirs) = (dump(&lake.path), delta_rs(&lake.path, DELTA_RS_DUMP));
    delta_rs(&lake.path, "DeltaTable(path).optimize.z_order(['value'])");
    assert_eq!(dump(&lake.path), before);
    ingest_file(&lake.parts[5], &lake.path);
    let (all, theirs_all) = (dump(&lake.path), delta_rs(&lake.path, DELTA_RS_DUMP));
    assert!(theirs_all.len() > theirs.len());
    let report = compact(&lake.path, &[]);
    assert!(report["groups"].as_u64().unwrap() >= 4, "{report}");
    assert_eq!(delta_rs(&lake.path, DELTA_RS_DUMP), theirs_all);
    assert_eq!(dump(&lake.path), all);
    delta_rs(&lake.path, "DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)");
    assert_eq!(dump(&lake.path), all);
    let sorted = "\
import pyarrow.parquet as pq, pathlib
for file in pathlib.Path(path).rglob('*.parquet'):
    if not file.name.startswith('compact-'): continue
    rows = pq.ParquetFile(file).read(columns=['identity_id', 'dataset_name', 'key', 'sync_count', 'last_modified_date', 'shard_id', 'sequence_number', 'record_index']).to_pylist()
    place = lambda r: (r['identity_id'], r['dataset_name'], r['key'] is not None, r['key'] or '', -r['sync_count'], -r['last_modified_date'].timestamp(), r['shard_id'], len(r['sequence_number']), r['sequence_number'], r['record_index'])
    assert [place(r) for r in rows] == sorted(place(r) for r in rows), file
    print(file.name)";
    let names: BTreeSet<String> = delta_rs(&lake.path, sorted).lines().map(str::to_owned).collect();
    assert_eq!(names.len() as u64, report["files_added"].as_u64().unwrap(), "{names:?}");
    let summary = "select count(*) as n, sum(sync_count) as counts, count(value) as vals, sum(octet_length(value)) as \
                   bytes, count(distinct identity_pool_id) as pools, count(distinct event_date) as days, \
                   sum(cast(last_modified_date as bigint) % 1000003) as dates from sync_records";
    let ours = rows(lake.name(), summary);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/readers.py");
    let found = ok(python().arg(script).arg(lake.path.join("sync_records")));
    for line in found.lines() {
        let mut found: Value = serde_json::from_str(line).unwrap();
        let name = found.as_object_mut().unwrap().remove("reader").unwrap();
        assert_eq!(found, ours[0], "{name}");
    }
    verify(&lake.path);
}

/// A file with a column of another writer stays as it is, and the rest of its partition is merged.
#[test]
fn columns_of_other_writers_are_not_lost() {
    let lake = Lake::ingested(&SMALL, 4);
    let add = "\
table = tables.read(path).slice(0, 5)
write_deltalake(path, table.append_column('note', [['a', 'b', 'c', 'd', None]]), mode='append', schema_mode='merge')";
    delta_rs(&lake.path, add);
    let theirs = delta_rs(&lake.path, DELTA_RS_DUMP);
    assert!(theirs.contains("'note': 'd'"));
    let report = compact(&lake.path, &[]);
    let left = report["files_left"].as_object().unwrap();
    assert!(left["has the unknown column note"].as_u64().unwrap() >= 1 && left.len() == 1, "{report}");
    assert!(report["groups"].as_u64().unwrap() > 0);
    assert_eq!(delta_rs(&lake.path, DELTA_RS_DUMP), theirs);
    verify(&lake.path);
}

/// A damaged file is reported, and the other files of its partition are merged.
#[test]
fn a_damaged_file_is_left_alone_aloud() {
    let lake = Lake::ingested(&["--events", "900", "--seed", "2", "--days", "1", "--identities", "30"], 5);
    let damaged = files(&lake.path.join("sync_records"));
    let damaged = damaged.keys().find(|path| path.to_string_lossy().contains("/part-")).unwrap();
    let bytes = std::fs::read(damaged).unwrap();
    std::fs::write(damaged, &bytes[..bytes.len() / 2]).unwrap();
    let output = synclake().args(["compact", "--lake"]).arg(&lake.path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("damaged files were left alone (1)"), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(report["faults"][0].as_str().unwrap().contains(name) && report["groups"].as_u64().unwrap() > 0, "{report}");
    std::fs::write(damaged, &bytes).unwrap();
    assert!(compact(&lake.path, &[])["groups"].as_u64().unwrap() > 0);
    lake.assert_whole();
}

/// `compact` rejects options that do not fit together, folders without a lake, and tables whose terms it cannot keep.
#[test]
fn what_cannot_be_compacted_is_refused() {
    let lake = Lake::ingested(&["--events", "300", "--seed", "2"], 2);
    let run =
        |folder: &Path, args: &[&str]| synclake().args(["compact", "--lake"]).arg(folder).args(args).output().unwrap();
    refused(&run(&lake.path, &["--target-size", "1GiB"]), 2, &["--target-size", "raise --memory to 4096MiB"]);
    refused(&run(&lake.path, &["--memory", "1MiB"]), 2, &["--memory must be at least 64 MiB"]);
    refused(&run(&lake.path, &["--from", "2026-01-02", "--to", "2026-01-01"]), 2, &["--from 2026-01-02 is after"]);
    refused(&run(&lake.path, &["--table", "gaps"]), 2, &["gaps", "sync_records"]);
    refused(&run(lake.folder.path(), &[]), 1, &["is not a lake"]);
    assert_eq!(compact(&lake.path, &["--from", "2030-01-01"])["files"], 0);
    let unknown = run(&lake.path, &["--pool", "us-east-1:ffff"]);
    refused(&unknown, 1, &["has no rows of the pool \"us-east-1:ffff\"", "synclake status --verbose"]);
    let pool = rows(lake.name(), "select min(identity_pool_id) as pool from sync_records")[0]["pool"].clone();
    assert!(compact(&lake.path, &["--pool", pool.as_str().unwrap(), "--dry-run"])["groups"].as_u64().unwrap() > 0);
    let table = lake.path.join("sync_records/_delta_log");
    let next = commits(&lake.path).len();
    let protocol =
        json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["fromTheFuture"]}});
    std::fs::write(table.join(format!("{next:020}.json")), format!("{protocol}\n")).unwrap();
    let before = files(&lake.path);
    refused(&run(&lake.path, &[]), 1, &["fromTheFuture"]);
    assert_eq!(files(&lake.path), before);
}

/// A lake on S3 is compacted like one in a folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_lake_on_s3_is_compacted() {
    let lake = Lake::new(&["--events", "600", "--seed", "4", "--days", "2"], 3);
    let (name, endpoint) = ("s3://compact-bucket/deep/lake", setting("SYNCLAKE_TEST_S3"));
    make_bucket("compact-bucket").await;
    let run = |args: &[&str]| ok(synclake().args(args).args(["--lake", name, "--endpoint-url", &endpoint]));
    for part in &lake.parts {
        run(&["ingest", "--source", &format!("file:{}", part.display())]);
    }
    let before = rows(name, "select * from sync_records order by shard_id, sequence_number, record_index");
    let report: Value = serde_json::from_str(&run(&["compact"])).unwrap();
    assert!(report["groups"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(rows(name, "select * from sync_records order by shard_id, sequence_number, record_index"), before);
    assert_state_is_oracle(name, &[&lake.oracle]);
    run(&["verify", "--deep"]);
}

/// Damage that can still be decoded must not get a digest of its own.
#[test]
fn bytes_that_were_not_committed_are_not_merged() {
    let lake = Lake::ingested(&SMALL, 4);
    let damaged =
        files(&lake.path.join("sync_records")).into_keys().find(|path| path.extension() == Some("parquet".as_ref()));
    let (damaged, whole) = damaged.map(|path| (path.clone(), std::fs::read(path).unwrap())).unwrap();
    let mut bytes = whole.clone();
    bytes[600] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = synclake().args(["compact", "--lake"]).arg(&lake.path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["faults"][0].as_str().unwrap().contains("SHA-256"), "{report}");
    assert!(report["files_removed"].as_u64().unwrap() > 0, "the other files are merged: {report}");
    let found = synclake().args(["verify", "--deep", "--lake"]).arg(&lake.path).output().unwrap();
    assert!(text(&found.stdout).contains("SHA-256"), "the damage is still found: {}", text(&found.stdout));
    std::fs::write(&damaged, whole).unwrap();
    compact(&lake.path, &[]);
    lake.assert_whole();
}
