//! The operations of AWS Glue that a synchronization needs.

use serde_json::{Value, json};

use crate::aws::AwsSettings;
use crate::aws::call::CallError;
use crate::aws::json::{JsonClient, Service};

/// Partitions that one request may create or update.
const WRITES_MAX: usize = 100;

/// A client of the Glue Data Catalog.
#[derive(Debug, Clone)]
pub(super) struct Glue(JsonClient);

/// A change of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Create,
    Update,
    /// One request for each, because partitions seldom leave.
    Delete,
}

impl Glue {
    pub(super) async fn new(aws: &AwsSettings) -> Self {
        Self(JsonClient::new(&aws.load().await, Service { name: "glue", id: "Glue", target: "AWSGlue" }))
    }

    pub(super) async fn has_database(&self, name: &str) -> Result<bool, CallError> {
        let found = self.0.call("glue:GetDatabase", &database(name), json!({ "Name": name })).await;
        Ok(found_or_none(found)?.is_some())
    }

    pub(super) async fn create_database(&self, name: &str) -> Result<(), CallError> {
        let about = "Tables and views of a synclake lake; kept by `synclake catalog sync`";
        let input = json!({ "DatabaseInput": { "Name": name, "Description": about } });
        self.0.call("glue:CreateDatabase", &database(name), input).await.map(drop)
    }

    /// Returns a table or view as Glue describes it, if it exists.
    pub(super) async fn table(&self, database: &str, name: &str) -> Result<Option<Value>, CallError> {
        let input = json!({ "DatabaseName": database, "Name": name });
        let found = self.0.call("glue:GetTable", &table(database, name), input).await;
        Ok(found_or_none(found)?.map(|mut answer| answer["Table"].take()))
    }

    pub(super) async fn create_table(&self, database: &str, name: &str, input: &Value) -> Result<(), CallError> {
        let input = json!({ "DatabaseName": database, "TableInput": input });
        self.0.call("glue:CreateTable", &table(database, name), input).await.map(drop)
    }

    /// Replaces a table, if it still has the version that was read. Glue keeps the versions before.
    pub(super) async fn update_table(
        &self,
        database: &str,
        name: &str,
        input: &Value,
        version: Option<&str>,
    ) -> Result<(), CallError> {
        let mut input = json!({ "DatabaseName": database, "TableInput": input });
        if let Some(version) = version {
            input["VersionId"] = version.into();
        }
        self.0.call("glue:UpdateTable", &table(database, name), input).await.map(drop)
    }

    /// Returns the partitions of a table.
    pub(super) async fn partitions(&self, database: &str, name: &str) -> Result<Vec<Value>, CallError> {
        let mut found = Vec::new();
        let mut input = json!({ "DatabaseName": database, "TableName": name });
        loop {
            let mut answer = self.0.call("glue:GetPartitions", &table(database, name), input.clone()).await?;
            if let Value::Array(partitions) = answer["Partitions"].take() {
                found.extend(partitions);
            }
            match answer["NextToken"].take() {
                Value::String(token) if !token.is_empty() => input["NextToken"] = token.into(),
                _ => return Ok(found),
            }
        }
    }

    /// Creates, updates or deletes partitions, given as `PartitionInput`.
    ///
    /// # Errors
    /// A request fails, or Glue refuses one of the partitions.
    pub(super) async fn write_partitions(
        &self,
        database: &str,
        name: &str,
        write: Write,
        partitions: &[Value],
    ) -> Result<(), CallError> {
        let (action, at_once): (&'static str, usize) = match write {
            Write::Create => ("glue:BatchCreatePartition", WRITES_MAX),
            Write::Update => ("glue:BatchUpdatePartition", WRITES_MAX),
            Write::Delete => ("glue:DeletePartition", 1),
        };
        for some in partitions.chunks(at_once) {
            let mut input = json!({ "DatabaseName": database, "TableName": name });
            match write {
                Write::Create => input["PartitionInputList"] = some.into(),
                Write::Update => {
                    let entry = |one: &Value| json!({ "PartitionValueList": one["Values"], "PartitionInput": one });
                    input["Entries"] = some.iter().map(entry).collect();
                }
                Write::Delete => {
                    input["PartitionValues"] = some.first().map(|one| one["Values"].clone()).unwrap_or_default();
                }
            }
            let target = table(database, name);
            let answer = self.0.call(action, &target, input).await?;
            if let Some(refused) = answer["Errors"].as_array().and_then(|errors| errors.first()) {
                let values = refused.get("PartitionValues").or_else(|| refused.get("PartitionValueList"));
                let reason = format!("partition {}: {}", values.unwrap_or(&Value::Null), refused["ErrorDetail"]);
                return Err(CallError::odd(action, target, reason, "run again; what was done before stays"));
            }
        }
        Ok(())
    }
}

fn database(name: &str) -> String {
    format!("database {name} of the Glue catalogue")
}

fn table(database: &str, name: &str) -> String {
    format!("table {database}.{name} of the Glue catalogue")
}

fn found_or_none(found: Result<Value, CallError>) -> Result<Option<Value>, CallError> {
    match found {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is("EntityNotFoundException") => Ok(None),
        Err(error) => Err(error),
    }
}
