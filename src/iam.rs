//! IAM policies that the commands need, for a lake, a stream and a lease table. A test runs the commands behind a proxy
//! that refuses every call which the policy does not allow, and finds each action used.

use serde_json::{Value, json};

/// What a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// `ingest`, with its care for the lake.
    Ingest,
    /// `synclake-query`, `status` and `verify`.
    Query,
    /// `extract` and `deliver`.
    Extract,
    /// `care`, `refresh`, `compact`, `vacuum`, `policy`, `manifest` and `redrive`.
    Care,
    /// `catalog sync`.
    Catalog,
}

/// A prefix in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Bucket.
    pub bucket: String,
    /// Prefix without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
}

/// The resources of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// `aws`, `aws-cn` or `aws-us-gov`.
    pub partition: String,
    /// The lake.
    pub lake: Prefix,
    /// Where extracts and deliveries go, if outside of the lake.
    pub out: Option<Prefix>,
    /// ARNs of the streams, for ingest.
    pub streams: Vec<String>,
    /// ARNs of the lease tables, for a fleet.
    pub lease_tables: Vec<String>,
    /// ARNs of the Glue catalogue, its database and the tables in it, for `catalog sync`.
    pub catalog: Vec<String>,
    /// ARNs of the KMS keys of buckets and stream.
    pub keys: Vec<String>,
}

const STREAM_ACTIONS: [&str; 4] =
    ["kinesis:DescribeStreamSummary", "kinesis:GetRecords", "kinesis:GetShardIterator", "kinesis:ListShards"];
const LEASE_ACTIONS: [&str; 7] = [
    "dynamodb:CreateTable",
    "dynamodb:DeleteItem",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Scan",
    "dynamodb:UpdateItem",
];
const CATALOG_ACTIONS: [&str; 9] = [
    "glue:BatchCreatePartition",
    "glue:BatchUpdatePartition",
    "glue:CreateDatabase",
    "glue:CreateTable",
    "glue:DeletePartition",
    "glue:GetDatabase",
    "glue:GetPartitions",
    "glue:GetTable",
    "glue:UpdateTable",
];

/// Returns the policy of a role.
pub fn policy(role: Role, resources: &Resources) -> Value {
    let allow =
        |actions: &[&str], resource: Vec<String>| json!({ "Effect": "Allow", "Action": actions, "Resource": resource });
    let mut prefixes = vec![&resources.lake];
    prefixes.extend(resources.out.as_ref().filter(|_| role == Role::Extract));
    let buckets: Vec<String> = prefixes.iter().map(|prefix| resources.bucket(prefix)).collect();
    let mut buckets_once = buckets.clone();
    buckets_once.dedup();
    let objects: Vec<String> = prefixes
        .iter()
        .zip(&buckets)
        .map(|(prefix, bucket)| match prefix.prefix.as_str() {
            "" => format!("{bucket}/*"),
            prefix => format!("{bucket}/{prefix}/*"),
        })
        .collect();
    // Without s3:ListBucket, S3 answers 403 for an object that does not exist. A condition on the prefix would do the same.
    let (on_bucket, on_objects): (&[&str], &[&str]) = match role {
        Role::Query | Role::Catalog => (&["s3:ListBucket"], &["s3:GetObject"]),
        Role::Extract => (&["s3:ListBucket"], &["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]),
        Role::Ingest | Role::Care => (
            &["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            &["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
        ),
    };
    let mut statements = vec![allow(on_bucket, buckets_once), allow(on_objects, objects)];
    if role == Role::Ingest {
        let of_streams = [(&STREAM_ACTIONS[..], &resources.streams), (&LEASE_ACTIONS[..], &resources.lease_tables)];
        let of_streams = of_streams.into_iter().filter(|(_, arns)| !arns.is_empty());
        statements.extend(of_streams.map(|(actions, arns)| allow(actions, arns.clone())));
    }
    if role == Role::Catalog && !resources.catalog.is_empty() {
        statements.push(allow(&CATALOG_ACTIONS, resources.catalog.clone()));
    }
    if !resources.keys.is_empty() {
        let actions: &[&str] = match role {
            Role::Query | Role::Catalog => &["kms:Decrypt"],
            _ => &["kms:Decrypt", "kms:GenerateDataKey"],
        };
        statements.push(allow(actions, resources.keys.clone()));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

impl Resources {
    fn bucket(&self, prefix: &Prefix) -> String {
        format!("arn:{}:s3:::{}", self.partition, prefix.bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_its_resources_alone() {
        let prefix = |bucket: &str, prefix: &str| Prefix { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        let resources = Resources {
            partition: "aws-cn".to_owned(),
            lake: prefix("lakes", "a/b"),
            out: Some(prefix("lakes", "out")),
            streams: vec!["arn:aws-cn:kinesis:cn-north-1:1:stream/s".to_owned()],
            lease_tables: Vec::new(),
            catalog: Vec::new(),
            keys: vec!["arn:aws-cn:kms:cn-north-1:1:key/k".to_owned()],
        };
        let extract = policy(Role::Extract, &resources);
        let of = |document: &Value| -> Vec<Value> {
            document["Statement"].as_array().unwrap().iter().map(|s| s["Resource"].clone()).collect()
        };
        assert_eq!(of(&extract)[0], json!(["arn:aws-cn:s3:::lakes"]));
        assert_eq!(of(&extract)[1], json!(["arn:aws-cn:s3:::lakes/a/b/*", "arn:aws-cn:s3:::lakes/out/*"]));
        assert_eq!(of(&policy(Role::Query, &resources))[1], json!(["arn:aws-cn:s3:::lakes/a/b/*"]));
        let ingest = policy(Role::Ingest, &resources);
        assert_eq!(of(&ingest)[2], json!(resources.streams));
        assert_eq!(of(&ingest).len(), 4);
        for (role, verb) in
            [(Role::Query, "Put"), (Role::Query, "Delete"), (Role::Extract, "kinesis"), (Role::Care, "kinesis")]
        {
            assert!(!policy(role, &resources).to_string().contains(verb), "{role:?} {verb}");
        }
    }
}
