//! Tests of retention: `synclake policy`, and what leaves with `synclake care`.
//!
//! Most of them work on two lakes of the same events: one with a policy, and its twin without one. Whatever does not ask for
//! rows that left must be the same in both. `FAILPOINTS=store/clock=return(SECONDS)` sets the clock of the store to June.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chrono::{NaiveDate, Utc};
use serde_json::{Value, json};
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::retain;

use crate::harness::{assert_state_is_oracle, count, ingest_file, ok, query, refused, rows, simulate, synclake};
use crate::writers::{commit, listed, newest, remove};

/// The day that the clock of the store shows.
const TODAY: &str = "2026-06-01";

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

/// Returns the retention by which rows before `boundary` leave at `TODAY`.
fn before(boundary: &str) -> String {
    format!("{}d", (date(TODAY) - date(boundary)).num_days())
}

/// Returns the failpoint that sets the clock of the store to noon of `TODAY`.
fn clock() -> String {
    let noon = date(TODAY).and_hms_opt(12, 0, 0).unwrap().and_utc();
    format!("store/clock=return({})", (noon - Utc::now()).num_seconds())
}

fn command(lake: &Path, args: &[&str]) -> Command {
    let mut command = synclake();
    command.args(args).arg("--lake").arg(lake).env("FAILPOINTS", clock());
    command
}

fn output(lake: &Path, args: &[&str]) -> Output {
    command(lake, args).output().unwrap()
}

fn run(lake: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(&mut command(lake, args))).unwrap()
}

/// Sets the policy, and makes a round of care. Returns what left.
fn expire(lake: &Path, boundary: &str) -> Value {
    run(lake, &["policy", "--retain", &before(boundary)]);
    run(lake, &["care"])["expire"].clone()
}

/// Returns the rows of a query, sorted.
fn sorted(lake: &Path, sql: &str) -> Vec<String> {
    let mut rows: Vec<String> = rows(lake.to_str().unwrap(), sql).iter().map(Value::to_string).collect();
    rows.sort();
    rows
}

/// Returns the rows of the views of the state. The twins ingest a file at different times.
fn state(lake: &Path) -> [Vec<String>; 3] {
    ["* from current_state", "* from dataset_state", "* exclude (arrived_at) from key_state"]
        .map(|view| sorted(lake, &format!("select {view}")))
}

fn verified(lake: &Path) {
    let report: Value =
        serde_json::from_str(&ok(&mut command(lake, &["verify", "--deep", "--format", "json"]))).unwrap();
    assert_eq!(report["faults"], json!([]), "{report}");
}

fn dates_before(lake: &Path, boundary: &str) -> i64 {
    count(lake.to_str().unwrap(), &format!("select count(*) from sync_records where event_date < '{boundary}'"))
}

/// The same events for two lakes.
struct Twins {
    folder: tempfile::TempDir,
    parts: Vec<PathBuf>,
    oracle: PathBuf,
    aged: PathBuf,
    whole: PathBuf,
}

impl Twins {
    /// Generates the events of ten days in some parts, with many late ones and bulk copies.
    fn new(parts: usize, seed: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = ["--events", "900", "--days", "10", "--seed", seed, "--identities", "60", "--pools", "2"];
        let rare = ["--late", "0.05", "--bulk-copies", "0.03", "--dataset-removals", "0.03"];
        let (events, oracle) = simulate(folder.path(), &[&args[..], &rare].concat());
        let text = std::fs::read_to_string(events).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let write = |(n, part): (usize, &[&str])| {
            let path = folder.path().join(format!("part-{n}.ndjson"));
            std::fs::write(&path, part.concat()).unwrap();
            path
        };
        let parts = lines.chunks(lines.len().div_ceil(parts)).enumerate().map(write).collect();
        let (aged, whole) = (folder.path().join("aged"), folder.path().join("whole"));
        Self { parts, oracle, aged, whole, folder }
    }

    fn ingest(&self, part: usize) {
        for lake in [&self.aged, &self.whole] {
            ingest_file(&self.parts[part], lake);
        }
    }

