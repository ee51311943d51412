//! The HTTP layer of a lake on S3: it interprets error answers and reports outages.
//!
//! object_store passes unknown answers on as text, and silently retries what may pass. So this layer sits between
//! object_store and the network. An answer that a plain retry does not change becomes a [`Fault`]. object_store wraps
//! the fault as the source of its own error, and [`super::fault`] finds the fault there by its type.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use crate::aws::{Credentials, innermost};
use crate::timeouts::{ERROR_AFTER, SLOW_REQUEST, WARN_AFTER, WARN_INTERVAL};

const SMALL_BYTES: usize = 1 << 20;

/// An error answer of S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The meaning of the answer.
    pub kind: Kind,
    /// The error code of the service; the HTTP status if the answer has no code.
    pub code: String,
    /// The bucket.
    pub bucket: String,
    /// The region that the request was signed for.
    pub region: String,
}

/// The meaning of an error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Missing permission of the credentials.
    Denied(&'static str),
    /// Missing bucket.
    NoBucket,
    /// Bucket in another region, which the answer may name.
    Elsewhere(Option<String>),
    /// Wrong clock of this machine.
    Clock,
    /// Unknown credentials.
    Keys,
    /// Expired credentials. The next attempt may find new ones.
    Expired,
    /// Refusal by the KMS key of the bucket.
    Encryption,
}

impl Fault {
    /// Returns whether the next attempt would get the same answer.
    pub(crate) fn is_permanent(&self) -> bool {
        self.kind != Kind::Expired
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, code, bucket, region } = self;
        match kind {
            Kind::Denied(permission) => {
                write!(f, "S3 denies access to bucket {bucket} ({code}); allow {permission} for these credentials")
            }
            Kind::NoBucket => write!(f, "there is no bucket {bucket} ({code}); check its name, or make it"),
            Kind::Elsewhere(Some(there)) => {
                write!(f, "bucket {bucket} is in region {there}, not in {region} ({code}); give --region {there}")
            }
            Kind::Elsewhere(None) => write!(
                f,
                "bucket {bucket} is not in region {region}, or not behind this endpoint ({code}); check --region and \
                 --endpoint-url"
            ),
            Kind::Clock => write!(
                f,
                "the clock of this machine says {}, too far from that of S3 ({code}); set it",
                chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ")
            ),
            Kind::Keys => write!(
                f,
                "S3 does not know the credentials ({code}); check the profile, AWS_ACCESS_KEY_ID and the endpoint"
            ),
            Kind::Expired => write!(f, "the credentials have expired ({code}); renew them"),
            Kind::Encryption => write!(
                f,
                "the KMS key of bucket {bucket} refuses ({code}); enable it, and allow kms:Decrypt and \
                 kms:GenerateDataKey for these credentials"
            ),
        }
    }
}

impl std::error::Error for Fault {}

/// Interprets an answer. Returns `None` for answers that object_store handles better, or that may pass.
fn kind_of(status: u16, code: &str, region: Option<String>, permission: &'static str) -> Option<Kind> {
    Some(match (status, code) {
        (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => Kind::Expired,
        (_, "RequestTimeTooSkewed") => Kind::Clock,
        (_, "InvalidAccessKeyId" | "InvalidToken" | "SignatureDoesNotMatch" | "InvalidSecurity") => Kind::Keys,
        (_, "NoSuchBucket") => Kind::NoBucket,
        (301 | 308, _)
        | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            Kind::Elsewhere(region)
        }
        (400 | 403, code) if code.starts_with("KMS") => Kind::Encryption,
        (401 | 403, _) => Kind::Denied(permission),
        _ => return None,
    })
}

