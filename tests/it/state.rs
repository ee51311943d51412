//! Tests of the current state by every path: from all rows, from the maintained state and the tail, and as of a day.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};

use crate::harness::{count, ingest_file, ok, python, rows, simulate, synclake};

/// Live keys: identity, dataset and key to value and sync count.
pub(crate) type Live = BTreeMap<(String, String, String), (Option<String>, i64)>;

/// The cases of tests/golden/cases.json; each case is one identity.
pub(crate) struct Cases(Vec<Value>);

impl Cases {
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/cases.json")).unwrap();
        Self(serde_json::from_str(&text).unwrap())
    }

    fn identity(number: usize) -> String {
        format!("us-east-1:{number:04x}")
    }

    fn steps(&self) -> usize {
        self.0.iter().map(|case| case["steps"].as_array().unwrap().len()).max().unwrap()
    }

    /// Returns the events of one step of all cases.
    fn step(&self, step: usize) -> String {
        let mut lines = String::new();
        for (number, case) in self.0.iter().enumerate() {
            for event in case["steps"][step].as_array().into_iter().flatten() {
                lines += &(wire(&Self::identity(number), event).to_string() + "\n");
            }
        }
        lines
    }

    /// Returns the expected live keys at the end, or at the end of a day that the cases describe.
    pub(crate) fn live(&self, day: Option<&str>) -> Live {
        let mut live = Live::new();
        for (number, case) in self.0.iter().enumerate() {
            let expected = day.map_or(&case["live"], |day| &case["as_of"][day]);
            for (dataset, keys) in expected.as_object().into_iter().flatten() {
                for (key, state) in keys.as_object().unwrap() {
                    let at = (Self::identity(number), dataset.clone(), key.clone());
                    live.insert(at, (state[0].as_str().map(str::to_owned), state[1].as_i64().unwrap()));
                }
            }
        }
        live
    }

    /// Returns the identities of the cases that describe the live keys at the end of `day`.
    fn speak_of(&self, day: &str) -> Vec<String> {
        let numbers = self.0.iter().enumerate().filter(|(_, case)| case["as_of"].get(day).is_some());
        numbers.map(|(number, _)| Self::identity(number)).collect()
    }

    /// Ingests each step as a file of its own, and calls `between` after each.
    pub(crate) fn ingest(&self, folder: &Path, mut between: impl FnMut(usize, &Path)) -> std::path::PathBuf {
        let lake = folder.join("lake");
        for step in 0..self.steps() {
            let file = folder.join(format!("step{step}.ndjson"));
            std::fs::write(&file, self.step(step)).unwrap();
            ingest_file(&file, &lake);
            between(step, &lake);
        }
        lake
    }
}

fn millis(text: &Value) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text.as_str().unwrap()).unwrap().timestamp_millis()
}

/// Returns an event in Cognito's format from the short form of the cases.
fn wire(identity: &str, event: &Value) -> Value {
    let or =
        |record: &Value, name: &str| if record[name].is_null() { event[name].clone() } else { record[name].clone() };
    let record = |r: &Value| {
        let at = millis(&or(r, "t"));
        let device = r["dev"].as_str().map_or(at, |_| millis(&r["dev"]));
        let op = if r["op"].is_null() { json!("replace") } else { r["op"].clone() };
        json!({"key": r["k"], "value": r["v"], "op": op, "syncCount": or(r, "n"), "lastModifiedDate": at,
               "deviceLastModifiedDate": device})
    };
    let records = event["r"].as_array().map(|records| records.iter().map(record).collect::<Vec<_>>());
    json!({
        "identityPoolId": "us-east-1:0a", "identityId": identity, "dataSetName": event["d"], "operation": event["op"],
        "kinesisSyncRecords": records, "lastModifiedDate": millis(&event["t"]), "payloadType": "Inline",
        "syncCount": event["n"],
    })
}

fn refresh(lake: &Path) -> Value {
    serde_json::from_str(&ok(synclake().args(["refresh", "--lake"]).arg(lake))).unwrap()
}

