//! Amazon Cognito Sync, administered: the stream of an identity pool, bulk publishes, usage.
//!
//! **Invariant: a change of the stream leaves push sync as it is.** SetIdentityPoolConfiguration replaces both, so every
//! change begins with a read, and writes back what the read returned.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_cognitosync::Client;
use aws_sdk_cognitosync::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_cognitosync::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_cognitosync::error::BoxError;
use aws_sdk_cognitosync::primitives::DateTime as SdkTime;
use aws_sdk_cognitosync::types::{CognitoStreams, PushSync, StreamingStatus};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::aws::AwsSettings;
use crate::aws::call::CallError;

/// Id of a Cognito identity pool: `<region>:<hexadecimal digits and dashes>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PoolId(String);

impl PoolId {
    /// Parses the id of a pool.
    ///
    /// # Errors
    /// Returns one line that says what an id looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_region = |region: &str| {
            region.contains('-') && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let is_id = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        match text.split_once(':') {
            Some((region, id)) if text.len() <= 55 && is_region(region) && is_id(id) => Ok(Self(text.to_owned())),
            _ => Err(format!("{text:?} is no id of an identity pool, such as us-east-1:0a1b2c3d-…")),
        }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the region of the pool, which its id begins with. Its stream is in the same region.
    pub fn region(&self) -> &str {
        self.0.split_once(':').map_or("", |(region, _)| region)
    }
}

impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stream of a pool, as its configuration states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStream {
    /// Name of the Kinesis stream.
    pub stream: String,
    /// ARN of the role by which Cognito Sync writes into it.
    pub role_arn: String,
    /// Whether streaming is on.
    pub is_enabled: bool,
    /// Why the service turned streaming off, in its own words; null if it did not.
    pub disabled_reason: Option<String>,
}

/// The configuration of a pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolConfiguration {
    push_sync: Option<PushSync>,
    /// The stream; `None` if the pool never had one.
    pub streams: Option<PoolStream>,
}

impl PoolConfiguration {
    /// Returns whether push sync is configured.
    pub fn has_push_sync(&self) -> bool {
        self.push_sync.is_some()
    }
}

/// The state of the newest bulk publish of a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BulkPublish {
    /// `NOT_STARTED`, `IN_PROGRESS`, `SUCCEEDED` or `FAILED`.
    pub status: String,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Why it failed, in the words of the service.
    pub message: Option<String>,
}

impl BulkPublish {
    /// Returns whether it is still at work.
    pub fn is_running(&self) -> bool {
        self.status == "IN_PROGRESS"
    }

    /// Returns whether it has published everything.
    pub fn has_succeeded(&self) -> bool {
        self.status == "SUCCEEDED"
    }
}

/// Usage of a pool, as the service counts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// Synchronizations so far.
    pub sync_sessions: Option<i64>,
    /// Bytes of all datasets.
    pub data_bytes: Option<i64>,
    /// Time of the last change.
    pub last_modified: Option<DateTime<Utc>>,
}

/// A client of Cognito Sync.
#[derive(Debug, Clone)]
pub struct CognitoSync {
    client: Client,
}

impl CognitoSync {
    /// Creates a client; sends nothing yet.
    pub async fn new(aws: &AwsSettings) -> Self {
        Self { client: Client::new(&crate::aws::for_calls(&aws.load().await)) }
    }

    /// Returns the configuration of a pool.
    ///
    /// # Errors
    /// The service refuses or does not answer.
    pub async fn configuration(&self, pool: &PoolId) -> Result<PoolConfiguration, CallError> {
        let reason = DisabledReason::default();
        let request = self.client.get_identity_pool_configuration().identity_pool_id(pool.as_str());
        let answer = request.customize().interceptor(reason.clone()).send().await;
        let action = "cognito-sync:GetIdentityPoolConfiguration";
        let answer = answer.map_err(|e| failed(action, pool, &e))?;
        // A set writes back what a get returned. An answer of another service must not clear push sync.
        if answer.identity_pool_id() != Some(pool.as_str()) {
            let remedy = "check --endpoint-url, and whether a proxy stands in between";
            return Err(CallError::odd(action, format!("pool {pool}"), "the answer does not name the pool", remedy));
        }
        let streams = answer.cognito_streams().and_then(|streams| PoolStream::read(streams, reason.take()));
        Ok(PoolConfiguration { push_sync: answer.push_sync, streams })
    }

