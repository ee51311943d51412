//! Monitoring of a running ingest: `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! `/healthz` fails when the loop has not completed a turn for eleven minutes, longer than any upload or commit is
//! retried. Then only a restart helps. `/readyz` fails until the lake is open.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::Counters;
use super::counters::{Numbers, ShardCounts};
use crate::decode::Reason;
use crate::ids::ShardKey;
use crate::source::Retries;
use crate::timeouts::{MONITOR_CLIENT_TIMEOUT, SILENCE_MAX};

/// Most connections at a time. Another connection ends the oldest: a client that sent a request has its response by
/// then, so the oldest connection is idle.
const CLIENTS_MAX: usize = 64;

/// A stream that is watched, or all files.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Name of the stream; `file` for files.
    pub stream: String,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Its retried calls.
    pub retries: Retries,
}

/// Serves the endpoints until the future is dropped. Returns only when listening fails.
///
/// The server has its own thread and runtime, so that it answers however busy the other threads are.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, watched: Vec<Watched>) -> std::io::Result<()> {
    let watched: Arc<[Watched]> = watched.into();
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    tracing::info!(address = %listener.local_addr()?, "metrics are served");
    let stop = CancellationToken::new();
    let _ends_with_us = stop.clone().drop_guard();
    let (ended, done) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        let served = runtime.block_on(async {
            tokio::select! {
                served = accept(listener, watched) => served,
                () = stop.cancelled() => Ok(()),
            }
        });
        let _ = ended.send(served);
    })?;
    done.await.unwrap_or_else(|_| Err(std::io::Error::other("the metrics' thread ended")))
}

async fn accept(listener: std::net::TcpListener, watched: Arc<[Watched]>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely the process has no free file descriptors, which is temporary.
                tracing::warn!(error = %error, "cannot accept a client of the metrics");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= CLIENTS_MAX
            && let Some(oldest) = clients.pop_front()
        {
            oldest.abort();
        }
        let watched = watched.clone();
        let client = tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let response = answer(&request, &watched);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(MONITOR_CLIENT_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            match tokio::time::timeout(MONITOR_CLIENT_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = %error, "a client of the metrics went away"),
                Err(_) => tracing::debug!("a client of the metrics took too long"),
            }
        });
        clients.push_back(client.abort_handle());
    }
}