fn live(lake: &Path, relation: &str) -> Live {
    let sql = format!("select identity_id, dataset_name, key, value, sync_count from {relation}");
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let found: Vec<Value> = rows(lake.to_str().unwrap(), &sql);
    let mut live = Live::new();
    for row in found {
        let at = (text(&row, "identity_id"), text(&row, "dataset_name"), text(&row, "key"));
        let state = (row["value"].as_str().map(str::to_owned), row["sync_count"].as_i64().unwrap());
        assert!(live.insert(at.clone(), state).is_none(), "{at:?} twice");
    }
    live
}

#[track_caller]
pub(crate) fn assert_live(found: &Live, expected: &Live, what: &str) {
    for (at, state) in expected {
        assert_eq!(found.get(at), Some(state), "{what}: {at:?}");
    }
    for at in found.keys() {
        assert!(expected.contains_key(at), "{what}: {at:?} should not be live");
    }
}

const FROM_ROWS: &str = "resolved where is_latest and is_after_removal and op <> 'remove'";

/// Asserts that sorted and grouped queries of one pool, which is constant there, agree on both paths. Analysts ask
/// such queries.
fn assert_sorts(lake: &Path, what: &str) {
    for ask in [
        "select pool, identity_id, key from FROM pool = 'us-east-1_0a' order by pool, identity_id, dataset_name, key limit 9",
        "select pool, identity_id, key from FROM pool in ('us-east-1_0a') order by pool desc, identity_id desc, dataset_name, key",
        "select pool, identity_id, count(*) as n from FROM pool like 'us-east-1_0a' group by 1, 2 order by 1, 2",
        "select identity_id, key, row_number() over (partition by pool, identity_id order by dataset_name, key) as n \
         from FROM pool = 'us-east-1_0a' order by pool, identity_id, dataset_name, key",
        "select identity_id from FROM pool = 'us-east-1_0a' union select identity_id from FROM pool = 'x' order by 1",
    ] {
        let of = |from: &str| rows(lake.to_str().unwrap(), &ask.replace("FROM", from));
        let found = of("current_state where");
        assert!(!found.is_empty());
        assert_eq!(found, of(&format!("{FROM_ROWS} and")), "{what}: {ask}");
    }
}

/// `current_state`, extracts and `--as-of` give the answers of the golden cases, whatever part of the rows a refresh
/// covers.
#[test]
fn golden_cases_by_every_path() {
    let cases = Cases::read();
    assert!(cases.0.len() >= 40);
    let expected = cases.live(None);
    // The lake is refreshed never, after every step, or after some steps: the tail is all rows, no rows, or some rows.
    for refreshed in [&[][..], &[0, 1, 2], &[0], &[1], &[0, 1]] {
        let folder = tempfile::tempdir().unwrap();
        let lake = cases.ingest(folder.path(), |step, lake| {
            if refreshed.contains(&step) {
                refresh(lake);
            }
        });
        let what = format!("refreshed after {refreshed:?}");
        assert_live(&live(&lake, "current_state"), &expected, &what);
        assert_live(&live(&lake, FROM_ROWS), &expected, "from the rows");
        assert_sorts(&lake, &what);
        let removed = "(select count(*) from dataset_state where removed)";
        let truth = "select count(*) from (select identity_id, dataset_name from resolved group by 1, 2 \
                     having bool_or(is_dataset_removal) and not bool_or(is_after_removal))";
        let name = lake.to_str().unwrap();
        assert_eq!(count(name, &format!("select {removed}")), count(name, truth), "{what}");
        if refreshed.is_empty() {
            for day in ["2025-12-31", "2026-01-01", "2026-01-02", "2026-01-03"] {
                ok(synclake().args(["extract", "--date", day, "--lake"]).arg(&lake));
                let named = cases.speak_of(day);
                let stored = format!("daily_extract where kind = 'state' and extract_date = '{day}'");
                let mut found = live(&lake, &stored);
                found.retain(|at, _| named.contains(&at.0));
                assert_live(&found, &cases.live(Some(day)), day);
                let asked = crate::harness::query()
                    .args(["--as-of", day, "--format", "csv", "-c", "select count(*) from current_state", "--lake"])
                    .arg(&lake)
                    .output()
                    .unwrap();
                let all = count(name, &format!("select count(*) from {stored}"));
                assert_eq!(crate::harness::text(&asked.stdout).lines().nth(1).unwrap(), all.to_string(), "{day}");
            }
        }
    }
}

