//! The identity that AWS sees behind the credentials.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_sts::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_sts::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sts::error::BoxError;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::AwsSettings;
use super::call::CallError;

/// The caller, as the security token service names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// Account, twelve digits.
    pub account: String,
    /// ARN of the user or of the assumed role.
    pub arn: String,
}

impl Caller {
    /// Returns the partition of the ARN: `aws`, `aws-cn` or `aws-us-gov`.
    pub fn partition(&self) -> &str {
        self.arn.split(':').nth(1).filter(|partition| !partition.is_empty()).unwrap_or("aws")
    }

    /// Returns the ARN of a role of the caller's account.
    pub fn role_arn(&self, name: &str) -> String {
        format!("arn:{}:iam::{}:role/{name}", self.partition(), self.account)
    }
}

/// Asks who the caller is. The call needs no permission.
///
/// # Errors
/// The credentials are missing or wrong, or the service does not answer.
pub async fn caller(aws: &AwsSettings) -> Result<Caller, CallError> {
    caller_and_clock(aws).await.map(|(caller, _)| caller)
}

/// As [`caller`]; also returns how far this machine's clock is ahead of the service's, if the answer states its time.
pub(crate) async fn caller_and_clock(aws: &AwsSettings) -> Result<(Caller, Option<TimeDelta>), CallError> {
    let client = aws_sdk_sts::Client::new(&super::for_calls(&aws.load().await));
    let ahead = ClockAhead::default();
    let answer = client.get_caller_identity().customize().interceptor(ahead.clone()).send().await;
    let answer = answer.map_err(|e| CallError::new("sts:GetCallerIdentity", "these credentials", &e))?;
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let ahead = *ahead.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((Caller { account: text(answer.account()), arn: text(answer.arn()) }, ahead))
}

/// Compares the `Date` of an answer with the local clock.
#[derive(Debug, Clone, Default)]
struct ClockAhead(Arc<Mutex<Option<TimeDelta>>>);

impl Intercept for ClockAhead {
    fn name(&self) -> &'static str {
        "ClockAhead"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date.map(|date| Utc::now() - date.to_utc());
        Ok(())
    }
}
