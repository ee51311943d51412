//! Tests of several workers on one stream, and of what operators see of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use aws_sdk_kinesis::primitives::Blob;
use serde_json::Value;

use crate::harness::{count, python, refused, setting, synclake};
use crate::kinesis::{active, client, create_stream};

/// Runs a scenario of tests/chaos/chaos.py, asserts that it found no fault, and returns its summary.
fn chaos(scenario: &str, args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/chaos.py");
    let output = python()
        .args([script, scenario, env!("CARGO_BIN_EXE_synclake")])
        .arg(folder.path())
        .args(args)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["faults"], &summary["verify_exit"]), (&0.into(), &0.into()), "{summary}\n{told}");
    summary
}

/// A broken fleet loses and doubles no record. Workers are killed and paused past their leases, proxies inject faults,
/// and shards split and merge. The independent checker finds no fault, but finds each planted bug.
#[test]
fn a_fleet_that_is_broken_on_purpose_loses_and_doubles_nothing() {
    let cycles = std::env::var("SYNCLAKE_CHAOS_CYCLES").unwrap_or_else(|_| "200".to_owned());
    let summary = chaos("fleet", &["--cycles", &cycles, "--plant"]);
    assert!(summary["planted_bugs_caught"].as_u64().unwrap() >= 12, "{summary}");
    assert!(summary["killed"].as_u64() >= cycles.parse::<u64>().ok().map(|n| n / 2), "{summary}");
    for seen in ["zombies", "reshards"] {
        assert!(summary[seen].as_u64().unwrap() > 0, "{summary}");
    }
    assert!(summary["faults_injected"]["ambiguous commit"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["orphans"], 0, "what the dead left is swept: {summary}");
    assert!(
        summary["drain_seconds"].as_u64().unwrap() < 60,
        "what was left behind is read soon after all heals: {summary}"
    );
}

/// A worker that is killed at any failpoint loses and doubles no record.
#[test]
fn sigkill_at_every_failpoint_loses_and_doubles_nothing() {
    let summary = chaos("sigkill", &[]);
    assert_eq!(summary["failpoints"].as_u64().unwrap() as usize, synclake::failpoint::NAMES.len() - 23);
}

/// A worker that is terminated at any failpoint exits with 0 and gives its leases back.
#[test]
fn sigterm_at_every_failpoint_gives_the_leases_back() {
    let summary = chaos("sigterm", &[]);
    assert_eq!(summary["failpoints"].as_u64().unwrap() as usize, synclake::failpoint::NAMES.len() - 23);
    assert!(summary["slowest_seconds"].as_f64().unwrap() < 60.0, "{summary}");
}

/// `--until-idle` waits for the children of an ended shard, however slowly they appear, and for the leases of a worker
/// that just died: alone, in a fleet, after a death, and after a shard end that only a dead worker knew of.
#[test]
fn until_idle_leaves_no_shard_behind() {
    let summary = chaos("lineage", &[]);
    let none = serde_json::json!({ "alone": 0, "in a fleet": 0, "after a death": 0, "after an end": 0 });
    assert_eq!(summary["shards_left"], none, "{summary}");
    for slow in ["slow listing", "slow leases"] {
        assert!(summary["faults_injected"][slow].as_u64().unwrap() > 0, "{summary}");
    }
}

/// Expiring credentials are replaced in time. The run lasts five lifetimes of them, and every service rejects expired
/// ones.
#[test]
fn credentials_that_expire_are_replaced_in_time() {
    let summary = chaos("credentials", &[]);
    assert_eq!((&summary["exit"], &summary["shards_moved"]), (&0.into(), &2.into()), "{summary}");
    assert!(summary["keys_used"].as_u64().unwrap() >= 5, "{summary}");
    assert_eq!(summary["refused"], serde_json::json!({}), "{summary}");
}

/// Oversize payloads, aggregates, copies and poison arrive once, though the workers are killed; a redrive follows when
/// the poison is "fixed".
#[test]
fn everything_that_cognito_can_send_arrives_once() {
    let summary = chaos("everything", &["--cycles", "30"]);
    assert_eq!(summary["state_is_truth"], true, "{summary}");
    assert_eq!(summary["leaks"], serde_json::json!([]), "{summary}");
    for seen in ["payloads", "poisoned", "quarantined"] {
        assert!(summary[seen].as_u64().unwrap() > 5, "{summary}");
    }
    assert_eq!(summary["moved_again"], 0, "{summary}");
    assert!(summary["left"].get("invalid_field").is_none(), "all of the poison was moved: {summary}");
}

/// The stream that `synclake simulate` makes for any user arrives once, read by three workers that are killed.
#[test]
fn a_simulated_stream_with_everything_arrives_once() {
    let summary = chaos("simulated", &["--cycles", "15"]);
    assert_eq!(summary["state_is_truth"], true, "{summary}");
    for seen in ["payloads", "aggregates", "quarantined"] {
        assert!(summary[seen].as_u64().unwrap() > 5, "{summary}");
    }
    assert_eq!(summary["moved_again"], 0, "{summary}");
    assert!(
        summary["left"].get("invalid_field").is_none_or(|n| n.as_u64() < summary["quarantined"].as_u64()),
        "{summary}"
    );
}

/// Peak memory stays within the budget plus what the program needs besides: code, threads, the encoder's own buffers.
#[test]
fn memory_stays_within_its_budget() {
    let summary = chaos("memory", &[]);
    assert!(summary["partitions"].as_u64().unwrap() >= 1_000, "{summary}");
    assert_eq!(summary["stalled_exit"], 0);
    for peak in ["many_partitions_peak_mib", "stalled_s3_peak_mib"] {
        assert!(summary[peak].as_u64().unwrap() < 64 + 192, "{summary}");
    }
}

async fn dynamodb() -> aws_sdk_dynamodb::Client {
    use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(setting("SYNCLAKE_TEST_S3"))
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}

fn ingest(stream: &str, lake: &str, more: &[&str]) -> std::process::Command {
    let mut command = synclake();
    command
        .args(["ingest", "--source", &format!("kinesis:{stream}"), "--lake", lake])
        .args(more)
        .env("AWS_ENDPOINT_URL_KINESIS", setting("SYNCLAKE_TEST_KINESIS"))
        .env("AWS_ENDPOINT_URL_DYNAMODB", setting("SYNCLAKE_TEST_S3"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) async fn put(stream: &str, partition_key: &str, n: u32) -> (String, String) {
    let event = format!(
        r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{n:02x}","dataSetName":"d","operation":"replace","kinesisSyncRecords":[{{"key":"k","value":"v","op":"replace"}}],"lastModifiedDate":1,"syncCount":1}}"#
    );
    let request = client().await.put_record().stream_name(stream).partition_key(partition_key).data(Blob::new(event));
    let done = request.send().await.unwrap();
    (done.shard_id, done.sequence_number)
}

async fn items(table: &str) -> Vec<BTreeMap<String, AttributeValue>> {
    let found = dynamodb().await.scan().table_name(table).consistent_read(true).send().await.unwrap();
    let mut found: Vec<BTreeMap<_, _>> = found.items().iter().map(|item| item.clone().into_iter().collect()).collect();
    found.sort_by_key(|item| format!("{:?}", item.get("leaseKey")));
    found
}

/// An ingest continues where a predecessor built on the Kinesis Client Library stopped, and leaves its lease table
/// unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn the_predecessor_is_replaced_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let (stream, table) = ("replaced", "predecessor");
    create_stream(&client().await, stream, 2).await;
    let mut by_shard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..40 {
        let (shard, number) = put(stream, &n.to_string(), n).await;
        by_shard.entry(shard).or_default().push(number);
    }
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey").attribute_type(ScalarAttributeType::S);
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
    let dynamodb = dynamodb().await;
    let create = dynamodb.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    let create = create.attribute_definitions(attribute.build().unwrap()).key_schema(key.build().unwrap());
    create.send().await.unwrap();
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let number = |value: &str| AttributeValue::N(value.to_owned());
    let done = &by_shard["shardId-000000000000"][3];
    for (shard, checkpoint) in [("shardId-000000000000", done.as_str()), ("shardId-000000000001", "TRIM_HORIZON")] {
        let item =
            dynamodb.put_item().table_name(table).item("leaseKey", text(shard)).item("leaseCounter", number("7"));
        let item = item.item("checkpoint", text(checkpoint)).item("checkpointSubSequenceNumber", number("0"));
        item.item("leaseOwner", text("the-predecessor")).send().await.unwrap();
    }
    let other = dynamodb.put_item().table_name(table).item("leaseKey", text("a-worker")).item("cpu", number("3"));
    other.item("entityType", text("WORKER_METRIC_STATS")).send().await.unwrap();
    let before = items(table).await;
    let args = ["--until-idle", "1s", "--import-kcl-checkpoints", table];
    let output = ingest(stream, lake, &args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = count(lake, "select count(*) from sync_records");
    assert_eq!(read as usize, 40 - 4, "all but what the predecessor was done with");
    let taken = format!("select count(*) from sync_records where sequence_number = '{done}'");
    assert_eq!(count(lake, &taken), 0);
    assert_eq!(before, items(table).await, "its table is as it was");
    // The predecessor's table is not accepted as a lease table: synclake would overwrite its checkpoints and read from
    // the beginning.
    let taken = ingest(stream, &format!("{lake}/taken"), &["--lease-table", "dynamodb:predecessor"]).output().unwrap();
    refused(&taken, 1, &["Kinesis Client Library", "--import-kcl-checkpoints predecessor"]);
    assert_eq!(before, items(table).await, "its table is as it was");
    let missing = ingest(stream, &format!("{lake}/other"), &["--import-kcl-checkpoints", "no-such-table"]).output();
    refused(&missing.unwrap(), 1, &["no-such-table", "check the name of the table"]);
}

/// If the predecessor stopped inside an aggregate, the ingest reads the remaining sub-records and none of the finished
/// ones.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_that_was_begun_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let (stream, table) = ("begun", "begun-kcl");
    create_stream(&client().await, stream, 1).await;
    put(stream, "p", 1).await;
    let part = |n: u32| {
        format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{n:02x}","dataSetName":"d","operation":"replace","kinesisSyncRecords":[{{"key":"k","value":"v","op":"replace"}}],"lastModifiedDate":1,"syncCount":1}}"#
        )
    };
    let parts: Vec<String> = (2..6).map(part).collect();
    let packed = synclake::decode::aggregate::pack(&parts.iter().map(|p| p.as_bytes()).collect::<Vec<_>>());
    let request = client().await.put_record().stream_name(stream).partition_key("p").data(Blob::new(packed));
    let aggregate = request.send().await.unwrap().sequence_number;
    put(stream, "p", 6).await;
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey").attribute_type(ScalarAttributeType::S);
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
    let dynamodb = dynamodb().await;
    let create = dynamodb.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    let create = create.attribute_definitions(attribute.build().unwrap()).key_schema(key.build().unwrap());
    create.send().await.unwrap();
    let item =
        dynamodb.put_item().table_name(table).item("leaseKey", AttributeValue::S("shardId-000000000000".to_owned()));
    let item =
        item.item("leaseCounter", AttributeValue::N("7".to_owned())).item("checkpoint", AttributeValue::S(aggregate));
    item.item("checkpointSubSequenceNumber", AttributeValue::N("1".to_owned())).send().await.unwrap();
    for expected in [3, 3] {
        let args = ["--until-idle", "1s", "--import-kcl-checkpoints", table];
        let output = ingest(stream, lake, &args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(count(lake, "select count(*) from sync_records"), expected);
    }
    let subs = "select count(*) from sync_records where sub_sequence in (2, 3)";
    assert_eq!(count(lake, subs), 2, "parts 0 and 1 were done");
    let report = crate::harness::ok(synclake().args(["verify", "--lake", lake, "--format", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["faults"], serde_json::json!([]), "{report}");
}

/// Of two workers with the same id, one reports the conflict and ends, and the other keeps the shards.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_with_one_name_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let stream = "namesakes";
    create_stream(&client().await, stream, 2).await;
    let args = [
        "--lease-table",
        "dynamodb:namesakes",
        "--worker-id",
        "one",
        "--lease-failover",
        "3s",
        "--flush-interval",
        "200ms",
    ];
    let mut first = ingest(stream, lake, &args).spawn().unwrap();
    let log = std::path::Path::new(lake).join("sync_records/_delta_log");
    wait_until("a fence", || std::fs::read_dir(&log).is_ok_and(|entries| entries.count() >= 4));
    let mut second = ingest(stream, lake, &args).spawn().unwrap();
    let mut ended = None;
    wait_until("an end", || {
        ended = [&mut first, &mut second].iter_mut().position(|child| child.try_wait().unwrap().is_some());
        ended.is_some()
    });
    let (lost, stays) = if ended == Some(0) { (first, second) } else { (second, first) };
    let lost = lost.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&lost.stderr);
    assert!(lost.status.code() == Some(1) && told.contains("--worker-id"), "{told}");
    put(stream, "a", 1).await;
    wait_until("the record", || count(lake, "select count(*) from sync_records") == 1);
    assert_eq!(terminate(stays).status.code(), Some(0));
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about in a minute");
        std::thread::yield_now();
    }
}

pub(crate) fn terminate(child: Child) -> std::process::Output {
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait_with_output().unwrap()
}

/// A second worker gets its share by handoff requests and takes all shards when the first one ends; no record is read
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn shards_are_shared_and_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let (stream, table) = ("shared", "shared-leases");
    create_stream(&client().await, stream, 4).await;
    for n in 0..40 {
        put(stream, &n.to_string(), n).await;
    }
    let args = |worker: &'static str| {
        [
            "--lease-table",
            "dynamodb:shared-leases",
            "--lease-failover",
            "3s",
            "--worker-id",
            worker,
            "--flush-interval",
            "200ms",
        ]
    };
    let owners = async || {
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for item in items(table).await {
            if let Some(AttributeValue::S(owner)) = item.get("leaseOwner") {
                *found.entry(owner.clone()).or_default() += 1;
            }
        }
        found
    };
    let shares = async |expected: &[(&str, usize)]| {
        let expected: BTreeMap<String, usize> = expected.iter().map(|(o, n)| ((*o).to_owned(), *n)).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        while owners().await != expected {
            assert!(Instant::now() < deadline, "{:?} never became {expected:?}", owners().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let first = ingest(stream, lake, &args("first")).spawn().unwrap();
    while dynamodb().await.describe_table().table_name(table).send().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shares(&[("first", 4)]).await;
    let second = ingest(stream, lake, &args("second")).spawn().unwrap();
    shares(&[("first", 2), ("second", 2)]).await;
    for n in 40..80 {
        put(stream, &n.to_string(), n).await;
    }
    let output = terminate(first);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    shares(&[("second", 4)]).await;
    for n in 80..120 {
        put(stream, &n.to_string(), n).await;
    }
    wait_until("every record", || count(lake, "select count(*) from sync_records") == 120);
    let output = terminate(second);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    shares(&[]).await;
    assert_eq!(count(lake, "select count(distinct identity_id) from sync_records"), 120);
    let elsewhere = ingest("another", lake, &args("third")).output().unwrap();
    refused(&elsewhere, 1, &["belongs to stream shared", "a table of its own"]);
}

/// Without leases there is one worker: the last one to start gets the stream, and the other reports that and ends.
#[tokio::test(flavor = "multi_thread")]
async fn without_leases_the_last_one_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    create_stream(&client().await, "contested", 2).await;
    let first = ingest("contested", lake, &["--flush-interval", "100ms"]).spawn().unwrap();
    let commits = || std::fs::read_dir(format!("{lake}/sync_records/_delta_log")).map_or(0, |entries| entries.count());
    wait_until("the first one's fence", || commits() >= 3);
    let second = ingest("contested", lake, &["--flush-interval", "100ms"]).spawn().unwrap();
    wait_until("the second one's fence", || commits() >= 4);
    for n in 0..20 {
        put("contested", &n.to_string(), n).await;
    }
    let output = first.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("was taken over by another ingest"), "{told}");
    wait_until("every record", || count(lake, "select count(*) from sync_records") == 20);
    assert_eq!(terminate(second).status.code(), Some(0));
    assert_eq!(count(lake, "select count(distinct identity_id) from sync_records"), 20);
}