/// A change in one pool. Its domains are small, so that ties, removals and copies meet.
#[derive(Debug, Clone)]
struct Change {
    identity: u8,
    dataset: u8,
    /// Key; `None` removes the dataset.
    key: Option<u8>,
    removes: bool,
    value: Option<String>,
    count: i64,
    second: i64,
}

fn change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![Just(None), Just(Some(String::new())), "[a-c]".prop_map(Some)];
    let key = prop_oneof![1 => Just(None), 6 => (0..3u8).prop_map(Some)];
    (0..3u8, 0..2u8, key, prop::bool::weighted(0.25), value, 1..6i64, 0..3i64).prop_map(
        |(identity, dataset, key, removes, value, count, second)| {
            let value = if removes { None } else { value };
            Change { identity, dataset, key, removes, value, count, second }
        },
    )
}

impl Change {
    fn wire(&self) -> String {
        let at = 1_767_225_600_000 + self.second * 86_400_000;
        let op = if self.removes { "remove" } else { "replace" };
        let records = self.key.map(|key| {
            json!([{"key": format!("k{key}"), "value": self.value, "op": op,
            "syncCount": self.count, "lastModifiedDate": at, "deviceLastModifiedDate": 0}])
        });
        let operation = if self.key.is_none() { "remove" } else { "replace" };
        let event = json!({
            "identityPoolId": "us-east-1:0a", "identityId": format!("us-east-1:{}", self.identity),
            "dataSetName": format!("d{}", self.dataset), "operation": operation, "kinesisSyncRecords": records,
            "lastModifiedDate": at, "payloadType": "Inline", "syncCount": self.count,
        });
        format!("{event}\n")
    }
}

/// Returns the live keys that the model expects after these changes, given in order of arrival.
fn model(changes: &[Change]) -> Live {
    // Maps identity, dataset and key to count, second and place in the order of arrival.
    let mut latest = BTreeMap::new();
    for (index, change) in changes.iter().enumerate() {
        let order = (change.count, change.second, index);
        let best = latest.entry((change.identity, change.dataset, change.key)).or_insert(order);
        *best = order.max(*best);
    }
    let mut live = Live::new();
    for (&(identity, dataset, key), &(count, second, index)) in &latest {
        let Some(key) = key else { continue };
        let removal = latest.get(&(identity, dataset, None)).map(|&(count, second, _)| (count, second));
        let change = &changes[index];
        if !change.removes && removal.is_none_or(|removal| (count, second) > removal) {
            let at = (format!("us-east-1:{identity}"), format!("d{dataset}"), format!("k{key}"));
            live.insert(at, (change.value.clone(), count));
        }
    }
    live
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history, in any number of files and refreshed after any of them, gives the state that the model expects.
    #[test]
    fn random_histories_agree_with_the_model(
        files in prop::collection::vec((prop::collection::vec(change(), 1..40), any::<bool>()), 1..4)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let lake = folder.path().join("lake");
        let mut all = Vec::new();
        for (index, (changes, refreshes)) in files.iter().enumerate() {
            let file = folder.path().join(format!("{index}.ndjson"));
            std::fs::write(&file, changes.iter().map(Change::wire).collect::<String>()).unwrap();
            ingest_file(&file, &lake);
            all.extend(changes.iter().cloned());
            if *refreshes {
                refresh(&lake);
                refresh(&lake);
            }
            let truth = model(&all);
            assert_live(&live(&lake, "current_state"), &truth, "current_state");
            assert_live(&live(&lake, FROM_ROWS), &truth, "from the rows");
            // An extract of a day follows each file. Later extracts build on earlier ones, also with late rows.
            let until = i64::try_from(index % 3).unwrap();
            let day = format!("2026-01-{:02}", until + 1);
            let known: Vec<Change> = all.iter().filter(|change| change.second <= until).cloned().collect();
            ok(synclake().args(["extract", "--date", &day, "--lake"]).arg(&lake));
            let stored = format!("daily_extract where kind = 'state' and extract_date = '{day}'");
            assert_live(&live(&lake, &stored), &model(&known), &day);
        }
    }
}

