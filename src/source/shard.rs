//! Reads one shard of a Kinesis stream to its end.

use std::collections::HashSet;

use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::ShardIteratorType;
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kinesis::{Kinesis, Place, Retry};
use super::{Assignment, Chunk, Delivery, Reached, ReceiverGone, Sink, SourceError};
use crate::budget::Reservation;
use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::payload::{self, Payloads};
use crate::record::Record;
use crate::timeouts::{IDLE_READ_INTERVAL, READ_INTERVAL};
use crate::{cpu, failpoint};

const RECORDS_MAX: i32 = 10_000;
/// Concurrent fetches of payloads for one shard, at most.
const FETCHES: usize = 4;
/// Bytes that one read returns at most.
const READ_BYTES_MAX: usize = 10 << 20;

/// The start of reading in a shard.
#[derive(Debug, Clone)]
pub struct Begin {
    /// Sequence number after which reading begins.
    pub after: Option<SequenceNumber>,
    /// Whether `after` comes from a KCL checkpoint. Reading then begins at the number after it, because no record
    /// before that number is known.
    pub is_imported: bool,
    /// Start of the shard if there is no record yet.
    pub from: StartAt,
}

/// The reading of one shard.
pub struct Job {
    /// The stream.
    pub kinesis: Kinesis,
    /// The shard, and the epoch in which this worker owns it.
    pub assignment: Assignment,
    /// The start.
    pub begin: Begin,
    /// Fetches the payloads that records point at.
    pub payloads: Payloads,
}

/// Reads a shard from its start to its end, or until `stop`, or until the stream no longer lists it.
///
/// Delivers chunks in order, [`Delivery::Reached`] after each read that leads to another one, and [`Delivery::End`]
/// once, after the last record.
///
/// # Errors
/// The service refuses for good or for longer than ten minutes, or it gives an invalid sequence number.
pub async fn read(job: Job, sink: Sink, stop: CancellationToken) -> Result<(), SourceError> {
    stop.run_until_cancelled(Reader::new(job, sink).run()).await.unwrap_or(Ok(()))
}

struct Reader {
    kinesis: Kinesis,
    assignment: Assignment,
    payloads: Payloads,
    sink: Sink,
    /// The last record that was delivered, or the start.
    after: Option<SequenceNumber>,
    is_imported: bool,
    from: StartAt,
    order: Order,
    next_read: Instant,
    iterator_retry: Retry,
    read_retry: Retry,
    end_retry: Retry,
}

/// The step after a call.
enum Next {
    /// Another read, with this iterator.
    Read(String),
    /// A new iterator, after the last record that was delivered.
    Open,
    /// Nothing: the shard is read, or gone, or the receiver is.
    Stop,
}

impl Reader {
    fn new(job: Job, sink: Sink) -> Self {
        let Job { kinesis, assignment, begin: Begin { after, is_imported, from }, payloads } = job;
        let [iterator_retry, read_retry, end_retry] =
            ["GetShardIterator", "GetRecords", "GetRecords"].map(|call| Retry::new(call, &kinesis));
        let (order, next_read) = (Order::after(after.clone()), Instant::now());
        Self {
            kinesis,
            assignment,
            payloads,
            sink,
            after,
            is_imported,
            from,
            order,
            next_read,
            iterator_retry,
            read_retry,
            end_retry,
        }
    }

    async fn run(mut self) -> Result<(), SourceError> {
        let mut next = Next::Open;
        loop {
            tokio::time::sleep_until(self.next_read).await;
            next = match next {
                Next::Open => self.open().await?,
                Next::Read(iterator) => self.page(iterator).await?,
                Next::Stop => return Ok(()),
            };
        }
    }