fn answer(request: &Request<Incoming>, watched: &[Watched]) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, metrics(watched)),
        (&Method::GET | &Method::HEAD, "/healthz") => match silent_for(watched) {
            silent if silent > SILENCE_MAX => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("nothing has moved for {} s\n", silent.as_secs()))
            }
            _ => (StatusCode::OK, "ok\n".to_owned()),
        },
        (&Method::GET | &Method::HEAD, "/readyz") => match watched.iter().all(|watched| watched.counters.is_ready()) {
            true => (StatusCode::OK, "ready\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the lake is not open yet\n".to_owned()),
        },
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = match request.uri().path() {
        "/metrics" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Returns how long a loop has not turned. A stream that failed has no loop until it is tried again.
fn silent_for(watched: &[Watched]) -> Duration {
    let running = watched.iter().filter(|watched| watched.counters.is_running());
    running.map(|watched| watched.counters.silent_for()).max().unwrap_or_default()
}

/// Name, description and value of a metric.
type Described = (&'static str, &'static str, fn(&Numbers) -> u64);

/// The label of a stream.
type OfStream = [(&'static str, String); 1];

/// Returns all metrics in the OpenMetrics text format.
pub fn metrics(watched: &[Watched]) -> String {
    let mut registry = Registry::with_prefix("synclake");
    let label = |watched: &Watched| [("stream", watched.stream.clone())];
    let numbers: Vec<(OfStream, Numbers)> = watched.iter().map(|w| (label(w), w.counters.numbers())).collect();
    let by_stream = |value: fn(&Numbers) -> u64| numbers.iter().map(|(of, n)| (of.clone(), value(n))).collect();
    let totals: [Described; 8] = [
        ("records", "Records received", |n| n.records),
        ("record_bytes", "Bytes of the records received", |n| n.record_bytes),
        ("rows", "Rows decoded from the records", |n| n.rows),
        ("files", "Data files written", |n| n.files),
        ("file_bytes", "Bytes of the data files written", |n| n.file_bytes),
        ("flushes", "Commits to sync_records", |n| n.commits),
        ("commit_conflicts", "Commit attempts that lost a version to another writer", |n| n.conflicts),
        ("gaps", "Gaps recorded: records that were gone before they were read", |n| n.gaps),
    ];
    for (name, help, value) in totals {
        registry.register(name, help, counters_of(by_stream(value)));
    }
    let gauges: [Described; 4] = [
        ("version", "Newest version of sync_records that this run wrote", |n| n.version),
        ("buffered_bytes", "Bytes in buffers", |n| n.buffered_bytes),
        ("leases_held", "Leases that this worker holds", |n| n.leases),
        ("shards_without_reader", "Shards without a reader, as this worker sees them", |n| n.unread),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, gauges_of(by_stream(value)));
    }
    let running = watched.iter().map(|watched| (label(watched), u64::from(watched.counters.is_running())));
    registry.register(
        "stream_up",
        "Whether the stream is read: 0 after a failure, until it is tried again",
        gauges_of(running.collect()),
    );
    let budget = numbers.iter().map(|(_, n)| n.budget_bytes).max().unwrap_or_default();
    registry.register("budget_bytes", "Bytes that may be in buffers", gauge(budget));
    let shards: Vec<(ShardKey, ShardCounts)> = watched.iter().flat_map(|watched| watched.counters.shards()).collect();
    let by_shard = |value: fn(&ShardCounts) -> u64| {
        shards.iter().map(|(shard, counts)| ([("shard", shard.to_string())], value(counts))).collect::<Vec<_>>()
    };
    let lags = Family::<[(&str, String); 1], Gauge<f64, AtomicU64>>::default();
    for (shard, counts) in &shards {
        lags.get_or_create(&[("shard", shard.to_string())]).set(counts.behind_ms.max(0) as f64 / 1_000.0);
    }
    registry.register("shard_lag_seconds", "Distance to the newest record of the shard, at the last read", lags);
    let uncommitted = by_shard(|c| c.uncommitted_records);
    registry.register("shard_uncommitted_records", "Records received since the last commit", gauges_of(uncommitted));
    let age = by_shard(|c| c.last_commit.elapsed().as_secs());
    registry.register("shard_last_commit_age_seconds", "Since the shard's last commit", gauges_of(age));
    // Every reason is exported from the start: a series that first appears with its first count shows no increase.
    let reasons = watched.iter().flat_map(|watched| {
        let counted = watched.counters.quarantine();
        Reason::ALL.into_iter().map(move |reason| {
            let n = counted.get(&reason).copied().unwrap_or(0);
            ([("stream", watched.stream.clone()), ("reason", reason.as_str().to_owned())], n)
        })
    });
    registry.register("quarantined", "Records in the quarantine", counters_of(reasons.collect()));
    registry.register("build", "This program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let tries = watched.iter().flat_map(|watched| {
        let counts = watched.retries.counts().into_iter();
        counts.map(|(call, error, n)| {
            ([("stream", watched.stream.clone()), ("call", call.to_owned()), ("error", error)], n)
        })
    });
    registry.register("retries", "Calls that were tried again", counters_of(tries.collect()));
    let seconds = watched.iter().map(|watched| (label(watched), watched.counters.commit_seconds.clone()));
    registry.register_collector(Box::new(CommitSeconds(seconds.collect())));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

/// The histograms of the streams, which their counters hold.
#[derive(Debug)]
struct CommitSeconds(Vec<(OfStream, Histogram)>);

impl Collector for CommitSeconds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = MetricType::Histogram;
        let mut family = encoder.encode_descriptor("commit_seconds", "Time that a commit took.", None, kind)?;
        self.0.iter().try_for_each(|(of, histogram)| histogram.encode(family.encode_family(of)?))
    }
}

/// Returns the value of a gauge. A measure beyond an i64 is an estimate without bound, which the largest gauge shows.
fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(saturated(value));
    gauge
}

fn gauges_of<L>(values: Vec<(L, u64)>) -> Family<L, Gauge>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet,
{
    let family = Family::<L, Gauge>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(saturated(value));
    }
    family
}

fn counters_of<L>(values: Vec<(L, u64)>) -> Family<L, Counter>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet,
{
    let family = Family::<L, Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    family
}
