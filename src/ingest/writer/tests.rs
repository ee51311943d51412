//! Tests of the writing half of ingest.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::*;
use crate::aws::AwsSettings;
use crate::ingest::decoding::decode_chunk;
use crate::lake::Location;
use crate::lake::store::tests::{Request, in_memory, watched};
use crate::record::Record;
use crate::source::Chunk;

/// Returns a chunk of one record.
fn decoded(shard: &ShardKey, number: u64) -> Decoded {
    let event = r#"{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"replace","lastModifiedDate":1,"syncCount":1,"kinesisSyncRecords":[{"key":"k","value":"v","op":"replace"}]}"#;
    let position = SequenceNumber::from_u64(number);
    let record = Record {
        sequence_number: position.clone(),
        arrived_at: 0,
        bytes: event.into(),
        cut: None,
        payloads: Vec::new(),
    };
    decode_chunk(&Chunk { shard: shard.clone(), records: vec![record], position }, &Skip::new())
}

fn limits() -> Limits {
    Limits { mark_bytes: 64 << 20, flush_bytes: 64 << 20, flush_interval: Duration::from_secs(3_600) }
}

async fn take_over(writer: &mut Writer, shard: &ShardKey) -> Assignment {
    let taken = writer.acquire(&[(shard.clone(), StartAt::TrimHorizon)]).await.unwrap();
    Assignment { shard: shard.clone(), epoch: taken[0].1.epoch }
}

/// A worker loses a shard and takes it again. Deliveries of the first period arrive in the second period.
#[tokio::test]
async fn deliveries_of_an_earlier_epoch_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
    let mut writer = Writer::open(lake.clone(), limits(), Arc::default()).await.unwrap();
    let (shard, now) = (ShardKey::new("stream", "shard").unwrap(), Instant::now());
    let earlier = take_over(&mut writer, &shard).await;
    writer.drop_shard(&shard);
    let later = take_over(&mut writer, &shard).await;
    assert!(earlier.epoch < later.epoch);

    writer.add(&later, decoded(&shard, 1), Reservation::none(), now).unwrap();
    writer.add(&earlier, decoded(&shard, 9), Reservation::none(), now).unwrap();
    let reached = Reached { at_ms: 7_000, behind_ms: 0, caught_up: true, after: None };
    writer.read_to(&earlier, &reached, i64::MAX / 2);
    writer.end(&earlier, now);
    let flushed = writer.flush().await.unwrap();
    writer.finish().await;

    assert_eq!((flushed.reached, flushed.ended), (vec![(shard.clone(), SequenceNumber::from_u64(1))], Vec::new()));
    assert_eq!(writer.ledger.state(&shard).unwrap().read_to_ms, 0);
    let store = Table::SyncRecords.store(&lake);
    let loaded = snapshot::load(&store, None).await.unwrap().unwrap();
    let files = snapshot::files(&store, &loaded).await.unwrap();
    assert_eq!(files.iter().map(|file| file.rows_and_bytes().0).sum::<u64>(), 1);
}

/// A new shard has no leftovers, so its owner lists no data: a small ingest costs the same in a lake of any size.
#[tokio::test]
async fn only_what_had_an_owner_is_swept() {
    let lists = Arc::new(AtomicUsize::new(0));
    let counted = lists.clone();
    let lake = watched(
        &in_memory(),
        Box::new(move |request| {
            let is_of_data = matches!(request, Request::List(prefix) if !prefix.ends_with("_delta_log"));
            counted.fetch_add(usize::from(is_of_data), SeqCst);
            Box::pin(async {})
        }),
    );
    let shard = ShardKey::new("file", "shard").unwrap();
    for (run, swept) in [(1, 0), (2, 2)] {
        let mut writer = Writer::open(lake.clone(), limits(), Arc::default()).await.unwrap();
        take_over(&mut writer, &shard).await;
        writer.finish().await;
        assert_eq!(lists.load(SeqCst), swept, "run {run}: listings of sync_records and quarantine");
    }
}