    /// Opens an iterator.
    async fn open(&mut self) -> Result<Next, SourceError> {
        match self.iterator().await {
            Ok(Some(opened)) => {
                self.iterator_retry.succeeded();
                return Ok(Next::Read(opened));
            }
            Ok(None) => self.iterator_retry.invalid_response("the answer holds no iterator").await?,
            Err(error) => {
                let is_unknown = error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception());
                // The error may concern the stream or the shard. The listing shows which one, or fails with the
                // same error. If the stream no longer lists the shard, the ingest loop finds out why.
                if is_unknown && self.kinesis.place(&self.assignment.shard).await? == Place::Gone {
                    return Ok(Next::Stop);
                }
                self.iterator_retry.failed(&error).await?;
            }
        }
        Ok(Next::Open)
    }

    async fn iterator(&self) -> Result<Option<String>, SdkError<GetShardIteratorError>> {
        let (stream, shard) = (self.kinesis.stream(), self.assignment.shard.shard());
        let request = self.kinesis.client().get_shard_iterator().stream_name(stream).shard_id(shard);
        let imported = self.after.as_ref().filter(|_| self.is_imported).and_then(SequenceNumber::next);
        let request = match (&self.after, self.from) {
            _ if let Some(at) = &imported => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(at.as_str())
            }
            (Some(position), _) => request
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .starting_sequence_number(position.as_str()),
            (None, StartAt::TrimHorizon) => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            (None, StartAt::Timestamp(ms)) => {
                request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(ms))
            }
        };
        Ok(request.send().await?.shard_iterator)
    }

    /// Reads once, and delivers what was read.
    async fn page(&mut self, iterator: String) -> Result<Next, SourceError> {
        let reserved = self.sink.budget.reserve(READ_BYTES_MAX).await;
        self.next_read = Instant::now() + READ_INTERVAL;
        let read = self.kinesis.client().get_records().shard_iterator(&iterator).limit(RECORDS_MAX).send();
        let page = match read.await {
            Ok(page) => page,
            // An iterator lives five minutes.
            Err(error) if error.as_service_error().is_some_and(|e| e.is_expired_iterator_exception()) => {
                tracing::info!(shard = %self.assignment.shard, "iterator expired, opening another");
                return Ok(Next::Open);
            }
            Err(error) => {
                drop(reserved);
                self.read_retry.failed(&error).await?;
                return Ok(Next::Read(iterator));
            }
        };
        self.read_retry.succeeded();
        failpoint::hit("read/after");
        let at_ms = chrono::Utc::now().timestamp_millis();
        let began = self.after.clone();
        let (has_children, behind_ms) = (!page.child_shards().is_empty(), page.millis_behind_latest);
        let records = page.records.into_iter().map(|r| record(r, at_ms)).collect::<Result<Vec<_>, _>>()?;
        let is_quiet = match self.order.check(&self.assignment.shard, records)? {
            records if records.is_empty() => true,
            records => {
                if self.deliver(records, reserved).await.is_err() {
                    return Ok(Next::Stop);
                }
                false
            }
        };
        // The last records of a shard may come in the same answer as its end.
        let Some(next) = page.next_shard_iterator else { return self.end(has_children, behind_ms.is_some()).await };
        self.end_retry.succeeded();
        let behind_ms = behind_ms.unwrap_or(0).max(0);
        let caught_up = is_quiet && behind_ms == 0;
        if caught_up {
            self.next_read = Instant::now() + IDLE_READ_INTERVAL;
        }
        let reached = Reached { at_ms, behind_ms, caught_up, after: began };
        match self.sink.send(Delivery::Reached(self.assignment.clone(), reached)).await {
            Ok(()) => Ok(Next::Read(next)),
            Err(ReceiverGone) => Ok(Next::Stop),
        }
    }

    /// Handles an answer without a next iterator: the end of the shard, if something confirms it.
    async fn end(&mut self, has_children: bool, has_lag: bool) -> Result<Next, SourceError> {
        let place = match (has_children, has_lag) {
            (true, _) => Place::Closed,
            (false, true) => self.kinesis.place(&self.assignment.shard).await?,
            // The service always tells how far behind it is: this answer comes from something else.
            (false, false) => Place::Open,
        };
        match place {
            Place::Closed => {
                // Without a receiver the run is over.
                let _ = self.sink.send(Delivery::End(self.assignment.clone())).await;
                Ok(Next::Stop)
            }
            Place::Gone => Ok(Next::Stop),
            // A committed end is final: the shard would never be read again.
            Place::Open => {
                let reason = "the answer holds no iterator, but the shard is not closed";
                self.end_retry.invalid_response(reason).await?;
                Ok(Next::Open)
            }
        }
    }

    /// Delivers records in order, each with its payloads. Fetches payloads ahead of the record that is delivered.
    async fn deliver(&mut self, records: Vec<Record>, mut reserved: Reservation) -> Result<(), ReceiverGone> {
        self.after = records.last().map(|last| last.sequence_number.clone());
        self.is_imported = false;
        reserved.shrink_to(records.iter().map(held_bytes).sum());
        let payloads = self.payloads.clone();
        let pieces = cpu::run(move || payload::pieces(records)).await;
        let fetched = futures::stream::iter(pieces)
            .then(move |(records, points)| {
                let payloads = payloads.clone();
                async move {
                    let room = if points { payloads.reserve().await } else { Reservation::none() };
                    (records, points, room, payloads)
                }
            })
            .map(|(mut records, points, mut room, payloads)| async move {
                if let Some(last) = records.last_mut().filter(|_| points) {
                    payloads.fetch(last).await;
                    room.shrink_to(last.payloads.iter().map(|p| p.contents.as_ref().map_or(0, Bytes::len)).sum());
                }
                (records, room)
            })
            .buffered(FETCHES);
        let mut fetched = std::pin::pin!(fetched);
        while let Some((records, room)) = fetched.next().await {
            let Some(position) = records.last().map(|r| r.sequence_number.clone()) else { continue };
            let part = reserved.split(records.iter().map(held_bytes).sum());
            let chunk = Chunk { shard: self.assignment.shard.clone(), records, position };
            self.sink.send(Delivery::Chunk(self.assignment.clone(), chunk, [part, room])).await?;
        }
        Ok(())
    }
}

