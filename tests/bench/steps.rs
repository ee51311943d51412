//! The steps of ingest, each beside its limits: what a library or the machine needs for the least that the step must do.
//!
//! ```text
//! make bench-steps                                                    all, and their section of docs/benchmarks.md
//! cargo bench --manifest-path tests/bench/Cargo.toml -- decode        one group
//! ```
//! All throughputs are in bytes of events, those of the limits too, so that steps can be compared. The name of a limit
//! says how many bytes the limit itself moves. `tests/tools/bench_steps.py` makes the table from Criterion's files.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a measurement may end by panicking")]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{Days, NaiveDate};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use parquet::basic::Compression;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use sonic_rs::LazyValue;
use synclake::aws::AwsSettings;
use synclake::ids::{SequenceNumber, ShardKey, StartAt};
use synclake::lake::files::add;
use synclake::lake::ledger::{Ledger, Outcome, ShardState, Step, new_token};
use synclake::lake::paths::PartName;
use synclake::lake::{Location, Store};
use synclake::schema::Table;
use synclake::simulate::{SimulateOptions, wire::WireOptions};
use synclake::steps::split;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

mod input;

/// The allocator of the programs.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Level of zstd of data files.
const LEVEL: i32 = 1;
const TABLE: Table = Table::SyncRecords;

/// Returns the first day of the events.
fn first_day() -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 1).unwrap()
}

/// Writes the events of all groups: more than the caches hold.
fn events(folder: &Path) -> PathBuf {
    let options = SimulateOptions {
        seed: 7,
        events: 60_000,
        pools: 2,
        identities: 3_000,
        days: 5,
        start: first_day(),
        duplicates: 0.02,
        reorder: 50,
        late: 0.001,
        dataset_removals: 0.005,
        bulk_copies: 0.005,
        value_chars: 24,
        wire: WireOptions::default(),
    };
    let path = folder.join("events.ndjson");
    let mut out = std::io::BufWriter::new(File::create(&path).unwrap());
    synclake::simulate::run(&options, |_, data| out.write_all(&data).and_then(|()| out.write_all(b"\n"))).unwrap();
    out.flush().unwrap();
    path
}

/// Criterion, and the throughput of all groups.
struct Benches {
    criterion: Criterion,
    throughput: Throughput,
}

impl Benches {
    fn group(&mut self, name: &str) -> BenchmarkGroup<'_, WallTime> {
        let mut group = self.criterion.benchmark_group(name);
        group.sample_size(20).sampling_mode(SamplingMode::Flat).throughput(self.throughput.clone());
        group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
        group
    }
}

/// Returns the name of a limit that moves so many bytes.
fn limit(what: &str, bytes: usize) -> String {
    format!("limit: {what} of {:.1} MB", bytes as f64 / 1e6)
}

/// The limit of a step that only moves bytes: the bandwidth of the memory.
fn memory_copy(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    group.bench_function(limit("a copy in memory", bytes), |b| {
        b.iter(|| {
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
        });
    });
}

/// Decode, append, sort and encode, each over the result of the one before. Returns the encoded files.
fn pipeline(benches: &mut Benches, path: &Path, text: &[u8]) -> Vec<Bytes> {
    let chunks = input::chunks(path);
    let records = split(&chunks);
    let decoded = records.decode();
    assert_eq!(decoded.rejected(), 0);

    let mut of = benches.group("decode");
    of.bench_function("step", |b| b.iter(|| split(black_box(&chunks)).decode().rows()));
    decode_limits(&mut of, text);
    of.finish();

    let buffers = decoded.append();
    let mut of = benches.group("append");
    of.bench_function("step", |b| b.iter(|| black_box(&decoded).append().rows()));
    memory_copy(&mut of, buffers.bytes());
    of.finish();

    let sorted = buffers.sort();
    let mut of = benches.group("sort");
    of.bench_function("step", |b| b.iter(|| black_box(&buffers).sort().rows()));
    memory_copy(&mut of, buffers.bytes());
    of.finish();

    let files = sorted.encode().unwrap();
    let pages: Vec<Bytes> = files.iter().cloned().flat_map(compressed_pages).collect();
    let mut of = benches.group("encode");
    of.bench_function("step", |b| b.iter(|| black_box(&sorted).encode().unwrap().len()));
    of.bench_function(limit("zstd alone", pages.iter().map(Bytes::len).sum()), |b| {
        let mut zstd = zstd::bulk::Compressor::new(LEVEL).unwrap();
        b.iter(|| pages.iter().map(|page| zstd.compress(black_box(page)).unwrap().len()).sum::<usize>());
    });
    of.finish();
    files
}

/// A parser that checks each line and keeps nothing of it; a search that only finds where texts begin and end; a copy.
fn decode_limits(of: &mut BenchmarkGroup<'_, WallTime>, text: &[u8]) {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let scan = || lines.iter().filter(|line| sonic_rs::from_slice::<LazyValue<'_>>(black_box(line)).is_ok()).count();
    assert_eq!(scan(), lines.len());
    of.bench_function(limit("a JSON scan (sonic-rs)", text.len()), |b| b.iter(scan));
    of.bench_function(limit("a search for quotes (memchr)", text.len()), |b| {
        b.iter(|| memchr::memchr_iter(b'"', black_box(text)).count());
    });
    memory_copy(of, text.len());
}

