//! Settings of the lake's bucket that decide whether its data is safe: region, public access, encryption, versions and
//! lifecycle.

use hyper::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bucket_requests::{BucketRequests, failed};
use super::request_runtime::on_request_runtime;
use super::s3::{Fault, Kind};
use super::{LakeError, Store, fault};
use crate::aws::innermost;
use crate::causes::causes;

/// A setting, as far as the credentials may look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    /// The setting.
    Is(T),
    /// Nothing is set.
    Absent,
    /// There is no such bucket.
    NoBucket,
    /// The credentials do not allow this action.
    Denied(&'static str),
    /// Any other answer, or none.
    Failed(String),
}

/// The settings of a bucket.
#[derive(Debug)]
pub(crate) struct BucketSettings {
    /// Region of the bucket.
    pub region: Setting<String>,
    /// Whether all four ways of public access are blocked.
    pub is_private: Setting<bool>,
    /// Algorithm of the default encryption, and the key, if it has one.
    pub encryption: Setting<(String, Option<String>)>,
    /// Whether deleted objects stay as old versions.
    pub has_versions: Setting<bool>,
    /// Rules of the lifecycle that are on.
    pub lifecycle: Setting<Vec<LifecycleRule>>,
}

/// A rule of a bucket's lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LifecycleRule {
    /// Id, possibly empty.
    pub id: String,
    /// Prefix of the objects; empty for all.
    pub prefix: String,
    /// Whether it deletes objects.
    pub expires: bool,
    /// Storage class into which it moves objects.
    pub moves_to: Option<String>,
    /// Whether it deletes old versions.
    pub expires_versions: bool,
    /// Whether it aborts uploads that never ended.
    pub aborts_uploads: bool,
}

impl Store {
    /// Returns the settings of the bucket, and the region in which requests are signed; `None` for a folder.
    ///
    /// # Errors
    /// The client ended before it had an answer.
    pub(crate) async fn bucket_settings(&self) -> Option<Result<(BucketSettings, String), LakeError>> {
        let bucket = self.uploads()?.bucket.clone();
        let region = bucket.region.clone();
        let settings = on_request_runtime(async move {
            Ok(BucketSettings {
                region: region_of(&bucket).await,
                is_private: read(
                    &bucket,
                    "publicAccessBlock",
                    ("s3:GetBucketPublicAccessBlock", "PublicAccessBlockConfiguration"),
                    PublicAccess::blocked,
                )
                .await,
                encryption: read(
                    &bucket,
                    "encryption",
                    ("s3:GetEncryptionConfiguration", "ServerSideEncryptionConfiguration"),
                    Encryption::default_rule,
                )
                .await,
                has_versions: read(
                    &bucket,
                    "versioning",
                    ("s3:GetBucketVersioning", "VersioningConfiguration"),
                    |versioning: Versioning| {
                        // Where versioning is suspended, the versions from before stay.
                        Some(versioning.status.is_some())
                    },
                )
                .await,
                lifecycle: read(
                    &bucket,
                    "lifecycle",
                    ("s3:GetLifecycleConfiguration", "LifecycleConfiguration"),
                    Lifecycle::rules,
                )
                .await,
            })
        });
        let settings = settings.await.map(|settings| (settings, region));
        Some(settings.map_err(|source| LakeError::storage("read the settings of", self, "", source)))
    }
}

async fn region_of(bucket: &BucketRequests) -> Setting<String> {
    let action = "s3:GetBucketLocation";
    match bucket.get(&[("location", "")]).await {
        Err(error) => match fault_of(&error) {
            // The answer names the right one.
            Some(Kind::Elsewhere(Some(region))) => Setting::Is(region.clone()),
            _ => failure(&error, action),
        },
        Ok((status, body)) => parse(status, &body, action, "LocationConstraint", |location: Location| {
            let region = location.region.filter(|region| !region.is_empty());
            Some(region.unwrap_or_else(|| "us-east-1".to_owned()))
        }),
    }
}

