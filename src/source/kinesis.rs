//! A Kinesis stream: the client that lists its shards, and the meaning of the service's errors.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

use super::{Retries, SourceError};
use crate::aws::AwsSettings;
use crate::aws::call::describe;
use crate::backoff::{Alarm, Backoff};
use crate::ids::{SequenceNumber, ShardKey};
use crate::timeouts::{KINESIS_CALL_TIMEOUT, KINESIS_TIMEOUT, WARN_AFTER};

mod lineage;

pub use super::shard::{Begin, Job, read};
pub use lineage::{From, ListedShard, Progress, ready, trimmed};
use lineage::{circular, contradicts};

/// The state of a shard in the listing of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Shard that takes records.
    Open,
    /// Shard that has an end.
    Closed,
    /// Shard that the stream does not list.
    Gone,
}

/// An incarnation of a stream. A stream that is deleted and made again under its name is another stream: its shard ids
/// begin again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Name under which the lake keeps the shards: the stream's own for the first incarnation that the lake has read.
    pub name: String,
    /// Time of creation, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// The shards of a stream, and the retention of its records.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Shards that the stream lists.
    pub shards: Vec<ListedShard>,
    /// Retention in milliseconds.
    pub retention_ms: i64,
}

/// A client for one stream.
#[derive(Debug, Clone)]
pub struct Kinesis {
    client: Client,
    stream: String,
    /// Incarnation that is read.
    incarnation: Arc<OnceLock<Incarnation>>,
    retries: Retries,
}

impl Kinesis {
    /// Creates a client for a stream; sends nothing yet.
    ///
    /// # Errors
    /// The name is not a valid stream name, or no region is set.
    pub async fn new(aws: &AwsSettings, stream: &str) -> Result<Self, SourceError> {
        if ShardKey::new(stream, "shard").is_none() {
            let message = format!("stream name {stream:?} is not 1 to 128 of [a-zA-Z0-9_.-]");
            return Err(SourceError::Invalid(message));
        }
        let config = aws.load().await;
        crate::aws::check_region_of(&config).map_err(SourceError::Invalid)?;
        // [`Retry`] alone decides what is retried and for how long, so the SDK does not retry. Every call has a
        // timeout.
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(KINESIS_CALL_TIMEOUT).build();
        let config = config.into_builder().timeout_config(timeouts).retry_config(RetryConfig::disabled()).build();
        Ok(Self {
            client: Client::new(&config),
            stream: stream.to_owned(),
            incarnation: Arc::default(),
            retries: Retries::default(),
        })
    }

    /// Returns a client for whatever stream has this name now, with the same counts of retried calls.
    pub fn anew(&self) -> Self {
        Self { incarnation: Arc::default(), ..self.clone() }
    }

    /// Returns the counts of retried calls.
    pub fn retries(&self) -> Retries {
        self.retries.clone()
    }

    /// Returns the name of the stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the name under which the lake keeps the shards.
    pub fn name(&self) -> &str {
        self.incarnation.get().map_or(&self.stream, |incarnation| &incarnation.name)
    }

    /// Returns the time of creation, in milliseconds since the Unix epoch; 0 before a call of [`Self::reads`].
    pub fn created_ms(&self) -> i64 {
        self.incarnation.get().map_or(0, |incarnation| incarnation.created_ms)
    }

    /// Sets the incarnation that is read, once and before any shard is listed.
    pub fn reads(&self, incarnation: Incarnation) {
        // The first call wins.
        let _ = self.incarnation.set(incarnation);
    }

    /// Returns the time of creation in milliseconds since the Unix epoch, and the retention in milliseconds.
    ///
    /// # Errors
    /// As for [`Self::list`].
    pub async fn describe(&self) -> Result<(i64, i64), SourceError> {
        let mut retry = Retry::new("DescribeStreamSummary", self);
        loop {
            match self.client.describe_stream_summary().stream_name(&self.stream).send().await {
                Ok(answer) => {
                    let summary = answer.stream_description_summary();
                    let created = summary.and_then(|s| s.stream_creation_timestamp().to_millis().ok());
                    // Without the time of creation the stream is unknown. An answer of another service must not make it
                    // another stream.
                    if let (Some(summary), Some(created_ms)) = (summary, created.filter(|ms| *ms > 0)) {
                        let hours = summary.retention_period_hours().max(1);
                        return Ok((created_ms, i64::from(hours) * 3_600_000));
                    }
                    retry.invalid_response("the answer does not tell when the stream was created").await?;
                }
                Err(error) => retry.failed(&error).await?,
            }
        }
    }