/// Returns the permission that a request needs.
fn permission(method: &str, query: &str) -> &'static str {
    match method {
        // A large object is put in parts.
        "DELETE" if query.contains("uploadId=") => "s3:AbortMultipartUpload",
        "PUT" => "s3:PutObject",
        "POST" if query.contains("upload") => "s3:PutObject",
        "DELETE" | "POST" => "s3:DeleteObject",
        _ if query.split('&').any(|pair| pair == "uploads=") => "s3:ListBucketMultipartUploads",
        _ if query.contains("list-type=") => "s3:ListBucket",
        // Without `s3:ListBucket`, S3 also answers "denied" for an object that does not exist.
        _ => "s3:GetObject and s3:ListBucket",
    }
}

/// Returns the text of the first element with a name in S3's XML.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim()).filter(|text| text.len() <= 64)
}

/// Creates HTTP clients that report outages.
#[derive(Debug, Clone)]
pub(super) struct Connector(Arc<Watch>);

impl Connector {
    pub(super) fn new(bucket: &str, region: &str, credentials: Arc<Credentials>) -> Self {
        let (bucket, region) = (bucket.to_owned(), region.to_owned());
        Self(Arc::new(Watch { bucket, region, credentials, outage: Mutex::default() }))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watched { inner, watch: self.0.clone() }))
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    watch: Arc<Watch>,
}

#[async_trait::async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let permission = permission(request.method().as_str(), request.uri().query().unwrap_or_default());
        let is_small = request.body().content_length() < SMALL_BYTES;
        let began = Instant::now();
        let mut call = std::pin::pin!(self.inner.execute(request));
        let answer = tokio::select! {
            answer = &mut call => answer,
            () = tokio::time::sleep(SLOW_REQUEST), if is_small => {
                self.watch.failed(began, "no answer");
                call.await
            }
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                self.watch.failed(began, &innermost(&error));
                return Err(error);
            }
        };
        let status = response.status().as_u16();
        if status >= 500 || status == 429 || status == 408 {
            self.watch.failed(began, &format!("answered {status}"));
            return Ok(response);
        }
        self.watch.answered();
        if status < 400 && status != 301 && status != 308 {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        let xml = String::from_utf8_lossy(&body);
        let code = element(&xml, "Code").unwrap_or_default();
        let there = parts.headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
        let there = there.or_else(|| element(&xml, "Region")).map(str::to_owned);
        if let Some(kind) = kind_of(status, code, there, permission) {
            if kind == Kind::Expired {
                self.watch.credentials.forget().await;
            }
            let code = if code.is_empty() { status.to_string() } else { code.to_owned() };
            let (bucket, region) = (self.watch.bucket.clone(), self.watch.region.clone());
            // object_store does not retry errors of this kind.
            return Err(HttpError::new(HttpErrorKind::Unknown, Fault { kind, code, bucket, region }));
        }
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)))
    }
}

/// The watch over the requests to one bucket.
#[derive(Debug)]
struct Watch {
    bucket: String,
    region: String,
    credentials: Arc<Credentials>,
    outage: Mutex<Outage>,
}

/// The start of the current outage, and the times of its last report and of the last one at level ERROR.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    last_report: Option<Instant>,
    last_error: Option<Instant>,
}

/// The level at which a failure is reported.
#[derive(Debug, PartialEq, Eq)]
enum ReportLevel {
    Nothing,
    Warning,
    Error,
}

impl Outage {
    fn failed(&mut self, began: Instant, now: Instant) -> (ReportLevel, Duration) {
        let since = *self.since.get_or_insert(began);
        let lasted = now.saturating_duration_since(since);
        let is_due = |at: Option<Instant>, every| at.is_none_or(|at| now.saturating_duration_since(at) >= every);
        let level = match lasted {
            lasted if lasted >= ERROR_AFTER && is_due(self.last_error, ERROR_AFTER) => ReportLevel::Error,
            lasted if lasted >= WARN_AFTER && is_due(self.last_report, WARN_INTERVAL) => ReportLevel::Warning,
            _ => ReportLevel::Nothing,
        };
        if level == ReportLevel::Error {
            self.last_error = Some(now);
        }
        if level != ReportLevel::Nothing {
            self.last_report = Some(now);
        }
        (level, lasted)
    }
}