    #[track_caller]
    fn assert_same_state(&self) {
        let (aged, whole) = (state(&self.aged), state(&self.whole));
        for (aged, whole) in aged.iter().zip(&whole) {
            let differs = aged.iter().zip(whole).find(|(aged, whole)| aged != whole);
            assert_eq!((aged.len(), differs), (whole.len(), None));
        }
    }
}

/// Days leave while events arrive, also late ones for days that have left, and the state never shows it.
#[test]
fn the_state_stays_right_while_days_leave() {
    let twins = Twins::new(5, "3");
    let boundaries = ["2026-01-01", "2026-01-02", "2026-01-04", "2026-01-07", "2026-01-09"];
    for (part, boundary) in boundaries.into_iter().enumerate() {
        twins.ingest(part);
        twins.assert_same_state();
        let left = expire(&twins.aged, boundary);
        assert_eq!(left["sync_records"]["waiting"], json!({}), "{left}");
        assert_eq!(dates_before(&twins.aged, boundary), 0, "{left}");
        twins.assert_same_state();
        verified(&twins.aged);
    }
    assert!(dates_before(&twins.whole, "2026-01-09") > 0);
    assert_state_is_oracle(twins.aged.to_str().unwrap(), &[&twins.oracle]);
    // Computed anew from the rows that are left and those of the state that left.
    let rebuilt = run(&twins.aged, &["refresh", "--rebuild"]);
    assert!(rebuilt["rows_written"].as_u64().unwrap() > 0, "{rebuilt}");
    twins.assert_same_state();
    // What is there is shown as it is there.
    let since = "select * exclude (arrived_at) from changes where event_date >= '2026-01-09'";
    assert_eq!(sorted(&twins.aged, since), sorted(&twins.whole, since));
    assert_eq!(run(&twins.aged, &["care"])["expire"]["sync_records"]["files"], 0, "nothing is left to do");
    // All rows leave, and the state of every key stays.
    let left = expire(&twins.aged, "2026-02-01");
    assert!(left["sync_records"]["files"].as_u64().unwrap() > 0, "{left}");
    assert_eq!(count(twins.aged.to_str().unwrap(), "select count(*) from sync_records"), 0);
    twins.assert_same_state();
    run(&twins.aged, &["refresh", "--rebuild"]);
    assert_state_is_oracle(twins.aged.to_str().unwrap(), &[&twins.oracle]);
    verified(&twins.aged);
}

/// The same rows come once more when their days have left: they land in the state, and leave again.
#[test]
fn rows_that_come_after_their_day_left_leave_with_the_next_round() {
    let twins = Twins::new(2, "4");
    twins.ingest(0);
    expire(&twins.aged, "2026-01-05");
    // Files are known by their content, so the events of the first part come in another order.
    let text = std::fs::read_to_string(&twins.parts[0]).unwrap();
    let again: String = text.lines().rev().flat_map(|line| [line, "\n"]).collect();
    let path = twins.folder.path().join("again.ndjson");
    std::fs::write(&path, again).unwrap();
    for lake in [&twins.aged, &twins.whole] {
        ingest_file(&path, lake);
    }
    assert!(dates_before(&twins.aged, "2026-01-05") > 0);
    twins.assert_same_state();
    twins.ingest(1);
    let left = expire(&twins.aged, "2026-01-05");
    assert!(left["sync_records"]["rows"].as_u64().unwrap() > 0, "{left}");
    assert_eq!(dates_before(&twins.aged, "2026-01-05"), 0);
    twins.assert_same_state();
    assert_state_is_oracle(twins.aged.to_str().unwrap(), &[&twins.oracle]);
}

