//! Every way to resolve the state of the keys gives the same rows, however the changes are split, repeated and tied.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};

use arrow::array::RecordBatch;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::{MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::ranges::{Range, Wanted};
use super::*;

const ALL_TIES: [&str; 7] = ["pool", "identity_id", "dataset_name", "key", "value", "op", "is_after_removal"];

/// A weak hasher, so that hashes may be equal where names differ.
#[derive(Default)]
pub(super) struct Weak(u64);

impl std::hash::Hasher for Weak {
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= bytes.len() as u64;
    }

    fn finish(&self) -> u64 {
        self.0 & 1
    }
}

/// Names, order, operation and value.
type Name = &'static str;
type Change = ((Name, Option<Name>, Name, Option<Name>), (i64, i64, i64, usize), Name, u8);

/// Changes that differ little, so that order prefixes are often equal. Each change has its own place in the stream.
fn changes() -> impl Strategy<Value = Vec<Value>> {
    let name = |names: &'static [&'static str]| prop::sample::select(names);
    // Names longer than the part that a view holds of long text, and names as long as a view can hold.
    let datasets = name(&["x", "", "a dataset of long name x", "a dataset of long name y"]);
    let keys = name(&["k", "twelve bytes", "twelve byteß", "a key of long name k", "a key of long name l"]);
    let of = (
        name(&["p", "q"]),
        prop::option::weighted(0.9, name(&["a", "b"])),
        datasets,
        prop::option::weighted(0.8, keys),
    );
    let when = (0..3_i64, 0..2_i64, 0..2_i64, 1..5_usize);
    let change = (of, when, prop::sample::select(&["replace", "remove"][..]), any::<u8>());
    prop::collection::vec(change, 1..24).prop_map(|changes| {
        let numbered = |(n, change): (usize, Change)| {
            let ((pool, identity, dataset, key), (count, at, arrived, digits), op, value): Change = change;
            // A row without a key is the removal of a dataset, or marks an event that changed nothing.
            let op = (key.is_some() || op == "remove").then_some(op);
            let digits = format!("{}{n}", "1".repeat(digits));
            row([Some(pool), identity, Some(dataset), key], op, &value.to_string(), [count, at, arrived], &digits, n)
        };
        changes.into_iter().enumerate().map(numbered).collect()
    })
}

/// A row of `sync_records`: its names, its operation and value, its order prefix and its place in the stream.
fn row(of: [Option<&str>; 4], op: Option<&str>, value: &str, head: [i64; 3], digits: &str, index: usize) -> Value {
    let ([pool, identity, dataset, key], [count, at, arrived]) = (of, head);
    json!({
        "pool": pool, "event_date": "2026-01-01", "identity_pool_id": pool, "identity_id": identity, "dataset_name": dataset,
        "operation": "replace", "key": key, "value": value, "op": op,
        "sync_count": count, "last_modified_date": at, "arrived_at": arrived, "shard_id": "s",
        "sequence_number": digits, "record_index": index,
    })
}

fn table(rows: &[&Value]) -> Arc<dyn TableProvider> {
    let schema = Table::SyncRecords.schema();
    let batch = |rows: &[&Value]| {
        let mut decoder = arrow::json::ReaderBuilder::new(schema.clone()).build_decoder().unwrap();
        decoder.serialize(rows).unwrap();
        decoder.flush().unwrap()
    };
    let batches: Vec<RecordBatch> = rows.chunks(5).filter_map(batch).collect();
    Arc::new(MemTable::try_new(schema, vec![batches]).unwrap())
}

fn session() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2).with_batch_size(3))
}

async fn rows(resolved: Resolved, columns: &[&str]) -> Vec<String> {
    let rows = session().read_table(Arc::new(resolved)).unwrap().select_columns(columns).unwrap();
    texts(&rows.collect().await.unwrap())
}

fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let text = arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = text.lines().skip(3).map(str::to_owned).collect();
    lines.pop();
    lines.sort();
    lines
}

/// The state of some changes as a table of three partitions, sorted like the maintained state.
async fn maintained(changes: &[&Value]) -> Arc<dyn TableProvider> {
    let resolved = Resolved::new(Some(table(changes)), None, "");
    let order = KEY.map(|name| col(name).sort(true, true)).to_vec();
    let sorted = session().read_table(Arc::new(resolved)).unwrap().sort(order).unwrap();
    let schema = Arc::new(sorted.schema().as_arrow().clone());
    let mut partitions = vec![Vec::new(); 3];
    for (n, batch) in sorted.collect().await.unwrap().into_iter().enumerate() {
        partitions[n % 3].push(batch);
    }
    Arc::new(MemTable::try_new(schema, partitions).unwrap())
}

