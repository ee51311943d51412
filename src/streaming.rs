//! Streaming of an identity pool: what is configured, what turned it off, and how to turn it on.
//!
//! Cognito Sync turns streaming off by itself when its stream is deleted or its role fails, and nothing announces it. So
//! the configuration alone is not enough: the stream and the role behind it are looked at, too.

use serde::Serialize;

use crate::aws::AwsSettings;
use crate::aws::call::CallError;
use crate::cognito::{CognitoSync, PoolId, PoolStream};

mod change;
mod inspect;
mod policy;

pub use change::{Change, EnableOptions, PlanError};
pub(crate) use inspect::stream;
pub use inspect::{RoleReport, StreamReport};

/// Clients of the services that a pool's stream needs.
#[derive(Debug, Clone)]
pub struct Streaming {
    cognito: CognitoSync,
    kinesis: aws_sdk_kinesis::Client,
    iam: aws_sdk_iam::Client,
}

/// Whether a pool streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Streaming is on.
    Enabled,
    /// Streaming is off, and a stream is configured.
    Disabled,
    /// No stream was ever configured.
    None,
}

/// A reason for which records do not arrive, or may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub remedy: String,
    /// Whether records do not arrive because of it. Otherwise it is only unknown.
    pub is_fault: bool,
}

/// A pool and its stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolReport {
    /// Id of the pool.
    pub pool: PoolId,
    /// Whether it streams, as configured.
    pub streaming: State,
    /// The configured stream and role; null without any.
    pub configured: Option<PoolStream>,
    /// Whether push sync is configured. No command changes it.
    pub has_push_sync: bool,
    /// The configured stream; null if it does not exist.
    pub stream: Option<StreamReport>,
    /// The configured role; null without any.
    pub role: Option<RoleReport>,
    /// What is wrong; empty if records arrive.
    pub findings: Vec<Finding>,
}

impl PoolReport {
    /// Returns whether something keeps records from arriving.
    pub fn is_faulty(&self) -> bool {
        self.findings.iter().any(|finding| finding.is_fault)
    }
}

impl Streaming {
    /// Creates the clients; sends nothing yet.
    pub async fn new(aws: &AwsSettings) -> Self {
        let config = crate::aws::for_calls(&aws.load().await);
        Self {
            cognito: CognitoSync::new(aws).await,
            kinesis: aws_sdk_kinesis::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&config),
        }
    }

    /// Looks at a pool, its stream and its role.
    ///
    /// # Errors
    /// A service refuses or does not answer. What the credentials may not see of the role is no error.
    pub async fn status(&self, pool: &PoolId) -> Result<PoolReport, CallError> {
        let configuration = self.cognito.configuration(pool).await?;
        let has_push_sync = configuration.has_push_sync();
        let Some(configured) = configuration.streams else {
            let mut report = PoolReport {
                pool: pool.clone(),
                streaming: State::None,
                configured: None,
                has_push_sync,
                stream: None,
                role: None,
                findings: Vec::new(),
            };
            report.findings = findings(&report);
            return Ok(report);
        };
        let stream = stream(&self.kinesis, &configured.stream).await?;
        let role = inspect::role(&self.iam, &configured.role_arn, stream.as_ref()).await?;
        let mut report = PoolReport {
            pool: pool.clone(),
            streaming: if configured.is_enabled { State::Enabled } else { State::Disabled },
            configured: Some(configured),
            has_push_sync,
            stream,
            role: Some(role),
            findings: Vec::new(),
        };
        report.findings = findings(&report);
        Ok(report)
    }
}

/// Returns what is wrong with a pool, the causes before their effects.
fn findings(report: &PoolReport) -> Vec<Finding> {
    let mut found = Vec::new();
    let pool = &report.pool;
    let repair = format!("run `synclake stream repair --pool {pool}`");
    let mut fault =
        |text: String, remedy: &str| found.push(Finding { text, remedy: remedy.to_owned(), is_fault: true });
    let Some(configured) = &report.configured else {
        fault(
            "the pool has no stream".to_owned(),
            &format!("run `synclake stream enable --pool {pool} --stream NAME`"),
        );
        return found;
    };
    match &report.stream {
        None => fault(format!("stream {} does not exist", configured.stream), &repair),
        Some(stream) if stream.status == "DELETING" => {
            fault(
                format!("stream {} is being deleted", configured.stream),
                &format!("wait until it is gone, and {repair}"),
            );
        }
        Some(_) => {}
    }
    let unknown = report.role.as_ref().and_then(|role| {
        match role.exists {
            Some(false) => fault(format!("role {} does not exist", role.arn), &repair),
            _ if role.is_trusted == Some(false) => {
                fault(format!("role {} does not let cognito-sync.amazonaws.com assume it", role.arn), &repair);
            }
            _ => {}
        }
        if let Some(denied) = role.denied.as_ref().filter(|denied| !denied.is_empty() && role.exists != Some(false)) {
            fault(format!("role {} does not allow {}", role.arn, denied.join(", ")), &repair);
        }
        role.unknown.clone()
    });
    match (&configured.disabled_reason, configured.is_enabled) {
        (_, true) => {}
        (Some(reason), false) => fault(format!("Cognito Sync turned streaming off: {reason}"), &repair),
        (None, false) => {
            fault("streaming is off".to_owned(), &format!("run `synclake stream enable --pool {pool}`"));
        }
    }
    found.extend(unknown.map(|text| Finding {
        text: format!("the role cannot be checked: {text}"),
        remedy: "allow the action, or check the role by hand".to_owned(),
        is_fault: false,
    }));
    found
}
