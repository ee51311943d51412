//! How fast several writers commit to one table, and whether one of them starves.
//!
//! ```text
//! cargo run --example commit_bench -- LAKE WRITERS COMMITS_EACH
//! ```
//! One line of JSON: commits a second in all, latency in milliseconds, versions lost to others on the way, and the
//! slowest writer's time against the fastest one's.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a measurement may end by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use synclake::aws::AwsSettings;
use synclake::ids::{SequenceNumber, ShardKey, StartAt};
use synclake::lake::files::add;
use synclake::lake::ledger::{Ledger, Outcome, Step, new_token};
use synclake::lake::paths::PartName;
use synclake::lake::{Location, Store};
use synclake::schema::Table;
use tokio::sync::Barrier;

async fn writer(lake: Store, name: usize, commits: u64, start: Arc<Barrier>) -> (Vec<Duration>, u32, Duration) {
    let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
    let shard = ShardKey::new("bench", &format!("writer-{name}")).unwrap();
    let token = new_token();
    let mut state =
        ledger.fence(&[(shard.clone(), StartAt::TrimHorizon)], token).await.unwrap().remove(&shard).unwrap();
    start.wait().await;
    let (mut took, mut conflicts) = (Vec::new(), 0);
    let began = Instant::now();
    for n in 1..=commits {
        let mut next = state.clone();
        next.epoch += 1;
        next.position = Some(SequenceNumber::from_u64(n));
        let values = [("pool", "p_0".to_owned()), ("event_date", "2026-01-01".to_owned())];
        let path = format!("pool=p_0/event_date=2026-01-01/{}", PartName::new(&shard, token, next.epoch, 0));
        let file = add(path, &values, 1, 0, serde_json::json!({ "numRecords": 0 }));
        let step = Step { shard: shard.clone(), expected: Some(state), next: next.clone() };
        let at = Instant::now();
        match ledger.commit(vec![file], &[step]).await.unwrap() {
            Outcome::Committed { conflicts: lost, .. } => conflicts += lost,
            Outcome::Fenced(_) => unreachable!("nobody else writes for this shard"),
        }
        took.push(at.elapsed());
        state = next;
    }
    (took, conflicts, began.elapsed())
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, lake, writers, commits] = args.as_slice() else { panic!("give LAKE WRITERS COMMITS_EACH") };
    let (writers, commits): (usize, u64) = (writers.parse().unwrap(), commits.parse().unwrap());
    let location: Location = lake.parse().unwrap();
    let lake = Store::create(&location, &AwsSettings::default()).await.unwrap();
    // All of them have opened the table and hold their shard before the first one commits.
    let start = Arc::new(Barrier::new(writers + 1));
    let tasks: Vec<_> = (0..writers).map(|n| tokio::spawn(writer(lake.clone(), n, commits, start.clone()))).collect();
    start.wait().await;
    let began = Instant::now();
    let mut took = Vec::new();
    let (mut conflicts, mut wholes) = (0, Vec::new());
    for task in tasks {
        let (latencies, lost, whole) = task.await.unwrap();
        took.extend(latencies);
        conflicts += lost;
        wholes.push(whole.as_secs_f64());
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (fastest, slowest) = wholes.iter().fold((f64::MAX, 0_f64), |(low, high), w| (low.min(*w), high.max(*w)));
    println!(
        r#"{{"writers": {writers}, "commits": {}, "per_second": {:.0}, "p50_ms": {:.1}, "p99_ms": {:.1}, "max_ms": {:.1}, "conflicts": {conflicts}, "slowest_to_fastest": {:.2}}}"#,
        took.len(),
        took.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        at(1.0),
        slowest / fastest,
    );
}
