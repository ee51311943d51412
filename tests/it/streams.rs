//! Tests of unusual streams: recreated under the same name, answered by another service, or with shards that are their
//! own ancestors.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{count, ok, refused, rows, synclake};
use crate::trimming::{Shard, Stream, event, ingest, serve};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn shard(numbers: &[u64], parents: &[&str], closed: bool) -> Shard {
    let parents = parents.iter().map(|p| (*p).to_owned()).collect();
    Shard { parents, records: numbers.iter().map(|n| event(*n)).collect(), closed }
}

fn made(created: f64, starts: u64, shards: Vec<(&str, Shard)>) -> Stream {
    let shards = shards.into_iter().map(|(id, shard)| (id.to_owned(), shard)).collect();
    Stream { retention_hours: 24, created, starts, shards, ..Stream::default() }
}

fn read(endpoint: &str, lake: &str) -> Value {
    serde_json::from_str(&ok(&mut ingest(endpoint, lake, &["--until-idle", "1s"]))).unwrap()
}

#[track_caller]
fn assert_whole(lake: &str) {
    let report: Value =
        serde_json::from_str(&ok(synclake().args(["verify", "--lake", lake, "--format", "json"]))).unwrap();
    assert_eq!(report["faults"], json!([]), "{report}");
}

/// A stream that is recreated under its name is read from its beginning; a possible loss is recorded as a gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_again_is_read_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let began = now() - 100.0;
    // One shard has ended, the other is open.
    let shards = vec![("shardId-0", shard(&[1, 2], &[], true)), ("shardId-1", shard(&[3], &["shardId-0"], false))];
    let stream = Arc::new(Mutex::new(made(began, 1, shards)));
    let endpoint = serve(stream.clone()).await;
    assert_eq!(read(&endpoint, lake)["records"], 3);
    // The new stream has the same shard ids and sequence numbers, but other records.
    *stream.lock().unwrap() = made(now(), 1, vec![("shardId-0", shard(&[1, 2], &[], false))]);
    for more in [["--from", "latest"], ["--flush-interval", "1s"]] {
        ok(&mut ingest(&endpoint, lake, &[&["--until-idle", "1s"], &more[..]].concat()));
    }
    assert_eq!(count(lake, "select count(*) from sync_records"), 5, "each of the new ones once");
    assert!(rows(lake, "select * from gaps").is_empty(), "all of the old one was read");
    assert_whole(lake);
    // The stream is recreated a day after the last look at it: records in between may be lost, so a gap is recorded.
    *stream.lock().unwrap() = made(now() + 86_400.0, 1, vec![("shardId-0", shard(&[9], &[], false))]);
    assert_eq!(read(&endpoint, lake)["records"], 1);
    let gaps = rows(lake, "select after_sequence_number, whole_rest from gaps");
    assert_eq!(gaps, [json!({"after_sequence_number": "2", "whole_rest": true})]);
    assert_whole(lake);
    // A stream older than the known ones means a wrong endpoint.
    *stream.lock().unwrap() = made(began - 50.0, 1, vec![("shardId-0", shard(&[1, 2], &[], false))]);
    let output = ingest(&endpoint, lake, &["--until-idle", "1s"]).output().unwrap();
    refused(&output, 1, &["made-up was created at", "another stream", "--endpoint-url"]);
}

/// A lake written before stream identities were kept takes the existing stream as its own, unless the positions
/// exclude that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_does_not_know_its_stream_looks_at_the_positions() {
    for (starts, numbers, expected) in [(1, vec![1, 2, 3], 3), (100, vec![101, 102], 4)] {
        let folder = tempfile::tempdir().unwrap();
        let lake = folder.path().to_str().unwrap();
        let stream = Arc::new(Mutex::new(made(now() - 9.0, 1, vec![("shardId-0", shard(&[1, 2], &[], false))])));
        let endpoint = serve(stream.clone()).await;
        assert_eq!(read(&endpoint, lake)["records"], 2);
        for commit in std::fs::read_dir(folder.path().join("sync_records/_delta_log")).unwrap() {
            let path = commit.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let kept: Vec<&str> = text.lines().filter(|line| !line.contains("created/")).collect();
            std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        }
        *stream.lock().unwrap() = made(now(), starts, vec![("shardId-0", shard(&numbers, &[], false))]);
        read(&endpoint, lake);
        assert_eq!(read(&endpoint, lake)["records"], 0);
        assert_eq!(count(lake, "select count(*) from sync_records"), expected, "{numbers:?}");
        assert_whole(lake);
    }
}

