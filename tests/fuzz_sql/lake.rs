//! A small random lake: several commits with refreshes and an extract between them, late rows, copies, nulls, Unicode
//! and removals.

use std::path::{Path, PathBuf};

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde_json::{Value, json};

use crate::harness::{ingest_file, ok, synclake};

/// 2026-01-01T00:00:00Z.
const START_MS: i64 = 1_767_225_600_000;
const DAY_MS: i64 = 86_400_000;
const POOLS: [&str; 3] = ["us-east-1:00aa", "us-east-1:00bb", "eu-west-1:00cc"];
const IDENTITIES: [&str; 7] =
    ["us-east-1:01", "us-east-1:02", "us-east-1:03", "us-east-1:04", "eu-west-1:05", "a:06", "b:07"];
const DATASETS: [&str; 4] = ["profile", "prefs", "..", "größe"];
/// Keys of the records. The values of `score` are integers, the values of the others are any text.
const KEYS: [&str; 6] = ["score", "name", "a", "B", "zz", "k%_"];
const TEXTS: [&str; 9] = ["", "a", "A", "anna", "zoë", "日本", "a%b_c", "true", "x y"];

/// Returns the literals that queries compare a column with.
pub(super) fn literals(column: &str) -> Vec<&'static str> {
    let pools = ["us-east-1_00aa", "us-east-1_00bb", "eu-west-1_00cc", "x", "us-east-1_00b"];
    match column {
        "pool" => pools.to_vec(),
        "identity_pool_id" | "identitypoolid" => POOLS.to_vec(),
        "identity_id" | "identityid" => IDENTITIES.to_vec(),
        "dataset_name" | "datasetname" => DATASETS.to_vec(),
        "key" => KEYS.to_vec(),
        "op" | "operation" => vec!["replace", "remove", "x"],
        "kind" => vec!["state", "change", "removed", "correction"],
        _ => TEXTS.to_vec(),
    }
}

fn event(rng: &mut impl Rng, day: i64) -> Value {
    let at = START_MS + day * DAY_MS + rng.random_range(0..DAY_MS / 1000) * 1000;
    let count = rng.random_range(1..9_i64);
    let mut event = json!({
        "identityPoolId": POOLS.choose(rng), "identityId": IDENTITIES.choose(rng), "dataSetName": DATASETS.choose(rng),
        "operation": "replace", "lastModifiedDate": at, "syncCount": count,
    });
    if rng.random_bool(0.12) {
        event["operation"] = json!("remove");
        return event;
    }
    if rng.random_bool(0.1) {
        event["clientVersion"] = json!("7");
    }
    let records: Vec<Value> = (0..rng.random_range(1..4)).map(|_| record(rng, at, count)).collect();
    event["kinesisSyncRecords"] = json!(records);
    event
}

fn record(rng: &mut impl Rng, at: i64, count: i64) -> Value {
    let key = *KEYS.choose(rng).unwrap();
    let removes = rng.random_bool(0.2);
    let value = match key {
        _ if removes => Value::Null,
        "score" => json!(rng.random_range(-5..100).to_string()),
        _ if rng.random_bool(0.1) => Value::Null,
        _ => json!(TEXTS.choose(rng)),
    };
    let mut record = json!({"key": key, "value": value, "op": if removes { "remove" } else { "replace" }});
    if rng.random_bool(0.7) {
        record["syncCount"] = json!((count + rng.random_range(-1..2)).max(0));
        record["lastModifiedDate"] = json!(at - rng.random_range(0..3) * DAY_MS / 2);
    }
    if rng.random_bool(0.6) {
        record["deviceLastModifiedDate"] = json!(at + rng.random_range(-9..9) * 3_600_000);
    }
    record
}

/// Writes a random lake below `folder` and returns the lake's folder.
pub(super) fn make(folder: &Path, rng: &mut impl Rng) -> PathBuf {
    let lake = folder.join("lake");
    let mut sent: Vec<String> = Vec::new();
    for commit in 0..rng.random_range(3..6_i64) {
        let mut lines = String::new();
        for _ in 0..rng.random_range(4..16) {
            let again = sent.choose(rng).filter(|_| rng.random_bool(0.2)).cloned();
            // A fifth of the events are late: they belong to the first day.
            let day = if rng.random_bool(0.2) { 0 } else { commit };
            let line = again.unwrap_or_else(|| event(rng, day).to_string());
            lines += &(line.clone() + "\n");
            sent.push(line);
        }
        if rng.random_bool(0.3) {
            lines += "no event\n";
        }
        let file = folder.join(format!("{commit}.ndjson"));
        std::fs::write(&file, lines).unwrap();
        ingest_file(&file, &lake);
        if commit == 1 || rng.random_bool(0.3) {
            ok(synclake().args(["refresh", "--lake"]).arg(&lake));
        }
        if commit == 2 {
            ok(synclake().args(["extract", "--date", "2026-01-02", "--no-refresh", "--lake"]).arg(&lake));
        }
    }
    lake
}
