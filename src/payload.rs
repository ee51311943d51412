//! The guarded fetch of oversize payloads: events whose contents are behind a presigned URL.
//!
//! The URL comes from a record, and anybody who can write into the stream can write a record. So a [`Policy`] restricts
//! every fetch: https to S3's own hosts only, unless an operator allows more; addresses are checked when the connection
//! is made, not before; no redirects, no proxy, none of the worker's credentials; limits in bytes and in time.
//!
//! The query of the URL is a secret. It is sent in the request and nowhere else: every message made here shows the URL
//! without its query.
//!
//! # Retries
//! A permanent failure (403, 404, a refused host, a payload that is too large) is reported at once. A temporary failure
//! is retried, and its cause decides for how long (`hosts`): the object, an unknown host, or an outage of the host.
//! In an outage the shard waits while the URL is valid, because an outage is no reason to give up a record. Afterwards
//! the shard continues in any case: with the contents, or with the envelope in the quarantine.

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
pub mod policy;

use fetch::Fetcher;
pub use policy::{Allowed, Policy};

/// Settings of payload fetches.
#[derive(Debug, Clone)]
pub struct PayloadOptions {
    /// Allowed hosts and addresses.
    pub policy: Policy,
    /// Maximum bytes of an unpacked payload.
    pub bytes_max: usize,
    /// Time limit of one attempt.
    pub deadline: Duration,
    /// Time limit of retries, except in an outage. `None` applies the limits of `payload::hosts`.
    pub patience: Option<Duration>,
}

impl PayloadOptions {
    /// The default limit of a payload, in bytes: 16 times the maximum size of a dataset.
    pub const BYTES_MAX: usize = 16 << 20;
}

impl Default for PayloadOptions {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            bytes_max: Self::BYTES_MAX,
            deadline: Duration::from_secs(60),
            patience: None,
        }
    }
}

/// The fetcher of payloads that records point to.
#[derive(Debug, Clone)]
pub struct Payloads {
    fetcher: Fetcher,
    /// The budget of payloads that are fetched and not yet decoded. It is separate from the run's own, so that neither
    /// waits for the other.
    budget: Budget,
    bytes_max: usize,
}

impl Payloads {
    /// Creates the client, without sending anything.
    ///
    /// # Errors
    /// Fails if the system has no usable certificates.
    pub fn new(options: PayloadOptions) -> Result<Self, String> {
        let bytes_max = options.bytes_max;
        // A reservation is at most a quarter of a budget, so four payloads of maximum size fit at a time, or many small
        // ones.
        let budget = Budget::new(bytes_max.saturating_mul(4));
        Ok(Self { fetcher: Fetcher::new(Arc::new(options))?, budget, bytes_max })
    }

    /// Returns whether a record holds an event whose contents are behind a URL.
    pub fn concern(record: &Record) -> bool {
        record.cut.is_none() && parts(&record.bytes).any(|part| payload_url(&part.bytes).is_some())
    }

    /// Waits for memory for the payloads of one record. Reservations are made in delivery order, so the record to be
    /// delivered next never waits for later records.
    pub async fn reserve(&self) -> Reservation {
        self.budget.reserve(self.bytes_max).await
    }

    /// Fetches the payloads of one record. The payloads of an aggregate share the limit of one payload.
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

/// Weight at which a piece ends; larger than a whole read of ordinary records.
const PIECE_WEIGHT: usize = 16 << 20;

/// Cuts records into pieces, each with at most one record that points to a payload, at its end. Returns with each piece
/// whether it has such a record.
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

/// Creates a reject whose message shows the URL without its query.
fn reject(reason: Reason, url: &str, what: &str) -> Reject {
    Reject::new(reason, format!("{}: {what}", redact_url(url)))
}
