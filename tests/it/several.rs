//! Tests of an ingest of several streams in one process.

use std::process::Stdio;

use serde_json::Value;

use crate::fleet::{get, put, terminate, wait_until};
use crate::harness::{count, refused, rows, synclake, text};
use crate::kinesis::{client, create_stream};
use crate::pools::aws;

/// Two streams go into one lake, each record once, with leases of their own; a second run finds nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn several_streams_go_into_one_lake() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let client = client().await;
    for stream in ["several-a", "several-b"] {
        create_stream(&client, stream, 2).await;
    }
    for n in 0..10 {
        put("several-a", &n.to_string(), n).await;
    }
    for n in 10..15 {
        put("several-b", &n.to_string(), n).await;
    }
    let settings = folder.path().join("synclake.toml");
    let sources = "source = [\"kinesis:several-a\", \"kinesis:several-b\"]\nlease_table = \"dynamodb:leases-{stream}\"";
    std::fs::write(&settings, sources).unwrap();
    let reports = |read: i64| -> Vec<Value> {
        let mut ingest = aws(&["ingest", "--lake", lake, "--until-idle", "2s", "--care", "off", "--memory", "128MiB"]);
        let output = ingest.arg("--config").arg(&settings).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let reports: Vec<Value> =
            text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(reports.iter().map(|report| report["records"].as_i64().unwrap()).sum::<i64>(), read);
        reports
    };
    let first = reports(15);
    let of = |n: usize| (first[n]["source"].as_str().unwrap(), first[n]["records"].as_i64().unwrap());
    assert_eq!((of(0), of(1)), (("kinesis:several-a", 10), ("kinesis:several-b", 5)));
    reports(0);
    // Both streams have the same shard ids; the column `source` tells the rows apart.
    let found = rows(lake, "select source, count(*) as n from sync_records group by source order by source");
    let found: Vec<(&str, i64)> =
        found.iter().map(|row| (row["source"].as_str().unwrap(), row["n"].as_i64().unwrap())).collect();
    assert_eq!(found, [("several-a", 10), ("several-b", 5)]);
}

/// A stream that fails ends a finite run with its error after the others are committed, and is tried again by an endless
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_does_not_hold_up_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let client = client().await;
    create_stream(&client, "sound", 1).await;
    put("sound", "a", 1).await;
    let both = ["ingest", "--lake", lake, "--source", "kinesis:sound", "--source", "kinesis:missing", "--care", "off"];
    let output = aws(&[&both[..], &["--until-idle", "1s"]].concat()).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.lines().last().unwrap().starts_with("error: 1 of 2 streams failed: missing: "), "{error}");
    assert!(text(&output.stdout).contains(r#""source":"kinesis:sound","records":1"#), "{}", text(&output.stdout));

    let address = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let mut endless = aws(&[&both[..], &["--metrics", &address, "--flush-interval", "200ms"]].concat());
    let child = endless.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let shows = |line: &str| get(&address, "/metrics").is_some_and(|(_, text)| text.lines().any(|found| found == line));
    wait_until("the failure", || shows(r#"synclake_stream_up{stream="missing"} 0"#));
    assert!(shows(r#"synclake_stream_up{stream="sound"} 1"#));
    put("sound", "b", 2).await;
    wait_until("a commit of the other stream", || count(lake, "select count(*) from sync_records") == 2);
    assert_eq!(get(&address, "/healthz").unwrap().0, 200);
    // The stream comes, and is read without a restart.
    create_stream(&client, "missing", 1).await;
    put("missing", "c", 3).await;
    wait_until("the stream", || count(lake, "select count(*) from sync_records where source = 'missing'") == 1);
    assert!(shows(r#"synclake_stream_up{stream="missing"} 1"#));
    assert!(shows(r#"synclake_records_total{stream="missing"} 1"#));
    let output = terminate(child);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.contains("a stream failed and is tried again; the others go on"), "{error}");
}

/// What several streams cannot share is refused with the right form.
#[test]
fn wrong_settings_of_several_streams_are_refused() {
    let check = |args: &[&str], part: &str| {
        let mut command = synclake();
        let output =
            command.args(["ingest", "--lake", "/nowhere", "--source", "kinesis:a"]).args(args).output().unwrap();
        refused(&output, 2, &[part]);
    };
    check(&["--source", "kinesis:b", "--lease-table", "dynamodb:t"], "write {stream} into its name");
    check(&["--source", "kinesis:a"], "--source kinesis:a is given twice");
    check(&["--source", "file:b"], "several --source flags are for kinesis:<stream>");
    check(
        &["--source", "kinesis:b", "--memory", "64MiB"],
        "--memory must be at least 64MiB for each stream: 128MiB for 2",
    );
    check(&["--source", "kinesis:b", "--import-kcl-checkpoints", "t"], "--import-kcl-checkpoints is for one stream");
    let output =
        synclake().args(["ingest", "--lake", "/nowhere"]).env("SYNCLAKE_SOURCE", "kinesis:a,kinesis:a").output();
    refused(&output.unwrap(), 2, &["is given twice"]);
}
