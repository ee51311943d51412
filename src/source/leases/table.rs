//! The lease table in DynamoDB: its items, and the conditional updates that change an item.
//!
//! The layout is that of KCL: tools of its users can read this table, and synclake can read theirs. Four attributes are
//! synclake's own:
//! - `streamName`: stream of the lease. The key of a lease is a shard id, which other streams have, too.
//! - `synclakeLake`: lake of the lease, because checkpoints belong to one lake.
//! - `synclakeSession`: process of the owner. Two processes of the same name detect each other by it.
//! - `synclakeAskedBy`: worker that asks the owner for a handoff.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ReturnValue, ScalarAttributeType,
    TableDescription, TableStatus,
};

use super::plan::Lease;
use crate::aws::AwsSettings;
use crate::failpoint;
use crate::source::SourceError;

const KEY: &str = "leaseKey";
const OWNER: &str = "leaseOwner";
const COUNTER: &str = "leaseCounter";
const CHECKPOINT: &str = "checkpoint";
const SUB_SEQUENCE: &str = "checkpointSubSequenceNumber";
const SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
const PARENTS: &str = "parentShardId";
const STREAM: &str = "streamName";
const HANDOFF_REQUESTED_BY: &str = "synclakeAskedBy";
const LAKE: &str = "synclakeLake";
const SESSION: &str = "synclakeSession";
/// Attribute that marks other kinds of items, which KCL 3.5 keeps in the table.
const ENTITY_TYPE: &str = "entityType";

/// A client of a lease table, for one worker.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    client: Client,
    name: String,
    worker: String,
    /// Random id of this client; two processes of the same name have different ones.
    session: String,
    /// Lake of the checkpoints.
    lake: String,
}

/// The result of a conditional update.
#[derive(Debug, PartialEq, Eq)]
pub enum Updated {
    /// Successful update, with the new lease.
    Done(Lease),
    /// Failed condition: the lease has changed since it was read.
    Refused,
}

