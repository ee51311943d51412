//! An S3 bucket as an object store, configured by the settings that every AWS tool reads.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, RetryConfig};

use super::LakeError;
use super::request_runtime::OnRequestRuntime;
use super::s3::Connector;
use crate::aws::{AwsSettings, Credentials};
use crate::timeouts::STORE_RETRY_TIMEOUT;

/// Opens the object store of a bucket.
pub(super) async fn open(aws: &AwsSettings, bucket: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
    let config = aws.load().await;
    let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
    let provider = config.credentials_provider().ok_or_else(|| {
        LakeError::Invalid("no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID".to_owned())
    })?;
    let credentials = Arc::new(Credentials::new(provider));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region)
        // Time is the limit: the default of ten retries may be over in two seconds.
        .with_retry(RetryConfig { max_retries: 100, retry_timeout: STORE_RETRY_TIMEOUT, ..RetryConfig::default() })
        .with_http_connector(Connector::new(bucket, &region, credentials.clone()))
        .with_credentials(credentials);
    // The more specific setting wins, so that an endpoint flag for Kinesis does not redirect S3.
    let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|v| !v.is_empty());
    let endpoint = endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
    builder = match endpoint {
        Some(endpoint) => builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint),
        None => builder.with_virtual_hosted_style_request(is_host_label(bucket)),
    };
    let store = builder.build().map_err(|source| LakeError::Storage {
        action: "open bucket",
        path: format!("s3://{bucket}"),
        source,
    })?;
    Ok(Arc::new(OnRequestRuntime::new(store)))
}

/// Returns whether a bucket name can precede the S3 host name. The TLS certificate covers one label, so dots are not
/// allowed.
fn is_host_label(bucket: &str) -> bool {
    bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_cannot_be_hosts() {
        assert!(is_host_label("my-bucket-1"));
        for path_style in ["my.dotted.bucket", "Upper", "under_score"] {
            assert!(!is_host_label(path_style), "{path_style}");
        }
    }
}
