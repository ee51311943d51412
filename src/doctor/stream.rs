//! The Kinesis stream: whether it can be read, and whether it keeps records for long enough.

use chrono::TimeDelta;

use super::lake::Seen;
use super::{Check, DoctorOptions, spoken};
use crate::aws::call::CallError;
use crate::streaming::{self, StreamReport};

const STREAM: &str = "stream";
const RETENTION: &str = "stream retention";

pub(super) async fn check(options: &DoctorOptions, name: &str, seen: &Seen) -> Vec<Check> {
    let config = crate::aws::for_calls(&options.aws.load().await);
    let client = aws_sdk_kinesis::Client::new(&config);
    let stream = match streaming::stream(&client, name).await {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            let region = config.region().map_or("no region", |region| region.as_ref());
            let remedy =
                "check the name and the region; `synclake stream repair --pool POOL` creates a deleted stream again";
            return vec![Check::fault(STREAM, format!("stream {name} does not exist in {region}"), remedy)];
        }
        Err(error) => return vec![Check::of_error(STREAM, &error)],
    };
    let mode = match stream.mode.as_deref() {
        Some("ON_DEMAND") => "on demand",
        _ => "provisioned",
    };
    let text = format!("{name} is {}, {mode}, {} open shards", stream.status, stream.open_shards);
    let mut checks = vec![match stream.status.as_str() {
        "DELETING" => Check::fault(STREAM, text, "find out who deletes it; records that were not read are lost"),
        _ => Check::ok(STREAM, text),
    }];
    checks.push(retention(&stream, options, seen));
    checks.push(match &stream.key {
        Some(key) => Check::ok("stream encryption", format!("by {key}")),
        None => Check::warning(
            "stream encryption",
            "records are not encrypted in the stream",
            format!("aws kinesis start-stream-encryption --stream-name {name} --encryption-type KMS --key-id alias/aws/kinesis"),
        ),
    });
    checks.push(match read(&client, &stream).await {
        Ok(shards) => Check::ok("stream permissions", format!("{shards} shards are listed, and one was read")),
        Err(error) => Check::fault("stream permissions", format!("{}: {}", error.action, error.reason), error.remedy),
    });
    checks
}

/// Compares the retention with how far behind the lake is.
fn retention(stream: &StreamReport, options: &DoctorOptions, seen: &Seen) -> Check {
    let hours = stream.retention_hours;
    let keeps = format!("it keeps records for {hours} h");
    let name = &stream.stream;
    let raise = format!(
        "start the workers; raise it meanwhile: aws kinesis increase-stream-retention-period --stream-name {name} --retention-period-hours {}",
        (hours * 2).clamp(168, 8_760)
    );
    let behind = seen.read_to(name).map(|read_to| options.now - read_to);
    match behind {
        Some(behind) if behind >= TimeDelta::hours(hours.into()) => Check::fault(
            RETENTION,
            format!("{keeps}, and the lake is {} behind: records are lost", spoken(behind)),
            raise,
        ),
        Some(behind) if behind * 2 >= TimeDelta::hours(hours.into()) => {
            Check::fault(RETENTION, format!("{keeps}, and the lake is {} behind", spoken(behind)), raise)
        }
        _ if hours < 72 => Check::warning(
            RETENTION,
            format!("{keeps}: workers that are down for a weekend lose records"),
            format!("aws kinesis increase-stream-retention-period --stream-name {name} --retention-period-hours 168"),
        ),
        Some(behind) => Check::ok(RETENTION, format!("{keeps}; the lake was read up to {} ago", spoken(behind))),
        None if seen.report().is_some() => Check::warning(
            RETENTION,
            format!("{keeps}, and the lake has no open shard of it"),
            format!("start a worker: synclake ingest --source kinesis:{name}"),
        ),
        None => Check::ok(RETENTION, keeps),
    }
}

/// Does once what ingest does: lists the shards, and reads from the oldest record of one.
async fn read(client: &aws_sdk_kinesis::Client, stream: &StreamReport) -> Result<usize, CallError> {
    let (name, target) = (&stream.stream, format!("stream {}", stream.stream));
    let listed = client.list_shards().stream_name(name).send().await;
    let listed = listed.map_err(|e| CallError::new("kinesis:ListShards", &target, &e))?;
    let Some(shard) = listed.shards().first() else { return Ok(0) };
    let iterator = client.get_shard_iterator().stream_name(name).shard_id(shard.shard_id());
    let iterator = iterator.shard_iterator_type(aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon).send().await;
    let iterator = iterator.map_err(|e| CallError::new("kinesis:GetShardIterator", &target, &e))?;
    let records = client.get_records().set_shard_iterator(iterator.shard_iterator).limit(1).send().await;
    match records {
        // The shard is read by the workers as fast as it allows: so it can be read.
        Err(error) if error.as_service_error().is_some_and(|e| e.is_provisioned_throughput_exceeded_exception()) => {}
        records => drop(records.map_err(|e| CallError::new("kinesis:GetRecords", &target, &e))?),
    }
    Ok(listed.shards().len())
}
