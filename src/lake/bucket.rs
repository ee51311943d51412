//! An S3 bucket as an object store, configured by the settings that every AWS tool reads.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::client::HttpConnector;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::LakeError;
use super::bucket_requests::BucketRequests;
use super::request_runtime::OnRequestRuntime;
use super::s3::Connector;
use super::uploads::Uploads;
use crate::aws::{AwsSettings, Credentials};
use crate::timeouts::STORE_RETRY_TIMEOUT;

/// Opens the object store of a bucket, and its multipart uploads.
pub(super) async fn open(aws: &AwsSettings, bucket: &str) -> Result<(Arc<dyn ObjectStore>, Uploads), LakeError> {
    let config = aws.load().await;
    let region = config.region().map_or("us-east-1", |r| r.as_ref()).to_owned();
    let provider = config.credentials_provider().ok_or_else(|| {
        LakeError::Invalid("no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID".to_owned())
    })?;
    let credentials = Arc::new(Credentials::new(provider));
    let connector = Connector::new(bucket, &region, credentials.clone());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region)
        // Time is the limit: the default of ten retries may be over in two seconds.
        .with_retry(RetryConfig { max_retries: 100, retry_timeout: STORE_RETRY_TIMEOUT, ..RetryConfig::default() })
        .with_http_connector(connector.clone())
        .with_credentials(credentials);
    // The more specific setting wins, so that an endpoint flag for Kinesis does not redirect S3.
    let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|v| !v.is_empty());
    let endpoint = endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
    let url = url_of(endpoint.as_deref(), bucket, &region);
    let is_http = url.starts_with("http://");
    builder = match endpoint {
        Some(endpoint) => builder.with_allow_http(is_http).with_endpoint(endpoint),
        None => builder.with_virtual_hosted_style_request(is_host_label(bucket)),
    };
    let failed = |source| LakeError::Storage { action: "open bucket", path: format!("s3://{bucket}"), source };
    let store = builder.build().map_err(failed)?;
    let uploads = Uploads {
        objects: store.clone(),
        bucket: BucketRequests {
            credentials: store.credentials().clone(),
            http: connector.connect(&ClientOptions::new().with_allow_http(is_http)).map_err(failed)?,
            url: Url::parse(&url)
                .map_err(|error| LakeError::Invalid(format!("endpoint {url:?} is no URL: {error}")))?,
            region,
        },
    };
    Ok((Arc::new(OnRequestRuntime::new(store)), uploads))
}

/// Returns the URL of a bucket, as object_store composes it.
fn url_of(endpoint: Option<&str>, bucket: &str, region: &str) -> String {
    match endpoint {
        Some(endpoint) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
        None if is_host_label(bucket) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        None => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    }
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
    fn urls_of_buckets() {
        assert_eq!(url_of(None, "b-1", "eu-west-1"), "https://b-1.s3.eu-west-1.amazonaws.com");
        assert_eq!(url_of(None, "b.1", "eu-west-1"), "https://s3.eu-west-1.amazonaws.com/b.1");
        assert_eq!(url_of(Some("http://127.0.0.1:9000/"), "b-1", "eu-west-1"), "http://127.0.0.1:9000/b-1");
    }

    #[test]
    fn buckets_that_cannot_be_hosts() {
        assert!(is_host_label("my-bucket-1"));
        for path_style in ["my.dotted.bucket", "Upper", "under_score"] {
            assert!(!is_host_label(path_style), "{path_style}");
        }
    }
}
