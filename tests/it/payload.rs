//! Tests of events whose records lie behind a URL: they are fetched or quarantined with the right reason, always
//! within bounds, and the secret in the URL is stored and logged nowhere.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::harness::{rows, synclake};

const SECRET: &str = "CANARY0123456789abcdef";

fn records(n: usize, value: &str) -> String {
    let record = |i: usize| json!({"key": format!("k{i}"), "value": value, "op": "replace", "syncCount": i, "lastModifiedDate": 5});
    Value::from((0..n).map(record).collect::<Vec<_>>()).to_string()
}

/// Returns the records of a dataset of about `bytes` bytes.
fn contents(bytes: usize) -> String {
    records(bytes / 1_100, &"v".repeat(1_024))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn whole(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

/// Returns a body that repeats `chunk` without end, after a pause each time.
fn endless(chunk: Bytes, pause: Duration) -> BoxBody<Bytes, Infallible> {
    let frames = stream::unfold((), move |()| {
        let chunk = chunk.clone();
        async move {
            tokio::time::sleep(pause).await;
            Some((Ok(Frame::data(chunk)), ()))
        }
    });
    BoxBody::new(StreamBody::new(frames))
}

struct Server {
    flaky: AtomicU32,
}

impl Server {
    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        assert!(request.headers().get("authorization").is_none(), "no credentials of ours");
        assert!(request.uri().query().is_some_and(|q| q.contains(SECRET)), "the query is sent as it is");
        let mut status = StatusCode::OK;
        let body = match request.uri().path() {
            "/one-mib" => whole(contents(1 << 20)),
            "/five-mib" => whole(contents(5 << 20)),
            "/packed" => whole(gzip(contents(1 << 20).as_bytes())),
            "/event" => whole(
                json!({"identityPoolId": "us-east-1:0a", "identityId": "us-east-1:0b", "dataSetName": "event",
                       "kinesisSyncRecords": serde_json::from_str::<Value>(&records(2, "ü")).unwrap()})
                .to_string(),
            ),
            "/none" => whole("[]"),
            "/flaky" if self.flaky.fetch_add(1, Ordering::SeqCst) < 2 => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                whole("slow down")
            }
            "/flaky" => whole(records(3, "at last")),
            "/over" => whole(contents(17 << 20)),
            "/bomb" => whole(gzip(&vec![b' '; 200 << 20])),
            "/cut-gzip" => whole(gzip(contents(1 << 20).as_bytes())[..5_000].to_vec()),
            "/endless" => endless(Bytes::from(vec![b' '; 1 << 20]), Duration::ZERO),
            "/slow" => endless(Bytes::from_static(b" "), Duration::from_millis(50)),
            "/silent" => endless(Bytes::new(), Duration::from_secs(3_600)),
            "/other-dataset" => whole(
                json!({"identityPoolId": "us-east-1:0a", "identityId": "us-east-1:ff", "kinesisSyncRecords": []})
                    .to_string(),
            ),
            "/not-json" => whole("<html>"),
            "/403" => {
                status = StatusCode::FORBIDDEN;
                whole("<Error><Code>AccessDenied</Code></Error>")
            }
            "/500" => {
                status = StatusCode::INTERNAL_SERVER_ERROR;
                whole("")
            }
            "/redirect" => {
                let mut response = Response::new(whole(""));
                *response.status_mut() = StatusCode::FOUND;
                let inner = "http://169.254.169.254/latest/meta-data/".parse().unwrap();
                response.headers_mut().insert("location", inner);
                return response;
            }
            _ => {
                status = StatusCode::NOT_FOUND;
                whole("")
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
    }
}

async fn serve() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Arc::new(Server { flaky: AtomicU32::new(0) });
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = server.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = server.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    port
}

fn event(dataset: &str, url: &str) -> String {
    json!({
        "identityPoolId": "us-east-1:0a", "identityId": "us-east-1:0b", "dataSetName": dataset, "operation": "replace",
        "payloadType": "S3Url", "kinesisSyncRecordsURL": url, "lastModifiedDate": 1, "syncCount": 1,
    })
    .to_string()
}

/// Payloads are fetched, or quarantined with the right reason, within bounds of time and memory; no secret is stored
/// or logged.
#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_fetched_under_guard() {
    let port = serve().await;
    let base = format!("http://127.0.0.1:{port}");
    let dated = "X-Amz-Date=20991231T000000Z&X-Amz-Expires=60";
    // Dataset, URL, and number of rows or reason.
    let here = |path: &str| format!("{base}{path}?{dated}&X-Amz-Signature={SECRET}");
    let kib = (1 << 20) / 1_100;
    let cases: Vec<(&str, String, Result<usize, &str>)> = vec![
        ("one-mib", here("/one-mib"), Ok(kib)),
        ("five-mib", here("/five-mib"), Ok((5 << 20) / 1_100)),
        ("packed", here("/packed"), Ok(kib)),
        ("event", here("/event"), Ok(2)),
        ("none", here("/none"), Ok(1)),
        ("flaky", here("/flaky"), Ok(3)),
        ("over", here("/over"), Err("payload_too_large")),
        ("bomb", here("/bomb"), Err("payload_too_large")),
        ("endless", here("/endless"), Err("payload_too_large")),
        ("cut-gzip", here("/cut-gzip"), Err("payload_invalid")),
        ("other-dataset", here("/other-dataset"), Err("payload_invalid")),
        ("not-json", here("/not-json"), Err("payload_invalid")),
        ("slow", here("/slow"), Err("payload_unavailable")),
        ("silent", here("/silent"), Err("payload_unavailable")),
        ("500", here("/500"), Err("payload_unavailable")),
        ("nobody", format!("http://127.0.0.1:9/k?{dated}&X-Amz-Signature={SECRET}"), Err("payload_unavailable")),
        ("403", here("/403"), Err("payload_gone")),
        ("404", here("/404"), Err("payload_gone")),
        ("redirect", here("/redirect"), Err("payload_refused")),
        ("wrong-host", format!("https://evil.example/k?X-Amz-Signature={SECRET}"), Err("payload_refused")),
        ("wrong-port", format!("http://127.0.0.1:{}/k?X-Amz-Signature={SECRET}", port - 1), Err("payload_refused")),
        ("loopback", format!("http://localhost:{port}/one-mib?X-Amz-Signature={SECRET}"), Err("payload_refused")),
        ("no-url", format!("nonsense?X-Amz-Signature={SECRET}"), Err("payload_refused")),
        ("user", format!("https://a:b@b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}"), Err("payload_refused")),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (events, lake) = (folder.path().join("events.ndjson"), folder.path().join("lake"));
    let lines: Vec<String> = cases.iter().map(|(dataset, url, _)| event(dataset, url)).collect();
    std::fs::write(&events, lines.join("\n") + "\n").unwrap();
    let began = Instant::now();
    let mut child = synclake()
        .args(["ingest", "--source", &format!("file:{}", events.display()), "--memory", "64MiB"])
        .args(["--payload-hosts", &format!("{base},http://localhost:{port},http://127.0.0.1:9")])
        .args(["--payload-timeout", "2s", "--lake"])
        .arg(&lake)
        .env("SYNCLAKE_LOG", "trace,synclake=trace")
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        peak_kib = peak_kib.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(began.elapsed() < Duration::from_secs(60), "bounded in time: {:?}", began.elapsed());
    assert!(peak_kib < (64 + 64 + 192) << 10, "bounded in memory: {peak_kib} KiB");
    let lake = lake.to_str().unwrap();
    let found = rows(lake, "select dataset_name, count(*) as n from sync_records group by 1");
    let kept = rows(lake, "select reason, detail, encode(raw, 'hex') as raw from quarantine");
    let mut refused = 0;
    for (dataset, _, outcome) in &cases {
        let n = found.iter().find(|row| row["dataset_name"] == *dataset).map(|row| row["n"].as_u64().unwrap());
        let why = kept.iter().find(|row| {
            let raw = row["raw"].as_str().unwrap();
            let raw: Vec<u8> =
                (0..raw.len() / 2).map(|i| u8::from_str_radix(&raw[2 * i..2 * i + 2], 16).unwrap()).collect();
            String::from_utf8(raw).unwrap().contains(&format!("\"dataSetName\":\"{dataset}\""))
        });
        match outcome {
            Ok(expected) => assert_eq!((n, why), (Some(*expected as u64), None), "{dataset}"),
            Err(reason) => {
                refused += 1;
                assert_eq!((n, &why.unwrap()["reason"]), (None, &Value::from(*reason)), "{dataset}: {why:?}");
            }
        }
    }
    assert_eq!(kept.len(), refused);
    let values = rows(lake, "select distinct value from sync_records where dataset_name = 'packed'");
    assert_eq!(values[0]["value"].as_str().unwrap().len(), 1_024);
    assert_secret_is_nowhere(folder.path(), &events);
    assert!(!String::from_utf8_lossy(&output.stdout).contains(SECRET));
}

fn assert_secret_is_nowhere(folder: &std::path::Path, but: &std::path::Path) {
    let mut stack = vec![folder.to_owned()];
    let mut searched = 0;
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else if path != but {
            let bytes = std::fs::read(&path).unwrap();
            searched += bytes.len();
            assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "{}", path.display());
        }
    }
    assert!(searched > 100_000, "lake and log were searched");
}