impl LeaseTable {
    /// Creates a client of a table; sends nothing yet. A call takes at most `patience`.
    ///
    /// # Errors
    /// The name is not a valid table name.
    pub async fn open(aws: &AwsSettings, name: &str, worker: &str, patience: Duration) -> Result<Self, SourceError> {
        if !(3..=255).contains(&name.len()) || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            let message = format!("lease table name {name:?} is not 3 to 255 of [a-zA-Z0-9_.-]");
            return Err(SourceError::Invalid(message));
        }
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(patience / 2).operation_timeout(patience).build();
        let config = aws.load().await.into_builder().timeout_config(timeouts).build();
        let session = format!("{:016x}", rand::random::<u64>());
        let (name, worker, lake) = (name.to_owned(), worker.to_owned(), String::new());
        Ok(Self { client: Client::new(&config), name, worker, session, lake })
    }

    /// Returns this client for the checkpoints of a lake.
    pub fn of(self, lake: &str) -> Self {
        Self { lake: lake.to_owned(), ..self }
    }

    /// Returns all leases; `None` if the table does not exist.
    ///
    /// # Errors
    /// The table is no lease table, or the service refuses or does not answer.
    pub(crate) async fn examine(&self) -> Result<Option<Vec<Lease>>, SourceError> {
        match self.client.describe_table().table_name(&self.name).send().await {
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => Ok(None),
            Err(error) => Err(self.failed("DescribeTable", &error)),
            Ok(described) => {
                self.check_key(described.table())?;
                self.scan().await.map(Some)
            }
        }
    }

    /// Checks that a table has the key of a lease table.
    fn check_key(&self, table: Option<&TableDescription>) -> Result<(), SourceError> {
        let keys = table.map(|table| table.key_schema()).unwrap_or_default();
        match keys.iter().map(|key| key.attribute_name()).eq([KEY]) {
            true => Ok(()),
            false => Err(SourceError::Invalid(format!(
                "DynamoDB table {} is not a lease table: its key must be {KEY} alone; give another name",
                self.name
            ))),
        }
    }

    /// Creates the table if it does not exist, and waits until it is active.
    ///
    /// # Errors
    /// The table cannot be created, is no lease table, or is not active in time.
    pub async fn ensure(&self) -> Result<(), SourceError> {
        let since = tokio::time::Instant::now();
        let mut asked = false;
        loop {
            match self.client.describe_table().table_name(&self.name).send().await {
                Ok(described) => {
                    let table = described.table();
                    self.check_key(table)?;
                    if table.and_then(|t| t.table_status()) == Some(&TableStatus::Active) {
                        return Ok(());
                    }
                }
                Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => {
                    if !asked {
                        self.create().await?;
                        asked = true;
                    }
                }
                Err(error) => return Err(self.failed("DescribeTable", &error)),
            }
            if since.elapsed() > Duration::from_secs(300) {
                let message = format!("DynamoDB table {} is not active after 5 minutes; run again", self.name);
                return Err(SourceError::Invalid(message));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn create(&self) -> Result<(), SourceError> {
        let attribute = AttributeDefinition::builder().attribute_name(KEY).attribute_type(ScalarAttributeType::S);
        let key = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash);
        let invalid = |e: aws_sdk_dynamodb::error::BuildError| SourceError::Invalid(e.to_string());
        let request = self
            .client
            .create_table()
            .table_name(&self.name)
            .attribute_definitions(attribute.build().map_err(invalid)?)
            .key_schema(key.build().map_err(invalid)?)
            .billing_mode(BillingMode::PayPerRequest);
        match request.send().await {
            Ok(_) => Ok(()),
            // Another worker was faster.
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => Ok(()),
            Err(error) => Err(self.failed("CreateTable", &error)),
        }
    }

    /// Returns whether another process under this worker's name last took or renewed the lease.
    pub fn is_doubled(&self, lease: &Lease) -> bool {
        lease.owner.as_deref() == Some(self.worker.as_str())
            && lease.session.as_ref().is_some_and(|session| *session != self.session)
    }

    /// Returns every lease in the table, by a strongly consistent read.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn scan(&self) -> Result<Vec<Lease>, SourceError> {
        let mut pages = self.client.scan().table_name(&self.name).consistent_read(true).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| self.failed("Scan", &e))?;
            found.extend(page.items().iter().filter_map(lease_of));
        }
        Ok(found)
    }

    /// Returns one lease, by a strongly consistent read.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn get(&self, key: &str) -> Result<Option<Lease>, SourceError> {
        let request = self.client.get_item().table_name(&self.name).consistent_read(true);
        let found = request.key(KEY, text(key)).send().await.map_err(|e| self.failed("GetItem", &e))?;
        Ok(found.item().and_then(lease_of))
    }

    /// Adds a lease without an owner; an existing lease is no error.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn create_lease(
        &self,
        stream: &str,
        key: &str,
        parents: &[String],
        checkpoint: &str,
    ) -> Result<(), SourceError> {
        failpoint::hit("lease/create");
        let mut request = self
            .client
            .put_item()
            .table_name(&self.name)
            .item(KEY, text(key))
            .item(COUNTER, number(0))
            .item(SWITCHES, number(0))
            .item(CHECKPOINT, text(checkpoint))
            .item(SUB_SEQUENCE, number(0))
            .item(STREAM, text(stream))
            .item(LAKE, text(&self.lake))
            .condition_expression("attribute_not_exists(#key)")
            .expression_attribute_names("#key", KEY);
        if !parents.is_empty() {
            request = request.item(PARENTS, AttributeValue::Ss(parents.to_vec()));
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(self.failed("PutItem", &error)),
        }
    }

    /// Deletes the lease of a shard of an earlier incarnation of the stream, whose shard ids begin again. A lease that
    /// is of another stream by now is no error.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn forget(&self, lease: &Lease) -> Result<(), SourceError> {
        let Some(stream) = &lease.stream else { return Ok(()) };
        let request = self.client.delete_item().table_name(&self.name).key(KEY, text(&lease.key));
        let request = request.condition_expression("#stream = :stream").expression_attribute_names("#stream", STREAM);
        match request.expression_attribute_values(":stream", text(stream)).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(self.failed("DeleteItem", &error)),
        }
    }

    /// Deletes the lease of a shard that has ended and that the stream no longer lists.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn delete_lease(&self, key: &str) -> Result<(), SourceError> {
        let done = self.client.delete_item().table_name(&self.name).key(KEY, text(key)).send().await;
        done.map(drop).map_err(|e| self.failed("DeleteItem", &e))
    }

    /// Takes a lease over if its counter has not changed since it was read.
    ///
    /// # Errors
    /// The call fails; whether it changed the table is unknown.
    pub async fn take(&self, lease: &Lease) -> Result<Updated, SourceError> {
        failpoint::hit("lease/take/before");
        let update = self
            .update(&lease.key)
            .update_expression(
                "SET #owner = :me, #session = :session, #lake = if_not_exists(#lake, :lake), \
                 #counter = #counter + :one, #switches = if_not_exists(#switches, :zero) + :one \
                 REMOVE #asked",
            )
            .expression_attribute_names("#lake", LAKE)
            .expression_attribute_values(":lake", text(&self.lake))
            .condition_expression("#counter = :seen")
            .expression_attribute_names("#switches", SWITCHES)
            .expression_attribute_names("#asked", HANDOFF_REQUESTED_BY)
            .expression_attribute_names("#session", SESSION)
            .expression_attribute_values(":session", text(&self.session))
            .expression_attribute_values(":zero", number(0))
            .expression_attribute_values(":seen", number(lease.counter));
        let done = self.send(update).await;
        failpoint::hit("lease/take/after");
        done
    }

    /// Renews a lease of this worker, and writes the checkpoint that the lake's log holds.
    ///
    /// # Errors
    /// The call fails; whether it changed the table is unknown.
    pub async fn renew(&self, lease: &Lease, checkpoint: Option<&str>) -> Result<Updated, SourceError> {
        failpoint::hit("lease/renew/before");
        let mut update = self
            .update(&lease.key)
            .condition_expression("#owner = :me AND #counter = :seen")
            .expression_attribute_names("#session", SESSION)
            .expression_attribute_values(":session", text(&self.session));
        update = match checkpoint {
            Some(checkpoint) => update
                .update_expression(
                    "SET #session = :session, #counter = #counter + :one, #checkpoint = :checkpoint, #switches = :zero",
                )
                .expression_attribute_names("#checkpoint", CHECKPOINT)
                .expression_attribute_names("#switches", SWITCHES)
                .expression_attribute_values(":checkpoint", text(checkpoint))
                .expression_attribute_values(":zero", number(0)),
            None => update.update_expression("SET #session = :session, #counter = #counter + :one"),
        };
        let done = self.send(update.expression_attribute_values(":seen", number(lease.counter))).await;
        failpoint::hit("lease/renew/after");
        done
    }

    /// Asks the owner of a lease for a handoff.
    ///
    /// # Errors
    /// The call fails; whether it changed the table is unknown.
    pub async fn request_handoff(&self, lease: &Lease) -> Result<Updated, SourceError> {
        let Some(owner) = &lease.owner else { return Ok(Updated::Refused) };
        // The counter must not change, or the owner would fail to renew.
        let update = self
            .client
            .update_item()
            .table_name(&self.name)
            .key(KEY, text(&lease.key))
            .update_expression("SET #asked = :me")
            .condition_expression("#owner = :owner AND attribute_not_exists(#asked)")
            .expression_attribute_names("#asked", HANDOFF_REQUESTED_BY)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_values(":me", text(&self.worker))
            .expression_attribute_values(":owner", text(owner))
            .return_values(ReturnValue::AllNew);
        self.send(update).await
    }

    /// Gives a lease of this worker back: to the worker that asked for it, otherwise to no worker.
    ///
    /// # Errors
    /// The call fails; whether it changed the table is unknown, and the lease then expires by itself.
    pub async fn give_back(&self, lease: &Lease, checkpoint: Option<&str>) -> Result<Updated, SourceError> {
        failpoint::hit("lease/give_back/before");
        let mut sets = vec!["#counter = #counter + :one"];
        let mut removes = vec![];
        let mut update = self.update(&lease.key).condition_expression("#owner = :me");
        if let Some(asker) = &lease.handoff_requested_by {
            sets.push("#owner = :asker");
            removes.push("#asked");
            update = update
                .expression_attribute_values(":asker", text(asker))
                .expression_attribute_names("#asked", HANDOFF_REQUESTED_BY);
        } else {
            removes.push("#owner");
        }
        if let Some(checkpoint) = checkpoint {
            sets.push("#checkpoint = :checkpoint");
            update = update
                .expression_attribute_names("#checkpoint", CHECKPOINT)
                .expression_attribute_values(":checkpoint", text(checkpoint));
        }
        let expression = format!("SET {} REMOVE {}", sets.join(", "), removes.join(", "));
        let done = self.send(update.update_expression(expression)).await;
        failpoint::hit("lease/give_back/after");
        done
    }

    fn update(&self, key: &str) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.name)
            .key(KEY, text(key))
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#counter", COUNTER)
            .expression_attribute_values(":me", text(&self.worker))
            .expression_attribute_values(":one", number(1))
            .return_values(ReturnValue::AllNew)
    }

    async fn send(&self, update: UpdateItemFluentBuilder) -> Result<Updated, SourceError> {
        match update.send().await {
            Ok(answer) => Ok(answer.attributes().and_then(lease_of).map_or(Updated::Refused, Updated::Done)),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(Updated::Refused)
            }
            Err(error) => Err(self.failed("UpdateItem", &error)),
        }
    }

    fn failed<E>(&self, action: &'static str, error: &SdkError<E>) -> SourceError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let remedy = match error.code().unwrap_or_default() {
            "AccessDeniedException" => {
                "allow dynamodb:DescribeTable, CreateTable, Scan, GetItem, PutItem, UpdateItem and DeleteItem on it"
            }
            "ResourceNotFoundException" => "check the name of the table, the region and the account",
            _ => "check the region, the credentials and the network, and run again",
        };
        let reason = crate::aws::call::describe(error);
        SourceError::Leases { action, table: self.name.clone(), reason, remedy }
    }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// Returns the lease in an item; `None` for other kinds of items.