/// Files that the state does not cover stay, and the report says so.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_state_lacks_wait() {
    let twins = Twins::new(2, "5");
    ingest_file(&twins.parts[0], &twins.aged);
    // This clock is the true one.
    let days = (Utc::now().date_naive() - date("2026-01-20")).num_days();
    run(&twins.aged, &["policy", "--retain", &format!("{days}d")]);
    let lake = Store::open(&Location::Folder(twins.aged.clone()), &AwsSettings::default()).await.unwrap();
    let without = retain::expire(&lake).await.unwrap().sync_records;
    assert_eq!((without.files, without.version), (0, None), "there is no state: {without:?}");
    run(&twins.aged, &["refresh"]);
    let covered = listed(&twins.aged, "sync_records");
    ingest_file(&twins.parts[1], &twins.aged);
    let left = retain::expire(&lake).await.unwrap().sync_records;
    let stay = listed(&twins.aged, "sync_records");
    assert_eq!(left.files, covered.len() as u64);
    assert_eq!(left.waiting, [("not_refreshed", stay.len() as u64)].into());
    assert!(!stay.is_empty() && stay.keys().all(|path| !covered.contains_key(path)));
    assert_state_is_oracle(twins.aged.to_str().unwrap(), &[&twins.oracle]);
    // Another writer moves rows of the tail to another file, and still they wait.
    let (_, add) = stay.first_key_value().unwrap();
    commit(
        &twins.aged,
        "sync_records",
        "OPTIMIZE",
        &[remove(add, false), crate::writers::copy(&twins.aged, add, false)],
    );
    assert_eq!(retain::expire(&lake).await.unwrap().sync_records.waiting, left.waiting);
    // Another writer deleted rows that the state has: it must be computed anew before anything leaves.
    run(&twins.aged, &["refresh"]);
    let all = listed(&twins.aged, "sync_records");
    let days = |add: &&Value| add["partitionValues"]["event_date"].as_str().unwrap().to_owned();
    let (oldest, newest) = (all.values().min_by_key(days).unwrap(), all.values().max_by_key(days).unwrap());
    commit(&twins.aged, "sync_records", "DELETE", &[remove(newest, true)]);
    let waiting = retain::expire(&lake).await.unwrap().sync_records.waiting;
    assert_eq!(waiting, [("not_refreshed", all.len() as u64 - 1)].into());
    // It cannot tell late rows of a day that left from those that left.
    commit(&twins.aged, "sync_records", "DELETE", &[remove(oldest, true)]);
    let error = retain::expire(&lake).await.unwrap_err().to_string();
    assert!(error.contains("DELETE the same rows from the table state"), "{error}");
}

fn kill(lake: &Path, failpoint: &str) {
    let mut killed = command(lake, &["care"]);
    killed.env("FAILPOINTS", format!("{};{failpoint}=1*return(kill)", clock()));
    assert!(!killed.output().unwrap().status.success());
}

#[test]
fn a_killed_round_loses_nothing() {
    let twins = Twins::new(2, "6");
    twins.ingest(0);
    for (part, failpoint) in [(1, "expire/before"), (0, "expire/after")] {
        if part == 1 {
            twins.ingest(1);
        }
        run(&twins.aged, &["policy", "--retain", &before(if part == 1 { "2026-01-04" } else { "2026-01-08" })]);
        kill(&twins.aged, failpoint);
        twins.assert_same_state();
        verified(&twins.aged);
    }
    let left = run(&twins.aged, &["care"])["expire"].clone();
    assert_eq!(left["sync_records"]["files"], 0, "the commit was made before the second kill: {left}");
    assert_eq!(dates_before(&twins.aged, "2026-01-08"), 0);
    twins.assert_same_state();
}

fn deliver(lake: &Path, out: &Path) -> u64 {
    let out = out.to_str().unwrap();
    run(lake, &["deliver", "--consumer", "c", "--format", "ndjson", "--out", out])["rows"].as_u64().unwrap()
}

