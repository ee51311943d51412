//! A Kinesis stream: its shards, which of them may be read, and what the service's errors mean.
//!
//! # Lineage
//! Resharding closes a shard and opens children. **Invariant: a child is read only after every parent that is read at
//! all has been committed to its end**, and from its own beginning. Which shards are read at all follows from the
//! ledger: those that it knows, and those of which it knows no descendant (a known descendant means that reading began
//! later than this shard, with `--from latest`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use tokio::time::Instant;

use super::{Retries, SequenceNumber, ShardKey, SourceError, StartAt};
use crate::backoff::Backoff;
use crate::lake::AwsSettings;

pub use super::shard::read;

/// How long the service may refuse before the caller hears of it.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long one call may take; a full read of 10 MiB over a slow line included.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

/// Where a stream is begun that the lake has never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The oldest records that the stream still holds.
    TrimHorizon,
    /// Only what arrives from now on.
    Latest,
    /// The first record at or after this time, in milliseconds since the epoch.
    Timestamp(i64),
}

/// A shard as the stream lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub shard: ShardKey,
    /// The shards that it came from, listed or not.
    pub parents: Vec<ShardKey>,
    /// Whether it takes no more records.
    pub closed: bool,
}

/// The shards of a stream, and for how long it keeps records.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The shards.
    pub shards: Vec<Listed>,
    /// Retention in milliseconds.
    pub retention_ms: i64,
}

/// A client and the stream that it reads.
#[derive(Debug, Clone)]
pub struct Kinesis {
    client: Client,
    stream: String,
    retries: Retries,
}

impl Kinesis {
    /// A client for a stream; nothing is sent yet.
    ///
    /// # Errors
    /// The name is no stream name.
    pub async fn new(aws: &AwsSettings, stream: &str) -> Result<Self, SourceError> {
        if ShardKey::new(stream, "shard").is_none() {
            let message = format!("stream name {stream:?} is not 1 to 128 of [a-zA-Z0-9_.-]");
            return Err(SourceError::Invalid(message));
        }
        let config = aws.load().await;
        if config.region().is_none() {
            return Err(SourceError::Invalid("no AWS region found; give --region or set AWS_REGION".to_owned()));
        }
        // One place decides what is tried again, and for how long; and no call waits for an answer for ever.
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(CALL_PATIENCE).build();
        let config = config.into_builder().timeout_config(timeouts).retry_config(RetryConfig::disabled()).build();
        Ok(Self { client: Client::new(&config), stream: stream.to_owned(), retries: Retries::default() })
    }

    /// How often calls were tried again.
    pub fn retries(&self) -> Retries {
        self.retries.clone()
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// All shards that the stream still lists, and its retention.
    ///
    /// # Errors
    /// The service refuses for good, or for longer than ten minutes.
    pub async fn list(&self) -> Result<Listing, SourceError> {
        let mut retry = Retry::new("DescribeStreamSummary", self);
        let retention_hours = loop {
            match self.client.describe_stream_summary().stream_name(&self.stream).send().await {
                Ok(answer) => break answer.stream_description_summary().map_or(24, |s| s.retention_period_hours()),
                Err(error) => retry.failed(&error).await?,
            }
        };
        let shards = self.list_shards().await?;
        Ok(Listing { shards, retention_ms: i64::from(retention_hours.max(1)) * 3_600_000 })
    }

    async fn list_shards(&self) -> Result<Vec<Listed>, SourceError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        let mut retry = Retry::new("ListShards", self);
        loop {
            // The service wants a name or a token, never both.
            let request = self.client.list_shards();
            let request = match &token {
                Some(token) => request.next_token(token),
                None => request.stream_name(&self.stream),
            };
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) => {
                    retry.failed(&error).await?;
                    continue;
                }
            };
            for shard in page.shards() {
                let key = |id: &str| {
                    ShardKey::new(&self.stream, id).ok_or_else(|| {
                        SourceError::Invalid(format!("stream {} lists a shard with the odd id {id:?}", self.stream))
                    })
                };
                let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
                let parents = parents.into_iter().flatten().map(key).collect::<Result<_, _>>()?;
                let closed = shard.sequence_number_range().is_some_and(|r| r.ending_sequence_number().is_some());
                found.push(Listed { shard: key(shard.shard_id())?, parents, closed });
            }
            token = page.next_token().map(str::to_owned);
            if token.is_none() {
                return Ok(found);
            }
        }
    }
}

/// What the ledger says of a shard, as far as lineage cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The last committed position.
    pub position: Option<SequenceNumber>,
    /// Where it was begun.
    pub from: StartAt,
}

impl Progress {
    /// Whether the shard is committed to its end.
    pub fn is_ended(&self) -> bool {
        SequenceNumber::is_end_of(&self.position)
    }
}