/// Secrets of URLs do not reach the quarantine or the log, however they are encoded.
#[test]
fn hidden_secrets_do_not_reach_the_quarantine() {
    let folder = tempfile::tempdir().unwrap();
    let (events, lake) = (folder.path().join("events.ndjson"), folder.path().join("lake"));
    let plain = event("d", &format!("https://evil.example/k?X-Amz-Signature={SECRET}"));
    let lines: Vec<Vec<u8>> = vec![
        plain.replace("kinesisSyncRecordsURL", r"\u006binesisSyncRecordsU\u0052L").into_bytes(),
        plain.replace("X-Amz-Signature=", r"\u0058-Amz-Signature\u003d").into_bytes(),
        // The line break cuts the text in the middle of its last UTF-16 unit, as in a file of such text.
        plain.encode_utf16().flat_map(u16::to_le_bytes).filter(|b| *b != b'\n').collect(),
        plain.as_bytes()[..plain.len() - 10].to_vec(),
        format!("{plain}{plain}").into_bytes(),
    ];
    std::fs::write(&events, lines.join(&b"\n"[..])).unwrap();
    std::fs::OpenOptions::new().append(true).open(&events).unwrap().write_all(b"\n").unwrap();
    let output = synclake()
        .args(["ingest", "--source", &format!("file:{}", events.display()), "--lake"])
        .arg(&lake)
        .env("SYNCLAKE_LOG", "trace,synclake=trace")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET));
    let kept = rows(lake.to_str().unwrap(), "select reason, encode(raw, 'hex') as raw from quarantine");
    assert_eq!(kept.len(), 5);
    let hex: String = SECRET.bytes().map(|b| format!("{b:02x}")).collect();
    let wide: String = SECRET.bytes().map(|b| format!("{b:02x}00")).collect();
    for row in &kept {
        let raw = row["raw"].as_str().unwrap();
        assert!(!raw.contains(&hex) && !raw.contains(&wide), "{row}");
    }
}