/// Rows wait for every consumer, and each row is delivered once.
#[test]
fn consumers_get_each_row_once() {
    let twins = Twins::new(3, "7");
    let (of_aged, of_whole) = (twins.folder.path().join("a"), twins.folder.path().join("w"));
    let mut delivered = (0, 0);
    let mut deliver_both = || {
        delivered = (delivered.0 + deliver(&twins.aged, &of_aged), delivered.1 + deliver(&twins.whole, &of_whole));
        assert_eq!(delivered.0, delivered.1);
    };
    twins.ingest(0);
    deliver_both();
    let first = listed(&twins.aged, "sync_records").len() as u64;
    twins.ingest(1);
    let all = listed(&twins.aged, "sync_records").len() as u64;
    let left = expire(&twins.aged, "2026-02-01");
    let sums = &left["sync_records"];
    assert_eq!((&sums["files"], &sums["waiting"]), (&first.into(), &json!({"not_delivered": all - first})), "{left}");
    twins.assert_same_state();
    deliver_both();
    // The cursor is below the next expiry, and rows that came before it are delivered after it.
    let left = run(&twins.aged, &["care"])["expire"].clone();
    assert_eq!((&left["sync_records"]["files"], &left["sync_records"]["waiting"]), (&(all - first).into(), &json!({})));
    twins.ingest(2);
    run(&twins.aged, &["care"]);
    deliver_both();
    assert_eq!(deliver(&twins.aged, &of_aged), 0);
    verified(&twins.aged);
}

fn extract(lake: &Path, day: &str) -> Value {
    run(lake, &["extract", "--no-refresh", "--date", day])
}