    /// Sets the stream of a pool. A change of somebody else between read and write is read again, up to five times.
    ///
    /// # Errors
    /// The service refuses or does not answer.
    pub async fn set_stream(&self, pool: &PoolId, stream: &PoolStream) -> Result<PoolConfiguration, CallError> {
        let action = "cognito-sync:SetIdentityPoolConfiguration";
        let mut tries = 0;
        loop {
            let push_sync = self.configuration(pool).await?.push_sync;
            let status = if stream.is_enabled { StreamingStatus::Enabled } else { StreamingStatus::Disabled };
            let streams = CognitoStreams::builder()
                .stream_name(&stream.stream)
                .role_arn(&stream.role_arn)
                .streaming_status(status)
                .build();
            let request = self.client.set_identity_pool_configuration().identity_pool_id(pool.as_str());
            let set = request.set_push_sync(push_sync).cognito_streams(streams).send().await;
            tries += 1;
            match set.map_err(|e| failed(action, pool, &e)) {
                Ok(_) => return self.configuration(pool).await,
                Err(error) if error.is("ConcurrentModificationException") && tries < CHANGE_TRIES => {}
                Err(error) if error.is("ConcurrentModificationException") => {
                    return Err(error.with_remedy("somebody else changes the pool all the time: run again later"));
                }
                Err(error) if error.is_denied() => {
                    return Err(error.with_remedy(format!("allow {action} and iam:PassRole for these credentials")));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts a bulk publish: the service sends all data of the pool to its stream.
    ///
    /// # Errors
    /// One is running, one succeeded within 24 hours, streaming is off, or the service does not answer.
    pub async fn start_bulk_publish(&self, pool: &PoolId) -> Result<(), CallError> {
        let sent = self.client.bulk_publish().identity_pool_id(pool.as_str()).send().await;
        let Err(error) = sent else { return Ok(()) };
        let error = failed("cognito-sync:BulkPublish", pool, &error);
        let remedy = match error.code.as_deref() {
            Some("DuplicateRequestException") => {
                Some(format!("one is running: follow it with `synclake bulk-publish wait --pool {pool}`"))
            }
            Some("AlreadyStreamedException") => Some(format!(
                "the service allows one success in 24 hours: `synclake bulk-publish status --pool {pool}` shows the last one"
            )),
            Some("InvalidParameterException") => {
                Some(format!("look at the pool's stream with `synclake stream status --pool {pool}`"))
            }
            _ => None,
        };
        Err(match remedy {
            Some(remedy) => error.with_remedy(remedy),
            None => error,
        })
    }

    /// Returns the newest bulk publish of a pool.
    ///
    /// # Errors
    /// The service refuses or does not answer.
    pub async fn bulk_publish(&self, pool: &PoolId) -> Result<BulkPublish, CallError> {
        let answer = self.client.get_bulk_publish_details().identity_pool_id(pool.as_str()).send().await;
        let answer = answer.map_err(|e| failed("cognito-sync:GetBulkPublishDetails", pool, &e))?;
        Ok(BulkPublish {
            status: answer.bulk_publish_status().map_or("NOT_STARTED", |status| status.as_str()).to_owned(),
            started_at: answer.bulk_publish_start_time().and_then(time),
            completed_at: answer.bulk_publish_complete_time().and_then(time),
            message: answer.failure_message().filter(|text| !text.is_empty()).map(str::to_owned),
        })
    }

    /// Returns the usage of a pool.
    ///
    /// # Errors
    /// The service refuses or does not answer.
    pub async fn usage(&self, pool: &PoolId) -> Result<PoolUsage, CallError> {
        let answer = self.client.describe_identity_pool_usage().identity_pool_id(pool.as_str()).send().await;
        let answer = answer.map_err(|e| failed("cognito-sync:DescribeIdentityPoolUsage", pool, &e))?;
        let usage = answer.identity_pool_usage();
        Ok(PoolUsage {
            sync_sessions: usage.and_then(|usage| usage.sync_sessions_count()),
            data_bytes: usage.and_then(|usage| usage.data_storage()),
            last_modified: usage.and_then(|usage| usage.last_modified_date()).and_then(time),
        })
    }
}

/// Tries of a change that somebody else's change prevents.
const CHANGE_TRIES: u32 = 5;

fn failed<E>(action: &'static str, pool: &PoolId, error: &aws_sdk_cognitosync::error::SdkError<E>) -> CallError
where
    E: aws_sdk_cognitosync::error::ProvideErrorMetadata + std::error::Error + 'static,
{
    CallError::new(action, &format!("pool {pool}"), error)
}

fn time(time: &SdkTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time.to_millis().ok()?)
}

impl PoolStream {
    fn read(streams: &CognitoStreams, disabled_reason: Option<String>) -> Option<Self> {
        let is_enabled = streams.streaming_status() == Some(&StreamingStatus::Enabled);
        Some(Self {
            stream: streams.stream_name()?.to_owned(),
            role_arn: streams.role_arn().unwrap_or_default().to_owned(),
            is_enabled,
            disabled_reason: disabled_reason.filter(|text| !is_enabled && !text.is_empty()),
        })
    }
}

/// Reads `CognitoStreams.DisabledReason` from an answer, because the SDK's type does not have it.
#[derive(Debug, Clone, Default)]
struct DisabledReason(Arc<Mutex<Option<String>>>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    cognito_streams: Option<AnswerStreams>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AnswerStreams {
    disabled_reason: Option<String>,
}

impl DisabledReason {
    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Intercept for DisabledReason {
    fn name(&self) -> &'static str {
        "DisabledReason"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        let answer = serde_json::from_slice::<Answer>(body).ok();
        let reason = answer.and_then(|answer| answer.cognito_streams?.disabled_reason);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_pools() {
        let pool = PoolId::parse("eu-west-1:23EC4050-6aea-7089-a2dd-08002EXAMPLE");
        assert!(pool.is_err(), "{pool:?}");
        let pool = PoolId::parse("eu-west-1:23ec4050-6aea-7089-a2dd-0800200c9a66").unwrap();
        assert_eq!(pool.region(), "eu-west-1");
        for text in ["", "eu-west-1", ":0a", "eu-west-1:", "eu-west-1:0a/../b", "EU:0a", "eu_west_1:0a"] {
            assert!(PoolId::parse(text).is_err(), "{text}");
        }
    }
}