/// Returns the pages of a data file that are compressed there, decompressed.
fn compressed_pages(file: Bytes) -> Vec<Bytes> {
    let reader = SerializedFileReader::new(file).unwrap();
    let mut pages = Vec::new();
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index).unwrap();
        for column in 0..group.num_columns() {
            if group.metadata().column(column).compression() != Compression::UNCOMPRESSED {
                pages.extend(group.get_column_page_reader(column).unwrap().map(|page| page.unwrap().buffer().clone()));
            }
        }
    }
    pages
}

/// Reads lines, hashes them, and makes the position after each chunk.
fn hash(benches: &mut Benches, path: &Path, text: &[u8]) {
    let mut of = benches.group("hash");
    of.bench_function("step", |b| b.iter(|| input::chunks(black_box(path)).len()));
    of.bench_function(limit("BLAKE3 alone", text.len()), |b| b.iter(|| blake3::hash(black_box(text))));
    memory_copy(&mut of, text.len());
    of.finish();
}

/// A writer that owns one shard of a lake in a local folder.
struct Committer {
    store: Store,
    ledger: Ledger,
    shard: ShardKey,
    token: u64,
    state: ShardState,
    folder: PathBuf,
    /// Files of the last commit.
    written: Vec<String>,
}

impl Committer {
    async fn new(folder: &Path) -> Self {
        let location: Location = folder.to_str().unwrap().parse().unwrap();
        let lake = Store::create(&location, &AwsSettings::default()).await.unwrap();
        let mut ledger = Ledger::open(&lake, TABLE).await.unwrap();
        let (shard, token) = (ShardKey::new("bench", "shard").unwrap(), new_token());
        let owned = ledger.fence(&[(shard.clone(), StartAt::TrimHorizon)], token).await;
        let state = owned.unwrap().remove(&shard).unwrap();
        let folder = folder.join(TABLE.name());
        Self { store: TABLE.store(&lake), ledger, shard, token, state, folder, written: Vec::new() }
    }

    /// Stores files side by side, as ingest does, and commits them with the position after them.
    async fn commit(&mut self, files: &[Bytes]) {
        let mut next = self.state.clone();
        next.epoch += 1;
        next.position = Some(SequenceNumber::from_u64(next.epoch));
        let (mut adds, mut writes) = (Vec::new(), JoinSet::new());
        for (index, file) in (0..).zip(files) {
            let date = first_day() + Days::new(index);
            let name = PartName::new(&self.shard, self.token, next.epoch, index);
            let path = format!("pool=p_0/event_date={date}/{name}");
            let values = [("pool", "p_0".to_owned()), ("event_date", date.to_string())];
            adds.push(add(path.clone(), &values, file.len() as i64, 0, serde_json::json!({ "numRecords": 0 })));
            self.written.push(path.clone());
            let (store, file) = (self.store.clone(), file.clone());
            writes.spawn(async move { store.put_new(&path, file).await.unwrap() });
        }
        writes.join_all().await;
        let expected = std::mem::replace(&mut self.state, next.clone());
        let step = Step { shard: self.shard.clone(), expected: Some(expected), next };
        let done = self.ledger.commit(adds, &[step]).await.unwrap();
        assert!(matches!(done, Outcome::Committed { .. }), "nobody else writes for this shard");
    }

    /// Deletes the files of the last commit, so that the lake stays small. Its log keeps them.
    fn forget_files(&mut self) {
        for path in self.written.drain(..) {
            std::fs::remove_file(self.folder.join(path)).unwrap();
        }
    }

    /// Returns the log entry of the newest commit.
    fn newest_entry(&self) -> Vec<u8> {
        let log = std::fs::read_dir(self.folder.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path());
        let newest = log.filter(|path| path.extension().is_some_and(|kind| kind == "json")).max().unwrap();
        std::fs::read(newest).unwrap()
    }
}

/// Returns the time of some rounds, without that of the preparation of each.
fn timed(rounds: u64, mut prepare: impl FnMut(), mut round: impl FnMut()) -> Duration {
    let once = |_| {
        prepare();
        let began = Instant::now();
        round();
        began.elapsed()
    };
    (0..rounds).map(once).sum()
}

/// Stores and commits the files of all events in a local folder.
fn commit(benches: &mut Benches, folder: &Path, files: &[Bytes]) {
    let runtime = Runtime::new().unwrap();
    let committer = runtime.block_on(Committer::new(&folder.join("lake")));
    let committer = std::cell::RefCell::new(committer);
    let mut of = benches.group("commit");
    of.bench_function("step", |b| {
        b.iter_custom(|rounds| {
            let commit = || runtime.block_on(committer.borrow_mut().commit(files));
            timed(rounds, || committer.borrow_mut().forget_files(), commit)
        });
    });
    let content = [files.concat(), committer.borrow().newest_entry()].concat();
    let path = folder.join("written");
    of.bench_function(limit("one durable write", content.len()), |b| {
        let forget = || drop(std::fs::remove_file(&path));
        let write = || {
            let mut file = File::create_new(&path).unwrap();
            file.write_all(&content).unwrap();
            file.sync_all().unwrap();
        };
        b.iter_custom(|rounds| timed(rounds, forget, write));
    });
    of.finish();
}

fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = events(folder.path());
    let text = std::fs::read(&path).unwrap();
    let rows = split(&input::chunks(&path)).decode().rows();
    let throughput = Throughput::ElementsAndBytes { elements: rows as u64, bytes: text.len() as u64 };
    let mut benches = Benches { criterion: Criterion::default().configure_from_args(), throughput };
    let files = pipeline(&mut benches, &path, &text);
    hash(&mut benches, &path, &text);
    commit(&mut benches, folder.path(), &files);
    benches.criterion.final_summary();
}