/// An answer that is not from Kinesis does not end a shard.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_somebody_else_ends_no_shard() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    // Even for a shard that is listed as closed, the answer itself must come from the service.
    for closed in [false, true] {
        let mut foreign = made(now(), 1, vec![("shardId-0", shard(&[1], &[], closed))]);
        foreign.is_foreign = true;
        let stream = Arc::new(Mutex::new(foreign));
        let endpoint = serve(stream.clone()).await;
        let lake = format!("{lake}/{closed}");
        let told = folder.path().join(format!("{closed}.log"));
        let log = std::fs::File::create(&told).unwrap();
        let child = ingest(&endpoint, &lake, &["--until-idle", "1s"]).stdout(Stdio::null()).stderr(log).spawn();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(&told).unwrap().contains("holds no iterator") {
            assert!(Instant::now() < deadline, "nothing is told in a minute");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stream.lock().unwrap().is_foreign = false;
        assert!(child.unwrap().wait().unwrap().success());
        assert_eq!(count(&lake, "select count(*) from sync_records"), 1);
    }
}

/// `--from` the epoch or earlier reads child shards too.
#[tokio::test(flavor = "multi_thread")]
async fn children_are_read_from_the_epoch_on() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let shards = vec![("shardId-0", shard(&[1], &[], true)), ("shardId-1", shard(&[2], &["shardId-0"], false))];
    let endpoint = serve(Arc::new(Mutex::new(made(now(), 1, shards)))).await;
    for from in ["1970-01-01T00:00:00Z", "1969-12-31T00:00:00Z"] {
        ok(&mut ingest(&endpoint, &format!("{lake}/{from}"), &["--until-idle", "1s", "--from", from]));
        assert_eq!(count(&format!("{lake}/{from}"), "select count(*) from sync_records"), 2, "{from}");
    }
}

/// Records that the service repeats are stored once, and a shard that is its own ancestor is rejected.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_twice_is_taken_once_and_a_circle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let mut repeating = made(now(), 1, vec![("shardId-0", shard(&[7, 8], &[], false))]);
    repeating.repeats = true;
    let endpoint = serve(Arc::new(Mutex::new(repeating))).await;
    assert_eq!(read(&endpoint, lake)["records"], 2);
    assert_eq!(count(lake, "select count(*) from sync_records"), 2);
    let circle = made(now(), 1, vec![("shardId-0", shard(&[1], &["shardId-0"], false))]);
    let endpoint = serve(Arc::new(Mutex::new(circle))).await;
    let output = ingest(&endpoint, &format!("{lake}/circle"), &["--until-idle", "1s"]).output().unwrap();
    refused(&output, 1, &["shardId-0", "its own ancestor"]);
}

/// A worker that loses its shards before its last flush has committed nothing, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn the_loser_of_two_does_not_claim_what_it_lost() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let stream = Arc::new(Mutex::new(made(now(), 1, vec![("shardId-0", shard(&[1, 2], &[], false))])));
    let endpoint = serve(stream.clone()).await;
    let args = ["--until-idle", "4s", "--flush-interval", "1h"];
    let first = ingest(&endpoint, lake, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while stream.lock().unwrap().reads < 2 {
        assert!(Instant::now() < deadline, "no second read in a minute");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(read(&endpoint, lake)["records"], 2);
    let lost = first.wait_with_output().unwrap();
    assert_eq!((lost.status.code(), lost.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&lost.stderr).contains("was taken over by another ingest"));
    assert_eq!(count(lake, "select count(*) from sync_records"), 2);
}

/// `--profile` wins over keys in the environment, and an unknown profile is rejected.
#[tokio::test(flavor = "multi_thread")]
async fn a_named_profile_wins_and_an_unknown_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake").to_str().unwrap().to_owned();
    let keys = folder.path().join("credentials");
    std::fs::write(&keys, "[other]\naws_access_key_id = OTHERKEY\naws_secret_access_key = s\n").unwrap();
    let stream = Arc::new(Mutex::new(made(now(), 1, vec![("shardId-0", shard(&[1], &[], false))])));
    let endpoint = serve(stream.clone()).await;
    let run = |profile: &[&str]| {
        let args = [&["--until-idle", "1s"], profile].concat();
        ingest(&endpoint, &lake, &args).env("AWS_SHARED_CREDENTIALS_FILE", &keys).output().unwrap()
    };
    assert!(run(&["--profile", "other"]).status.success());
    assert_eq!(stream.lock().unwrap().key, "OTHERKEY");
    assert!(run(&[]).status.success());
    assert_eq!(stream.lock().unwrap().key, "test", "the environment's, when none is named");
    refused(&run(&["--profile", "nosuch"]), 2, &["--profile \"nosuch\"", "other"]);
}

/// Health requests are answered, however many idle connections are open.
#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_do_not_starve_health() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let endpoint = serve(Arc::new(Mutex::new(made(now(), 1, vec![("shardId-0", shard(&[1], &[], false))])))).await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut child = ingest(&endpoint, lake, &["--metrics", &address]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while crate::fleet::get(&address, "/readyz").is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "not ready in a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let idle: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    for mut half in idle.iter().step_by(2) {
        // The server has closed some of the connections by now.
        let _ = half.write_all(b"GET /healthz HTTP/1.1\r\nHost:");
    }
    let asked = Instant::now();
    assert_eq!(crate::fleet::get(&address, "/healthz").unwrap().0, 200);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    child.kill().unwrap();
    child.wait().unwrap();
}
