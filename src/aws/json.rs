//! Calls of an AWS service by its JSON protocol, for a service of which few operations are needed: the orchestrator of
//! the SDK signs, sends and repeats them. The SDK's crate for Glue takes minutes and gigabytes to compile.

use std::fmt;

use aws_runtime::auth::sigv4::{SCHEME_ID, SigV4AuthScheme};
use aws_runtime::auth::{SigV4OperationSigningConfig, SigningOptions};
use aws_runtime::retries::classifiers::AwsErrorCodeClassifier;
use aws_sdk_sts::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime::client::identity::IdentityCache;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime::client::retries::classifiers::{HttpStatusCodeClassifier, TransientErrorClassifier};
use aws_smithy_runtime_api::client::auth::static_resolver::StaticAuthSchemeOptionResolver;
use aws_smithy_runtime_api::client::auth::{AuthSchemeOptionResolverParams, SharedAuthScheme};
use aws_smithy_runtime_api::client::identity::SharedIdentityCache;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use aws_smithy_runtime_api::client::runtime_plugin::StaticRuntimePlugin;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::Layer;
use aws_types::SigningName;
use aws_types::region::SigningRegion;
use aws_types::service_config::ServiceConfigKey;
use serde_json::Value;

use super::call::CallError;

/// A client of one service.
#[derive(Debug, Clone)]
pub(crate) struct JsonClient {
    config: aws_config::SdkConfig,
    identities: SharedIdentityCache,
    service: Service,
}

/// A service that speaks AWS JSON 1.1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    /// Name in endpoints and signatures, such as `glue`.
    pub name: &'static str,
    /// Id by which settings name the service, such as `Glue`.
    pub id: &'static str,
    /// Prefix of the header `X-Amz-Target`, such as `AWSGlue`.
    pub target: &'static str,
}

/// An error that the service answered.
#[derive(Debug)]
struct Refusal(ErrorMetadata);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Refusal {}

impl ProvideErrorMetadata for Refusal {
    fn meta(&self) -> &ErrorMetadata {
        &self.0
    }
}

impl JsonClient {
    /// Makes a client of the loaded configuration; sends nothing yet.
    pub(crate) fn new(config: &aws_config::SdkConfig, service: Service) -> Self {
        let identities = config.identity_cache().unwrap_or_else(|| IdentityCache::lazy().build());
        Self { config: super::for_calls(config), identities, service }
    }

    /// Calls an operation. `action` is its name in IAM, `target` the resource that an error names.
    ///
    /// # Errors
    /// The service refuses, or no answer comes.
    pub(crate) async fn call(&self, action: &'static str, target: &str, input: Value) -> Result<Value, CallError> {
        let operation = action.rsplit(':').next().unwrap_or(action);
        let header = format!("{}.{operation}", self.service.target);
        let Some(region) = self.config.region().cloned() else {
            return Err(CallError::odd(
                action,
                target.to_owned(),
                "no AWS region found",
                "give --region or set AWS_REGION",
            ));
        };
        let mut layer = Layer::new("json");
        layer.store_put(SigningName::from_static(self.service.name));
        layer.store_put(SigningRegion::from(region.clone()));
        layer.store_put(AuthSchemeOptionResolverParams::new(()));
        layer.store_put(SigV4OperationSigningConfig {
            signing_options: SigningOptions::default(),
            ..SigV4OperationSigningConfig::default()
        });
        let mut components = RuntimeComponentsBuilder::new("json")
            .with_auth_scheme(SharedAuthScheme::new(SigV4AuthScheme::new()))
            .with_auth_scheme_option_resolver(Some(StaticAuthSchemeOptionResolver::new(vec![SCHEME_ID])))
            .with_identity_cache(Some(self.identities.clone()))
            .with_retry_classifier(HttpStatusCodeClassifier::default())
            .with_retry_classifier(TransientErrorClassifier::<Refusal>::new())
            .with_retry_classifier(AwsErrorCodeClassifier::<Refusal>::new());
        if let Some(credentials) = self.config.credentials_provider() {
            components.set_identity_resolver(SCHEME_ID, credentials);
        }
        let mut call = Operation::builder()
            .service_name(self.service.name)
            .operation_name(operation)
            .endpoint_url(&self.endpoint(region.as_ref()))
            .runtime_plugin(StaticRuntimePlugin::new().with_config(layer.freeze()).with_runtime_components(components));
        if let Some(client) = self.config.http_client() {
            call = call.http_client(client);
        }
        if let Some(retries) = self.config.retry_config() {
            call = call.standard_retry(retries);
        }
        if let Some(timeouts) = self.config.timeout_config() {
            call = call.timeout_config(timeouts.clone());
        }
        let call = call
            .serializer(move |input: Value| {
                let mut request = HttpRequest::new(SdkBody::from(serde_json::to_vec(&input)?));
                request.set_method("POST")?;
                request.set_uri("/")?;
                request.headers_mut().insert("content-type", "application/x-amz-json-1.1");
                request.headers_mut().insert("x-amz-target", header.clone());
                Ok(request)
            })
            .deserializer(answer)
            .build();
        call.invoke(input)
            .await
            .map_err(|error: SdkError<Refusal, HttpResponse>| CallError::new(action, target, &error))
    }