fn lease_of(item: &HashMap<String, AttributeValue>) -> Option<Lease> {
    if item.contains_key(ENTITY_TYPE) {
        return None;
    }
    let text = |name: &str| item.get(name).and_then(|v| v.as_s().ok()).cloned();
    let number = |name: &str| item.get(name).and_then(|v| v.as_n().ok()).and_then(|n| n.parse::<i64>().ok());
    Some(Lease {
        key: text(KEY)?,
        owner: text(OWNER).filter(|owner| !owner.is_empty()),
        counter: number(COUNTER)?,
        checkpoint: text(CHECKPOINT)?,
        checkpoint_sub_sequence: number(SUB_SEQUENCE).unwrap_or(0),
        handoff_requested_by: text(HANDOFF_REQUESTED_BY),
        stream: text(STREAM),
        lake: text(LAKE),
        session: text(SESSION),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_dynamodb::config::retry::RetryConfig;
    use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};

    use super::*;

    /// Returns a client of a table at an endpoint. It sends each request once.
    pub(in crate::source::leases) fn table_at(endpoint: &str, worker: &str) -> LeaseTable {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .build();
        let (name, worker, session, lake) = ("leases".into(), worker.into(), "session".into(), "lake".into());
        LeaseTable { client: Client::from_conf(config), name, worker, session, lake }
    }

    #[test]
    fn what_is_no_lease_is_skipped() {
        let mut item = HashMap::from([
            (KEY.to_owned(), text("shardId-000000000001")),
            (COUNTER.to_owned(), number(7)),
            (CHECKPOINT.to_owned(), text("TRIM_HORIZON")),
            (OWNER.to_owned(), text("")),
        ]);
        let lease = lease_of(&item).unwrap();
        assert_eq!((lease.counter, &lease.owner, lease.is_ended()), (7, &None, false));
        item.insert(ENTITY_TYPE.to_owned(), text("WORKER_METRICS"));
        assert_eq!(lease_of(&item), None);
        item.remove(ENTITY_TYPE);
        item.remove(COUNTER);
        assert_eq!(lease_of(&item), None);
    }
}
