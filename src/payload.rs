//! The guarded fetch of oversize payloads: events whose contents lie behind a presigned URL.
//!
//! The URL comes from a record, and a record may come from anybody who can write into the stream. So a fetch is held to
//! a [`Policy`]: https to S3's own hosts and nobody else unless somebody says so; addresses are checked when the
//! connection is made, not before; no redirects, no proxy, no credentials of ours; bounded in bytes and in time.
//!
//! The query of the URL is a secret. It goes into the request and nowhere else: every text that is made here names the
//! URL without it.
//!
//! # Retries
//! What cannot pass (403, 404, a refused host, too large) is told at once. What may pass is tried again, for how long is
//! up to whose fault it is ([`hosts`]): an object's, an unknown host's, or nobody's, because the host is out; then the shard
//! waits while the URL is good, because an outage is no reason to give up a record. Either way it goes on afterwards: with
//! the contents, or with the envelope in the quarantine.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::{Budget, Reservation};
use crate::cpu;
use crate::decode::{Reason, Reject, parts, payload_url};
use crate::record::{Payload, Record};
use crate::redact::redact_url;
use bytes::Bytes;

pub(crate) mod fetch;
pub(crate) mod hosts;
pub(crate) mod policy;

use fetch::Fetcher;
pub use policy::{Allowed, Policy};

/// How payloads are fetched.
#[derive(Debug, Clone)]
pub struct Options {
    /// From where.
    pub policy: Policy,
    /// A payload is no longer than this, unpacked.
    pub bytes_max: usize,
    /// One attempt takes no longer than this.
    pub deadline: Duration,
    /// What may pass is tried no longer than this, but in an outage; without it, as [`hosts`] says.
    pub patience: Option<Duration>,
}

/// How long an object or a host of which nothing good is known is tried.
pub const PATIENCE: Duration = Duration::from_secs(900);

impl Options {
    /// The largest payload by default: 16 times what a dataset may hold.
    pub const BYTES_MAX: usize = 16 << 20;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            bytes_max: Self::BYTES_MAX,
            deadline: Duration::from_secs(60),
            patience: None,
        }
    }
}

/// Fetches what the events of records point at.
#[derive(Debug, Clone)]
pub struct Payloads {
    fetcher: Fetcher,
    /// For what is fetched and not decoded yet: beside the run's own budget, so that neither waits for the other.
    budget: Budget,
    bytes_max: usize,
}

impl Payloads {
    /// Makes the client; nothing is sent yet.
    ///
    /// # Errors
    /// The system has no usable certificates.
    pub fn new(options: Options) -> Result<Self, String> {
        let bytes_max = options.bytes_max;
        // A reservation is at most a quarter of a budget: four of the largest at a time, and many small ones.
        let budget = Budget::new(bytes_max.saturating_mul(4));
        Ok(Self { fetcher: Fetcher::new(Arc::new(options))?, budget, bytes_max })
    }

    /// Whether a record holds an event whose contents lie behind a URL.
    pub fn concern(record: &Record) -> bool {
        record.cut.is_none() && parts(&record.bytes).any(|part| payload_url(&part.bytes).is_some())
    }

    /// Waits for room for what one record may point at. Taken in the order in which records are delivered, so that the
    /// one that is delivered next never waits for those behind it.
    pub async fn reserve(&self) -> Reservation {
        self.budget.reserve(self.bytes_max).await
    }

    /// Fetches what one record points at: for an aggregate, all of it together is held to the limit of one payload.
    pub async fn fetch(&self, record: &mut Record) {
        let mut left = self.bytes_max;
        let bytes = record.bytes.clone();
        let urls = move || -> Vec<(Option<i64>, String)> {
            parts(&bytes).filter_map(|part| Some((part.sub_sequence, payload_url(&part.bytes)?))).collect()
        };
        for (sub_sequence, url) in cpu::run(urls).await {
            let contents = self.fetcher.fetch(&url, left).await;
            left -= contents.as_ref().map_or(0, Bytes::len).min(left);
            record.payloads.push(Payload { sub_sequence, contents });
        }
    }
}

/// What a piece weighs before it ends; more than a whole read of ordinary records.
const PIECE_WEIGHT: usize = 16 << 20;

/// Records cut into pieces, each with at most one record that points elsewhere, at its end; and whether it does.
pub fn pieces(records: Vec<Record>) -> Vec<(Vec<Record>, bool)> {
    let mut found = Vec::new();
    let (mut piece, mut weight) = (Vec::new(), 0);
    for record in records {
        let points = Payloads::concern(&record);
        weight += record.weight();
        piece.push(record);
        if points || weight >= PIECE_WEIGHT {
            found.push((std::mem::take(&mut piece), points));
            weight = 0;
        }
    }
    if !piece.is_empty() {
        found.push((piece, false));
    }
    found
}

/// A reject that names the URL without its query.
fn reject(reason: Reason, url: &str, what: &str) -> Reject {
    Reject::new(reason, format!("{}: {what}", redact_url(url)))
}