    /// Returns the endpoint that the settings name, or the service's own.
    fn endpoint(&self, region: &str) -> String {
        let key =
            ServiceConfigKey::builder().service_id(self.service.id).env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let own = key.build().ok().zip(self.config.service_config()).and_then(|(key, load)| load.load_config(key));
        if let Some(url) = own.or_else(|| self.config.endpoint_url().map(str::to_owned)) {
            return url;
        }
        let name = match self.config.use_fips() {
            Some(true) => format!("{}-fips", self.service.name),
            _ => self.service.name.to_owned(),
        };
        let suffix = match (region.starts_with("cn-"), self.config.use_dual_stack() == Some(true)) {
            (false, false) => "amazonaws.com",
            (false, true) => "api.aws",
            (true, false) => "amazonaws.com.cn",
            (true, true) => "api.amazonwebservices.com.cn",
        };
        format!("https://{name}.{region}.{suffix}")
    }
}

/// Reads an answer: JSON, or an error of the service.
fn answer(response: &HttpResponse) -> Result<Value, OrchestratorError<Refusal>> {
    let bytes = response.body().bytes().unwrap_or_default();
    if response.status().is_success() {
        return match bytes {
            b"" => Ok(Value::Null),
            bytes => serde_json::from_slice(bytes).map_err(OrchestratorError::other),
        };
    }
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let code = response.headers().get("x-amzn-errortype").or_else(|| body["__type"].as_str());
    // Some services write `namespace#Code` or `Code:uri`.
    let code = code.map(|code| code.rsplit('#').next().unwrap_or(code)).and_then(|code| code.split(':').next());
    let message = body["message"].as_str().or_else(|| body["Message"].as_str());
    let mut metadata = ErrorMetadata::builder();
    if let Some(code) = code {
        metadata = metadata.code(code);
    }
    if let Some(message) = message {
        metadata = metadata.message(message);
    }
    Err(OrchestratorError::operation(Refusal(metadata.build())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(
        region: &'static str,
        set: impl FnOnce(aws_types::sdk_config::Builder) -> aws_types::sdk_config::Builder,
    ) -> String {
        let config = set(aws_config::SdkConfig::builder().region(aws_config::Region::from_static(region))).build();
        JsonClient::new(&config, Service { name: "glue", id: "Glue", target: "AWSGlue" }).endpoint(region)
    }

    #[test]
    fn endpoints_follow_region_and_settings() {
        assert_eq!(endpoint("eu-west-1", |c| c), "https://glue.eu-west-1.amazonaws.com");
        assert_eq!(endpoint("cn-north-1", |c| c), "https://glue.cn-north-1.amazonaws.com.cn");
        assert_eq!(endpoint("us-east-1", |c| c.use_fips(true)), "https://glue-fips.us-east-1.amazonaws.com");
        assert_eq!(endpoint("us-east-1", |c| c.use_dual_stack(true)), "https://glue.us-east-1.api.aws");
        assert_eq!(endpoint("us-east-1", |c| c.endpoint_url("http://127.0.0.1:1")), "http://127.0.0.1:1");
    }
}
