//! Tests that `verify` reports no fault in an intact lake and finds each kind of damage.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{ingest_file, ok, python, simulate, synclake, text};

fn grown_lake(folder: &Path) -> PathBuf {
    let (events, _) = simulate(folder, &["--events", "600", "--seed", "4"]);
    let lines = std::fs::read_to_string(&events).unwrap();
    let half = lines[..lines.len() / 2].rfind('\n').unwrap() + 1;
    let lake = folder.join("lake");
    let growing = folder.join("growing.ndjson");
    std::fs::write(&growing, &lines[..half]).unwrap();
    ingest_file(&growing, &lake);
    std::fs::write(&growing, &lines).unwrap();
    ingest_file(&growing, &lake);
    lake
}

fn commits(lake: &Path) -> Vec<PathBuf> {
    let log = std::fs::read_dir(lake.join("sync_records/_delta_log")).unwrap();
    let mut found: Vec<_> =
        log.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    found.sort();
    found
}

fn edit(path: &Path, change: impl Fn(&mut Value) -> bool) {
    let lines = std::fs::read_to_string(path).unwrap();
    let mut changed = 0;
    let edited: Vec<String> = lines
        .lines()
        .map(|line| {
            let mut action: Value = serde_json::from_str(line).unwrap();
            changed += usize::from(change(&mut action));
            action.to_string()
        })
        .collect();
    assert!(changed > 0, "nothing to change in {}", path.display());
    std::fs::write(path, edited.join("\n")).unwrap();
}

#[track_caller]
fn assert_fault(lake: &Path, part: &str) {
    let output = synclake().args(["verify", "--format", "json", "--lake"]).arg(lake).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults = report["faults"].as_array().unwrap();
    assert!(faults.iter().any(|f| f.as_str().unwrap().contains(part)), "{part:?} is not among {faults:#?}");
    assert!(text(&output.stderr).contains("is damaged"));
}

/// `verify` reports no fault in an intact lake, and counts the commits that it checked.
#[test]
fn a_whole_lake_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let lake = grown_lake(folder.path());
    let report: Value =
        serde_json::from_str(&ok(synclake().args(["verify", "--format", "json", "--lake"]).arg(&lake))).unwrap();
    assert_eq!(report["faults"], serde_json::json!([]));
    let shard = report["shards"].as_object().unwrap().values().next().unwrap();
    assert_eq!((&shard["commits"], &shard["commits_checked"]), (&4.into(), &4.into()), "two fences and two flushes");
    assert!(
        ok(synclake().args(["verify", "--format", "human", "--lake"]).arg(&lake)).contains("4 commits (4 checked)")
    );
}

/// Text that the report must contain, and the function that does the damage.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

/// `verify` finds each kind of damage and names it.
#[test]
fn each_kind_of_damage_is_found() {
    let data_file = |lake: &Path| {
        let listed = std::fs::read_to_string(&commits(lake)[2]).unwrap();
        let add =
            listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|a| a.get("add").is_some()).unwrap();
        lake.join("sync_records").join(add["add"]["path"].as_str().unwrap())
    };
    let damages: &[Damage<'_>] = &[
        ("does not exist", &|lake| std::fs::remove_file(data_file(lake)).unwrap()),
        ("no readable Parquet", &|lake| std::fs::write(data_file(lake), "PAR1 and nothing").unwrap()),
        ("the log claims", &|lake| {
            edit(&commits(lake)[2], |action| {
                let Some(stats) = action.pointer_mut("/add/stats") else { return false };
                let mut inner: Value = serde_json::from_str(stats.as_str().unwrap()).unwrap();
                inner["numRecords"] = 1_000_000.into();
                *stats = inner.to_string().into();
                true
            });
        }),
        ("expected 3", &|lake| {
            edit(&commits(lake)[3], |action| {
                let id = action.pointer("/txn/appId").and_then(Value::as_str).unwrap_or_default();
                let is_number = id.matches('/').count() == 2;
                if is_number {
                    action["txn"]["version"] = 4.into();
                }
                is_number
            });
        }),
        ("went back", &|lake| {
            edit(&commits(lake)[4], |action| {
                let is_limb =
                    action.pointer("/txn/appId").and_then(Value::as_str).is_some_and(|id| id.ends_with("/seq0"));
                if is_limb {
                    action["txn"]["version"] = 1.into();
                }
                is_limb
            });
        }),
        // A later commit lists the same file again, so its rows are in the lake twice.
        ("outside the range of the commit", &|lake| {
            let first = std::fs::read_to_string(&commits(lake)[2]).unwrap();
            let add = first.lines().find(|l| l.starts_with("{\"add\"")).unwrap().to_owned();
            let source = data_file(lake);
            let last = std::fs::read_to_string(&commits(lake)[4]).unwrap();
            let theirs: Value = last
                .lines()
                .map(|l| serde_json::from_str::<Value>(l).unwrap())
                .find(|a| a.get("add").is_some())
                .unwrap();
            let name = Path::new(theirs["add"]["path"].as_str().unwrap())
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .replace("-0000", "-0900");
            let mut add: Value = serde_json::from_str(&add).unwrap();
            let copy = Path::new(add["add"]["path"].as_str().unwrap()).with_file_name(&name);
            std::fs::copy(source, lake.join("sync_records").join(&copy)).unwrap();
            add["add"]["path"] = copy.to_str().unwrap().into();
            std::fs::write(&commits(lake)[4], format!("{last}\n{add}")).unwrap();
        }),
    ];
    for (part, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        let lake = grown_lake(folder.path());
        damage(&lake);
        assert_fault(&lake, part);
    }
}

