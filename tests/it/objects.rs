//! Tests of `ingest --source s3://…`: objects of a bucket are read once, whole, and in any form that Firehose writes.

use std::io::Write;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{ok, query, refused, setting, synclake, text};
use crate::kinesis::make_bucket;

fn on_s3(command: &mut Command) -> &mut Command {
    command.env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_S3"))
}

fn put(bucket: &str, key: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, bytes).unwrap();
    let url = format!("{}/{bucket}/{key}", setting("SYNCLAKE_TEST_S3"));
    ok(Command::new("curl").args(["-sSf", "-T"]).arg(&file).arg(url));
}

/// An event with one record, known by its key.
fn event(key: &str) -> String {
    let ms = 1_767_225_600_000_u64;
    let record = json!({ "key": key, "value": "}{\"", "op": "replace", "syncCount": 1, "lastModifiedDate": ms });
    json!({ "identityPoolId": "us-east-1:0a", "identityId": "us-east-1:0b", "dataSetName": "d", "operation": "replace",
        "lastModifiedDate": ms, "syncCount": 1, "kinesisSyncRecords": [record] })
    .to_string()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn ingest(source: &str, lake: &str) -> Command {
    let mut command = synclake();
    command.args(["ingest", "--care", "off", "--source", source, "--lake", lake]);
    on_s3(&mut command);
    command
}

fn report(source: &str, lake: &str) -> Value {
    serde_json::from_str(&ok(&mut ingest(source, lake))).unwrap()
}

/// Returns the keys of all rows.
fn keys(lake: &str) -> Vec<String> {
    let sql = "select key from sync_records order by key";
    let out = ok(on_s3(query().args(["--lake", lake, "--format", "csv", "-c", sql])));
    out.lines().skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_read_once_in_every_form() {
    make_bucket("objects").await;
    let (source, lake) = ("s3://objects/in/", "s3://objects/lake");
    let all = |keys: &[&str]| keys.iter().map(|key| event(key)).collect::<Vec<_>>();
    put("objects", "in/2026/01/01/00/a", all(&["a1", "a2"]).concat().as_bytes());
    put("objects", "in/2026/01/01/01/b.ndjson", (all(&["b1", "b2"]).join("\r\n") + "\r\n").as_bytes());
    put("objects", "in/2026/01/01/01/c.gz", &gzip(&all(&["c1", "c2"]).concat()));
    put("objects", "in/2026/01/01/02/d.zst", &zstd::encode_all(all(&["d1", "d2"]).join("\n").as_bytes(), 3).unwrap());
    put("objects", "in/2026/01/01/02/copy-of-a", all(&["a1", "a2"]).concat().as_bytes());
    put("objects", "in/_SUCCESS", b"x");
    put("objects", "in/empty", b"");
    let first = report(source, lake);
    let expected = ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2"];
    assert_eq!(keys(lake), expected);
    assert_eq!((&first["records"], &first["quarantined"]), (&json!(8), &json!({})));
    assert_eq!(report(source, lake)["records"], 0, "a second run reads nothing");

    // What arrives later, also before the place that was reached; what is replaced; and one broken record.
    put("objects", "in/2025/12/31/23/late", event("e1").as_bytes());
    put("objects", "in/2026/01/01/01/b.ndjson", (all(&["b3"]).concat() + "{\"cut\n" + &event("b4")).as_bytes());
    let second = report(source, lake);
    assert_eq!((&second["records"], &second["quarantined"]), (&json!(4), &json!({ "not_json": 1 })));
    assert_eq!(keys(lake), ["a1", "a2", "b1", "b2", "b3", "b4", "c1", "c2", "d1", "d2", "e1"]);
    // One object by its own URL, which is in the lake already.
    assert_eq!(report("s3://objects/in/2025/12/31/23/late", lake)["records"], 0);
    let verified = ok(on_s3(synclake().args(["verify", "--deep", "--lake", lake])));
    assert_eq!(serde_json::from_str::<Value>(&verified).unwrap()["faults"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_read_is_named_and_the_others_are_read() {
    make_bucket("objects-broken").await;
    let (source, lake) = ("s3://objects-broken/in/", "s3://objects-broken/lake");
    let mut cut = gzip(&(0..2_000).map(|n| event(&format!("x{n}"))).collect::<String>());
    cut.truncate(cut.len() / 2);
    put("objects-broken", "in/a.gz", &cut);
    put("objects-broken", "in/b", event("b").as_bytes());
    put("objects-broken", "in/c", format!("[{},{}]", event("c1"), event("c2")).as_bytes());
    let output = ingest(source, lake).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    for part in ["s3://objects-broken/in/a.gz", "s3://objects-broken/in/c", "aws s3 cp", "jq -c '.[]'"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(keys(lake).contains(&"b".to_owned()));
    // Once the object is whole, the rest of it follows; the lake has nothing twice.
    put("objects-broken", "in/a.gz", &gzip(&event("a")));
    put("objects-broken", "in/c", (event("c1") + &event("c2")).as_bytes());
    ok(&mut ingest(source, lake));
    let found: Vec<String> = keys(lake).into_iter().filter(|key| !key.starts_with('x')).collect();
    assert_eq!(found, ["a", "b", "c1", "c2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_source_of_objects_is_refused() {
    make_bucket("objects-refused").await;
    let refuse = |args: &[&str], parts: &[&str], code| {
        let output = on_s3(synclake().arg("ingest").args(args)).output().unwrap();
        refused(&output, code, parts);
    };
    let lake = "s3://objects-refused/deep/lake";
    refuse(&["--source", "s3://objects-refused/deep/", "--lake", lake], &["contains the lake"], 2);
    refuse(&["--source", "s3://objects-refused/", "--lake", lake], &["contains the lake"], 2);
    refuse(&["--source", "file:x", "--follow", "--lake", "lake"], &["--follow", "s3://"], 2);
    refuse(&["--source", "s3://no-such-bucket-here/x/", "--lake", lake], &["s3://no-such-bucket-here"], 1);
}

/// Two workers share the objects by leases, and one goes on with objects that arrive later.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_shares_the_objects() {
    make_bucket("objects-fleet").await;
    let (source, lake) = ("s3://objects-fleet/in/", "s3://objects-fleet/lake");
    let mut expected: Vec<String> = Vec::new();
    for n in 0..60 {
        let names: Vec<String> = (0..5).map(|m| format!("k{n:02}-{m}")).collect();
        let body: String = names.iter().map(|name| event(name)).collect();
        put("objects-fleet", &format!("in/{n:02}"), body.as_bytes());
        expected.extend(names);
    }
    let fleet = ["--lease-table", "dynamodb:objects-fleet", "--lease-failover", "2s"];
    let workers: Vec<_> = (0..2)
        .map(|n| {
            let mut worker = ingest(source, lake);
            worker.args(fleet).args(["--worker-id", &format!("w{n}")]).stdout(std::process::Stdio::piped());
            worker.spawn().unwrap()
        })
        .collect();
    let mut records = 0;
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        records += serde_json::from_slice::<Value>(&output.stdout).unwrap()["records"].as_u64().unwrap();
    }
    assert!(records >= 300, "{records}");
    assert_eq!(keys(lake), expected);
    // --follow waits for objects that arrive later, until a signal.
    let mut worker = ingest(source, lake);
    let mut worker = worker.args(["--follow", "--flush-interval", "1s"]).spawn().unwrap();
    put("objects-fleet", "in/later", event("later").as_bytes());
    expected.push("later".to_owned());
    while keys(lake) != expected {
        assert_eq!(worker.try_wait().unwrap(), None);
    }
    assert!(Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap().success());
    assert!(worker.wait().unwrap().success());
}