/// Extracts are those of a lake from which nothing left, and rows wait for them.
#[test]
fn extracts_are_those_of_a_lake_that_keeps_everything() {
    let twins = Twins::new(4, "8");
    let extracts = |lake: &Path, from: &str| {
        sorted(lake, &format!("select * exclude (arrived_at) from daily_state where extract_date >= '{from}'"))
    };
    let both = |day: &str| {
        for lake in [&twins.aged, &twins.whole] {
            extract(lake, day);
        }
        assert_eq!(extracts(&twins.aged, "2026-01-01"), extracts(&twins.whole, "2026-01-01"), "{day}");
    };
    twins.ingest(0);
    both("2026-01-02");
    let left = expire(&twins.aged, "2026-01-06");
    assert!(left["sync_records"]["waiting"]["not_extracted"].as_u64().unwrap() > 0, "{left}");
    assert_eq!(dates_before(&twins.aged, "2026-01-03"), 0, "the extract holds them");
    for (part, day) in [(1, "2026-01-04"), (2, "2026-01-06"), (3, "2026-01-09")] {
        twins.ingest(part);
        run(&twins.aged, &["care"]);
        both(day);
        run(&twins.aged, &["care"]);
        verified(&twins.aged);
    }
    assert_eq!(dates_before(&twins.aged, "2026-01-06"), 0);
    // A day that needs rows which left is refused, and stays as it is.
    refused(
        &output(&twins.aged, &["extract", "--no-refresh", "--date", "2026-01-03"]),
        1,
        &["the extract of 2026-01-03 needs rows", "left by retention", "2026-01-06", "extract a later day"],
    );
    // Late days that cannot be corrected are left alone, and the others are corrected.
    let corrected = extract_corrected(&twins.aged, "2026-01-10");
    assert_eq!(corrected["corrected"], json!([]), "{corrected}");
    extract(&twins.whole, "2026-01-10");
    assert_eq!(extracts(&twins.aged, "2026-01-10"), extracts(&twins.whole, "2026-01-10"));

    // Extracts leave by their own retention, and the newest one stays.
    run(&twins.aged, &["policy", "--table", "daily_state", "--retain", &before("2026-03-01")]);
    let left = run(&twins.aged, &["care"])["expire"].clone();
    assert!(left["daily_state"]["files"].as_u64().unwrap() > 0, "{left}");
    assert_eq!(
        sorted(&twins.aged, "select distinct extract_date from daily_state"),
        [r#"{"extract_date":"2026-01-10"}"#]
    );
    for lake in [&twins.aged, &twins.whole] {
        extract(lake, "2026-01-11");
    }
    assert_eq!(extracts(&twins.aged, "2026-01-10"), extracts(&twins.whole, "2026-01-10"));
    verified(&twins.aged);
    assert_eq!(run(&twins.aged, &["status"])["extracts"]["days"], 2);
}

fn extract_corrected(lake: &Path, day: &str) -> Value {
    run(lake, &["extract", "--no-refresh", "--correct", "--date", day])
}

/// Returns the identities of a file's rows, with the keys.
fn keys_of(lake: &Path, add: &Value) -> BTreeSet<String> {
    let partition = &add["partitionValues"];
    let sql = format!(
        "select identity_id, dataset_name from sync_records where pool = '{}' and event_date = '{}'",
        partition["pool"].as_str().unwrap(),
        partition["event_date"].as_str().unwrap()
    );
    sorted(lake, &sql).into_iter().collect()
}

/// Another writer deletes rows that are there: the state is computed anew, and keeps what left.
#[test]
fn a_state_that_is_computed_anew_keeps_what_left() {
    let twins = Twins::new(1, "9");
    twins.ingest(0);
    expire(&twins.aged, "2026-01-06");
    // Nothing is lost, so no loss is accepted.
    refused(&output(&twins.aged, &["refresh", "--rebuild", "--accept-loss"]), 1, &["for nothing", "--rebuild`"]);
    let files = listed(&twins.aged, "sync_records");
    let gone = files.values().find(|add| add["partitionValues"]["event_date"] == "2026-01-08").unwrap();
    let touched = keys_of(&twins.aged, gone);
    let others = |lake: &Path| -> Vec<Value> {
        let order = "order by pool, identity_id, dataset_name, key";
        let all = rows(lake.to_str().unwrap(), &format!("select * exclude (arrived_at) from key_state {order}"));
        let dataset =
            |row: &Value| json!({"identity_id": row["identity_id"], "dataset_name": row["dataset_name"]}).to_string();
        all.into_iter().filter(|row| !touched.contains(&dataset(row))).collect()
    };
    let before_it = others(&twins.whole);
    let all = || count(twins.aged.to_str().unwrap(), "select count(*) from key_state");
    let whole = all();
    commit(&twins.aged, "sync_records", "DELETE", &[remove(gone, true)]);
    refused_query(&twins.aged, &[], "select * from current_state", &["run `synclake refresh`"]);
    let status = run(&twins.aged, &["status"]);
    assert!(status["retention"]["refused"].as_str().unwrap().contains("run `synclake refresh`"), "{status}");
    let advice = status["next"][0]["text"].as_str().unwrap();
    assert!(advice.starts_with("Queries of the current state are refused: "), "{advice}");
    let refreshed = run(&twins.aged, &["refresh"]);
    assert_eq!(run(&twins.aged, &["status"])["retention"]["refused"], Value::Null);
    assert!(refreshed["files_replaced"].as_u64().unwrap() > 0, "{refreshed}");
    assert!(others(&twins.aged) == before_it, "other datasets");
    assert!(all() < whole, "keys whose latest row was deleted are gone");
    verified(&twins.aged);
    // The log does not reach back to the version that the state covers.
    ingest_file(&twins.parts[0], &twins.aged);
    let newest = std::fs::read_dir(twins.aged.join("sync_records/_delta_log")).unwrap().count();
    assert!(newest > 3);
    // An erasure of rows that left: they are deleted from the state.
    let (_, add) = listed(&twins.aged, "state").pop_first().unwrap();
    let of_pool =
        format!("select count(*) from key_state where pool = '{}'", add["partitionValues"]["pool"].as_str().unwrap());
    let had = count(twins.aged.to_str().unwrap(), &of_pool);
    commit(&twins.aged, "state", "DELETE", &[remove(&add, true)]);
    refused_query(&twins.aged, &[], "select * from key_state", &["run `synclake refresh`"]);
    run(&twins.aged, &["refresh"]);
    let has = count(twins.aged.to_str().unwrap(), &of_pool);
    assert!(has < had, "rows that are in the state alone are erased: {has} of {had}");
}

fn refused_query(lake: &Path, more: &[&str], sql: &str, parts: &[&str]) {
    let output = query().arg("--lake").arg(lake).args(more).args(["-c", sql]).output().unwrap();
    refused(&output, 1, &[&["left by retention"], parts].concat());
}

/// Copies a folder.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap().path();
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy_folder(&entry, &target),
            false => drop(std::fs::copy(&entry, &target).unwrap()),
        }
    }
}