    /// Returns all shards that the stream still lists, and its retention.
    ///
    /// # Errors
    /// The service refuses for good or for longer than ten minutes, the list is invalid, or the stream was made again.
    pub async fn list(&self) -> Result<Listing, SourceError> {
        let (created_ms, retention_ms) = self.describe().await?;
        if self.incarnation.get().is_some_and(|read| read.created_ms != created_ms) {
            let stream = &self.stream;
            return Err(SourceError::Invalid(format!(
                "stream {stream} was deleted and made again while it was read; run the same command again to read the new one"
            )));
        }
        Ok(Listing { shards: self.list_shards().await?, retention_ms })
    }

    /// Returns the state of a shard, by a listing that begins now.
    ///
    /// # Errors
    /// As for [`Self::list`].
    pub(super) async fn place(&self, shard: &ShardKey) -> Result<Place, SourceError> {
        let listed = self.list_shards().await?;
        Ok(match listed.iter().find(|listed| listed.shard == *shard) {
            None => Place::Gone,
            Some(listed) if listed.closed => Place::Closed,
            Some(_) => Place::Open,
        })
    }

    /// Returns whether the lake's positions under these shard names come from another stream: a position is before the
    /// first record of its shard, or is the end of an open shard. The caller must have read `ledger` before.
    ///
    /// # Errors
    /// As for [`Self::list`].
    pub async fn is_another_than(&self, ledger: &BTreeMap<ShardKey, Progress>) -> Result<bool, SourceError> {
        Ok(contradicts(&self.list_shards().await?, ledger))
    }

    async fn list_shards(&self) -> Result<Vec<ListedShard>, SourceError> {
        let mut found: BTreeMap<ShardKey, ListedShard> = BTreeMap::new();
        let mut token: Option<String> = None;
        let mut retry = Retry::new("ListShards", self);
        for _ in 0..PAGES_MAX {
            // The service accepts a name or a token, never both.
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
                    ShardKey::new(self.name(), id).ok_or_else(|| {
                        SourceError::Invalid(format!("stream {} lists a shard with the odd id {id:?}", self.stream))
                    })
                };
                let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
                let parents = parents.into_iter().flatten().map(key).collect::<Result<_, _>>()?;
                let range = shard.sequence_number_range();
                let closed = range.is_some_and(|r| r.ending_sequence_number().is_some());
                let starts = range.and_then(|r| SequenceNumber::parse(r.starting_sequence_number()));
                let key = key(shard.shard_id())?;
                found.insert(key.clone(), ListedShard { shard: key, parents, closed, starts });
            }
            if found.len() > SHARDS_MAX {
                return Err(self.invalid_response("it lists more shards than any stream has"));
            }
            let next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_some() && next == token {
                return Err(self.invalid_response("its shard list does not end: a page names itself as the next page"));
            }
            token = next;
            if token.is_none() {
                let found: Vec<ListedShard> = found.into_values().collect();
                return match circular(&found) {
                    Some(shard) => Err(self.invalid_response(&format!("shard {} is its own ancestor", shard.shard()))),
                    None if found.is_empty() => Err(self.invalid_response("it lists no shard")),
                    None => Ok(found),
                };
            }
        }
        Err(self.invalid_response("the list of its shards does not end"))
    }

    fn invalid_response(&self, what: &str) -> SourceError {
        SourceError::Invalid(format!("stream {}: {what}; check --endpoint-url", self.stream))
    }
}

/// Pages of a list of shards, at most, with up to a thousand shards each: far more than any stream has.
const PAGES_MAX: usize = 10_000;
/// Shards in all these pages, at most. A stream has at most 20,000 open shards.
const SHARDS_MAX: usize = 500_000;

/// The retries of one call: errors that may pass are retried for a limited time, permanent errors are returned at once.
#[derive(Debug)]
pub(super) struct Retry {
    action: &'static str,
    stream: String,
    retries: Retries,
    alarm: Alarm,
    backoff: Backoff,
}

impl Retry {
    pub(super) fn new(action: &'static str, kinesis: &Kinesis) -> Self {
        let (stream, retries) = (kinesis.stream.clone(), kinesis.retries.clone());
        Self { action, stream, retries, alarm: Alarm::default(), backoff: Backoff::new(100, 5_000) }
    }

    pub(super) fn succeeded(&mut self) {
        self.alarm.succeeded();
        self.backoff.reset();
    }