/// Returns the bytes that a record counts for in the budget.
fn held_bytes(record: &Record) -> usize {
    record.bytes.len() + 256
}

/// A check of a shard's records: sequence numbers ascend, and no record is taken twice.
struct Order {
    last: Option<SequenceNumber>,
    /// Sequence numbers of the previous page, which a service may give again.
    before: HashSet<SequenceNumber>,
}

impl Order {
    fn after(last: Option<SequenceNumber>) -> Self {
        Self { before: last.iter().cloned().collect(), last }
    }

    /// Returns the records that are new.
    ///
    /// # Errors
    /// A record that was not given before has a number below an earlier one. To drop the record might lose it; to take
    /// it would put it before the committed position.
    fn check(&mut self, shard: &ShardKey, records: Vec<Record>) -> Result<Vec<Record>, SourceError> {
        let (count, mut page) = (records.len(), HashSet::new());
        let mut found = Vec::with_capacity(count);
        for record in records {
            let number = &record.sequence_number;
            let is_new = self.last.as_ref().is_none_or(|last| number > last);
            if !is_new && !self.before.contains(number) && !page.contains(number) {
                let last = self.last.as_ref().map_or("", SequenceNumber::as_str);
                return Err(SourceError::Invalid(format!(
                    "shard {shard} returned sequence number {number} after {last}, but they must ascend; check \
                     --endpoint-url"
                )));
            }
            page.insert(number.clone());
            if is_new {
                self.last = Some(number.clone());
                found.push(record);
            }
        }
        if found.len() < count {
            tracing::warn!(shard = %shard, records = count - found.len(), "skipped records that were delivered again");
        }
        if !page.is_empty() {
            self.before = page;
        }
        Ok(found)
    }
}

/// Time by which a record's arrival may be ahead of the local clock: one day.
const AHEAD_MS_MAX: i64 = 86_400_000;

