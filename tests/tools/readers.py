"""Prints counts and sums of a sync_records table by readers that share no code with synclake: readers.py TABLE"""

import glob
import json
import os
import sys

import chdb
import duckdb
import pyarrow.compute as pc
import pyarrow.dataset as ds

table = sys.argv[1]
names = ["n", "counts", "vals", "bytes", "pools", "days", "dates"]


def tell(reader, values):
    print(json.dumps({"reader": reader, **{k: int(v) for k, v in zip(names, values)}}))


sql = """select count(*), sum(sync_count), count(value), sum({length}(value)), count(distinct identity_pool_id),
         count(distinct event_date), sum({micros} % 1000003) from {source}"""
tell(
    "duckdb, hive",
    duckdb.sql(
        sql.format(
            length="strlen", micros="epoch_us(last_modified_date)",
            source=f"read_parquet('{table}/*/*/*.parquet', hive_partitioning = true)",
        )
    ).fetchone(),
)

files = ds.dataset(table, format="parquet", partitioning="hive", exclude_invalid_files=False, ignore_prefixes=["_", "."])
data = files.to_table()
micros = pc.cast(data["last_modified_date"], "int64").to_pylist()
tell(
    "pyarrow, hive",
    [
        data.num_rows, pc.sum(data["sync_count"]).as_py(), data["value"].length() - data["value"].null_count,
        pc.sum(pc.binary_length(data["value"])).as_py(), pc.count_distinct(data["identity_pool_id"]).as_py(),
        pc.count_distinct(data["event_date"]).as_py(), sum(m % 1000003 for m in micros),
    ],
)

# ClickHouse has a Delta reader of its own and one that it shares with other programs; use its own. It reads only below
# its working folder.
os.chdir(os.path.dirname(table))
out = chdb.query(
    sql.format(
        length="length", micros="toUnixTimestamp64Micro(last_modified_date)", source=f"deltaLakeLocal('{os.path.basename(table)}')"
    )
    + " settings allow_delta_kernel_rs = 0",
    "TabSeparated",
)
tell("clickhouse, delta", str(out).split("\t"))

# Replay the log here, and read only the files that it lists.
live = {}
for commit in sorted(glob.glob(f"{table}/_delta_log/*.json")):
    for line in open(commit, encoding="utf-8"):
        action = json.loads(line)
        if "add" in action:
            live[action["add"]["path"]] = json.loads(action["add"]["stats"])["numRecords"]
        if "remove" in action:
            live.pop(action["remove"]["path"], None)
assert sum(live.values()) == data.num_rows, "the log claims other row counts"
paths = [os.path.join(table, p) for p in live]
tell(
    "the log by hand, duckdb",
    duckdb.sql(
        sql.format(length="strlen", micros="epoch_us(last_modified_date)", source=f"read_parquet({paths!r}, hive_partitioning = true)")
    ).fetchone(),
)