    /// Pauses after a failure, or returns the error if a retry does not help.
    pub(super) async fn failed<E>(&mut self, error: &SdkError<E>) -> Result<(), SourceError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match classify(error) {
            ErrorClass::Hopeless(remedy) => Err(self.given_up(describe(error), remedy)),
            ErrorClass::MayPass(hint) => self.again(error.code().unwrap_or("no_answer"), describe(error), hint).await,
        }
    }

    /// Handles an invalid answer that the service calls a success, like [`Retry::failed`].
    pub(super) async fn invalid_response(&mut self, reason: &str) -> Result<(), SourceError> {
        self.again("odd_answer", reason.to_owned(), NO_ANSWER_OF_KINESIS).await
    }

    async fn again(&mut self, code: &str, reason: String, hint: &'static str) -> Result<(), SourceError> {
        let (lasted, is_loud) = self.alarm.failed(Instant::now());
        if lasted > KINESIS_TIMEOUT {
            return Err(self.given_up(reason, hint));
        }
        self.retries.count(self.action, code);
        let (action, stream, seconds) = (self.action, self.stream.as_str(), lasted.as_secs());
        match is_loud {
            true => tracing::error!(action, stream, seconds, error = %reason, hint, "still failing, trying again"),
            // Failures that pass sooner need no attention.
            false if lasted < WARN_AFTER => tracing::info!(action, stream, error = %reason, "trying again"),
            false => tracing::warn!(action, stream, seconds, error = %reason, "trying again"),
        }
        tokio::time::sleep(self.backoff.pause()).await;
        Ok(())
    }

    fn given_up(&self, reason: String, remedy: &'static str) -> SourceError {
        SourceError::Kinesis { action: self.action, stream: self.stream.clone(), reason, remedy }
    }
}

const NO_ANSWER_OF_KINESIS: &str =
    "the answer is not from Kinesis: check --endpoint-url, and whether a proxy stands in between";

/// The class of an error: whether it may pass.
pub(crate) enum ErrorClass {
    /// Permanent error; the text says what to do.
    Hopeless(&'static str),
    /// Error that may pass; the text says where to look if it does not.
    MayPass(&'static str),
}

/// Returns the class of an error of any AWS service, by its kind and its code, never by its text.
pub(crate) fn classify<E>(error: &SdkError<E>) -> ErrorClass
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    use ErrorClass::{Hopeless, MayPass};
    if let Some(error) = crate::aws::credentials_error(error) {
        return match crate::aws::is_hopeless(error) {
            true => Hopeless("give --profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            false => MayPass("the credentials provider fails: check the profile, the role and the network"),
        };
    }
    match error.code() {
        Some("ResourceNotFoundException") => Hopeless("check the name of the stream, the region and the account"),
        Some("AccessDeniedException" | "AccessDenied") => Hopeless(
            "allow kinesis:ListShards, DescribeStreamSummary, GetShardIterator and GetRecords for these credentials",
        ),
        Some(
            "KMSDisabledException" | "KMSInvalidStateException" | "KMSAccessDeniedException" | "KMSNotFoundException",
        ) => Hopeless("enable the stream's KMS key, and allow kms:Decrypt for these credentials"),
        Some("UnrecognizedClientException" | "InvalidSignatureException" | "IncompleteSignature") => {
            Hopeless("check the credentials, and the clock of this machine")
        }
        Some("InvalidArgumentException" | "ValidationException") => Hopeless("check --from and the name of the stream"),
        Some("ExpiredTokenException" | "ExpiredToken" | "RequestExpired") => {
            MayPass("the credentials have expired: renew them; and check the clock of this machine")
        }
        Some("ProvisionedThroughputExceededException" | "LimitExceededException" | "ThrottlingException") => {
            MayPass("the limits of the stream are exceeded: stop other readers, or add shards")
        }
        Some(_) => MayPass("the service refuses: see its status page and the quotas of the account"),
        None => match error {
            SdkError::ConstructionFailure(_) => Hopeless("check the region and the credentials"),
            SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => {
                MayPass("no answer: check the network, the region and --endpoint-url")
            }
            _ => match error.raw_response().map(|answer| answer.status().as_u16()) {
                Some(300..=399) => MayPass("the endpoint redirects the call: check --endpoint-url and the region"),
                Some(500..) => MayPass("the service, or a proxy before it, fails"),
                _ => MayPass(NO_ANSWER_OF_KINESIS),
            },
        },
    }
}