fn record(record: aws_sdk_kinesis::types::Record, now_ms: i64) -> Result<Record, SourceError> {
    let number = SequenceNumber::parse(&record.sequence_number).filter(|number| !number.is_shard_end());
    let sequence_number = number.ok_or_else(|| {
        let (number, max) = (&record.sequence_number, SequenceNumber::DIGITS_MAX);
        SourceError::Invalid(format!(
            "sequence number {number:?} is not an integer of at most {max} digits, below the largest one"
        ))
    })?;
    // The time is from the service's clock. An impossible time is replaced by the nearest possible one.
    let arrived_ms = record.approximate_arrival_timestamp.and_then(|at| at.to_millis().ok()).unwrap_or(now_ms);
    Ok(Record {
        sequence_number,
        arrived_at: arrived_ms.clamp(0, now_ms.saturating_add(AHEAD_MS_MAX)).saturating_mul(1_000),
        bytes: Bytes::from(record.data.into_inner()),
        cut: None,
        payloads: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::budget::Budget;
    use crate::payload::{PayloadOptions, Policy};

    /// Bytes of a payload, and the most that one may have.
    const PAYLOAD_BYTES: usize = 4 << 10;

    /// Answers one request. The answer for `/1` waits until no memory for payloads is left.
    async fn answer(mut client: TcpStream, payloads: Payloads) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(client.read_buf(&mut request).await.unwrap() > 0, "the request has an end");
        }
        while request.starts_with(b"GET /1 ") && payloads.reserve().now_or_never().is_some() {
            tokio::task::yield_now().await;
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {PAYLOAD_BYTES}\r\nconnection: close\r\n\r\n");
        client.write_all(&[head.as_bytes(), &[b' '; PAYLOAD_BYTES]].concat()).await.unwrap();
    }

    /// Other shards hold the memory for all payloads but one, and reads hold their whole budget. The first payload would
    /// wait forever if the second one took the memory before it.
    #[tokio::test]
    async fn payloads_get_their_own_memory_in_delivery_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let policy = Policy { allowed: vec![url.parse().unwrap()], private: false };
        let options = PayloadOptions { policy, bytes_max: PAYLOAD_BYTES, ..PayloadOptions::default() };
        let payloads = Payloads::new(options).unwrap();
        let server = payloads.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, server.clone()));
            }
        });
        let (sink, mut deliveries) = Sink::new(Budget::new(1 << 20));
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(sink.budget.reserve(usize::MAX).await);
        }
        assert_eq!(sink.budget.used(), sink.budget.bytes());
        for _ in 0..3 {
            taken.push(payloads.reserve().await);
        }
        let record = |number: u64| {
            let event = format!(
                r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"replace","payloadType":"S3Url","kinesisSyncRecordsURL":"{url}/{number}","lastModifiedDate":1,"syncCount":1}}"#
            );
            Record { bytes: event.into(), ..records(&[number]).remove(0) }
        };
        let aws = AwsSettings { region: Some("us-east-1".to_owned()), ..AwsSettings::default() };
        let job = Job {
            kinesis: Kinesis::new(&aws, "stream").await.unwrap(),
            assignment: Assignment { shard: ShardKey::new("stream", "shard").unwrap(), epoch: 1 },
            begin: Begin { after: None, is_imported: false, from: StartAt::TrimHorizon },
            payloads,
        };
        let mut reader = Reader::new(job, sink);
        let receive = async {
            for number in [1, 2] {
                let delivery = deliveries.recv().await.unwrap();
                let Delivery::Chunk(_, chunk, _) = delivery else { panic!("{delivery:?}") };
                assert_eq!(chunk.position, SequenceNumber::from_u64(number));
                assert_eq!(chunk.records[0].payloads[0].contents.as_ref().unwrap().len(), PAYLOAD_BYTES);
            }
        };
        let delivered =
            async { tokio::join!(reader.deliver(vec![record(1), record(2)], Reservation::none()), receive) };
        let delivered = tokio::time::timeout(Duration::from_secs(60), delivered).await;
        assert_eq!(delivered.expect("a payload waits forever for memory"), (Ok(()), ()));
        drop(taken);
    }

    fn records(numbers: &[u64]) -> Vec<Record> {
        let record = |n: &u64| Record {
            sequence_number: SequenceNumber::from_u64(*n),
            arrived_at: 0,
            bytes: Bytes::new(),
            cut: None,
            payloads: Vec::new(),
        };
        numbers.iter().map(record).collect()
    }

    #[test]
    fn records_are_taken_once_and_in_order() {
        let shard = ShardKey::new("s", "a").unwrap();
        let mut order = Order::after(Some(SequenceNumber::from_u64(4)));
        let mut check = |numbers: &[u64]| {
            let found = order.check(&shard, records(numbers)).map_err(|e| e.to_string())?;
            Ok::<_, String>(found.iter().map(|r| r.sequence_number.to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(check(&[4, 5, 5, 7]).unwrap(), "5 7");
        assert_eq!(check(&[4, 5, 7, 8]).unwrap(), "8");
        assert_eq!(check(&[]).unwrap(), "");
        assert_eq!(check(&[8]).unwrap(), "");
        assert!(check(&[6]).unwrap_err().contains("6 after 8"), "it may never have been given");
    }
}