/// Refreshes that are killed before or after a commit, or that run at once, leave a correct state and no fault.
#[test]
fn a_killed_refresh_loses_nothing_and_leaves_nothing() {
    let cases = Cases::read();
    let folder = tempfile::tempdir().unwrap();
    let kill = |lake: &Path, point: &str| {
        let failpoint = format!("{point}=1*return(kill)");
        let killed = synclake().args(["refresh", "--lake"]).arg(lake).env("FAILPOINTS", failpoint).output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}");
    };
    let lake = cases.ingest(folder.path(), |_, lake| {
        for point in ["file/before", "file/after", "refresh/before", "commit/before", "commit/after", "refresh/after"] {
            kill(lake, point);
            assert_eq!(live(lake, "current_state"), live(lake, FROM_ROWS), "killed at {point}");
            // Add a row, so that the next refresh has work to do.
            let more = lake.with_file_name("more.ndjson");
            let number = std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap().count();
            let event =
                json!({"d": "more", "op": "replace", "n": number, "t": "2026-01-01T00:00:00Z", "r": [{"k": "k"}]});
            std::fs::write(&more, wire("us-east-1:ffff", &event).to_string() + "\n").unwrap();
            ingest_file(&more, lake);
        }
    });
    let all = || -> Vec<_> {
        let start = || synclake().args(["refresh", "--lake"]).arg(&lake).stdout(std::process::Stdio::null()).spawn();
        (0..4).map(|_| start().unwrap()).collect()
    };
    for mut child in all() {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(refresh(&lake)["files_read"], 0, "run again, it changes nothing");
    assert_eq!(live(&lake, "current_state"), live(&lake, FROM_ROWS));
    let report: Value =
        serde_json::from_str(&ok(synclake().args(["verify", "--format", "json", "--lake"]).arg(&lake))).unwrap();
    assert_eq!(report["faults"], json!([]));
    assert_eq!(report["tables"]["state"]["rows"], count(lake.to_str().unwrap(), "select count(*) from key_state"));
}

/// Rows without an identity, which only another writer can append, are in the state exactly once.
#[test]
fn rows_without_an_identity_are_in_the_state_once() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "60", "--days", "1"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    refresh(&lake);
    // The first round adds so many other identities that a refresh keeps the files of the state where it can.
    let script = "import sys, pyarrow, pyarrow.compute as c, tables; from deltalake import write_deltalake\n\
                  t = tables.read(sys.argv[1]); t = t.filter(c.is_valid(t['key'])).slice(0, 1)\n\
                  at = t.schema.get_field_index('identity_id'); others = int(sys.argv[2])\n\
                  t = t.take(pyarrow.array([0] * (others + 1)))\n\
                  identities = pyarrow.array([f'z{n}' for n in range(others)] + [None], t.schema.field(at).type)\n\
                  write_deltalake(sys.argv[1], t.set_column(at, t.schema.field(at), identities), mode='append')";
    let append = |others: &str| {
        ok(python().args(["-c", script]).arg(lake.join("sync_records")).arg(others));
    };
    let of = |relation: &str| {
        count(lake.to_str().unwrap(), &format!("select count(*) from {relation} where identity_id is null"))
    };
    for round in 0..3 {
        append(if round == 0 { "50000" } else { "0" });
        assert_eq!((of("sync_records"), of("key_state")), (round + 1, 1), "before refresh {round}");
        refresh(&lake);
        assert_eq!((of("state"), of("key_state")), (1, 1), "after refresh {round}");
    }
}