/// The shards that may be read now, with where to begin those that the ledger does not know.
pub fn ready(
    listed: &[Listed],
    ledger: &BTreeMap<ShardKey, Progress>,
    from: From,
    now_ms: i64,
) -> Vec<(ShardKey, StartAt)> {
    if ledger.is_empty() && from == From::Latest {
        let open = listed.iter().filter(|s| !s.closed);
        return open.map(|s| (s.shard.clone(), StartAt::Timestamp(now_ms))).collect();
    }
    let begin = match from {
        From::TrimHorizon | From::Latest => StartAt::TrimHorizon,
        From::Timestamp(ms) => StartAt::Timestamp(ms),
    };
    let names: BTreeSet<&ShardKey> = listed.iter().map(|s| &s.shard).collect();
    let skipped = ancestors(listed, ledger);
    let ended = |shard: &ShardKey| ledger.get(shard).is_some_and(Progress::is_ended);
    let mut found = Vec::new();
    for shard in listed {
        if ended(&shard.shard) {
            continue;
        }
        if let Some(progress) = ledger.get(&shard.shard) {
            found.push((shard.shard.clone(), progress.from));
            continue;
        }
        if skipped.contains(&shard.shard) {
            continue;
        }
        let waits = shard.parents.iter().any(|p| names.contains(p) && !skipped.contains(p) && !ended(p));
        if waits {
            continue;
        }
        found.push((shard.shard.clone(), begin));
    }
    found
}

/// The shards that were not read to their end and that the stream no longer lists: its retention has trimmed what was
/// left of them. Only of those that the ledger had `before` the listing began: of a shard that another worker has begun
/// since, the listing may be too old to know.
pub fn trimmed(listed: &[Listed], ledger: &BTreeMap<ShardKey, Progress>, before: &BTreeSet<ShardKey>) -> Vec<ShardKey> {
    let names: BTreeSet<&ShardKey> = listed.iter().map(|s| &s.shard).collect();
    let is_gone =
        |(shard, p): &(&ShardKey, &Progress)| !p.is_ended() && !names.contains(shard) && before.contains(*shard);
    ledger.iter().filter(is_gone).map(|(shard, _)| shard.clone()).collect()
}

/// Every shard that the ledger does not know, but of which it knows a descendant.
fn ancestors(listed: &[Listed], ledger: &BTreeMap<ShardKey, Progress>) -> BTreeSet<ShardKey> {
    let parents: BTreeMap<&ShardKey, &[ShardKey]> = listed.iter().map(|s| (&s.shard, s.parents.as_slice())).collect();
    let mut found = BTreeSet::new();
    let mut todo: Vec<&ShardKey> = ledger.keys().collect();
    while let Some(shard) = todo.pop() {
        for parent in parents.get(shard).copied().unwrap_or_default() {
            if !ledger.contains_key(parent) && found.insert(parent.clone()) {
                todo.push(parent);
            }
        }
    }
    found
}

/// Tries again what may succeed, for a while; says at once what never will.
#[derive(Debug)]
pub(super) struct Retry {
    action: &'static str,
    stream: String,
    retries: Retries,
    since: Option<Instant>,
    backoff: Backoff,
}

impl Retry {
    pub(super) fn new(action: &'static str, kinesis: &Kinesis) -> Self {
        let (stream, retries) = (kinesis.stream.clone(), kinesis.retries.clone());
        Self { action, stream, retries, since: None, backoff: Backoff::new(100, 5_000) }
    }

    pub(super) fn succeeded(&mut self) {
        self.since = None;
        self.backoff.reset();
    }

    /// Pauses after a failure, or returns it when trying again is of no use.
    pub(super) async fn failed<E>(&mut self, error: &SdkError<E>) -> Result<(), SourceError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error.code().unwrap_or_default();
        let remedy = match code {
            "ResourceNotFoundException" => Some("check the name of the stream, the region and the account"),
            "AccessDeniedException" | "AccessDenied" => Some(
                "allow kinesis:ListShards, DescribeStreamSummary, GetShardIterator and GetRecords for these credentials",
            ),
            "KMSDisabledException"
            | "KMSInvalidStateException"
            | "KMSAccessDeniedException"
            | "KMSNotFoundException" => {
                Some("enable the stream's KMS key, and allow kms:Decrypt for these credentials")
            }
            "UnrecognizedClientException" | "InvalidSignatureException" | "IncompleteSignature" => {
                Some("check the credentials, and the clock of this machine")
            }
            "InvalidArgumentException" | "ValidationException" => Some("check --from and the name of the stream"),
            _ if matches!(error, SdkError::ConstructionFailure(_)) => Some("check the region and the credentials"),
            _ => None,
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        let given_up = remedy.is_none() && since.elapsed() > PATIENCE;
        if remedy.is_some() || given_up {
            return Err(SourceError::Kinesis {
                action: self.action,
                stream: self.stream.clone(),
                reason: describe(error),
                remedy: remedy.unwrap_or("the service failed for ten minutes; run the same command again"),
            });
        }
        self.retries.count(self.action, if code.is_empty() { "no_answer" } else { code });
        tracing::warn!(action = self.action, stream = self.stream, error = %describe(error), "trying again");
        tokio::time::sleep(self.backoff.pause()).await;
        Ok(())
    }
}

