//! Access to AWS: region, credentials, endpoints.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::AwsCredential;

use crate::causes::causes;

pub mod call;
pub mod identity;
pub(crate) mod json;

/// Settings that every AWS tool reads from its environment and profile, and the user's overrides.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// Region, in place of the environment's.
    pub region: Option<String>,
    /// Endpoint of all services, in place of the environment's.
    pub endpoint_url: Option<String>,
    /// Named profile, in place of the environment's, including access keys in the environment.
    pub profile: Option<String>,
}

impl AwsSettings {
    /// Checks that the named profile exists.
    ///
    /// # Errors
    /// Returns one line that lists the existing profiles.
    pub async fn check(&self) -> Result<(), String> {
        let Some(name) = &self.profile else { return Ok(()) };
        let (files, system, variables) = (Default::default(), Default::default(), Default::default());
        let profiles = aws_config::profile::load(&system, &variables, &files, None).await;
        let profiles = profiles.map_err(|e| format!("--profile {name:?}: {}", innermost(&e)))?;
        if profiles.get_profile(name).is_some() {
            return Ok(());
        }
        let mut known: Vec<&str> = profiles.profiles().collect();
        known.sort_unstable();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(format!("--profile {name:?} is not in the AWS config and credentials files; there is {known}"))
    }

    /// Checks that there is a region. Every service but S3 needs one.
    ///
    /// # Errors
    /// Returns one line that says how to give it.
    pub async fn check_region(&self) -> Result<(), String> {
        check_region_of(&self.load().await)
    }

    /// Loads region, credentials and endpoint like the AWS command line.
    pub async fn load(&self) -> aws_config::SdkConfig {
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
        if let Some(region) = &self.region {
            loader = loader.region(aws_config::Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &self.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let Some(profile) = &self.profile else { return config };
        // The default chain asks the environment first. A profile that the user names must come before it.
        let at = ProviderConfig::without_region().with_region(config.region().cloned());
        let named = ProfileFileCredentialsProvider::builder().configure(&at).profile_name(profile).build();
        let chain = CredentialsProviderChain::first_try("Profile", named)
            .or_else("WebIdentityToken", WebIdentityTokenCredentialsProvider::builder().configure(&at).build())
            .or_else("EcsContainer", EcsCredentialsProvider::builder().configure(&at).build())
            .or_else("Ec2InstanceMetadata", ImdsCredentialsProvider::builder().configure(&at).build());
        config.into_builder().credentials_provider(SharedCredentialsProvider::new(chain)).build()
    }
}

/// Timeout of each try of a call that a person waits for, and of all its tries.
const CALL_TRY_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries of such a call. The SDK repeats throttled calls, failures of the service and lost connections, with pauses.
const CALL_TRIES: u32 = 5;

/// Returns a configuration for calls that a person waits for: with timeouts, and a few retries.
pub(crate) fn for_calls(config: &aws_config::SdkConfig) -> aws_config::SdkConfig {
    let timeouts =
        TimeoutConfig::builder().operation_attempt_timeout(CALL_TRY_TIMEOUT).operation_timeout(CALL_TIMEOUT).build();
    let retries = RetryConfig::standard().with_max_attempts(CALL_TRIES);
    config.clone().into_builder().timeout_config(timeouts).retry_config(retries).build()
}

/// Checks that a loaded configuration has a region.
pub(crate) fn check_region_of(config: &aws_config::SdkConfig) -> Result<(), String> {
    match config.region() {
        Some(_) => Ok(()),
        None => Err("no AWS region found; give --region or set AWS_REGION".to_owned()),
    }
}

/// An adapter of the SDK's credential chain for object_store, which asks before every request. So the last answer is
/// kept until five minutes before it expires, or until half of its life is over if that is shorter.
#[derive(Debug)]
pub(crate) struct Credentials {
    provider: SharedCredentialsProvider,
    last: tokio::sync::Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

const CREDENTIALS_SLACK: Duration = Duration::from_secs(300);
/// Credentials without an expiry are read again after this time, because a user may have replaced them.
const CREDENTIALS_AGE_MAX: Duration = Duration::from_secs(900);

impl Credentials {
    pub(crate) fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, last: tokio::sync::Mutex::new(None) }
    }

    /// Drops the credentials, because the service reports that they have expired. The next request asks for new ones.
    pub(crate) async fn forget(&self) {
        *self.last.lock().await = None;
    }
}

#[async_trait::async_trait]
impl object_store::CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let now = SystemTime::now();
        let mut last = self.last.lock().await;
        if let Some((credential, until)) = last.as_ref().filter(|(_, until)| now < *until) {
            tracing::trace!(?until, "credentials still good");
            return Ok(credential.clone());
        }
        let found = self
            .provider
            .provide_credentials()
            .await
            .map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        let until = found.expiry().map_or(now + CREDENTIALS_AGE_MAX, |expiry| {
            let life = expiry.duration_since(now).unwrap_or_default();
            expiry - CREDENTIALS_SLACK.min(life / 2)
        });
        *last = Some((credential.clone(), until));
        Ok(credential)
    }
}

/// Returns the error of the credentials in a chain of errors, if there is one.
pub(crate) fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns whether a retry cannot succeed: there are no credentials, or their configuration is wrong.
pub(crate) fn is_hopeless(error: &CredentialsError) -> bool {
    matches!(error, CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_))
}

/// Describes an error of the credentials briefly; the chain's own list of attempts would fill a screen.
pub(crate) fn describe_credentials(error: &CredentialsError) -> String {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => "no AWS credentials were found".to_owned(),
        CredentialsError::ProviderTimedOut(_) => "AWS credentials did not come in time".to_owned(),
        other => format!("cannot get AWS credentials: {}", innermost(other)),
    }
}

/// Returns the last cause of an error: what happened, without the layers that passed it on.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_credentials_are_found_and_short() {
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(CredentialsError::not_loaded("x".repeat(700))),
        };
        let found = credentials_error(&error).unwrap();
        assert!(is_hopeless(found));
        assert_eq!(describe_credentials(found), "no AWS credentials were found");
        assert!(!is_hopeless(&CredentialsError::provider_error("503")));
        assert_eq!(describe_credentials(&CredentialsError::provider_error("503")), "cannot get AWS credentials: 503");
    }
}
