//! Simulated records into a Kinesis stream.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;

use crate::aws::AwsSettings;

const RECORDS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
const ATTEMPTS_MAX: u32 = 20;

/// Why publishing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The service refused the call.
    #[error("PutRecords into stream {stream}")]
    Refused {
        /// The stream.
        stream: String,
        /// What the service said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Some records were refused again and again.
    #[error("PutRecords into stream {stream}: {left} records were refused {ATTEMPTS_MAX} times, last with {code}")]
    Throttled {
        /// The stream.
        stream: String,
        /// How many.
        left: usize,
        /// The last error code.
        code: String,
    },
}

/// Collects records and puts them in batches.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    stream: String,
    batch: Vec<PutRecordsRequestEntry>,
    bytes: usize,
}

impl Publisher {
    /// A publisher into a stream that exists.
    pub async fn new(aws: &AwsSettings, stream: &str) -> Self {
        Self { client: Client::new(&aws.load().await), stream: stream.to_owned(), batch: Vec::new(), bytes: 0 }
    }

    /// Adds a record, and sends the batch when it is full.
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

    /// Sends what is left.
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
                // A shard takes so much in a second, and refuses the rest of a request.
                tokio::time::sleep(Duration::from_millis(50 << attempt.min(6))).await;
            }
            let request = self.client.put_records().stream_name(&self.stream).set_records(Some(left.clone()));
            let answer = request.send().await.map_err(|e| self.refused(e))?;
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
