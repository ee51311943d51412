//! The Kinesis stream of a pool and the role that writes into it, as AWS shows them.

use aws_sdk_iam::types::PolicyEvaluationDecisionType;
use aws_sdk_kinesis::types::EncryptionType;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::Value;

use super::policy;
use crate::aws::call::CallError;

/// A Kinesis stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    /// Name.
    pub stream: String,
    /// ARN.
    pub arn: String,
    /// `ACTIVE`, `CREATING`, `UPDATING` or `DELETING`.
    pub status: String,
    /// `ON_DEMAND` or `PROVISIONED`; null if the service does not state it.
    pub mode: Option<String>,
    /// Hours for which the stream keeps a record.
    pub retention_hours: i32,
    /// Open shards.
    pub open_shards: i32,
    /// Key that encrypts the records: an ARN, an id or an alias; null if they are not encrypted.
    pub key: Option<String>,
}

impl StreamReport {
    /// Returns the key, if its use needs a permission. The key that AWS manages needs none.
    pub(super) fn own_key(&self) -> Option<&str> {
        self.key.as_deref().filter(|key| !key.contains("alias/aws/"))
    }
}

/// A role, as far as the credentials may look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RoleReport {
    /// ARN.
    pub arn: String,
    /// Whether the role exists; null if unknown.
    pub exists: Option<bool>,
    /// Whether Cognito Sync may assume it; null if unknown.
    pub is_trusted: Option<bool>,
    /// Actions that the role needs and that its policies do not allow; null if unknown.
    pub denied: Option<Vec<String>>,
    /// Why something is unknown.
    pub unknown: Option<String>,
    #[serde(skip)]
    pub(super) trust: Value,
}

/// Returns a stream; `None` if it does not exist.
///
/// # Errors
/// The service refuses or does not answer.
pub(crate) async fn stream(client: &aws_sdk_kinesis::Client, name: &str) -> Result<Option<StreamReport>, CallError> {
    let answer = match client.describe_stream_summary().stream_name(name).send().await {
        Ok(answer) => answer,
        Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => return Ok(None),
        Err(error) => return Err(CallError::new("kinesis:DescribeStreamSummary", &format!("stream {name}"), &error)),
    };
    Ok(answer.stream_description_summary().map(|summary| StreamReport {
        stream: summary.stream_name().to_owned(),
        arn: summary.stream_arn().to_owned(),
        status: summary.stream_status().as_str().to_owned(),
        mode: summary.stream_mode_details().map(|details| details.stream_mode().as_str().to_owned()),
        retention_hours: summary.retention_period_hours(),
        open_shards: summary.open_shard_count(),
        key: (summary.encryption_type() == Some(&EncryptionType::Kms))
            .then(|| summary.key_id().unwrap_or("a key without a name").to_owned()),
    }))
}

/// Returns a stream that does not exist yet, in the account of a role.
pub(super) fn expected(name: &str, region: &str, role_arn: &str) -> Option<StreamReport> {
    let mut parts = role_arn.split(':').skip(1);
    let (partition, account) = (parts.next()?, parts.nth(2)?);
    Some(StreamReport {
        stream: name.to_owned(),
        arn: format!("arn:{partition}:kinesis:{region}:{account}:stream/{name}"),
        status: "MISSING".to_owned(),
        mode: None,
        retention_hours: 0,
        open_shards: 0,
        key: None,
    })
}

/// Returns the name of a role from its ARN, which may have a path.
pub(super) fn role_name(arn: &str) -> Option<&str> {
    arn.split_once(":role/").and_then(|(_, path)| path.rsplit('/').next()).filter(|name| !name.is_empty())
}

/// Returns a role, and whether Cognito Sync can write into a stream by it. What the credentials may not look at is
/// unknown.
///
/// # Errors
/// The service does not answer, or refuses for another reason than missing permissions.
pub(super) async fn role(
    client: &aws_sdk_iam::Client,
    arn: &str,
    stream: Option<&StreamReport>,
) -> Result<RoleReport, CallError> {
    let mut report = RoleReport { arn: arn.to_owned(), ..RoleReport::default() };
    let Some(name) = role_name(arn) else {
        return Ok(RoleReport { exists: Some(false), ..report });
    };
    let target = format!("role {name}");
    match client.get_role().role_name(name).send().await {
        Ok(answer) => {
            let document = answer.role().and_then(|role| role.assume_role_policy_document()).unwrap_or_default();
            // IAM answers documents percent-encoded.
            let document: Vec<u8> = percent_decode_str(document).collect();
            report.trust = serde_json::from_slice(&document).unwrap_or_default();
            report.exists = Some(answer.role().is_some_and(|role| role.arn() == arn));
            report.is_trusted = Some(policy::is_trusted(&report.trust));
        }
        Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_entity_exception()) => {
            return Ok(RoleReport { exists: Some(false), ..report });
        }
        Err(error) => unknown(&mut report, CallError::new("iam:GetRole", &target, &error))?,
    }
    let Some(stream) = stream else { return Ok(report) };
    let mut denied = Vec::new();
    let mut checks = vec![(policy::WRITES.to_vec(), stream.arn.as_str())];
    // An alias or a bare id is no resource of a policy.
    checks.extend(stream.own_key().filter(|key| key.starts_with("arn:")).map(|key| (vec!["kms:GenerateDataKey"], key)));
    for (actions, resource) in checks {
        let request = client.simulate_principal_policy().policy_source_arn(arn).resource_arns(resource);
        let request = request.set_action_names(Some(actions.iter().map(ToString::to_string).collect()));
        match request.send().await {
            Ok(answer) => denied.extend(
                answer
                    .evaluation_results()
                    .iter()
                    .filter(|result| *result.eval_decision() != PolicyEvaluationDecisionType::Allowed)
                    .map(|result| result.eval_action_name().to_owned()),
            ),
            Err(error) => {
                unknown(&mut report, CallError::new("iam:SimulatePrincipalPolicy", &target, &error))?;
                return Ok(report);
            }
        }
    }
    report.denied = Some(denied);
    Ok(report)
}

/// Notes what the credentials may not look at; passes other errors on.
fn unknown(report: &mut RoleReport, error: CallError) -> Result<(), CallError> {
    if !error.is_denied() {
        return Err(error);
    }
    report.unknown.get_or_insert(error.to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_roles() {
        assert_eq!(role_name("arn:aws:iam::123456789012:role/a/b/name"), Some("name"));
        assert_eq!(role_name("arn:aws:iam::123456789012:role/name"), Some("name"));
        assert_eq!(role_name("arn:aws:iam::123456789012:user/name"), None);
        let stream = expected("s", "cn-north-1", "arn:aws-cn:iam::123456789012:role/name").unwrap();
        assert_eq!(stream.arn, "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/s");
    }
}
