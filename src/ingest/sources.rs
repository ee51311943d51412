//! The source of an ingest: files, objects of a bucket, or a stream.

use std::time::Duration;

use super::IngestError;
use crate::aws;
use crate::lake::{Location, Store};
use crate::source::kinesis::{self, Kinesis};
use crate::source::objects::Objects;
use crate::source::{files, leases};

/// Source of records.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files, read one after the other.
    Files(files::Found),
    /// Objects below a prefix of a bucket.
    Objects(Box<ObjectSource>),
    /// The shards of a stream.
    Stream(Box<Stream>),
}

/// Objects of a bucket, and how this worker shares them.
#[derive(Debug, Clone)]
pub struct ObjectSource {
    /// The objects.
    pub objects: Objects,
    /// Go on with objects that arrive later.
    pub follow: bool,
    /// Share the objects with other workers.
    pub leases: Option<leases::LeaseOptions>,
    /// How to reach AWS.
    pub aws: aws::AwsSettings,
}

impl ObjectSource {
    /// Opens the bucket of the objects. `url` is what the user gave for `place`.
    ///
    /// # Errors
    /// The bucket cannot be opened.
    pub async fn open(
        url: &str,
        place: &Location,
        follow: bool,
        leases: Option<leases::LeaseOptions>,
        aws: &aws::AwsSettings,
    ) -> Result<Self, IngestError> {
        let store = Store::open(place, aws).await?;
        let objects = Objects::new(store.objects(), url, store.key(""));
        Ok(Self { objects, follow, leases, aws: aws.clone() })
    }
}

/// A stream, and how this worker shares it.
#[derive(Debug, Clone)]
pub struct Stream {
    /// The stream.
    pub kinesis: Kinesis,
    /// Where to start if the lake does not know the stream.
    pub from: kinesis::From,
    /// Stop once every shard has had nothing to read for this long.
    pub until_idle: Option<Duration>,
    /// Share the shards with other workers.
    pub leases: Option<leases::LeaseOptions>,
    /// Table of a Kinesis Client Library application at whose checkpoints to start.
    pub import: Option<String>,
    /// How to reach AWS.
    pub aws: aws::AwsSettings,
}