impl Watch {
    fn failed(&self, began: Instant, error: &str) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let (level, lasted) = outage.failed(began, Instant::now());
        drop(outage);
        let (bucket, region, seconds) = (self.bucket.as_str(), self.region.as_str(), lasted.as_secs());
        match level {
            ReportLevel::Nothing => {}
            ReportLevel::Warning => tracing::warn!(bucket, region, seconds, error, "S3 does not answer, trying again"),
            ReportLevel::Error => tracing::error!(
                bucket,
                region,
                seconds,
                error,
                "S3 still does not answer, trying again; check the network, the region and --endpoint-url"
            ),
        }
    }

    fn answered(&self) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let over = std::mem::take(&mut *outage);
        drop(outage);
        if let (Some(since), Some(_)) = (over.since, over.last_report) {
            tracing::warn!(bucket = self.bucket, seconds = since.elapsed().as_secs(), "S3 answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_what_they_mean() {
        let kind = |status, code| kind_of(status, code, Some("eu-west-1".to_owned()), "s3:PutObject");
        assert_eq!(kind(403, "AccessDenied"), Some(Kind::Denied("s3:PutObject")));
        assert_eq!(kind(403, ""), Some(Kind::Denied("s3:PutObject")));
        assert_eq!(kind(403, "RequestTimeTooSkewed"), Some(Kind::Clock));
        assert_eq!(kind(403, "InvalidAccessKeyId"), Some(Kind::Keys));
        assert_eq!(kind(404, "NoSuchBucket"), Some(Kind::NoBucket));
        for (status, code) in [(301, "PermanentRedirect"), (301, ""), (400, "AuthorizationHeaderMalformed")] {
            assert_eq!(kind(status, code), Some(Kind::Elsewhere(Some("eu-west-1".to_owned()))), "{status} {code}");
        }
        assert_eq!(kind(400, "ExpiredToken"), Some(Kind::Expired));
        assert_eq!(kind(400, "KMS.DisabledException"), Some(Kind::Encryption));
        for (status, code) in
            [(404, "NoSuchKey"), (404, ""), (412, "PreconditionFailed"), (409, "ConditionalRequestConflict")]
        {
            assert_eq!(kind(status, code), None, "{status} {code}");
        }
    }

    #[test]
    fn sentences_name_what_to_do() {
        let say = |kind| {
            let (code, bucket, region) = ("C".to_owned(), "b".to_owned(), "us-east-1".to_owned());
            Fault { kind, code, bucket, region }.to_string()
        };
        assert_eq!(
            say(Kind::Denied("s3:PutObject")),
            "S3 denies access to bucket b (C); allow s3:PutObject for these credentials"
        );
        assert_eq!(
            say(Kind::Elsewhere(Some("eu-west-1".to_owned()))),
            "bucket b is in region eu-west-1, not in us-east-1 (C); give --region eu-west-1"
        );
        let xml = "<?xml?><Error><Code>NoSuchBucket</Code><Message>m</Message></Error>";
        assert_eq!(
            (element(xml, "Code"), element(xml, "Region"), element("", "Code")),
            (Some("NoSuchBucket"), None, None)
        );
    }

    #[test]
    fn an_outage_is_told_soon_and_loudly_after_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        let mut level = |seconds| outage.failed(start, at(seconds)).0;
        assert_eq!(level(1), ReportLevel::Nothing);
        assert_eq!(level(2), ReportLevel::Warning);
        assert_eq!(level(16), ReportLevel::Nothing);
        assert_eq!(level(17), ReportLevel::Warning);
        assert_eq!(level(60), ReportLevel::Error);
        assert_eq!(level(61), ReportLevel::Nothing);
        assert_eq!(level(75), ReportLevel::Warning);
        assert_eq!(level(120), ReportLevel::Error);
    }
}
