//! The bucket of the lake: what may lose its objects, show them or keep them for ever.

use super::Check;
use super::lake::{Opened, spoken_error};
use crate::lake::bucket_settings::{LifecycleRule, Setting};

/// The check whether there is a bucket at all.
pub(super) const BUCKET: &str = "bucket";

pub(super) async fn check(store: &Opened) -> Vec<Check> {
    let Some(Ok(store)) = store else { return Vec::new() };
    let (settings, region) = match store.bucket_settings().await {
        None => return Vec::new(),
        Some(Err(error)) => return vec![Check::warning("bucket region", spoken_error(&error), "run again")],
        Some(Ok(found)) => found,
    };
    let url = store.to_string();
    let (bucket, prefix) = url.strip_prefix("s3://").unwrap_or_default().split_once('/').unwrap_or((&url, ""));
    let bucket = bucket.trim_start_matches("s3://");
    let prefix = format!("{}/", prefix.trim_end_matches('/')).trim_start_matches('/').to_owned();
    if settings.region == Setting::NoBucket {
        let remedy = "check its name and the region, or make it: aws s3api create-bucket";
        return vec![Check::fault(BUCKET, format!("there is no bucket {bucket}"), remedy)];
    }
    if let Setting::Failed(reason) = &settings.region {
        return vec![Check::fault(
            BUCKET,
            format!("bucket {bucket} cannot be looked at: {reason}"),
            "correct that, and run again",
        )];
    }
    let mut checks = Vec::new();
    checks.extend(judge("bucket region", &settings.region, |found| match found {
        Some(found) if *found != region => Check::fault(
            "bucket region",
            format!("bucket {bucket} is in {found}, and requests go to {region}"),
            format!("give --region {found}, or move the bucket"),
        ),
        _ => Check::ok("bucket region", region.as_str()),
    }));
    checks.extend(judge("bucket access", &settings.is_private, |is_private| match is_private {
        Some(true) => Check::ok("bucket access", "all public access is blocked"),
        _ => Check::warning(
            "bucket access",
            format!("public access to bucket {bucket} is not blocked"),
            format!(
                "aws s3api put-public-access-block --bucket {bucket} --public-access-block-configuration \
                     BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true"
            ),
        ),
    }));
    checks.extend(judge("bucket encryption", &settings.encryption, |encryption| match encryption {
        Some((algorithm, key)) => {
            let key = key.as_ref().map(|key| format!(" by {key}")).unwrap_or_default();
            Check::ok("bucket encryption", format!("{algorithm}{key}"))
        }
        None => Check::warning(
            "bucket encryption",
            format!("bucket {bucket} states no default encryption"),
            "set one in the properties of the bucket; S3 encrypts new objects with its own key (SSE-S3) until then",
        ),
    }));
    let rules = match &settings.lifecycle {
        Setting::Is(rules) => rules.as_slice(),
        _ => &[],
    };
    checks.extend(judge("bucket versions", &settings.has_versions, |has_versions| match has_versions {
        Some(true) if !rules.iter().any(|rule| rule.expires_versions && rule.covers(&prefix)) => Check::warning(
            "bucket versions",
            "old versions of deleted objects stay for ever: a vacuum frees nothing, and erased data can be restored",
            "add a lifecycle rule that expires noncurrent versions after some days",
        ),
        Some(true) => Check::ok("bucket versions", "old versions expire"),
        _ => Check::ok("bucket versions", "none are kept"),
    }));
    checks.extend(lifecycle(&settings.lifecycle, rules, &prefix));
    checks
}

fn lifecycle(setting: &Setting<Vec<LifecycleRule>>, rules: &[LifecycleRule], prefix: &str) -> Vec<Check> {
    const LIFECYCLE: &str = "bucket lifecycle";
    let covering: Vec<&LifecycleRule> = rules.iter().filter(|rule| rule.covers(prefix)).collect();
    let mut checks = judge(LIFECYCLE, setting, |_| match covering.iter().any(|rule| rule.aborts_uploads) {
        true => Check::ok(LIFECYCLE, "uploads that never ended are aborted"),
        false => Check::warning(
            LIFECYCLE,
            "no rule aborts uploads that never ended, and their parts cost money",
            "add a rule with AbortIncompleteMultipartUpload; `synclake vacuum` aborts those of the lake, too",
        ),
    });
    for rule in covering {
        if rule.expires {
            checks.push(Check::fault(
                LIFECYCLE,
                format!("rule {:?} deletes objects of the lake by their age: rows and the log will be lost", rule.id),
                "remove the rule, or limit it to another prefix; `synclake policy --retain` lets old rows leave",
            ));
        }
        // Objects of the other classes can be read at once.
        if let Some(class) = rule.moves_to.as_deref().filter(|class| matches!(*class, "GLACIER" | "DEEP_ARCHIVE")) {
            checks.push(Check::fault(
                LIFECYCLE,
                format!("rule {:?} moves objects of the lake to {class}, where no query can read them", rule.id),
                "limit the rule to another prefix, or move to GLACIER_IR",
            ));
        }
    }
    checks
}

/// Makes the check of a setting; `None` stands for a setting that is absent.
fn judge<T>(check: &'static str, setting: &Setting<T>, judged: impl FnOnce(Option<&T>) -> Check) -> Vec<Check> {
    vec![match setting {
        Setting::Is(value) => judged(Some(value)),
        Setting::Absent | Setting::NoBucket => judged(None),
        Setting::Denied(action) => {
            Check::warning(check, "cannot be checked", format!("allow {action} for these credentials"))
        }
        Setting::Failed(reason) => Check::warning(check, format!("cannot be checked: {reason}"), "run again"),
    }]
}