/// An SDK's error on one line.
pub(crate) fn describe<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ShardKey {
        ShardKey::new("s", name).unwrap()
    }

    fn listed(spec: &[(&str, &[&str], bool)]) -> Vec<Listed> {
        let shard = |(name, parents, closed): &(&str, &[&str], bool)| Listed {
            shard: key(name),
            parents: parents.iter().map(|p| key(p)).collect(),
            closed: *closed,
        };
        spec.iter().map(shard).collect()
    }

    fn ledger(spec: &[(&str, &str)]) -> BTreeMap<ShardKey, Progress> {
        let position = |text: &str| match text {
            "end" => Some(SequenceNumber::shard_end()),
            "" => None,
            digits => SequenceNumber::parse(digits),
        };
        let progress = |text| Progress { position: position(text), from: StartAt::TrimHorizon };
        spec.iter().map(|(name, text)| (key(name), progress(text))).collect()
    }

    #[track_caller]
    fn check(shards: &[(&str, &[&str], bool)], known: &[(&str, &str)], from: From, expected: &[&str]) {
        let found = ready(&listed(shards), &ledger(known), from, 7);
        let found: Vec<_> = found.iter().map(|(s, _)| s.shard().to_owned()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn children_wait_for_parents() {
        // a splits into b and c; c and d merge into e.
        let shards: &[(&str, &[&str], bool)] =
            &[("a", &[], true), ("d", &[], true), ("b", &["a"], false), ("c", &["a"], true), ("e", &["c", "d"], false)];
        let from = From::TrimHorizon;
        check(shards, &[], from, &["a", "d"]);
        check(shards, &[("a", "5"), ("d", "")], from, &["a", "d"]);
        check(shards, &[("a", "end"), ("d", "7")], from, &["d", "b", "c"]);
        check(shards, &[("a", "5"), ("d", "end")], from, &["a"]);
        check(shards, &[("a", "end"), ("d", "end"), ("b", ""), ("c", "9")], from, &["b", "c"]);
        check(shards, &[("a", "end"), ("d", "end"), ("b", "1"), ("c", "end")], from, &["b", "e"]);
    }

    #[test]
    fn latest_reads_no_ancestor_ever_and_every_descendant() {
        let shards: &[(&str, &[&str], bool)] = &[("a", &[], true), ("b", &["a"], false), ("c", &["a"], false)];
        check(shards, &[], From::Latest, &["b", "c"]);
        check(shards, &[("b", ""), ("c", "3")], From::Latest, &["b", "c"]);
        let split: &[(&str, &[&str], bool)] =
            &[("a", &[], true), ("b", &["a"], true), ("c", &["a"], false), ("d", &["b"], false)];
        check(split, &[("b", "end"), ("c", "3")], From::Latest, &["c", "d"]);
        let started = ready(&listed(shards), &ledger(&[]), From::Latest, 7);
        assert!(started.iter().all(|(_, at)| *at == StartAt::Timestamp(7)));
    }

    #[test]
    fn a_lineage_that_aged_out_is_taken_up_at_what_is_left() {
        // The ledger knows only a, which the stream no longer lists; nor does it list a's child b.
        check(&[("c", &["b"], true), ("d", &["c"], false)], &[("a", "5")], From::TrimHorizon, &["c"]);
        check(&[("b", &["a"], false)], &[("a", "5")], From::TrimHorizon, &["b"]);
        // Nothing that could not be read is silent.
        let gone = |shards: &[(&str, &[&str], bool)], known: &[(&str, &str)], before: &[&str]| {
            trimmed(&listed(shards), &ledger(known), &before.iter().map(|name| key(name)).collect())
        };
        assert_eq!(gone(&[("b", &["a"], false)], &[("a", "5"), ("b", "")], &["a"]), [key("a")]);
        assert_eq!(gone(&[("b", &["a"], false)], &[("a", "end"), ("b", "9")], &["a", "b"]), []);
        // Another worker ended a and began its child b while the listing was on its way here.
        assert_eq!(gone(&[("a", &[], true)], &[("a", "end"), ("b", "9")], &["a"]), []);
    }
}
