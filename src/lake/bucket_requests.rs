//! Signed requests about a bucket, for which object_store has no verb.

use bytes::Bytes;
use hyper::StatusCode;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequestBody};
use url::Url;

/// A client of the requests about one bucket.
#[derive(Debug, Clone)]
pub(super) struct BucketRequests {
    pub credentials: AwsCredentialProvider,
    pub http: HttpClient,
    /// The URL of the bucket.
    pub url: Url,
    pub region: String,
}

impl BucketRequests {
    /// Returns the answer to a GET of the bucket with a query, whatever its status.
    pub(super) async fn get(&self, query: &[(&str, &str)]) -> object_store::Result<(StatusCode, Bytes)> {
        let mut url = self.url.clone();
        url.query_pairs_mut().extend_pairs(query);
        let credential = self.credentials.get_credential().await?;
        let request = hyper::Request::get(url.as_str()).body(HttpRequestBody::empty());
        let mut request = request.map_err(failed)?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let response = self.http.execute(request).await.map_err(failed)?;
        let status = response.status();
        Ok((status, response.into_body().bytes().await.map_err(failed)?))
    }
}

pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: error.into() }
}
