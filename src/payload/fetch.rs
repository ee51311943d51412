//! The fetch of one payload: the request, its limits, and the meaning of its failures.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::StatusCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Position, Url};

use super::hosts::{Failed, Hosts, Next, Trouble};
use super::policy::is_allowed;
use super::{PayloadOptions, reject};
use crate::backoff::{Alarm, Backoff};
use crate::decode::{Reason, Reject};
use crate::timeouts::{PAYLOAD_CONNECT_TIMEOUT, PAYLOAD_RATE_GRACE};

/// Bytes per second.
const RATE_MIN: u64 = 4_096;
const PAUSE_MS_MAX: u64 = 30_000;

/// The HTTP client, its settings, and what is known about hosts.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    client: reqwest::Client,
    options: Arc<PayloadOptions>,
    hosts: Arc<Mutex<Hosts>>,
}

enum Failure {
    /// A failure that may pass.
    Temporary(Trouble, String),
    /// A failure that will not pass.
    Permanent(Reason, String),
}

impl Fetcher {
    /// Creates the client, without sending anything.
    ///
    /// # Errors
    /// Fails if the system has no usable certificates.
    pub(crate) fn new(options: Arc<PayloadOptions>) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(PAYLOAD_CONNECT_TIMEOUT)
            .dns_resolver(Arc::new(AllowedOnly { private: options.policy.private }))
            .user_agent(concat!("synclake/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("make the client for payloads: {e}"))?;
        let hosts = Arc::new(Mutex::new(Hosts::new(options.patience)));
        Ok(Self { client, options, hosts })
    }

    /// Fetches and unpacks the contents behind a URL.
    ///
    /// # Errors
    /// Returns a reject for the quarantine; it shows the URL without its query.
    pub(crate) async fn fetch(&self, url: &str, bytes_max: usize) -> Result<Bytes, Reject> {
        let checked = self.options.policy.check(url);
        let checked = checked.map_err(|what| reject(Reason::PayloadRefused, url, &what))?;
        let began = Instant::now();
        // Another port is another server.
        let host = &checked[Position::BeforeHost..Position::AfterPort];
        let expires_at = expires_at(&checked);
        let mut backoff = Backoff::new(250, PAUSE_MS_MAX);
        let mut alarm = Alarm::default();
        loop {
            let attempt = tokio::time::timeout(self.options.deadline, self.attempt(&checked, bytes_max)).await;
            let attempt = attempt.unwrap_or_else(|_| {
                let what = format!("took longer than {} s", self.options.deadline.as_secs_f64());
                Err(Failure::Temporary(Trouble::Slow, what))
            });
            let (trouble, what) = match attempt {
                Ok(packed) => {
                    self.hosts().answered(host, Instant::now());
                    return unpack(packed, url, bytes_max).await;
                }
                Err(Failure::Permanent(reason, what)) => {
                    // A refused host never counts as a host that has answered.
                    if reason != Reason::PayloadRefused {
                        self.hosts().answered(host, Instant::now());
                    }
                    return Err(reject(reason, url, &what));
                }
                Err(Failure::Temporary(trouble, what)) => (trouble, what),
            };
            let now = Instant::now();
            let pause = backoff.pause();
            let failed = Failed { trouble, began, again_at: now + pause, expires: expires_at.is_some() };
            let next = self.hosts().failed(host, failed);
            let expired = expires_at.is_some_and(|at| at <= chrono::Utc::now().timestamp());
            if expired || next == Next::GiveUp {
                let what = format!("{what}; tried for {:.0} s", began.elapsed().as_secs_f64());
                return Err(reject(Reason::PayloadUnavailable, url, &what));
            }
            let (lasted, is_loud) = alarm.failed(now);
            let (url, seconds) = (crate::redact::redact_url(url), lasted.as_secs());
            match (next, is_loud) {
                (Next::Wait, true) => {
                    tracing::error!(url, error = what, seconds, "a payload host is failing; its shard waits for it");
                }
                _ => tracing::warn!(url, error = what, "cannot fetch a payload, trying again"),
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn hosts(&self) -> std::sync::MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attempt(&self, url: &Url, max: usize) -> Result<Bytes, Failure> {
        let began = Instant::now();
        let answer = self.client.get(url.clone()).send().await;
        // The library's errors contain the URL with its query.
        let mut answer = answer.map_err(|e| failure_of(&e.without_url()))?;
        let status = answer.status();
        if status != StatusCode::OK {
            let what = format!("answered {status}");
            return Err(match status.as_u16() {
                300..=399 => Failure::Permanent(Reason::PayloadRefused, format!("{what}, a redirect")),
                408 | 425 | 429 | 500..=599 => Failure::Temporary(Trouble::Busy, what),
                _ => Failure::Permanent(Reason::PayloadGone, what),
            });
        }
        let too_large = || Failure::Permanent(Reason::PayloadTooLarge, format!("is larger than {max} bytes"));
        if answer.content_length().is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        loop {
            let allowed = PAYLOAD_RATE_GRACE + Duration::from_secs(body.len() as u64 / RATE_MIN);
            let part = tokio::time::timeout(allowed.saturating_sub(began.elapsed()), answer.chunk()).await;
            let slow = |_| Failure::Temporary(Trouble::Slow, format!("came slower than {RATE_MIN} bytes a second"));
            let part = part.map_err(slow)?;
            match part.map_err(|e| failure_of(&e.without_url()))? {
                None => return Ok(body.freeze()),
                Some(part) if body.len() + part.len() > max => return Err(too_large()),
                Some(part) => body.extend_from_slice(&part),
            }
        }
    }
}

/// Unpacks gzip, which the contents identify, not a header. The limit applies to the unpacked bytes while they are
/// unpacked.
async fn unpack(packed: Bytes, url: &str, max: usize) -> Result<Bytes, Reject> {
    if !packed.starts_with(&[0x1f, 0x8b]) {
        return Ok(packed);
    }
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        let mut bounded = flate2::read::MultiGzDecoder::new(packed.as_ref()).take(max as u64 + 1);
        bounded.read_to_end(&mut out).map(|_| out)
    });
    match unpacked.await {
        Ok(Ok(out)) if out.len() > max => {
            Err(reject(Reason::PayloadTooLarge, url, &format!("unpacks to more than {max} bytes")))
        }
        Ok(Ok(out)) => Ok(Bytes::from(out)),
        Ok(Err(error)) => Err(reject(Reason::PayloadInvalid, url, &format!("is not complete gzip data: {error}"))),
        Err(_) => Err(reject(Reason::PayloadInvalid, url, "cannot be unpacked")),
    }
}

fn failure_of(error: &reqwest::Error) -> Failure {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if inner.is::<RefusedAddress>() {
            return Failure::Permanent(Reason::PayloadRefused, said);
        }
        text = format!("{text}: {said}");
        cause = inner.source();
    }
    // If the connection was made, the fault may be with this object alone.
    Failure::Temporary(if error.is_connect() { Trouble::Unreachable } else { Trouble::Slow }, text)
}

/// A host name that resolves only to addresses that are not allowed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{host} resolves to an address that is not public; if it is your endpoint for S3 in a VPC, allow private addresses with \
     --payload-private-addresses"
)]
struct RefusedAddress {
    host: String,
}

