//! Tests of an ingest from Kinesis into S3, with real servers for both; one stream of four shards splits and merges
//! midway.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;

use crate::harness::{assert_state_is_oracle, count, ok, rows, setting, simulate, synclake};

pub(crate) async fn client() -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(setting("SYNCLAKE_TEST_KINESIS"))
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .build();
    Client::from_conf(config)
}

pub(crate) async fn make_bucket(name: &str) {
    let url = format!("{}/{name}", setting("SYNCLAKE_TEST_S3"));
    let made = std::process::Command::new("curl").args(["-sf", "-X", "PUT", &url]).status().unwrap();
    assert!(made.success(), "{url}");
}

/// Waits until the stream is active again after a request.
pub(crate) async fn active(client: &Client, stream: &str) {
    loop {
        let summary = client.describe_stream_summary().stream_name(stream).send().await.unwrap();
        let summary = summary.stream_description_summary().unwrap();
        if summary.stream_status().as_str() == "ACTIVE" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn create_stream(client: &Client, stream: &str, shards: i32) {
    client.create_stream().stream_name(stream).shard_count(shards).send().await.unwrap();
    active(client, stream).await;
}

fn publish(stream: &str, args: &[&str], oracle: &std::path::Path) {
    ok(synclake()
        .args(["simulate", "--to", &format!("kinesis:{stream}"), "--endpoint-url", &setting("SYNCLAKE_TEST_KINESIS")])
        .args(args)
        .arg("--oracle")
        .arg(oracle));
}

fn ingest(stream: &str, lake: &str, more: &[&str]) -> serde_json::Value {
    let summary = ok(synclake()
        .args(["ingest", "--source", &format!("kinesis:{stream}"), "--lake", lake, "--until-idle", "2s"])
        .args(more)
        .env("AWS_ENDPOINT_URL_KINESIS", setting("SYNCLAKE_TEST_KINESIS"))
        .env("AWS_ENDPOINT_URL_S3", setting("SYNCLAKE_TEST_S3")));
    serde_json::from_str(&summary).unwrap()
}

/// Shards that split and merge midway lose and double no record.
#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_midway_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (stream, lake) = ("reshard", "s3://reshard-bucket/deep/lake");
    make_bucket("reshard-bucket").await;
    let client = client().await;
    create_stream(&client, stream, 4).await;
    let oracles = [folder.path().join("1"), folder.path().join("2"), folder.path().join("3")];
    publish(stream, &["--events", "800", "--seed", "11"], &oracles[0]);
    let first = ingest(stream, lake, &[]);
    assert!(first["records"].as_u64().unwrap() > 800);

    let split = client.split_shard().stream_name(stream).shard_to_split("shardId-000000000000");
    split.new_starting_hash_key("42535295865117307932921825928971026431").send().await.unwrap();
    active(&client, stream).await;
    publish(stream, &["--events", "500", "--seed", "12"], &oracles[1]);
    let merge = client.merge_shards().stream_name(stream).shard_to_merge("shardId-000000000001");
    merge.adjacent_shard_to_merge("shardId-000000000002").send().await.unwrap();
    active(&client, stream).await;
    publish(stream, &["--events", "500", "--seed", "13"], &oracles[2]);

    ingest(stream, lake, &[]);
    let all: Vec<_> = oracles.iter().map(|p| p.as_path()).collect();
    assert_state_is_oracle(lake, &all);
    assert_eq!(ingest(stream, lake, &[])["records"], 0, "a third run finds nothing new");

    // The lake holds every record of the stream once, and no other record.
    let listed = client.list_shards().stream_name(stream).send().await.unwrap();
    let mut produced = 0;
    for shard in listed.shards() {
        let iterator = client.get_shard_iterator().stream_name(stream).shard_id(shard.shard_id());
        let iterator = iterator.shard_iterator_type("TRIM_HORIZON".into()).send().await.unwrap();
        let mut next = iterator.shard_iterator;
        while let Some(current) = next {
            let page = client.get_records().shard_iterator(current).send().await.unwrap();
            produced += page.records().len() as i64;
            next = page.next_shard_iterator.filter(|_| !page.records.is_empty());
        }
    }
    assert_eq!(count(lake, "select count(distinct shard_id || ':' || sequence_number) from sync_records"), produced);
    let doubled = "select count(*) from (select shard_id, sequence_number, record_index from sync_records \
                   group by 1, 2, 3 having count(*) > 1)";
    assert_eq!(count(lake, doubled), 0);
    let shards = rows(lake, "select distinct shard_id from sync_records");
    assert_eq!(listed.shards().len(), 7);
    assert!(shards.len() > 4, "the children were read: {shards:?}");
}

/// `--from latest` skips older records only at the first start; later runs miss no record that arrived in between.
#[tokio::test(flavor = "multi_thread")]
async fn latest_begins_where_it_was_told_and_loses_nothing_after() {
    let folder = tempfile::tempdir().unwrap();
    let (stream, lake) = ("latest", folder.path().join("lake"));
    let lake = lake.to_str().unwrap();
    let client = client().await;
    create_stream(&client, stream, 1).await;
    let put = async |n: u32| {
        let event = format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{n:02x}","dataSetName":"d","operation":"replace","kinesisSyncRecords":[{{"key":"k","value":"v","op":"replace"}}],"lastModifiedDate":1,"syncCount":1}}"#
        );
        client.put_record().stream_name(stream).partition_key("p").data(Blob::new(event)).send().await.unwrap();
    };
    put(1).await;
    assert_eq!(ingest(stream, lake, &["--from", "latest"])["records"], 0);
    // No ingest runs while this record arrives. The lake remembers where the shard began, so the record is not
    // skipped.
    put(2).await;
    assert_eq!(ingest(stream, lake, &["--from", "latest"])["records"], 1);
    put(3).await;
    assert_eq!(ingest(stream, lake, &["--from", "latest"])["records"], 1);
    assert_eq!(count(lake, "select count(*) from sync_records"), 2);
}