/// A memory pool without room for sorted rows.
#[derive(Debug)]
struct NoRoom;

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no room")
    }
}

impl MemoryPool for NoRoom {
    fn name(&self) -> &str {
        "no room"
    }

    fn grow(&self, _: &MemoryReservation, _: usize) {}

    fn shrink(&self, _: &MemoryReservation, _: usize) {}

    fn try_grow(&self, reservation: &MemoryReservation, _: usize) -> Result<()> {
        match reservation.consumer().name() {
            "sorted rows" => Err(DataFusionError::ResourcesExhausted("no room".to_owned())),
            _ => Ok(()),
        }
    }

    fn reserved(&self) -> usize {
        0
    }
}

/// Resolves one pool by two ranges of identities, in memory or by the aggregate.
async fn by_ranges(parts: &Resolved, pool: &str, columns: &[&str], has_room: bool) -> Vec<RecordBatch> {
    let context = match has_room {
        true => session(),
        false => {
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(NoRoom)).build_arc().unwrap();
            SessionContext::new_with_config_rt(SessionConfig::new().with_batch_size(3), runtime)
        }
    };
    let fields: Vec<Field> = columns.iter().map(|name| parts.schema.field_with_name(name).unwrap().clone()).collect();
    let filter = col("identity_pool_id").eq(lit(pool));
    let wanted = Wanted::new(Arc::new(Schema::new(fields)), Some(filter), String::new(), &context.state());
    let wanted = Arc::new(wanted);
    let mut found = Vec::new();
    for (low, high) in [(None, Some("b")), (Some("b"), None)] {
        let range = Range { low: low.map(str::to_owned), high: high.map(str::to_owned) };
        let rows = range.resolved(parts.clone(), wanted.clone(), context.task_ctx()).await.unwrap();
        found.extend(rows.try_collect::<Vec<_>>().await.unwrap());
    }
    let sorted = [col("identity_id"), col("dataset_name"), col("key")].map(|column| column.sort(true, true));
    if ["identity_id", "dataset_name", "key"].iter().all(|name| columns.contains(name)) && !found.is_empty() {
        let rows = MemTable::try_new(found[0].schema(), vec![found.clone()]).unwrap();
        let rows =
            session().read_table(Arc::new(rows)).unwrap().sort(sorted.to_vec()).unwrap().collect().await.unwrap();
        let in_order = |rows: &[RecordBatch]| {
            let keys = ["identity_id", "dataset_name", "key"].map(|name| rows[0].schema().index_of(name).unwrap());
            let rows: Vec<_> = rows.iter().map(|batch| batch.project(&keys).unwrap()).collect();
            arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string()
        };
        assert_eq!(in_order(&found), in_order(&rows), "sorted");
    }
    found
}

async fn check(changes: Vec<Value>, parts: Vec<u8>) {
    let part = |wanted: u8| -> Vec<&Value> {
        // 0: before the refresh, 1: after it, 2: in both.
        let chosen = |(_, part): &(&Value, &u8)| **part == wanted || **part == 2;
        changes.iter().zip(&parts).filter(chosen).map(|(change, _)| change).collect()
    };
    let all: Vec<&Value> = changes.iter().collect();
    let all_columns: Vec<String> = Table::State.schema().fields().iter().map(|field| field.name().clone()).collect();
    let all_columns: Vec<&str> = all_columns.iter().map(String::as_str).collect();
    let (state, tail) = (maintained(&part(0)).await, table(&part(1)));
    let laid_over = || Resolved::new(Some(tail.clone()), Some(state.clone()), "");
    for columns in [&all_columns[..], &ALL_TIES[..], &["value"][..]] {
        let expected = rows(Resolved::new(Some(table(&all)), None, ""), columns).await;
        assert_eq!(rows(laid_over(), columns).await, expected, "laid over, {columns:?}");
        let context = session();
        let together = laid_over().plan(columns, None).unwrap();
        let together = context.execute_logical_plan(together).await.unwrap().collect().await.unwrap();
        assert_eq!(texts(&together), expected, "resolved together, {columns:?}");
        for has_room in [true, false] {
            let mut found = by_ranges(&laid_over(), "p", columns, has_room).await;
            found.extend(by_ranges(&laid_over(), "q", columns, has_room).await);
            assert_eq!(texts(&found), expected, "by ranges, {columns:?}, with room: {has_room}");
        }
        let counted = session().read_table(Arc::new(laid_over())).unwrap().count().await.unwrap();
        assert_eq!(counted, expected.len());
    }
    let identities: BTreeSet<&str> = all.iter().filter_map(|change| change["identity_id"].as_str()).collect();
    for identity in identities {
        let of = |resolved: Resolved| {
            let filter = col("identity_id").eq(lit(identity));
            let rows = session().read_table(Arc::new(resolved)).unwrap().filter(filter).unwrap();
            async move { texts(&rows.select_columns(&ALL_TIES).unwrap().collect().await.unwrap()) }
        };
        assert_eq!(of(laid_over()).await, of(Resolved::new(Some(table(&all)), None, "")).await, "{identity}");
    }
}

