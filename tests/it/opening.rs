//! Counts the requests of queries, on an S3 server that serves a lake's folder: what opening a lake costs may not grow.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use url::Url;

use crate::harness::{ingest_file, ok, query, refused, simulate, synclake, text};
use crate::writers::{commit, listed};

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    /// Method and path of the object, or `LIST` and the prefix.
    what: String,
    /// The requested range, or the name after which a listing begins.
    part: String,
    bytes: usize,
}

impl Asked {
    fn is_of(&self, table: &str, is_log: bool) -> bool {
        self.what.contains(&format!("/{table}/")) && self.what.contains("/_delta_log") == is_log
    }
}

/// A folder, served as the bucket of an S3 server that can only be read.
struct Bucket {
    folder: PathBuf,
    asked: Mutex<Vec<Asked>>,
}

impl Bucket {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let url = Url::parse("http://s3").unwrap().join(&request.uri().to_string()).unwrap();
        let parameter =
            |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let key = decoded(url.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key));
        let range = request.headers().get("range").map(|range| range.to_str().unwrap().to_owned());
        let (what, part, status, body) = if parameter("list-type").is_some() {
            let (prefix, after) =
                (parameter("prefix").unwrap_or_default(), parameter("start-after").unwrap_or_default());
            let body = self.names(&prefix, &after).into_bytes();
            (format!("LIST /{prefix}"), after, StatusCode::OK, body)
        } else {
            let what = format!("{} /{key}", request.method());
            match (std::fs::read(self.folder.join(&key)), &range) {
                (Err(_), _) => {
                    (what, String::new(), StatusCode::NOT_FOUND, b"<Error><Code>NoSuchKey</Code></Error>".to_vec())
                }
                (Ok(bytes), None) => (what, String::new(), StatusCode::OK, bytes),
                (Ok(bytes), Some(range)) => {
                    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    let part = bytes[from..bytes.len().min(to + 1)].to_vec();
                    let shown = format!("bytes {from}-{}/{}", from + part.len() - 1, bytes.len());
                    (what, shown, StatusCode::PARTIAL_CONTENT, part)
                }
            }
        };
        self.asked.lock().unwrap().push(Asked { what, part: part.clone(), bytes: body.len() });
        let mut response = Response::builder().status(status).header("etag", "\"1\"");
        response = response.header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
        if status == StatusCode::PARTIAL_CONTENT {
            response = response.header("content-range", part);
        }
        response.body(Full::new(Bytes::from(body))).unwrap()
    }

    fn names(&self, prefix: &str, after: &str) -> String {
        let mut names = Vec::new();
        let mut folders = vec![self.folder.join(prefix)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => names.push(entry.path()),
                }
            }
        }
        names.sort();
        let mut found = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
        for path in names {
            let name = path.strip_prefix(&self.folder).unwrap().to_str().unwrap();
            if name > after {
                let size = path.metadata().unwrap().len();
                found += &format!(
                    "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                     <ETag>\"1\"</ETag><Size>{size}</Size></Contents>"
                );
            }
        }
        found + "</ListBucketResult>"
    }
}

/// Returns a path without escapes. All names of these lakes are ASCII.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        text.push(u8::from_str_radix(&part[..2], 16).unwrap().into());
        text.push_str(&part[2..]);
    }
    text
}

async fn serve(folder: &Path) -> (String, Arc<Bucket>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let bucket = Arc::new(Bucket { folder: folder.to_owned(), asked: Mutex::default() });
    let served = bucket.clone();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let bucket = served.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = bucket.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    (url, bucket)
}

/// Commits of new rows after the newest checkpoint and the refresh, each of one file.
const TAIL: usize = 8;

/// Makes a lake of more than 120 commits in `sync_records`, with a checkpoint, a state and a tail of [`TAIL`] files.
/// Returns an identity of each file of the tail.
fn lake(folder: &Path) -> String {
    let (events, _) = simulate(folder, &["--events", "60", "--pools", "1", "--days", "1"]);
    let (more, _) = {
        let other = folder.join("other");
        std::fs::create_dir(&other).unwrap();
        simulate(&other, &["--events", "30", "--pools", "1", "--days", "1", "--seed", "2"])
    };
    let lake = folder.join("lake");
    ingest_file(&events, &lake);
    let (path, add) = listed(&lake, "sync_records").into_iter().next().unwrap();
    let copied = |n: usize| {
        let (of, _) = path.rsplit_once('/').unwrap();
        let to = format!("{of}/copy-{n}.parquet");
        std::fs::copy(lake.join("sync_records").join(&path), lake.join("sync_records").join(&to)).unwrap();
        let mut add: Value = add.clone();
        add["path"] = to.into();
        add.as_object_mut().unwrap().remove("tags");
        commit(&lake, "sync_records", "WRITE", &[json!({ "add": add })]);
    };
    (0..120).for_each(copied);
    // It writes the checkpoint that is due.
    let more = format!("file:{}", more.display());
    ok(synclake().args(["ingest", "--care", "off", "--source", &more, "--lake"]).arg(&lake));
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    (1_000..1_000 + TAIL).for_each(copied);
    let statistics: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
    statistics["minValues"]["identity_id"].as_str().unwrap().to_owned()
}