/// Quarantined records and gaps that are gone are missed.
#[test]
fn a_missing_table_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let lake = grown_lake(folder.path());
    std::fs::remove_dir_all(lake.join("gaps")).unwrap();
    assert_fault(&lake, "the table gaps is missing; restore it from a backup");
}

/// `verify --deep` finds a flipped bit, even if the file can still be decoded.
#[test]
fn a_flipped_bit_is_found_by_a_deep_look() {
    let folder = tempfile::tempdir().unwrap();
    let lake = grown_lake(folder.path());
    let listed = std::fs::read_to_string(&commits(&lake)[2]).unwrap();
    let adds: Vec<Value> = listed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect();
    let path = adds.iter().find_map(|action| action["add"]["path"].as_str()).unwrap();
    let path = lake.join("sync_records").join(path);
    let whole = std::fs::read(&path).unwrap();
    for at in [whole.len() / 4, whole.len() / 2, whole.len() - 20] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let deep = synclake().args(["verify", "--deep", "--lake"]).arg(&lake).output().unwrap();
        assert_eq!(deep.status.code(), Some(1), "{at}");
        assert!(text(&deep.stdout).contains("SHA-256"), "{at}: {}", text(&deep.stdout));
    }
    std::fs::write(&path, whole).unwrap();
    ok(synclake().args(["verify", "--deep", "--lake"]).arg(&lake));
}

/// A commit that lost its bytes is a fault.
#[test]
fn an_empty_commit_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let lake = grown_lake(folder.path());
    let last = commits(&lake).pop().unwrap();
    std::fs::write(last, "").unwrap();
    let output = synclake().args(["verify", "--lake"]).arg(&lake).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("the commit is empty"), "{}", text(&output.stdout));
}

/// A cleaned-up log lacks history but no row: `verify` reports no fault, and says from which version on it can check.
#[test]
fn a_cleaned_log_is_told_and_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let lake = grown_lake(folder.path());
    let script = "import sys, deltalake; deltalake.DeltaTable(sys.argv[1]).create_checkpoint()";
    ok(python().args(["-c", script]).arg(lake.join("sync_records")));
    for commit in &commits(&lake)[..3] {
        std::fs::remove_file(commit).unwrap();
    }
    let report = ok(synclake().args(["verify", "--format", "json", "--lake"]).arg(&lake));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["faults"], &report["tables"]["sync_records"]["log_from"]), (&serde_json::json!([]), &3.into()));
    let shard = report["shards"].as_object().unwrap().values().next().unwrap();
    assert_eq!((&shard["commits"], &shard["commits_checked"]), (&4.into(), &2.into()));
    let human = ok(synclake().args(["verify", "--format", "human", "--lake"]).arg(&lake));
    assert!(human.contains("nothing before version 3 is checked"), "{human}");
}
