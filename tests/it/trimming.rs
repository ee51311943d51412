//! Tests that records trimmed by retention before they were read are recorded as a gap, once, and the ingest goes on.
//!
//! No emulator trims, so the stream is fake: a server that answers the four calls that an ingest makes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::harness::{count, ok, rows, synclake};

#[derive(Default)]
pub(crate) struct Shard {
    pub parents: Vec<String>,
    /// Sequence numbers and data.
    pub records: Vec<(u64, String)>,
    pub closed: bool,
}

#[derive(Default)]
pub(crate) struct Stream {
    pub retention_hours: i64,
    pub shards: BTreeMap<String, Shard>,
    pub behind_ms: i64,
    /// Creation time in seconds since the epoch; 0 if unknown.
    pub created: f64,
    /// First sequence number of each shard.
    pub starts: u64,
    /// Whether another service answers the requests for records.
    pub is_foreign: bool,
    /// Whether every read returns all records.
    pub repeats: bool,
    /// `shardId-0` returns records without end until a data file lies in this folder; then the shard is trimmed.
    pub trims_once_written: Option<PathBuf>,
    pub reads: u64,
    /// Access key of the last request.
    pub key: String,
}

const DAY_MS: i64 = 86_400_000;

impl Stream {
    fn answer(&mut self, call: &str, body: &Value) -> Value {
        self.reads += u64::from(call == "GetRecords");
        match call {
            "DescribeStreamSummary" => json!({"StreamDescriptionSummary": {
                "StreamName": "made-up", "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/made-up",
                "StreamStatus": "ACTIVE", "RetentionPeriodHours": self.retention_hours,
                "StreamCreationTimestamp": self.created, "EnhancedMonitoring": [], "OpenShardCount": 1,
            }}),
            "ListShards" => {
                let shard = |(id, Shard { parents, closed, .. }): (&String, &Shard)| {
                    let mut range = json!({"StartingSequenceNumber": self.starts.max(1).to_string()});
                    if *closed {
                        range["EndingSequenceNumber"] = "999".into();
                    }
                    let mut shard = json!({
                        "ShardId": id, "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"},
                        "SequenceNumberRange": range,
                    });
                    if let Some(parent) = parents.first() {
                        shard["ParentShardId"] = parent.as_str().into();
                    }
                    shard
                };
                json!({"Shards": self.shards.iter().map(shard).collect::<Vec<_>>()})
            }
            "GetShardIterator" => {
                let after = body["StartingSequenceNumber"].as_str().unwrap_or("0");
                json!({"ShardIterator": format!("{}/{after}", body["ShardId"].as_str().unwrap())})
            }
            "GetRecords" if self.is_foreign => json!({"message": "please log in"}),
            "GetRecords" => {
                let (shard, after) = body["ShardIterator"].as_str().unwrap().split_once('/').unwrap();
                let after: u64 = after.parse().unwrap();
                if let Some(folder) = &self.trims_once_written {
                    if has_parquet(folder) {
                        self.shards.remove("shardId-0");
                    }
                    match self.shards.get_mut(shard) {
                        Some(Shard { records, parents, .. }) if parents.is_empty() => {
                            records.extend((after + 1..after + 9).map(large));
                        }
                        Some(_) => {}
                        // A trimmed shard has neither a next iterator nor a child.
                        None => return json!({"Records": [], "MillisBehindLatest": 0}),
                    }
                }
                let Shard { records, closed, .. } = &self.shards[shard];
                let record = |(number, data): &(u64, String)| {
                    use base64_of::encode;
                    json!({"SequenceNumber": number.to_string(), "Data": encode(data.as_bytes()), "PartitionKey": "p",
                           "ApproximateArrivalTimestamp": 1_767_225_600.0})
                };
                let found: Vec<_> = records.iter().filter(|(n, _)| *n > after || self.repeats).collect();
                let last = found.last().map_or(after, |(n, _)| *n);
                let mut answer = json!({
                    "Records": found.into_iter().map(record).collect::<Vec<_>>(), "MillisBehindLatest": self.behind_ms,
                });
                if !closed {
                    answer["NextShardIterator"] = format!("{shard}/{last}").into();
                }
                answer
            }
            other => panic!("{other} was not expected"),
        }
    }
}

/// Base64 for the data of records: a dozen lines instead of a dependency.
mod base64_of {
    pub(super) fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let part = |n: usize| u32::from(*chunk.get(n).unwrap_or(&0));
            let bits = part(0) << 16 | part(1) << 8 | part(2);
            for digit in 0..4 {
                let shown = digit <= chunk.len();
                let at = (bits >> (18 - 6 * digit) & 63) as usize;
                text.push(if shown { DIGITS[at] as char } else { '=' });
            }
        }
        text
    }
}

pub(crate) async fn serve(stream: Arc<Mutex<Stream>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let stream = stream.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let stream = stream.clone();
                    async move {
                        let target = request.headers()["x-amz-target"].to_str().unwrap().to_owned();
                        let signed = request.headers()["authorization"].to_str().unwrap();
                        let key = signed.split(['=', '/']).nth(1).unwrap().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap();
                        let call = target.rsplit('.').next().unwrap();
                        let mut stream = stream.lock().unwrap();
                        stream.key = key;
                        let answer = stream.answer(call, &body);
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.to_string()))))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    url
}

pub(crate) fn event(n: u64) -> (u64, String) {
    let event = json!({
        "identityPoolId": "us-east-1:0a", "identityId": format!("us-east-1:{n:02x}"), "dataSetName": "d",
        "operation": "replace", "lastModifiedDate": 1, "syncCount": n,
        "kinesisSyncRecords": [{"key": "k", "value": "v", "op": "replace"}],
    });
    (n, event.to_string())
}