/// Records that cannot be decoded are quarantined, the shard goes on, and no secret is stored or logged.
#[tokio::test(flavor = "multi_thread")]
async fn poison_is_quarantined_and_the_shard_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (stream, lake) = ("poison", folder.path().join("lake"));
    let lake = lake.to_str().unwrap();
    let client = client().await;
    create_stream(&client, stream, 1).await;
    let (events, _) = simulate(
        folder.path(),
        &["--events", "3", "--duplicates", "0", "--reorder", "0", "--late", "0", "--bulk-copies", "0"],
    );
    let events = std::fs::read_to_string(events).unwrap();
    let secret = "CANARY0123456789";
    let url = format!(
        r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"replace","payloadType":"S3Url","kinesisSyncRecordsURL":"https://payloads.invalid/k?X-Amz-Signature={secret}","lastModifiedDate":1,"syncCount":1}}"#
    );
    let lines: Vec<Vec<u8>> = events.lines().map(|l| l.as_bytes().to_vec()).collect();
    let records = [
        lines[0].clone(),
        b"\xff\xfe{".to_vec(),
        lines[1].clone(),
        b"{}{}".to_vec(),
        url.into_bytes(),
        lines[2].clone(),
    ];
    for record in records {
        client.put_record().stream_name(stream).partition_key("p").data(Blob::new(record)).send().await.unwrap();
    }
    let output = synclake()
        .args(["ingest", "--source", "kinesis:poison", "--lake", lake, "--until-idle", "1s"])
        .args(["--endpoint-url", &setting("SYNCLAKE_TEST_KINESIS")])
        .env("SYNCLAKE_LOG", "debug,synclake=debug")
        .output()
        .unwrap();
    assert!(output.status.success());
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reasons = serde_json::json!({"not_utf8": 1, "not_json": 1, "payload_refused": 1});
    assert_eq!((&summary["records"], &summary["quarantined"]), (&6.into(), &reasons));
    let held = rows(
        lake,
        "select reason, shard_id, sequence_number, encode(raw, 'hex') as raw from quarantine order by length(sequence_number), sequence_number",
    );
    assert_eq!(held[0]["raw"], "fffe7b");
    assert_eq!(count(lake, "select count(distinct sequence_number) from sync_records"), 3);
    assert!(!String::from_utf8_lossy(&output.stderr).contains(secret));
    let mut stack = vec![std::path::PathBuf::from(lake)];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{}", path.display());
        }
    }
}

/// SIGTERM ends a run at once, even while it retries an endpoint at which no server listens.
#[test]
fn sigterm_ends_a_run_that_cannot_reach_its_stream() {
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    let mut child = synclake()
        .args(["ingest", "--source", "kinesis:nowhere", "--endpoint-url", "http://127.0.0.1:9", "--lake"])
        .arg(folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("trying again")));
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let lake = folder.path().to_str().unwrap();
    for args in [&["ingest", "--source", "kinesis:a", "--lake", lake][..], &["simulate", "--to", "kinesis:a"]] {
        let no_region = synclake().env_remove("AWS_REGION").args(args).output().unwrap();
        crate::harness::refused(&no_region, 2, &["--region"]);
    }
}