pub(crate) fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

/// Returns the value of a metric, summed over its labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    let of = |line: &&str| line.split([' ', '{']).next() == Some(name);
    let values: Vec<f64> = text.lines().filter(of).filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Readiness, health and metrics are served while an ingest runs.
#[tokio::test(flavor = "multi_thread")]
async fn operators_see_what_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    create_stream(&client().await, "watched", 2).await;
    for n in 0..20 {
        put("watched", &n.to_string(), n).await;
    }
    client().await.put_record().stream_name("watched").partition_key("p").data(Blob::new("{}{}")).send().await.unwrap();
    let address = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let args = ["--metrics", &address, "--flush-interval", "200ms", "--lease-table", "dynamodb:watched"];
    let child = ingest("watched", lake, &args).spawn().unwrap();
    wait_until("readiness", || get(&address, "/readyz").is_some_and(|(status, _)| status == 200));
    let seen = |name: &str| get(&address, "/metrics").and_then(|(_, text)| metric(&text, name));
    wait_until("every record", || seen("synclake_records_total") == Some(21.0));
    wait_until("every row", || seen("synclake_rows_total") == Some(20.0));
    wait_until("the poison", || seen("synclake_quarantined_total") == Some(1.0));
    wait_until("a commit", || seen("synclake_flushes_total") >= Some(1.0));
    let (status, text) = get(&address, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert_eq!(metric(&text, "synclake_leases_held"), Some(2.0), "{text}");
    assert_eq!(metric(&text, "synclake_shards_without_reader"), Some(0.0), "{text}");
    for name in [
        "synclake_shard_lag_seconds",
        "synclake_shard_uncommitted_records",
        "synclake_shard_last_commit_age_seconds",
        "synclake_commit_seconds_count",
        "synclake_commit_conflicts_total",
        "synclake_files_total",
        "synclake_file_bytes_total",
        "synclake_buffered_bytes",
        "synclake_budget_bytes",
        "synclake_gaps_total",
    ] {
        assert!(metric(&text, name).is_some(), "{name} is not in {text}");
    }
    assert!(text.contains(r#"synclake_quarantined_total{stream="watched",reason="not_json"} 1"#), "{text}");
    assert_eq!(get(&address, "/healthz").unwrap().0, 200);
    assert_eq!(get(&address, "/nothing").unwrap().0, 404);
    let occupied = ingest("watched", lake, &["--metrics", &address]).output().unwrap();
    refused(&occupied, 1, &["serve metrics at", &address]);
    assert_eq!(terminate(child).status.code(), Some(0));
}

/// Wrong settings of a fleet are rejected with the right form.
#[test]
fn what_cannot_be_a_fleet_is_refused() {
    let check = |args: &[&str], parts: &[&str]| {
        let output = synclake().args(["ingest", "--lake", "/nowhere"]).args(args).output().unwrap();
        refused(&output, 2, parts);
    };
    check(&["--source", "kinesis:a", "--lease-table", "mytable"], &["--lease-table", "dynamodb:<table>"]);
    check(&["--source", "file:a", "--lease-table", "dynamodb:t"], &["--lease-table", "kinesis:<stream>"]);
    check(&["--source", "kinesis:a", "--lease-failover", "0s"], &["--lease-failover"]);
    check(&["--source", "kinesis:a", "--metrics", "9464"], &["--metrics", "127.0.0.1:9464"]);
}

/// A lease table with ended shards whose rows the lake lacks is rejected: no worker would read these shards.
#[tokio::test(flavor = "multi_thread")]
async fn leases_of_another_lake_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (stream, table) = ("two-lakes", "dynamodb:two-lakes");
    let client = client().await;
    create_stream(&client, stream, 1).await;
    put(stream, "a", 1).await;
    let split = client.split_shard().stream_name(stream).shard_to_split("shardId-000000000000");
    split.new_starting_hash_key("1000").send().await.unwrap();
    active(&client, stream).await;
    let lake = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let args = ["--until-idle", "1s", "--lease-table", table];
    let first = ingest(stream, &lake("first"), &args).output().unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let second = ingest(stream, &lake("second"), &args).output().unwrap();
    refused(&second, 1, &["shardId-000000000000", "lease table of its own"]);
}