/// Answers that need rows that left are errors, and never made from what is left.
#[test]
fn what_needs_rows_that_left_is_refused() {
    let twins = Twins::new(2, "10");
    let lake = &twins.aged;
    twins.ingest(0);
    run(lake, &["refresh"]);
    let older = twins.folder.path().join("older");
    copy_folder(&lake.join("state"), &older);
    twins.ingest(1);
    refused(&output(lake, &["policy", "--retain", "6d"]), 2, &["shorter than 7d"]);
    expire(lake, "2026-01-06");
    let current = "select count(*) from current_state";
    let whole = count(lake.to_str().unwrap(), current);
    refused_query(lake, &["--as-of", "2026-01-08"], current, &["the state of 2026-01-08", "leave --as-of out"]);
    refused_query(lake, &[], "select count(*) from resolved", &["the view resolved", "query key_state"]);
    assert!(count(lake.to_str().unwrap(), "select count(*) from information_schema.tables") > 5);
    refused(
        &output(lake, &["extract", "--no-refresh", "--date", "2026-01-08"]),
        1,
        &["the extract of 2026-01-08 needs rows", "no earlier extract"],
    );

    let refused_everywhere = |part: &str| {
        refused_query(lake, &[], current, &[part]);
        refused_query(lake, &[], "select * from dataset_state", &[part]);
        for args in [&["refresh"][..], &["refresh", "--rebuild"]] {
            refused(&output(lake, args), 1, &["left by retention", part]);
        }
    };
    let good = twins.folder.path().join("good");
    copy_folder(&lake.join("state"), &good);
    let put = |from: &Path| {
        std::fs::remove_dir_all(lake.join("state")).unwrap();
        copy_folder(from, &lake.join("state"));
    };
    // The state of an older copy lacks rows that left since.
    put(&older);
    refused_everywhere("older than they were");
    let verify = output(lake, &["verify", "--format", "json"]);
    assert!(!verify.status.success() && String::from_utf8_lossy(&verify.stdout).contains("must cover version"));
    put(&good);
    // Another writer changed it in a way that leaves rows out or brings others.
    let (_, add) = listed(lake, "state").pop_first().unwrap();
    commit(lake, "state", "RESTORE", &[remove(&add, true)]);
    refused_everywhere("another writer changed the table state");
    put(&good);
    assert_eq!(count(lake.to_str().unwrap(), current), whole);
    // A damaged file, and a damaged log.
    let file = lake.join("state").join(add["path"].as_str().unwrap());
    std::fs::write(&file, "damaged").unwrap();
    refused(&output(lake, &["refresh", "--rebuild"]), 1, &["alone holds rows that left"]);
    put(&good);
    std::fs::write(lake.join("state/_delta_log/00000000000000000001.json"), "damaged").unwrap();
    refused_everywhere("restore the folder of that table");
    refused(&output(lake, &["status"]), 1, &["restore the folder of that table"]);
    // There is none.
    std::fs::remove_dir_all(lake.join("state")).unwrap();
    refused_everywhere("the table state is missing");
    let verify = output(lake, &["verify", "--format", "json"]);
    assert!(!verify.status.success() && String::from_utf8_lossy(&verify.stdout).contains("covers none"));
    // The way out, for those who have no copy.
    run(lake, &["refresh", "--rebuild", "--accept-loss"]);
    assert!(count(lake.to_str().unwrap(), current) < whole);
    verified(lake);
}

