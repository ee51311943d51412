//! Reading one shard of a Kinesis stream to its end.

use std::time::Duration;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::ShardIteratorType;
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kinesis::{Kinesis, Retry};
use super::{
    Chunk, Delivery, Hold, NobodyListens, Reached, Record, SequenceNumber, ShardKey, Sink, SourceError, StartAt,
};
use crate::budget::Reservation;
use crate::{failpoint, payload};

/// The service takes five reads a second of a shard.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// With nothing to read, a read a second.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
const RECORDS_MAX: i32 = 10_000;
/// Payloads that one shard fetches at a time.
const FETCHES: usize = 4;
/// What one read may bring.
const READ_BYTES_MAX: usize = 10 << 20;

/// Reads a shard after `after` (exclusive), or from where it begins, until its end or until `stop`.
///
/// Delivers chunks in order; [`Delivery::Reached`] after each read; [`Delivery::End`] once, behind the last record.
///
/// # Errors
/// The service refuses for good, or for longer than ten minutes.
pub async fn read(
    kinesis: Kinesis,
    hold: Hold,
    mut after: Option<SequenceNumber>,
    from: StartAt,
    sink: Sink,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    let mut iterator_retry = Retry::new("GetShardIterator", &kinesis);
    let mut read_retry = Retry::new("GetRecords", &kinesis);
    let mut iterator: Option<String> = None;
    let mut next_read = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(next_read) => {}
        }
        let Some(current) = iterator.take() else {
            match open(&kinesis, &hold.shard, after.as_ref(), from).await {
                Ok(opened) => {
                    iterator_retry.succeeded();
                    iterator = opened;
                }
                Err(error) => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    again = iterator_retry.failed(&error) => again?,
                },
            }
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
                // An iterator lives five minutes; a new one begins after the last record that was read.
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
        let records = page.records.into_iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let quiet = records.is_empty();
        if let Some(last) = records.last() {
            after = Some(last.sequence_number.clone());
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
        let behind_ms = page.millis_behind_latest.unwrap_or(0);
        // The last records of a shard may come in the same answer as its end.
        let Some(next) = page.next_shard_iterator else {
            let _ = sink.send(Delivery::End(hold)).await;
            return Ok(());
        };
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

/// What a record is counted for.
fn held_bytes(record: &Record) -> usize {
    record.bytes.len() + 256
}

/// Delivers records in order, each with what it points at; fetches ahead of the one that is delivered.
async fn deliver(
    sink: &Sink,
    hold: &Hold,
    records: Vec<Record>,
    mut reserved: Reservation,
) -> Result<(), NobodyListens> {
    let payloads = sink.payloads.clone();
    let fetched = futures::stream::iter(payload::pieces(records))
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
    from: StartAt,
) -> Result<
    Option<String>,
    aws_sdk_kinesis::error::SdkError<aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError>,
> {
    let request = kinesis.client().get_shard_iterator().stream_name(kinesis.stream()).shard_id(shard.shard());
    let request = match (after, from) {
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

fn record(record: aws_sdk_kinesis::types::Record) -> Result<Record, SourceError> {
    let sequence_number = SequenceNumber::parse(&record.sequence_number).ok_or_else(|| {
        let (number, max) = (&record.sequence_number, SequenceNumber::DIGITS_MAX);
        SourceError::Invalid(format!("sequence number {number:?} is no integer of at most {max} digits"))
    })?;
    let arrived = record.approximate_arrival_timestamp.and_then(|at| at.to_millis().ok());
    Ok(Record {
        sequence_number,
        arrived_at: arrived.unwrap_or(0).saturating_mul(1_000),
        bytes: Bytes::from(record.data.into_inner()),
        cut: None,
        payloads: Vec::new(),
    })
}
