//! Tests of stores that reject requests: the error comes at once, on one line, with its cause and what to do.

use std::convert::Infallible;
use std::io::BufRead;
use std::process::Stdio;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::harness::{refused, setting, simulate, synclake, text};

/// Starts an S3 server that gives the same answer to every request; returns its URL.
async fn s3(status: u16, code: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = service_fn(move |_: Request<Incoming>| async move {
                    let body = format!("<Error><Code>{code}</Code><Message>long words</Message></Error>");
                    let response = Response::builder().status(status).header("x-amz-bucket-region", "eu-west-1");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    url
}

/// Starts an S3 server that refuses requests of a method whose query begins so, and passes all others on; returns its URL.
pub(crate) async fn refusing(method: &'static str, query: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, server) = (format!("http://{}", listener.local_addr().unwrap()), setting("SYNCLAKE_TEST_S3"));
    let to = reqwest::Client::builder().no_proxy().build().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (to, server) = (to.clone(), server.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (to, server) = (to.clone(), server.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    let is_refused = parts.uri.query().is_some_and(|text| text.starts_with(query));
                    if is_refused && parts.method == method {
                        let body = Bytes::from("<Error><Code>AccessDenied</Code></Error>");
                        return Ok::<_, Infallible>(Response::builder().status(403).body(Full::new(body)).unwrap());
                    }
                    let body = body.collect().await.unwrap().to_bytes();
                    let passed = to.request(parts.method, format!("{server}{}", parts.uri)).headers(parts.headers);
                    let answer = passed.body(body).send().await.unwrap();
                    let mut response = Response::builder().status(answer.status());
                    *response.headers_mut().unwrap() = answer.headers().clone();
                    Ok(response.body(Full::new(answer.bytes().await.unwrap())).unwrap())
                }
            });
            tokio::spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    url
}

/// An error from S3 is reported within seconds, on one line, with its cause and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn what_s3_refuses_is_told_at_once_and_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "5"]);
    let source = format!("file:{}", events.display());
    for (status, code, parts) in [
        (403, "AccessDenied", ["error: S3 denies access to bucket lakes (AccessDenied)", "s3:GetObject"]),
        (404, "NoSuchBucket", ["error: there is no bucket lakes", "check its name"]),
        (
            301,
            "PermanentRedirect",
            ["error: bucket lakes is in region eu-west-1, not in us-east-1", "--region eu-west-1"],
        ),
        (403, "RequestTimeTooSkewed", ["error: the clock of this machine", "set it"]),
        (403, "InvalidAccessKeyId", ["error: S3 does not know the credentials", "profile"]),
    ] {
        let endpoint = s3(status, code).await;
        let began = Instant::now();
        for command in [&["ingest", "--source", &source][..], &["verify"]] {
            let output =
                synclake().args(command).args(["--lake", "s3://lakes/a", "--endpoint-url", &endpoint]).output();
            let output = output.unwrap();
            refused(&output, 1, &parts);
            assert!(!text(&output.stderr).contains("long words"), "{}", text(&output.stderr));
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{code}: {:?}", began.elapsed());
    }
    let output = synclake()
        .args(["verify", "--lake", "s3://lakes/a"])
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .output()
        .unwrap();
    refused(&output, 1, &["error: no AWS credentials were found", "AWS_PROFILE"]);
    assert!(output.stderr.len() < 400, "{}", text(&output.stderr));
}

/// An S3 outage is logged within seconds, and SIGTERM ends the retries.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_soon_and_a_signal_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "5"]);
    let endpoint = s3(503, "SlowDown").await;
    let mut child = synclake()
        .args(["ingest", "--source", &format!("file:{}", events.display()), "--lake", "s3://lakes/a"])
        .args(["--endpoint-url", &endpoint])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("S3 does not answer, trying again")));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let signalled = Instant::now();
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(0), "nothing was read");
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
}

/// An ambiguous lake location is rejected before anything is created. Otherwise a lake is written in one place and
/// read in another, or a folder replaces a bucket.
#[test]
fn places_that_are_two_places_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for lake in ["s3://b/a#b", "s3://b/a?b", "s3://b/a%20b", "s3:/b/a", "s3:b", "file:/x"] {
        let output =
            synclake().args(["ingest", "--source", "file:-", "--lake", lake]).current_dir(&folder).output().unwrap();
        refused(&output, 2, &["--lake"]);
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

/// A settings file that merely lies in the working folder cannot redirect requests and the credentials in them.
#[test]
fn a_settings_file_that_nobody_named_does_not_decide_where_requests_go() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("synclake.toml"), "endpoint_url = \"https://evil.example\"\n").unwrap();
    let run = |args: &[&str]| {
        synclake().args(["verify", "--lake", "nothing-here"]).args(args).current_dir(&folder).output().unwrap()
    };
    refused(&run(&[]), 2, &["synclake.toml", "endpoint_url", "--config"]);
    refused(&run(&["--config", "synclake.toml"]), 1, &["nothing-here"]);
}
