//! Publishes simulated records to a Kinesis stream.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;

use crate::aws::AwsSettings;

const RECORDS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
const ATTEMPTS_MAX: u32 = 20;

/// A reason why publishing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Failed call.
    #[error("PutRecords into stream {stream}")]
    Refused {
        /// Name of the stream.
        stream: String,
        /// Error of the service.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Records that were refused at every attempt.
    #[error("PutRecords into stream {stream}: {left} records were refused {ATTEMPTS_MAX} times, last with {code}")]
    Throttled {
        /// Name of the stream.
        stream: String,
        /// Number of refused records.
        left: usize,
        /// Last error code.
        code: String,
    },
}

/// A publisher that collects records and sends them in batches.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    stream: String,
    batch: Vec<PutRecordsRequestEntry>,
    bytes: usize,
}

impl Publisher {
    /// Creates a publisher for an existing stream.
    pub async fn new(aws: &AwsSettings, stream: &str) -> Self {
        Self { client: Client::new(&aws.load().await), stream: stream.to_owned(), batch: Vec::new(), bytes: 0 }
    }

    /// Adds a record; first sends the batch if it is full.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn put(&mut self, partition_key: &str, data: Vec<u8>) -> Result<(), PublishError> {
        let size = data.len() + partition_key.len();
        if self.batch.len() == RECORDS_MAX || self.bytes + size > BYTES_MAX {
            self.flush().await?;
        }
        self.bytes += size;
        let entry = PutRecordsRequestEntry::builder().data(Blob::new(data)).partition_key(partition_key).build();
        self.batch.push(entry.map_err(|e| self.refused(e))?);
        Ok(())
    }

    /// Sends the remaining records.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn flush(&mut self) -> Result<(), PublishError> {
        let mut left = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let mut code = String::new();
        for attempt in 0..ATTEMPTS_MAX {
            if left.is_empty() {
                return Ok(());
            }
            if attempt > 0 {
                // A shard accepts a limited amount per second, and refuses the rest of a request.
                tokio::time::sleep(Duration::from_millis(50 << attempt.min(6))).await;
            }
            let request = self.client.put_records().stream_name(&self.stream).set_records(Some(left.clone()));
            let answer = request.send().await.map_err(|e| self.refused(e))?;
            if answer.records().len() != left.len() {
                let what = format!("the answer has {} results for {} records", answer.records().len(), left.len());
                return Err(self.refused(std::io::Error::other(what)));
            }
            let refused: Vec<_> =
                left.into_iter().zip(answer.records()).filter(|(_, r)| r.error_code().is_some()).collect();
            if let Some((_, first)) = refused.first() {
                code = first.error_code().unwrap_or_default().to_owned();
            }
            left = refused.into_iter().map(|(entry, _)| entry).collect();
        }
        match left.len() {
            0 => Ok(()),
            left => Err(PublishError::Throttled { stream: self.stream.clone(), left, code }),
        }
    }

    fn refused(&self, source: impl std::error::Error + Send + Sync + 'static) -> PublishError {
        PublishError::Refused { stream: self.stream.clone(), source: Box::new(source) }
    }
}