/// The policy is a property of the table, which other writers see, set and break.
#[test]
fn a_policy_lives_in_the_lake() {
    let twins = Twins::new(1, "11");
    let lake = &twins.aged;
    twins.ingest(0);
    let without = newest(lake, "sync_records", "metaData")["metaData"].clone();
    let pool = listed(lake, "sync_records").values().next().unwrap()["partitionValues"]["pool"].clone();
    let pool = pool.as_str().unwrap();
    let id = pool.replacen('_', ":", 1);
    assert_eq!(run(lake, &["policy"])["sync_records"]["retain"], Value::Null);
    run(lake, &["policy", "--retain", "400d"]);
    run(lake, &["policy", "--retain", "30d", "--pool", &id]);
    run(lake, &["policy", "--retain", "90d", "--table", "daily_state"]);
    let policy = json!({
        "sync_records": {"retain": "400d", "pools": {pool: "30d"}}, "daily_state": {"retain": "90d"}, "complete_from": {},
    });
    assert_eq!(run(lake, &["policy"]), policy);
    let mut shown = policy;
    shown["problem"] = Value::Null;
    shown["refused"] = Value::Null;
    assert_eq!(run(lake, &["status"])["retention"], shown);
    let text = ok(&mut command(lake, &["status", "--format", "human"]));
    assert!(text.contains(&format!("RETAIN    sync_records 400d, daily_state 90d, pool {pool} 30d\n")), "{text}");
    // Nothing else of the metadata changed.
    let mut with = newest(lake, "sync_records", "metaData")["metaData"].clone();
    let properties = with["configuration"].as_object_mut().unwrap();
    assert_eq!(properties.remove("synclake.retain"), Some("400d".into()));
    assert_eq!(properties.remove(&format!("synclake.retain.{pool}")), Some("30d".into()));
    assert_eq!(with, without);

    // Only that pool is due.
    let left = run(lake, &["care"])["expire"].clone();
    let rest = count(lake.to_str().unwrap(), &format!("select count(*) from sync_records where pool = '{pool}'"));
    assert!(rest == 0 && left["sync_records"]["files"].as_u64().unwrap() > 0, "{left}");
    assert!(count(lake.to_str().unwrap(), "select count(*) from sync_records") > 0);
    let from = run(lake, &["policy"])["complete_from"].clone();
    assert_eq!(from.as_object().unwrap().keys().collect::<Vec<_>>(), [pool]);
    // Programs that do not know retention would compute the state without these rows.
    assert_eq!(newest(lake, "sync_records", "metaData")["metaData"]["configuration"]["synclake.format"], "3");
    twins.assert_same_state();

    for args in [
        &["policy", "--retain", "30d", "--pool", "us-east-1:nobody"][..],
        &["policy", "--retain", "30d", "--pool", &id, "--table", "daily_state"],
        &["policy", "--retain", "default"],
        &["policy", "--retain", "default", "--table", "daily_state"],
        &["policy", "--table", "daily_state"],
        &["policy", "--retain", "1y"],
        &["policy", "--pool", &id],
    ] {
        assert!(!output(lake, args).status.success(), "{args:?}");
    }
    // `forever` of a pool stays, because it would fall to the policy of the table.
    run(lake, &["policy", "--retain", "forever", "--pool", &id]);
    assert_eq!(run(lake, &["policy"])["sync_records"]["pools"], json!({pool: "forever"}));
    run(lake, &["policy", "--retain", "default", "--pool", &id]);
    assert_eq!(run(lake, &["policy"])["sync_records"], json!({"retain": "400d"}));

    // Another writer sets a value without meaning: nothing leaves, and the other steps go on.
    let mut broken = newest(lake, "sync_records", "metaData");
    broken["metaData"]["configuration"]["synclake.retain"] = "a while".into();
    commit(lake, "sync_records", "SET TBLPROPERTIES", &[broken]);
    let files = listed(lake, "sync_records").len();
    let output = output(lake, &["care"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("synclake.retain of the table sync_records"), "{error}");
    assert!(report["expire"].is_null() && report["compact"].is_object() && report["vacuum"].is_object(), "{report}");
    assert!(listed(lake, "sync_records").len() <= files);
    let status = run(lake, &["status"]);
    assert!(status["retention"]["problem"].as_str().unwrap().contains("a while"), "{status}");
    let advised = status["next"].as_array().unwrap().iter().map(|advice| advice["text"].as_str().unwrap());
    assert!(advised.into_iter().any(|text| text.contains("synclake.retain") && text.contains("a while")), "{status}");
    run(lake, &["policy", "--retain", "forever"]);
    assert_eq!(run(lake, &["care"])["expire"]["sync_records"]["files"], 0);
}

/// Another writer deletes rows of `sync_records` and of an extract: the next extract takes from the earlier one what left,
/// and computes everything else from the rows.
#[test]
fn extracts_after_a_deletion_keep_what_left() {
    let twins = Twins::new(1, "12");
    twins.ingest(0);
    extract(&twins.aged, "2026-01-06");
    expire(&twins.aged, "2026-01-05");
    let files = listed(&twins.aged, "sync_records");
    let gone = files.values().find(|add| add["partitionValues"]["event_date"] == "2026-01-06").unwrap();
    let touched = keys_of(&twins.aged, gone);
    commit(&twins.aged, "sync_records", "DELETE", &[remove(gone, true)]);
    let waits = expire(&twins.aged, "2026-01-06");
    assert!(waits["sync_records"]["waiting"]["not_extracted"].as_u64().unwrap() > 0, "{waits}");
    let others = |lake: &Path, day: &str| -> Vec<Value> {
        let sql = format!(
            "select pool, identity_id, dataset_name, key, value, op, sync_count from daily_state \
             where extract_date = '{day}' and kind in ('state', 'removed') \
             order by pool, identity_id, dataset_name, key"
        );
        let dataset =
            |row: &Value| json!({"dataset_name": row["dataset_name"], "identity_id": row["identity_id"]}).to_string();
        let touched: BTreeSet<String> =
            touched.iter().map(|row| dataset(&serde_json::from_str(row).unwrap())).collect();
        rows(lake.to_str().unwrap(), &sql).into_iter().filter(|row| !touched.contains(&dataset(row))).collect()
    };
    assert_eq!(extract(&twins.aged, "2026-01-08")["base"], "2026-01-06");
    extract(&twins.whole, "2026-01-08");
    let (aged, whole) = (others(&twins.aged, "2026-01-08"), others(&twins.whole, "2026-01-08"));
    assert!(!whole.is_empty());
    assert!(aged == whole, "other datasets");
    // The new extract was computed after the deletion, so rows may leave again.
    let left = run(&twins.aged, &["care"])["expire"].clone();
    assert_eq!(left["sync_records"]["waiting"], json!({}), "{left}");

    // An extract of which a DELETE took whole files is no base: nobody knows what it held. The extracts before it stay.
    let of_day = |day: &str, lake: &Path| {
        let all = listed(lake, "daily_state");
        all.into_values().find(|add| add["partitionValues"]["extract_date"] == day).unwrap()
    };
    let add = of_day("2026-01-08", &twins.aged);
    commit(&twins.aged, "daily_state", "DELETE", &[remove(&add, true)]);
    let waits = expire(&twins.aged, "2026-01-07");
    assert!(waits["sync_records"]["waiting"]["not_extracted"].as_u64().unwrap() > 0, "{waits}");
    run(&twins.aged, &["policy", "--table", "daily_state", "--retain", "7d"]);
    let waits = run(&twins.aged, &["care"])["expire"].clone();
    assert!(waits["daily_state"]["waiting"]["newest_changed"].as_u64().unwrap() > 0, "{waits}");
    assert!(
        listed(&twins.aged, "daily_state").values().any(|add| add["partitionValues"]["extract_date"] == "2026-01-06")
    );
    refused(
        &output(&twins.aged, &["extract", "--quiet", "--no-refresh", "--date", "2026-01-10"]),
        1,
        &["the extract of 2026-01-10 needs rows", "no earlier extract"],
    );
}