/// The decoder rejects such rows; a lake with other writers may contain them.
#[tokio::test]
async fn a_dataset_without_a_name_or_an_identity_is_a_dataset() {
    for (identity, dataset) in [(None, Some("x")), (Some("a"), None), (None, None)] {
        let of = |key: Option<&str>, count: i64| {
            let op = if key.is_some() { "replace" } else { "remove" };
            row([Some("p"), identity, dataset, key], Some(op), "v", [count, 0, 0], &count.to_string(), 0)
        };
        let changes = vec![of(Some("before"), 1), of(Some("at"), 2), of(None, 2), of(Some("after"), 3)];
        let all: Vec<&Value> = changes.iter().collect();
        let found = rows(Resolved::new(Some(table(&all)), None, ""), &["key", "is_after_removal"]).await;
        let after = |line: &&String| line.contains("true");
        let live: Vec<&String> = found.iter().filter(after).collect();
        assert!(live.len() == 1 && live[0].contains("after"), "{identity:?} {dataset:?}: {found:?}");
        for parts in [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [2, 0, 2, 1]] {
            check(changes.clone(), parts.to_vec()).await;
        }
    }
}

/// A table that counts how often it is read.
#[derive(Debug)]
struct Counted {
    table: Arc<dyn TableProvider>,
    reads: Arc<AtomicUsize>,
}

impl PartitionStream for Counted {
    fn schema(&self) -> &SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Table::SyncRecords.schema());
        &SCHEMA
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        self.reads.fetch_add(1, SeqCst);
        let table = self.table.clone();
        let rows = async move {
            let plan = table.scan(&session().state(), None, &[], None).await?;
            execute_stream(plan, context)
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema().clone(), futures::stream::once(rows).try_flatten()))
    }
}

#[tokio::test]
async fn a_query_reads_its_tail_once_and_holds_it_no_longer() {
    let of = |key: &'static str, count: i64| {
        row([Some("p"), Some("a"), Some("x"), Some(key)], Some("replace"), "v", [count, 0, 0], &count.to_string(), 0)
    };
    let (old, new) = ([of("k", 1), of("l", 1)], [of("k", 2), of("m", 1)]);
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Counted { table: table(&new.iter().collect::<Vec<_>>()), reads: reads.clone() };
    let tail = StreamingTable::try_new(Table::SyncRecords.schema(), vec![Arc::new(counted)]).unwrap();
    let state = maintained(&old.iter().collect::<Vec<_>>()).await;
    let context = session();
    context.register_table("key_state", Arc::new(Resolved::new(Some(Arc::new(tail)), Some(state), ""))).unwrap();
    let collect = async |sql: &str| context.sql(sql).await.unwrap().collect().await.unwrap();
    let twice = [
        // The same columns, other columns, and a table that the first stage of a plan and the second read.
        "select a.key from key_state a join key_state b on a.key = b.key",
        "select a.key from key_state a join key_state b on a.key = b.key where a.value <> b.op",
        "select key from key_state where sync_count <= (select max(sync_count) from key_state) order by value",
        "select key from key_state where key in (select key from key_state union select op from key_state)",
    ];
    for (sql, expected) in twice.into_iter().zip(1..) {
        collect(&format!("explain {sql}")).await;
        assert_eq!(reads.load(SeqCst), expected - 1, "a plan reads nothing: {sql}");
        let rows = collect(sql).await;
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 3, "{sql}");
        assert_eq!(reads.load(SeqCst), expected, "{sql}");
        assert_eq!(context.runtime_env().memory_pool.reserved(), 0, "{sql}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_way_gives_the_same_rows((changes, parts) in changes().prop_flat_map(|changes| {
        let parts = prop::collection::vec(0..3_u8, changes.len());
        (Just(changes), parts)
    })) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(changes, parts));
    }
}