async fn read<A: DeserializeOwned, T>(
    bucket: &BucketRequests,
    query: &str,
    (action, root): (&'static str, &str),
    meaning: impl Fn(A) -> Option<T>,
) -> Setting<T> {
    match bucket.get(&[(query, "")]).await {
        Err(error) => failure(&error, action),
        Ok((status, body)) => parse(status, &body, action, root, meaning),
    }
}

fn fault_of(error: &object_store::Error) -> Option<&Kind> {
    causes(error).find_map(|cause| cause.downcast_ref::<Fault>()).map(|fault| &fault.kind)
}

/// Returns the setting for an error of the client.
fn failure<T>(error: &object_store::Error, action: &'static str) -> Setting<T> {
    match fault_of(error) {
        Some(Kind::Denied(_)) => Setting::Denied(action),
        Some(Kind::NoBucket) => Setting::NoBucket,
        _ => Setting::Failed(fault::sentence(error).unwrap_or_else(|| innermost(error))),
    }
}

/// Reads an answer. One without the expected element is of somebody else.
fn parse<A: DeserializeOwned, T>(
    status: StatusCode,
    body: &[u8],
    action: &'static str,
    root: &str,
    meaning: impl Fn(A) -> Option<T>,
) -> Setting<T> {
    let is_of_s3 = String::from_utf8_lossy(body).contains(&format!("<{root}"));
    match status {
        StatusCode::NOT_FOUND => Setting::Absent,
        StatusCode::FORBIDDEN => Setting::Denied(action),
        status if !status.is_success() => Setting::Failed(format!("S3 answered {status}")),
        _ if !is_of_s3 => Setting::Failed("the answer is not from S3: check --endpoint-url".to_owned()),
        _ => match quick_xml::de::from_reader(body) {
            Ok(answer) => meaning(answer).map_or(Setting::Absent, Setting::Is),
            Err(error) => Setting::Failed(failed(error).to_string()),
        },
    }
}

#[derive(Deserialize)]
struct Location {
    #[serde(rename = "$text")]
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PublicAccess {
    #[serde(default)]
    block_public_acls: bool,
    #[serde(default)]
    ignore_public_acls: bool,
    #[serde(default)]
    block_public_policy: bool,
    #[serde(default)]
    restrict_public_buckets: bool,
}

impl PublicAccess {
    fn blocked(self) -> Option<bool> {
        Some(
            self.block_public_acls
                && self.ignore_public_acls
                && self.block_public_policy
                && self.restrict_public_buckets,
        )
    }
}

#[derive(Deserialize)]
struct Encryption {
    #[serde(default, rename = "Rule")]
    rules: Vec<EncryptionRule>,
}

#[derive(Deserialize)]
struct EncryptionRule {
    #[serde(rename = "ApplyServerSideEncryptionByDefault")]
    by_default: Option<EncryptionDefault>,
}

#[derive(Deserialize)]
struct EncryptionDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: String,
    #[serde(rename = "KMSMasterKeyID")]
    key: Option<String>,
}

impl Encryption {
    fn default_rule(self) -> Option<(String, Option<String>)> {
        let rule = self.rules.into_iter().find_map(|rule| rule.by_default);
        rule.map(|rule| (rule.algorithm, rule.key))
    }
}

#[derive(Deserialize)]
struct Versioning {
    #[serde(rename = "Status")]
    status: Option<String>,
}

#[derive(Deserialize)]
struct Lifecycle {
    #[serde(default, rename = "Rule")]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(default, rename = "ID")]
    id: String,
    #[serde(default)]
    status: String,
    prefix: Option<String>,
    filter: Option<Filter>,
    expiration: Option<Expiration>,
    #[serde(default, rename = "Transition")]
    transitions: Vec<Transition>,
    noncurrent_version_expiration: Option<serde::de::IgnoredAny>,
    abort_incomplete_multipart_upload: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    prefix: Option<String>,
    and: Option<And>,
    tag: Option<serde::de::IgnoredAny>,
    object_size_less_than: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct And {
    prefix: Option<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    days: Option<u64>,
    date: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transition {
    #[serde(default)]
    storage_class: String,
}

impl Lifecycle {
    fn rules(self) -> Option<Vec<LifecycleRule>> {
        let is_on = |rule: &Rule| rule.status == "Enabled";
        Some(self.rules.into_iter().filter(is_on).map(Rule::meaning).collect())
    }
}

impl Rule {
    fn meaning(self) -> LifecycleRule {
        let filter = self.filter.unwrap_or_default();
        // synclake writes no tags, so that a rule for tagged objects never applies.
        let is_for_tags = filter.tag.is_some() || filter.and.as_ref().is_some_and(|and| !and.tags.is_empty());
        let is_for_tiny = filter.object_size_less_than.is_some_and(|bytes| bytes == 0);
        let applies = !is_for_tags && !is_for_tiny;
        let prefix = filter.prefix.or(filter.and.and_then(|and| and.prefix)).or(self.prefix).unwrap_or_default();
        let expires = self.expiration.is_some_and(|expiration| expiration.days.is_some() || expiration.date.is_some());
        LifecycleRule {
            id: self.id,
            prefix,
            expires: expires && applies,
            moves_to: self.transitions.into_iter().next().map(|to| to.storage_class).filter(|_| applies),
            expires_versions: self.noncurrent_version_expiration.is_some(),
            aborts_uploads: self.abort_incomplete_multipart_upload.is_some(),
        }
    }
}

impl LifecycleRule {
    /// Returns whether the rule touches objects below a prefix.
    pub(crate) fn covers(&self, prefix: &str) -> bool {
        prefix.starts_with(&self.prefix) || self.prefix.starts_with(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let get = |body: &str| {
            parse(
                StatusCode::OK,
                body.as_bytes(),
                "s3:GetLifecycleConfiguration",
                "LifecycleConfiguration",
                Lifecycle::rules,
            )
        };
        let rules = get("<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Rule><ID>uploads</ID><Filter/><Status>Enabled</Status>\
             <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>\
             <Rule><ID>old</ID><Filter><Prefix>lake/</Prefix></Filter><Status>Enabled</Status>\
             <Expiration><Days>30</Days></Expiration></Rule>\
             <Rule><ID>off</ID><Filter/><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule>\
             <Rule><ID>tagged</ID><Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter><Status>Enabled</Status>\
             <Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>\
             <Rule><ID>markers</ID><Prefix></Prefix><Status>Enabled</Status>\
             <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration></Rule>\
             </LifecycleConfiguration>");
        let Setting::Is(rules) = rules else { panic!("{rules:?}") };
        assert_eq!(
            rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(),
            ["uploads", "old", "tagged", "markers"]
        );
        assert!(rules[0].aborts_uploads && !rules[0].expires);
        assert!(rules[1].expires && rules[1].covers("lake/deep/") && rules[1].covers("") && !rules[1].covers("other/"));
        assert!(rules[2].moves_to.is_none() && !rules[3].expires);
        let region = |body: &str| {
            parse(
                StatusCode::OK,
                body.as_bytes(),
                "s3:GetBucketLocation",
                "LocationConstraint",
                |location: Location| Some(location.region),
            )
        };
        let constraint =
            "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">eu-west-1</LocationConstraint>";
        assert_eq!(region(constraint), Setting::Is(Some("eu-west-1".to_owned())));
        assert_eq!(region("<LocationConstraint/>"), Setting::Is(None));
        assert!(
            matches!(region("<html><body>Welcome</body></html>"), Setting::Failed(_)),
            "an answer of somebody else"
        );
        let denied: Setting<bool> = parse(
            StatusCode::FORBIDDEN,
            b"",
            "s3:GetBucketPublicAccessBlock",
            "PublicAccessBlockConfiguration",
            PublicAccess::blocked,
        );
        assert_eq!(denied, Setting::Denied("s3:GetBucketPublicAccessBlock"));
    }
}