/// Returns a long history from a fixed seed.
fn history(changes: usize) -> Vec<Change> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let history = prop::collection::vec(change(), changes);
    history.new_tree(&mut runner).unwrap().current()
}

fn newest_version(table: &Path) -> u64 {
    let names = std::fs::read_dir(table.join("_delta_log")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok()).max().unwrap()
}

/// A guard that sets the flag when its thread ends, also by a panic.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Queries and extracts that run beside ingests and refreshes give the answer of the model for the version that they
/// read.
#[test]
fn answers_are_right_while_the_lake_changes() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let changes = history(240);
    // Number of changes that the lake holds, by version.
    let known = Mutex::new(BTreeMap::new());
    let ingest = |from: usize, to: usize| {
        let file = folder.path().join(format!("{from:03}.ndjson"));
        std::fs::write(&file, changes[from..to].iter().map(Change::wire).collect::<String>()).unwrap();
        ingest_file(&file, &lake);
        known.lock().unwrap().insert(newest_version(&lake.join("sync_records")), to);
    };
    ingest(0, 6);
    let written = AtomicBool::new(false);
    let is_written = || written.load(Relaxed);
    let (refreshes, extracts, asked) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _told = Told(&written);
            (6..changes.len()).step_by(6).for_each(|from| ingest(from, from + 6));
        });
        let refresher = scope.spawn(|| {
            let mut refreshes = 0;
            while !is_written() {
                refresh(&lake);
                refreshes += 1;
            }
            refreshes
        });
        let extractor = scope.spawn(|| {
            let mut extracts = Vec::new();
            for until in (0..3).cycle().take_while(|_| !is_written()) {
                let day = format!("2026-01-{:02}", until + 1);
                let mut extract = synclake();
                let report = ok(extract.args(["extract", "--no-refresh", "--date", &day, "--lake"]).arg(&lake));
                let report: Value = serde_json::from_str(&report).unwrap();
                let stored = format!("daily_extract where kind = 'state' and extract_date = '{day}'");
                extracts.push((until, report["covers"].as_u64().unwrap(), live(&lake, &stored)));
            }
            extracts
        });
        let mut asked = 0;
        while !is_written() {
            // One statement reads one lake snapshot, so the two paths must agree.
            let live = |from: &str| format!("select identity_id, dataset_name, key, value, sync_count from {from}");
            let (kept, rows_alone) = (live("current_state"), live(FROM_ROWS));
            let sql =
                format!("select count(*) from (({kept} except {rows_alone}) union all ({rows_alone} except {kept}))");
            assert_eq!(count(lake.to_str().unwrap(), &sql), 0);
            asked += 1;
        }
        writer.join().unwrap();
        (refresher.join().unwrap(), extractor.join().unwrap(), asked)
    });
    assert!(refreshes > 2 && extracts.len() > 2 && asked > 2, "{refreshes} {} {asked}", extracts.len());
    let known = known.into_inner().unwrap();
    for (until, covers, found) in extracts {
        let at = |changes: &[Change]| {
            let of_days: Vec<Change> = changes.iter().filter(|change| change.second <= until).cloned().collect();
            model(&of_days)
        };
        // A version between two known ones may hold the rows of the later ingest or not, because they come with one of
        // its commits.
        let (version, after) = known.range(covers..).next().unwrap();
        let before = known.range(..*version).next_back().map_or(0, |(_, before)| *before);
        let is_between = *version > covers && found == at(&changes[..before]);
        if !is_between {
            assert_live(&found, &at(&changes[..*after]), &format!("day {until} at version {covers}"));
        }
    }
    assert_live(&live(&lake, "current_state"), &model(&changes), "in the end");
}
