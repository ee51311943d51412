//! Tests that other readers agree on the lake: DuckDB and pyarrow as Hive Parquet, ClickHouse's own reader as Delta.

use serde_json::Value;

use crate::harness::{ingest_file, ok, python, rows, simulate};

/// Independent readers find the same counts and sums as synclake.
#[test]
fn independent_readers_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "5000", "--seed", "21"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let ours = rows(
        lake.to_str().unwrap(),
        "select count(*) as n, sum(sync_count) as counts, count(value) as vals, sum(octet_length(value)) as bytes, \
         count(distinct identity_pool_id) as pools, count(distinct event_date) as days, \
         sum(cast(last_modified_date as bigint) % 1000003) as dates from sync_records",
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/readers.py");
    let theirs = ok(python().arg(script).arg(lake.join("sync_records")));
    let mut readers = 0;
    for line in theirs.lines() {
        let mut found: Value = serde_json::from_str(line).unwrap();
        let name = found.as_object_mut().unwrap().remove("reader").unwrap();
        assert_eq!(found, ours[0], "{name}");
        readers += 1;
    }
    assert_eq!(readers, 4);
}
