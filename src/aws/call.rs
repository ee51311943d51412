//! A failed call of an AWS service: what failed, on which thing, why, and what to do.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};

/// A failed call of an AWS service.
#[derive(Debug, thiserror::Error)]
#[error("{action} on {target}: {reason}; {remedy}")]
pub struct CallError {
    /// Action as IAM names it, such as `cognito-sync:BulkPublish`.
    pub action: &'static str,
    /// Resource of the call, such as `pool us-east-1:…`.
    pub target: String,
    /// Code of the service's error; `None` if no answer of the service came.
    pub code: Option<String>,
    /// Error in the words of the service, on one line.
    pub reason: String,
    /// Advice to the user.
    pub remedy: String,
    /// Whether no answer came, or a failure of the service (HTTP 5xx) without a code.
    pub(crate) is_of_network: bool,
}

impl CallError {
    /// Makes the error of an SDK call.
    pub(crate) fn new<E>(action: &'static str, target: &str, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error.code().map(str::to_owned);
        let credentials = super::credentials_error(error);
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        let remedy = remedy(action, code.as_deref(), credentials, status);
        let is_of_network = credentials.is_none() && matches!(status, None | Some(500..));
        Self { action, target: target.to_owned(), code, reason: describe(error), remedy, is_of_network }
    }

    /// Makes the error of an answer that is not what it should be.
    pub(crate) fn odd(
        action: &'static str,
        target: String,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { action, target, code: None, reason: reason.into(), remedy: remedy.into(), is_of_network: false }
    }

    /// Replaces the advice where the caller knows better.
    pub(crate) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }

    /// Returns whether the service answered with this code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Returns whether the same call may succeed later: no answer came, the rate was limited, or the service failed.
    pub fn may_pass(&self) -> bool {
        match self.code.as_deref() {
            None => self.is_of_network,
            Some(code) => is_passing(code),
        }
    }

    /// Returns whether the credentials do not allow the action.
    pub(crate) fn is_denied(&self) -> bool {
        self.code.as_deref().is_some_and(is_denial)
    }
}

fn is_denial(code: &str) -> bool {
    matches!(
        code,
        "AccessDenied" | "AccessDeniedException" | "NotAuthorizedException" | "UnauthorizedOperation" | "Forbidden"
    )
}

fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "TooManyRequestsException"
            | "LimitExceededException"
            | "LimitExceeded"
            | "ThrottlingException"
            | "Throttling"
            | "InternalErrorException"
            | "InternalFailure"
            | "ServiceFailure"
            | "ServiceUnavailable"
    )
}

fn remedy(action: &str, code: Option<&str>, credentials: Option<&CredentialsError>, status: Option<u16>) -> String {
    if let Some(error) = credentials {
        let remedy = match super::is_hopeless(error) {
            true => "give --profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            false => "the credentials provider fails: check the profile, the role and the network",
        };
        return remedy.to_owned();
    }
    let remedy = match code {
        Some(code) if is_denial(code) => return format!("allow {action} for these credentials"),
        Some("ResourceNotFoundException" | "NoSuchEntity" | "NoSuchBucket") => {
            "check the name, the region and the account"
        }
        Some(
            "TooManyRequestsException"
            | "LimitExceededException"
            | "LimitExceeded"
            | "ThrottlingException"
            | "Throttling",
        ) => "the service limits the rate of calls: wait a minute and run again",
        Some("InternalErrorException" | "InternalFailure" | "ServiceFailure" | "ServiceUnavailable") => {
            "the service fails: wait a minute and run again"
        }
        Some(
            "ExpiredTokenException"
            | "ExpiredToken"
            | "RequestExpired"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature",
        ) => "check the credentials, and the clock of this machine",
        Some(_) => "read what the service says, and correct it",
        None => match status {
            None => "no answer: check the network, the region and --endpoint-url",
            Some(500..) => "the service fails, or a proxy before it: wait a minute and run again",
            Some(_) => {
                "the answer is not from the service: check --endpoint-url, and whether a proxy stands in between"
            }
        },
    };
    remedy.to_owned()
}

/// Returns the text of an SDK error, on one line.
pub(crate) fn describe<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let Some(error) = super::credentials_error(error) {
        return super::describe_credentials(error);
    }
    match (error.code(), error.message(), error.raw_response()) {
        (Some(code), Some(message), _) => format!("{code}: {message}"),
        (Some(code), None, _) => code.to_owned(),
        (None, _, Some(answer)) => {
            let kind = answer.headers().get("content-type").unwrap_or("no content type");
            let to = answer.headers().get("location").map(|to| format!(" to {to}")).unwrap_or_default();
            format!("answered {}{to} ({kind}), which is no answer of the service", answer.status().as_u16())
        }
        (None, _, None) => {
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