/// A resolver that returns only allowed addresses, so that the checked address is the one that is connected to.
#[derive(Debug)]
struct AllowedOnly {
    private: bool,
}

impl Resolve for AllowedOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found.iter().copied().filter(|a| is_allowed(a.ip(), private)).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(RefusedAddress { host }.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Returns when a presigned URL expires, in seconds since the epoch; `None` if the URL does not say.
fn expires_at(url: &Url) -> Option<i64> {
    let get = |wanted: &str| {
        url.query_pairs().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.into_owned())
    };
    if let (Some(date), Some(seconds)) = (get("X-Amz-Date"), get("X-Amz-Expires")) {
        let date = chrono::NaiveDateTime::parse_from_str(&date, "%Y%m%dT%H%M%SZ").ok()?;
        return date.and_utc().timestamp().checked_add(seconds.parse().ok()?);
    }
    get("Expires")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_tells_when_it_ends() {
        let at = |url: &str| expires_at(&Url::parse(url).unwrap());
        let v4 = "https://b.s3.amazonaws.com/k?X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-Signature=x";
        assert_eq!(at(v4), Some(1_767_225_660));
        assert_eq!(
            at("https://b.s3.amazonaws.com/k?AWSAccessKeyId=a&Expires=1767225600&Signature=x"),
            Some(1_767_225_600)
        );
        assert_eq!(at("https://b.s3.amazonaws.com/k"), None);
        assert_eq!(at("https://b.s3.amazonaws.com/k?X-Amz-Date=yesterday&X-Amz-Expires=60"), None);
    }
}
