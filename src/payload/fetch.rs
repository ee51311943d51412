//! One payload: the request, its bounds, and what its failures mean.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::StatusCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::Instant;
use url::Url;

use super::policy::is_public;
use super::{Options, reject};
use crate::backoff::Backoff;
use crate::decode::{Reason, Reject};

/// After this long a body must have come at [`RATE_MIN`] on average.
const RATE_GRACE: Duration = Duration::from_secs(5);
/// Bytes a second.
const RATE_MIN: u64 = 4_096;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MS_MAX: u64 = 30_000;

/// The client, and what binds it.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    options: Arc<Options>,
}

enum Failure {
    /// It may pass.
    Temporary(String),
    /// It will not.
    Permanent(Reason, String),
}

impl Fetcher {
    /// Makes the client; nothing is sent yet.
    ///
    /// # Errors
    /// The system has no usable certificates.
    pub fn new(options: Arc<Options>) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_PATIENCE)
            .dns_resolver(Arc::new(PublicOnly))
            .user_agent(concat!("synclake/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("make the client for payloads: {e}"))?;
        Ok(Self { client, options })
    }

    /// Fetches and unpacks the contents behind a URL.
    ///
    /// # Errors
    /// A reject for the quarantine; it names the URL without its query.
    pub async fn fetch(&self, url: &str, bytes_max: usize) -> Result<Bytes, Reject> {
        let checked = self.options.policy.check(url);
        let checked = checked.map_err(|what| reject(Reason::PayloadRefused, url, &what))?;
        let began = Instant::now();
        let mut backoff = Backoff::new(250, PAUSE_MS_MAX);
        loop {
            let attempt = tokio::time::timeout(self.options.deadline, self.attempt(&checked, bytes_max)).await;
            let attempt = attempt.unwrap_or_else(|_| {
                Err(Failure::Temporary(format!("took longer than {} s", self.options.deadline.as_secs_f64())))
            });
            let what = match attempt {
                Ok(packed) => return unpack(packed, url, bytes_max).await,
                Err(Failure::Permanent(reason, what)) => return Err(reject(reason, url, &what)),
                Err(Failure::Temporary(what)) => what,
            };
            let now_s = chrono::Utc::now().timestamp();
            let expired = expires_at(&checked).is_some_and(|at| at <= now_s);
            let pause = backoff.pause();
            if expired || began.elapsed() + pause > self.options.patience {
                let what = format!("{what}; tried for {:.0} s", began.elapsed().as_secs_f64());
                return Err(reject(Reason::PayloadUnavailable, url, &what));
            }
            tracing::warn!(url = crate::decode::redact(url), error = what, "cannot fetch a payload, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, url: &Url, max: usize) -> Result<Bytes, Failure> {
        let began = Instant::now();
        let answer = self.client.get(url.clone()).send().await;
        // The library's errors hold the URL, query and all.
        let mut answer = answer.map_err(|e| failure_of(&e.without_url()))?;
        let status = answer.status();
        if status != StatusCode::OK {
            let what = format!("answered {status}");
            return Err(match status.as_u16() {
                300..=399 => Failure::Permanent(Reason::PayloadRefused, format!("{what}, a redirect")),
                408 | 425 | 429 | 500..=599 => Failure::Temporary(what),
                _ => Failure::Permanent(Reason::PayloadGone, what),
            });
        }
        let too_large = || Failure::Permanent(Reason::PayloadTooLarge, format!("is larger than {max} bytes"));
        if answer.content_length().is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        loop {
            let allowed = RATE_GRACE + Duration::from_secs(body.len() as u64 / RATE_MIN);
            let part = tokio::time::timeout(allowed.saturating_sub(began.elapsed()), answer.chunk()).await;
            let part = part.map_err(|_| Failure::Temporary(format!("came slower than {RATE_MIN} bytes a second")))?;
            match part.map_err(|e| failure_of(&e.without_url()))? {
                None => return Ok(body.freeze()),
                Some(part) if body.len() + part.len() > max => return Err(too_large()),
                Some(part) => body.extend_from_slice(&part),
            }
        }
    }
}

/// Unpacks gzip, which the contents tell, not a header. What it unpacks to is bounded while it does.
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
        Ok(Err(error)) => Err(reject(Reason::PayloadInvalid, url, &format!("is no whole gzip: {error}"))),
        Err(_) => Err(reject(Reason::PayloadInvalid, url, "cannot be unpacked")),
    }
}

fn failure_of(error: &reqwest::Error) -> Failure {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if said.contains(REFUSED_ADDRESS) {
            return Failure::Permanent(Reason::PayloadRefused, said);
        }
        text = format!("{text}: {said}");
        cause = inner.source();
    }
    Failure::Temporary(text)
}

const REFUSED_ADDRESS: &str = "resolves to an address that is not public";

/// Resolves names, and lets only public addresses through: what is checked is what is connected to.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.iter().copied().filter(|a| is_public(a.ip())).collect();
            if public.is_empty() && !found.is_empty() {
                return Err(format!("{host} {REFUSED_ADDRESS}").into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// When a presigned URL ends to be good, in seconds since the epoch; `None` when it does not tell.
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
