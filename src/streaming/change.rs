//! Changes that turn streaming on or off: planned from what AWS shows, shown to the user, then made.

use std::time::{Duration, Instant};

use aws_sdk_kinesis::types::{StreamMode, StreamModeDetails};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::inspect::{self, StreamReport, role_name};
use super::{PoolReport, Streaming, policy};
use crate::aws::call::CallError;
use crate::backoff::Backoff;
use crate::cognito::{PoolId, PoolStream};

/// Longest name of an inline policy.
const POLICY_NAME_MAX: usize = 128;
/// Time until a stream that was created, and a role that was changed, can be used.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// The stream and role that a user wants.
#[derive(Debug, Clone, Default)]
pub struct EnableOptions {
    /// Name of the stream; the configured one if none is given.
    pub stream: Option<String>,
    /// Whether a missing stream may be created.
    pub may_create_stream: bool,
    /// Shards of a created stream; on demand if none are given.
    pub shards: Option<i32>,
    /// Hours for which a created stream keeps a record.
    pub retention_hours: i32,
    /// ARN of the role; the configured one if none is given.
    pub role_arn: Option<String>,
    /// Whether a missing role may be created, and the policies of an existing one changed.
    pub may_change_role: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A new stream.
    CreateStream {
        /// Name.
        stream: String,
        /// Shards; null on demand.
        shards: Option<i32>,
        /// Hours for which it keeps a record.
        retention_hours: i32,
    },
    /// A new role.
    CreateRole {
        /// ARN.
        role: String,
        /// Its trust policy.
        trust: Value,
    },
    /// Another trust policy of a role.
    SetTrust {
        /// ARN.
        role: String,
        /// The trust policy so far.
        before: Value,
        /// The new trust policy.
        trust: Value,
    },
    /// An inline policy of a role that allows writes into a stream.
    Permit {
        /// ARN.
        role: String,
        /// Stream.
        stream: String,
        /// KMS key of the stream; null if the role needs none.
        key: Option<String>,
    },
    /// Another stream of the pool.
    SetStream {
        /// The configuration so far; null without any.
        before: Option<PoolStream>,
        /// The new configuration.
        after: PoolStream,
    },
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateStream { stream, shards, retention_hours } => {
                let size = shards.map_or("on demand".to_owned(), |shards| format!("{shards} shards"));
                write!(f, "create stream {stream} ({size}, keeps records for {retention_hours} h)")
            }
            Self::CreateRole { role, trust } => write!(f, "create role {role} with the trust policy {trust}"),
            Self::SetTrust { role, before, trust } => {
                write!(f, "change the trust policy of role {role} from {before} to {trust}")
            }
            Self::Permit { role, stream, key } => {
                write!(f, "allow {} on stream {stream}", policy::WRITES.join(" and "))?;
                key.iter().try_for_each(|key| write!(f, " and kms:GenerateDataKey on {key}"))?;
                write!(f, " for role {role}")
            }
            Self::SetStream { before: Some(before), after } if before == after => {
                write!(f, "set the pool's stream {} again, so that the service checks it", after.stream)
            }
            Self::SetStream { before, after } => {
                let shown = |stream: &PoolStream| {
                    let state = if stream.is_enabled { "enabled" } else { "disabled" };
                    format!("stream {}, role {}, {state}", stream.stream, stream.role_arn)
                };
                let before = before.as_ref().map_or("none".to_owned(), shown);
                write!(f, "set the pool's stream from ({before}) to ({})", shown(after))
            }
        }
    }
}

/// The reason why a plan cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A failed call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Something that only the user can decide.
    #[error("{0}")]
    Undecided(String),
}

