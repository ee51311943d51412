//! Reads one shard of a Kinesis stream to its end.

use std::collections::HashSet;
use std::time::Duration;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::ShardIteratorType;
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kinesis::{Kinesis, Place, Retry};
use super::{Chunk, Delivery, Hold, NobodyListens, Reached, Sink, SourceError};
use crate::budget::Reservation;
use crate::ids::{SequenceNumber, ShardKey, StartAt};
use crate::record::Record;
use crate::{cpu, failpoint, payload};

/// The service accepts five reads per second and shard.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// An idle shard is read once per second.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
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

/// Reads a shard from `begin` to its end, or until `stop`, or until the stream no longer lists it.
///
/// Delivers chunks in order, [`Delivery::Reached`] after each read that leads to another one, and [`Delivery::End`]
/// once, after the last record.
///
/// # Errors
/// The service refuses for good or for longer than ten minutes, or it gives an invalid sequence number.
pub async fn read(
    kinesis: Kinesis,
    hold: Hold,
    begin: Begin,
    sink: Sink,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    let Begin { mut after, mut is_imported, from } = begin;
    let mut iterator_retry = Retry::new("GetShardIterator", &kinesis);
    let mut read_retry = Retry::new("GetRecords", &kinesis);
    let mut end_retry = Retry::new("GetRecords", &kinesis);
    let mut iterator: Option<String> = None;
    let mut next_read = Instant::now();
    let mut order = Order::after(after.clone());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(next_read) => {}
        }
        let Some(current) = iterator.take() else {
            let opened = async {
                match open(&kinesis, &hold.shard, after.as_ref(), is_imported, from).await {
                    Ok(Some(opened)) => {
                        iterator_retry.succeeded();
                        return Ok::<_, SourceError>(Some(opened));
                    }
                    Ok(None) => iterator_retry.odd("the answer holds no iterator").await?,
                    Err(error) => {
                        let is_unknown = error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception());
                        // The error may concern the stream or the shard. The listing shows which one, or fails with the
                        // same error.
                        if is_unknown && kinesis.place(&hold.shard).await? == Place::Gone {
                            return Ok(None);
                        }
                        iterator_retry.failed(&error).await?;
                    }
                }
                Ok(Some(String::new()))
            };
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                opened = opened => opened?,
            };
            // The stream no longer lists the shard. The ingest loop finds out why.
            let Some(opened) = opened else { return Ok(()) };
            iterator = Some(opened).filter(|opened| !opened.is_empty());
            continue;
        };
        let mut reserved = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            reserved = sink.budget.reserve(READ_BYTES_MAX) => reserved,
        };
        next_read = Instant::now() + READ_INTERVAL;
        let read = kinesis.client().get_records().shard_iterator(&current).limit(RECORDS_MAX).send();
        let read = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            read = read => read,
        };
        let page = match read {
            Ok(page) => page,
            Err(error) => {
                drop(reserved);
                // An iterator lives five minutes. A new iterator begins after the last record that was read.
                if error.as_service_error().is_some_and(|e| e.is_expired_iterator_exception()) {
                    tracing::info!(shard = %hold.shard, "iterator expired, opening another");
                } else {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        again = read_retry.failed(&error) => again?,
                    }
                    iterator = Some(current);
                }
                continue;
            }
        };
        read_retry.succeeded();
        failpoint::hit("read/after");
        let at_ms = chrono::Utc::now().timestamp_millis();
        let began = after.clone();
        let (has_children, has_lag) = (!page.child_shards().is_empty(), page.millis_behind_latest.is_some());
        let records = page.records.into_iter().map(|r| record(r, at_ms)).collect::<Result<Vec<_>, _>>()?;
        let records = order.check(&hold.shard, records)?;
        let quiet = records.is_empty();
        if let Some(last) = records.last() {
            after = Some(last.sequence_number.clone());
            is_imported = false;
            reserved.shrink_to(records.iter().map(held_bytes).sum());
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                delivered = deliver(&sink, &hold, records, reserved) => if delivered.is_err() {
                    return Ok(());
                },
            }
        } else {
            drop(reserved);
        }
        let behind_ms = page.millis_behind_latest.unwrap_or(0).max(0);
        // The last records of a shard may come in the same answer as its end.
        let Some(next) = page.next_shard_iterator else {
            let place = async {
                match (has_children, has_lag) {
                    (true, _) => Ok(Place::Closed),
                    (false, true) => kinesis.place(&hold.shard).await,
                    // The service always reports the lag, so this answer is not from the service.
                    (false, false) => Ok(Place::Open),
                }
            };
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                place = place => place?,
            };
            match place {
                Place::Closed => {
                    let _ = sink.send(Delivery::End(hold)).await;
                    return Ok(());
                }
                Place::Gone => return Ok(()),
                // A false end must not be committed: the rest of the shard would never be read.
                Place::Open => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    again = end_retry.odd("the answer holds no iterator, but the shard is not closed") => again?,
                },
            }
            continue;
        };
        end_retry.succeeded();
        iterator = Some(next);
        let caught_up = quiet && behind_ms == 0;
        if caught_up {
            next_read = Instant::now() + IDLE_INTERVAL;
        }
        let reached = Reached { at_ms, behind_ms, caught_up, after: began };
        if sink.send(Delivery::Reached(hold.clone(), reached)).await.is_err() {
            return Ok(());
        }
    }
}

/// Returns the bytes that a record counts for in the budget.
fn held_bytes(record: &Record) -> usize {
    record.bytes.len() + 256
}

/// Delivers records in order, each with its payloads. Fetches payloads ahead of the record that is delivered.
async fn deliver(
    sink: &Sink,
    hold: &Hold,
    records: Vec<Record>,
    mut reserved: Reservation,
) -> Result<(), NobodyListens> {
    let payloads = sink.payloads.clone();
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
        let chunk = Chunk { shard: hold.shard.clone(), records, position };
        sink.send(Delivery::Chunk(hold.clone(), chunk, [part, room])).await?;
    }
    Ok(())
}

async fn open(
    kinesis: &Kinesis,
    shard: &ShardKey,
    after: Option<&SequenceNumber>,
    is_imported: bool,
    from: StartAt,
) -> Result<
    Option<String>,
    aws_sdk_kinesis::error::SdkError<aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError>,
> {
    let request = kinesis.client().get_shard_iterator().stream_name(kinesis.stream()).shard_id(shard.shard());
    let imported = after.filter(|_| is_imported).and_then(SequenceNumber::next);
    let request = match (after, from) {
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
    use super::*;

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