fn commits_after_checkpoint(lake: &Path) -> usize {
    let log = lake.join("sync_records/_delta_log");
    let hint: Value = serde_json::from_slice(&std::fs::read(log.join("_last_checkpoint")).unwrap()).unwrap();
    let first = hint["version"].as_u64().unwrap() + 1;
    (first..).take_while(|version| log.join(format!("{version:020}.json")).exists()).count()
}

/// A query asks for what its answer needs, and for nothing twice. The bounds are exact: a request more fails.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_query() {
    let folder = tempfile::tempdir().unwrap();
    let identity = lake(folder.path());
    let commits = commits_after_checkpoint(&folder.path().join("lake"));
    assert!((TAIL..40).contains(&commits), "{commits}");
    let (endpoint, bucket) = serve(folder.path()).await;
    let ask = async |sql: &str| {
        let mut command = query();
        command.args(["--lake", "s3://bucket/lake", "--endpoint-url", &endpoint, "--format", "csv", "-c", sql]);
        tokio::task::spawn_blocking(move || ok(&mut command)).await.unwrap();
        let asked = std::mem::take(&mut *bucket.asked.lock().unwrap());
        for (n, one) in asked.iter().enumerate() {
            assert!(!asked[..n].iter().any(|other| other == one), "{sql} asks twice for {one:?}\n{asked:#?}");
        }
        println!("{sql}: {} requests, {} bytes", asked.len(), asked.iter().map(|one| one.bytes).sum::<usize>());
        asked
    };
    let of = |asked: &[Asked], table: &str, is_log: bool| asked.iter().filter(|one| one.is_of(table, is_log)).count();

    // Whether there is a lake.
    let asked = ask("select 1").await;
    assert_eq!(asked.len(), 1, "{asked:#?}");

    // The hint, the listing, each commit, and the checkpoint, which is small.
    let log_of_records = 2 + commits + 1;
    let asked = ask("select count(*) from sync_records").await;
    assert!(of(&asked, "sync_records", true) <= log_of_records, "{asked:#?}");
    assert_eq!(of(&asked, "sync_records", true), asked.len(), "{asked:#?}");

    // Of the state, the hint that is missing, the listing, and two commits. Small files are one request each; two pools
    // have a file of the state.
    let asked = ask(&format!("select * from current_state where identity_id = '{identity}'")).await;
    assert!(of(&asked, "sync_records", true) <= log_of_records, "{asked:#?}");
    assert!(of(&asked, "state", true) <= 4, "{asked:#?}");
    assert_eq!(of(&asked, "sync_records", false), TAIL, "{asked:#?}");
    assert!(of(&asked, "state", false) <= 2, "{asked:#?}");
    let logs_and_data = |table| of(&asked, table, true) + of(&asked, table, false);
    assert_eq!(logs_and_data("sync_records") + logs_and_data("state"), asked.len(), "{asked:#?}");

    // A table that nobody wrote to: the hint that is missing, the listing and the first commit.
    let asked = ask("select count(*) from gaps").await;
    assert!(of(&asked, "gaps", true) <= 3 && asked.len() <= 4, "{asked:#?}");
}

/// A table is loaded when it is named. Its damage fails the queries that need it, and no others.
#[test]
fn damage_fails_what_needs_the_table() {
    let folder = tempfile::tempdir().unwrap();
    lake(folder.path());
    let lake = folder.path().join("lake");
    std::fs::write(lake.join("quarantine/_delta_log/00000000000000000000.json"), "{").unwrap();
    let ask = |sql: &str| query().args(["-c", sql, "--lake"]).arg(&lake).output().unwrap();
    for sql in
        ["select 1", "select count(*) from current_state", "\\d changes", "\\d", "show tables", "describe changes"]
    {
        let answer = ask(sql);
        assert!(answer.status.success(), "{sql}: {}", text(&answer.stderr));
    }
    for sql in [
        "select count(*) from quarantine",
        "\\d quarantine",
        "summarize quarantine",
        "show columns from quarantine",
        "select 1; select * from quarantine",
    ] {
        refused(&ask(sql), 1, &["quarantine/_delta_log"]);
    }
    std::fs::remove_dir_all(lake.join("sync_records")).unwrap();
    for sql in ["select 1", "\\d", "select count(*) from gaps", "select x"] {
        refused(&ask(sql), 1, &["is not a lake"]);
    }
}