/// Returns the name of the inline policy for a stream. Each stream has its own, so that a role of several streams keeps
/// the permissions for the others.
fn policy_name(stream_arn: &str) -> String {
    let mut parts = stream_arn.split(':').skip(3);
    let (region, stream) = (parts.next().unwrap_or_default(), stream_arn.rsplit('/').next().unwrap_or_default());
    let name = format!("synclake-{region}-{stream}");
    if name.len() <= POLICY_NAME_MAX {
        return name;
    }
    let digest: String = Sha256::digest(stream_arn.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
    // Names of streams and regions are ASCII.
    format!("{}-{digest}", name.get(..POLICY_NAME_MAX - 1 - digest.len()).unwrap_or_default())
}

impl Streaming {
    /// Plans what turns streaming of a pool on. Empty if it is on, and stream and role are right.
    ///
    /// # Errors
    /// A service refuses, or the options leave open which stream or role to use.
    pub async fn plan_enable(&self, pool: &PoolId, options: &EnableOptions) -> Result<Vec<Change>, PlanError> {
        let report = self.status(pool).await?;
        let configured = report.configured.as_ref();
        let undecided = |text: String| Err(PlanError::Undecided(text));
        let Some(stream_name) = options.stream.as_deref().or(configured.map(|c| c.stream.as_str())) else {
            return undecided(format!(
                "pool {pool} has no stream; give --stream NAME, and --create-stream to create it"
            ));
        };
        let role_arn = options.role_arn.as_deref().or(configured.map(|c| c.role_arn.as_str()));
        let Some(role_arn) = role_arn.filter(|arn| !arn.is_empty()) else {
            return undecided(format!("pool {pool} has no role; give --create-role, or --role-arn ARN"));
        };
        if role_name(role_arn).is_none() {
            return undecided(format!("{role_arn:?} is no ARN of a role, such as arn:aws:iam::123456789012:role/name"));
        }
        let stream = inspect::stream(&self.kinesis, stream_name).await?;
        let mut changes = Vec::new();
        match &stream {
            Some(stream) if stream.status == "DELETING" => {
                return undecided(format!(
                    "stream {stream_name} is being deleted; wait until it is gone, and run again"
                ));
            }
            Some(_) => {}
            None if options.may_create_stream => changes.push(Change::CreateStream {
                stream: stream_name.to_owned(),
                shards: options.shards,
                retention_hours: options.retention_hours,
            }),
            None => {
                return undecided(format!(
                    "stream {stream_name} does not exist; give --create-stream, or another --stream"
                ));
            }
        }
        // What a role allows on a stream can be asked before there is one.
        let expected = stream.clone().or_else(|| inspect::expected(stream_name, pool.region(), role_arn));
        let role = inspect::role(&self.iam, role_arn, expected.as_ref()).await?;
        let role_arn = role.arn.clone();
        let key = expected.as_ref().and_then(StreamReport::own_key).filter(|key| key.starts_with("arn:"));
        let permit =
            || Change::Permit { role: role.arn.clone(), stream: stream_name.to_owned(), key: key.map(str::to_owned) };
        let denied = role.denied.as_deref().unwrap_or_default();
        let wrong = match (role.exists, role.is_trusted) {
            (Some(false), _) => Some("does not exist".to_owned()),
            (_, Some(false)) => Some("does not let cognito-sync.amazonaws.com assume it".to_owned()),
            _ if !denied.is_empty() => Some(format!("does not allow {}", denied.join(", "))),
            _ => None,
        };
        match wrong {
            _ if policy::denies(&role.trust) => {
                return undecided(format!(
                    "the trust policy of role {role_arn} denies it to cognito-sync.amazonaws.com; remove that statement, or give another --role-arn"
                ));
            }
            Some(wrong) if !options.may_change_role => {
                return undecided(format!(
                    "role {role_arn} {wrong}; give --create-role to create or change it, or another --role-arn"
                ));
            }
            _ if role.exists == Some(false) => {
                changes.push(Change::CreateRole { role: role_arn.clone(), trust: policy::trust() });
                changes.push(permit());
            }
            _ => {
                if role.is_trusted == Some(false) {
                    let trust = policy::with_trust(&role.trust);
                    changes.push(Change::SetTrust { role: role_arn.clone(), before: role.trust.clone(), trust });
                }
                if !denied.is_empty() {
                    changes.push(permit());
                }
            }
        }
        let after = PoolStream { stream: stream_name.to_owned(), role_arn, is_enabled: true, disabled_reason: None };
        // A repaired stream is set again even if it counts as enabled, so that the service checks it.
        if configured != Some(&after) || !changes.is_empty() {
            changes.push(Change::SetStream { before: report.configured, after });
        }
        Ok(changes)
    }

    /// Plans what turns streaming of a pool off. Empty if it is off.
    ///
    /// # Errors
    /// The service refuses or does not answer.
    pub async fn plan_disable(&self, pool: &PoolId) -> Result<Vec<Change>, PlanError> {
        let configured = self.cognito.configuration(pool).await?.streams;
        Ok(match configured.filter(|configured| configured.is_enabled) {
            None => Vec::new(),
            Some(before) => {
                let after = PoolStream { is_enabled: false, disabled_reason: None, ..before.clone() };
                vec![Change::SetStream { before: Some(before), after }]
            }
        })
    }

    /// Makes the changes of a plan, in their order, and returns the pool as it is after them.
    ///
    /// # Errors
    /// A change failed. Those before it were made; a new plan has the rest.
    pub async fn apply(&self, pool: &PoolId, changes: &[Change]) -> Result<PoolReport, CallError> {
        for change in changes {
            match change {
                Change::CreateStream { stream, shards, retention_hours } => {
                    self.create_stream(stream, *shards, *retention_hours).await?;
                }
                Change::CreateRole { role, trust } => {
                    let name = role_name(role).unwrap_or_default();
                    let path = role.split_once(":role").and_then(|(_, path)| path.strip_suffix(name));
                    let request = self.iam.create_role().role_name(name).set_path(path.map(str::to_owned));
                    let about = "Cognito Sync writes the changes of identity pools into Kinesis by this role";
                    let made = request.assume_role_policy_document(trust.to_string()).description(about).send().await;
                    made.map_err(|e| CallError::new("iam:CreateRole", &format!("role {name}"), &e))?;
                }
                Change::SetTrust { role, trust, .. } => {
                    let name = role_name(role).unwrap_or_default();
                    let request = self.iam.update_assume_role_policy().role_name(name);
                    let set = request.policy_document(trust.to_string()).send().await;
                    set.map_err(|e| CallError::new("iam:UpdateAssumeRolePolicy", &format!("role {name}"), &e))?;
                }
                Change::Permit { role, stream, .. } => self.permit(role, stream).await?,
                Change::SetStream { after, .. } => self.set_stream(pool, after, changes.len() > 1).await?,
            }
        }
        self.status(pool).await
    }

    async fn create_stream(&self, name: &str, shards: Option<i32>, retention_hours: i32) -> Result<(), CallError> {
        let target = format!("stream {name}");
        let mode = if shards.is_some() { StreamMode::Provisioned } else { StreamMode::OnDemand };
        let request = self.kinesis.create_stream().stream_name(name).set_shard_count(shards);
        let request = match StreamModeDetails::builder().stream_mode(mode).build() {
            Ok(mode) => request.stream_mode_details(mode),
            Err(_) => request,
        };
        match request.send().await {
            Err(error) if !error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => {
                return Err(CallError::new("kinesis:CreateStream", &target, &error));
            }
            _ => {}
        }
        self.wait_until_active(name).await?;
        if retention_hours > 24 {
            let request = self.kinesis.increase_stream_retention_period().stream_name(name);
            let set = request.retention_period_hours(retention_hours).send().await;
            set.map_err(|e| CallError::new("kinesis:IncreaseStreamRetentionPeriod", &target, &e))?;
            self.wait_until_active(name).await?;
        }
        Ok(())
    }

    async fn wait_until_active(&self, name: &str) -> Result<(), CallError> {
        let (since, mut backoff) = (Instant::now(), Backoff::new(100, 2_000));
        loop {
            let stream = inspect::stream(&self.kinesis, name).await?;
            if stream.as_ref().is_some_and(|stream| stream.status == "ACTIVE") {
                return Ok(());
            }
            if since.elapsed() > READY_TIMEOUT {
                let status = stream.map_or("does not exist".to_owned(), |stream| format!("is {}", stream.status));
                return Err(CallError::odd(
                    "kinesis:CreateStream",
                    format!("stream {name}"),
                    format!("it {status} after {} s", READY_TIMEOUT.as_secs()),
                    "run the same command again",
                ));
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn permit(&self, role: &str, stream: &str) -> Result<(), CallError> {
        let target = format!("role {}", role_name(role).unwrap_or_default());
        let found = inspect::stream(&self.kinesis, stream).await?.ok_or_else(|| {
            CallError::odd(
                "kinesis:DescribeStreamSummary",
                format!("stream {stream}"),
                "it does not exist any more",
                "run the same command again",
            )
        })?;
        let permissions = policy::permissions(&found.arn, found.own_key().filter(|key| key.starts_with("arn:")));
        let request = self.iam.put_role_policy().role_name(role_name(role).unwrap_or_default());
        let put = request.policy_name(policy_name(&found.arn)).policy_document(permissions.to_string()).send().await;
        put.map(drop).map_err(|e| CallError::new("iam:PutRolePolicy", &target, &e))
    }

    /// Sets the stream of a pool. After changes of stream or role it is tried for a while: the service refuses a role
    /// that was changed some seconds ago.
    async fn set_stream(&self, pool: &PoolId, after: &PoolStream, is_fresh: bool) -> Result<(), CallError> {
        let (since, mut backoff) = (Instant::now(), Backoff::new(500, 5_000));
        loop {
            match self.cognito.set_stream(pool, after).await {
                Err(error) if is_fresh && error.is("InvalidParameterException") && since.elapsed() < READY_TIMEOUT => {
                    tracing::info!(error = %error, "the role or stream is new; trying again");
                    tokio::time::sleep(backoff.pause()).await;
                }
                Err(error) if error.is("InvalidParameterException") => {
                    let remedy = format!("look at stream and role with `synclake stream status --pool {pool}`");
                    return Err(error.with_remedy(remedy));
                }
                set => return set.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_has_a_policy_of_its_own() {
        let name = |region: &str, stream: &str| policy_name(&format!("arn:aws:kinesis:{region}:1:stream/{stream}"));
        assert_eq!(name("eu-west-1", "cognito"), "synclake-eu-west-1-cognito");
        let (long, other) = (format!("{}a", "s".repeat(127)), format!("{}b", "s".repeat(127)));
        assert_eq!(name("eu-west-1", &long).len(), POLICY_NAME_MAX);
        assert_ne!(name("eu-west-1", &long), name("eu-west-1", &other));
    }
}