pub(crate) fn ingest(endpoint: &str, lake: &str, more: &[&str]) -> std::process::Command {
    let mut command = synclake();
    command.args(["ingest", "--source", "kinesis:made-up", "--endpoint-url", endpoint, "--lake", lake]).args(more);
    command
}

/// Trimmed records are recorded as one gap each, even if runs are killed or repeated, and later records are read.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_unread_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let stream = Arc::new(Mutex::new(Stream {
        retention_hours: 168,
        behind_ms: 3 * DAY_MS,
        created: 1.7e9,
        ..Stream::default()
    }));
    let shards = |spec: &[(&str, &[&str], &[u64], bool)]| {
        let shard = |(id, parents, numbers, closed): &(&str, &[&str], &[u64], bool)| {
            let parents = parents.iter().map(|p| (*p).to_owned()).collect();
            ((*id).to_owned(), Shard { parents, records: numbers.iter().map(|n| event(*n)).collect(), closed: *closed })
        };
        stream.lock().unwrap().shards = spec.iter().map(shard).collect();
    };
    let endpoint = serve(stream.clone()).await;

    // The ingest is three days behind, with a retention of a week: no record is lost yet.
    shards(&[("shardId-0", &[], &[1, 2, 3], false)]);
    let child =
        ingest(&endpoint, lake, &["--flush-interval", "100ms"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !folder.path().join("sync_records/_delta_log/00000000000000000003.json").exists() {
        assert!(Instant::now() < deadline, "no commit in a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(count(lake, "select count(*) from gaps"), 0);

    // No ingest ran while the retention became a day, and two days of records were trimmed.
    shards(&[("shardId-0", &[], &[7, 8], false)]);
    {
        let mut stream = stream.lock().unwrap();
        (stream.retention_hours, stream.behind_ms) = (24, 0);
    }
    // One run is killed between the two commits, two more follow: the gap is recorded once.
    let killed =
        ingest(&endpoint, lake, &["--until-idle", "1s"]).env("FAILPOINTS", "gap/after=1*return(kill)").output();
    assert_eq!(killed.unwrap().status.code(), None);
    let output = ingest(&endpoint, lake, &["--until-idle", "1s"]).output().unwrap();
    assert!(output.status.success());
    ok(&mut ingest(&endpoint, lake, &["--until-idle", "1s"]));
    let told = rows(lake, "select shard_id, after_sequence_number, whole_rest from gaps");
    assert_eq!(told, [json!({"shard_id": "shardId-0", "after_sequence_number": "3", "whole_rest": false})]);
    let days = "select cast(date_part('day', arrived_until - arrived_from) as int) from gaps";
    assert_eq!(count(lake, days), 2);
    assert_eq!(count(lake, "select count(*) from sync_records"), 5);

    // The whole rest of the shard is trimmed, and only its child is left.
    shards(&[("shardId-1", &["shardId-0"], &[20, 21], false)]);
    let output = ingest(&endpoint, lake, &["--until-idle", "1s"]).output().unwrap();
    assert!(output.status.success());
    let logs = String::from_utf8_lossy(&output.stderr);
    assert!(logs.contains("ERROR") && logs.contains("trimmed by the stream's retention"), "{logs}");
    ok(&mut ingest(&endpoint, lake, &["--until-idle", "1s"]));
    let rest = rows(lake, "select shard_id, after_sequence_number from gaps where whole_rest");
    assert_eq!(rest, [json!({"shard_id": "shardId-0", "after_sequence_number": "8"})]);
    assert_eq!(count(lake, "select count(*) from sync_records"), 7);
    let report = ok(synclake().args(["verify", "--lake", lake, "--format", "json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((report["gaps"].as_array().unwrap().len(), &report["faults"]), (2, &json!([])), "{report}");
}

/// A shard is trimmed while it is read: its rows in files that no commit lists yet are committed, and the gap follows
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_a_shard_that_is_trimmed_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let shard = |parents: &[&str], records| Shard {
        parents: parents.iter().map(|p| (*p).to_owned()).collect(),
        records,
        closed: false,
    };
    let shards = [("shardId-0", shard(&[], Vec::new())), ("shardId-1", shard(&["shardId-0"], vec![event(10_000)]))];
    let stream = Arc::new(Mutex::new(Stream {
        retention_hours: 24,
        created: 1.7e9,
        shards: shards.map(|(id, shard)| (id.to_owned(), shard)).into(),
        trims_once_written: Some(folder.path().join("sync_records")),
        ..Stream::default()
    }));
    let endpoint = serve(stream.clone()).await;
    let options = ["--until-idle", "1s", "--flush-interval", "1h", "--memory", "64MiB"];
    ok(&mut ingest(&endpoint, lake, &options));
    assert_eq!(count(lake, "select count(*) from sync_records where shard_id = 'shardId-1'"), 1);
    let told = rows(lake, "select shard_id, whole_rest, cast(after_sequence_number as int) as after from gaps");
    let given = told[0]["after"].as_i64().unwrap();
    assert_eq!(told, [json!({"shard_id": "shardId-0", "whole_rest": true, "after": given})]);
    assert_eq!(count(lake, "select count(*) from sync_records where shard_id = 'shardId-0'"), given);
    assert_eq!(given % 8, 0, "up to the last that was given");
}

/// Returns an event as [`event`] does, of one megabyte.
fn large(n: u64) -> (u64, String) {
    let (n, text) = event(n);
    (n, text.replace(r#""v""#, &format!(r#""{}""#, "v".repeat(1_000_000))))
}

pub(crate) fn has_parquet(folder: &std::path::Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_parquet(&entry.path()),
        _ => entry.path().extension().is_some_and(|ext| ext == "parquet"),
    })
}
