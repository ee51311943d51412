//! What `make instructions` counts: one function for each step of ingest and for each view, run once.
//!
//! ```text
//! instructions EVENTS LAKE        below callgrind, by tests/tools/instructions.py
//! ```
//! Callgrind collects only inside of the functions whose names begin with `counted_`. It counts a thread only while that
//! thread is inside of one, so all work must stay on the main thread: one DataFusion partition, a current-thread runtime.
//! The threads of the lake's store only read bytes. A counted function contains no closure, because the name of a
//! closure begins with that of its function, and callgrind would end the collection there.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a measurement may end by panicking")]

use std::path::Path;

use futures::TryStreamExt;
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query::{Engine, Limits, Scope};
use synclake::source::Chunk;
use synclake::steps::{Events, PartitionBuffers, SortedPartitions, split};
use tokio::runtime::Runtime;

mod input;

/// The allocator of the programs.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs of the smallest query.
const REPEATS: usize = 20;
/// Rows that `changes` and `daily_changes` sort together: less than a partition, so that a small lake has many groups, and
/// a sort of the whole table shows.
const GROUP_ROWS: u64 = 2_000;

#[inline(never)]
fn counted_decode(chunks: &[Chunk]) -> usize {
    split(chunks).decode().rows()
}

#[inline(never)]
fn counted_append(events: &Events<'_>) -> usize {
    events.append().rows()
}

#[inline(never)]
fn counted_sort(buffers: &PartitionBuffers) -> usize {
    buffers.sort().rows()
}

#[inline(never)]
fn counted_encode(sorted: &SortedPartitions<'_>) -> usize {
    sorted.encode().unwrap().len()
}

#[inline(never)]
fn counted_select_1(runtime: &Runtime, engine: &Engine) -> usize {
    runtime.block_on(select_1(engine))
}

#[inline(never)]
fn counted_current_state(runtime: &Runtime, engine: &Engine) -> usize {
    runtime.block_on(rows(engine, "select * from current_state"))
}

#[inline(never)]
fn counted_changes(runtime: &Runtime, engine: &Engine) -> usize {
    runtime.block_on(rows(engine, "select * from changes"))
}

#[inline(never)]
fn counted_daily_changes(runtime: &Runtime, engine: &Engine) -> usize {
    runtime.block_on(rows(engine, "select * from daily_changes"))
}

/// Plans and runs the smallest query, often enough that the random seeds of hash tables even out.
async fn select_1(engine: &Engine) -> usize {
    let mut found = 0;
    for _ in 0..REPEATS {
        found += rows(engine, "select 1").await;
    }
    found
}

/// Plans and runs a query, and counts the rows of its answer.
async fn rows(engine: &Engine, sql: &str) -> usize {
    let batches = engine.sql(sql).await.unwrap().execute_stream().await.unwrap();
    batches.try_fold(0, |rows, batch| async move { Ok(rows + batch.num_rows()) }).await.unwrap()
}

fn ingest(events: &Path) {
    let chunks = input::chunks(events);
    println!("decode: {} rows", counted_decode(&chunks));
    let records = split(&chunks);
    let events = records.decode();
    println!("append: {} rows", counted_append(&events));
    let buffers = events.append();
    println!("sort: {} rows", counted_sort(&buffers));
    println!("encode: {} files", counted_encode(&buffers.sort()));
}

fn query(lake: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The memory of the machine changes nothing.
    let limits = Limits { threads: 1, memory_bytes: 1 << 30, group_rows: GROUP_ROWS, ..Limits::default() };
    let location: Location = lake.parse().unwrap();
    let engine = runtime.block_on(async {
        let lake = Store::open(&location, &AwsSettings::default()).await.unwrap();
        let engine = Engine::open(&lake, &limits, Scope::default()).unwrap();
        let statements = ["current_state", "changes", "daily_changes"].map(|view| format!("select * from {view}"));
        engine.load(&statements).await.unwrap();
        engine
    });
    // What happens once in a process.
    runtime.block_on(rows(&engine, "select 1"));
    println!("select_1: {} rows", counted_select_1(&runtime, &engine));
    println!("current_state: {} rows", counted_current_state(&runtime, &engine));
    println!("changes: {} rows", counted_changes(&runtime, &engine));
    println!("daily_changes: {} rows", counted_daily_changes(&runtime, &engine));
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, events, lake] = args.as_slice() else { panic!("give EVENTS LAKE") };
    // The smallest query comes first: what the allocator does for it depends on what was freed before.
    query(lake);
    ingest(Path::new(events));
}
