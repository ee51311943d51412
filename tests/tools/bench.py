"""Compares synclake with DuckDB on this machine, in one run: bench.py BIN_FOLDER [EVENTS]

Makes a file of about 1 GB of events, converts it into partitioned zstd Parquet with both, and computes the current
state with both over the same lake. Writes docs/benchmarks.md. The figures hold for this machine and this run only.
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import time

import bench_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.argv[1])
EVENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 1_150_000
DATA = ROOT / "bench-data"
RUNS = 3
DAYS = 30
# Factor for events, users and days in the measurements that must not grow with them.
MORE = 10
SIMULATE = [
    "simulate", "--seed", "7", "--events", str(EVENTS), "--identities", "50000", "--pools", "3", "--days", str(DAYS),
    "--bulk-copies", "0.005",
]


def measure(command, prepare=lambda: None):
    """Returns the best wall time of RUNS runs (s), their peak of resident memory (MiB), and the last output."""
    walls, peak = [], 0
    for _ in range(RUNS):
        prepare()
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            out = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        walls.append(time.perf_counter() - began)
        peak = max(peak, usage.ru_maxrss / 1024)
        if process.returncode != 0:
            sys.exit(f"{command} failed")
    return min(walls), peak, out.decode()


def duckdb(sql):
    return [sys.executable, "-c", f"import duckdb\nc = duckdb.connect()\nc.execute('set threads = 2'); c.execute('set enable_progress_bar = false')\nprint(c.execute({sql!r}).fetchall())"]


def main():
    import duckdb as duck

    DATA.mkdir(exist_ok=True)
    events = DATA / f"events-{EVENTS}.ndjson"
    if not events.exists():
        subprocess.run([BIN / "synclake", *SIMULATE, "--out", DATA / "part"], check=True)
        (DATA / "part").rename(events)
    size = events.stat().st_size
    lake, other = DATA / "lake", DATA / "duckdb"

    ours = measure(
        [str(BIN / "synclake"), "ingest", "--source", f"file:{events}", "--lake", str(lake)],
        lambda: shutil.rmtree(lake, ignore_errors=True),
    )
    summary = json.loads(ours[2])
    transform = f"""
        copy (
          select replace(identityPoolId, ':', '_') as pool,
                 cast(make_timestamp(r.lastModifiedDate * 1000) as date) as event_date,
                 identityPoolId, identityId, coalesce(dataSetName, datasetName_1) as dataset_name, operation,
                 r.key as key, r.value as value, r.op as op, r.syncCount as sync_count,
                 make_timestamp(r.lastModifiedDate * 1000) as last_modified_date,
                 make_timestamp(r.deviceLastModifiedDate * 1000) as device_last_modified_date,
                 syncCount as event_sync_count, make_timestamp(lastModifiedDate * 1000) as event_last_modified_date
          from (
            select * exclude kinesisSyncRecords, unnest(kinesisSyncRecords) as r
            from read_json('{events}', format = 'newline_delimited', columns = {{
              identityPoolId: 'VARCHAR', identityId: 'VARCHAR', dataSetName: 'VARCHAR', datasetName_1: 'VARCHAR',
              operation: 'VARCHAR', lastModifiedDate: 'BIGINT', syncCount: 'BIGINT',
              kinesisSyncRecords: 'STRUCT(key VARCHAR, value VARCHAR, syncCount BIGINT, lastModifiedDate BIGINT, deviceLastModifiedDate BIGINT, op VARCHAR)[]'
            }}))
        ) to '{other}' (format parquet, compression zstd, partition_by (pool, event_date))
    """
    theirs = measure(duckdb(transform), lambda: shutil.rmtree(other, ignore_errors=True))

    state = measure(
        [str(BIN / "synclake-query"), "--lake", str(lake), "--format", "csv", "-c",
         "select count(*) as n, sum(sync_count) as s, count(value) as v from current_state"]
    )
    arg_max = f"""
        with latest as (
          select identity_pool_id, identity_id, dataset_name, key,
                 arg_max(struct_pack(op := op, value := value, n := sync_count, at := last_modified_date),
                         (sync_count, last_modified_date, length(sequence_number), sequence_number, record_index)) as r
          from read_parquet('{lake}/sync_records/*/*/*.parquet', hive_partitioning = true) where key is not null group by all),
        removal as (
          select identity_pool_id, identity_id, dataset_name, max(row(sync_count, last_modified_date)) as r
          from read_parquet('{lake}/sync_records/*/*/*.parquet', hive_partitioning = true) where key is null and op = 'remove' group by all)
        select count(*), sum(l.r.n), count(l.r.value) from latest l left join removal d using (identity_pool_id, identity_id, dataset_name)
        where l.r.op <> 'remove' and (d.r is null or row(l.r.n, l.r.at) > d.r)
    """
    duck_state = measure(duckdb(arg_max))
    answers = (state[2].split("\n")[1], ",".join(str(int(v)) for v in eval(duck_state[2].strip().splitlines()[-1])[0]))
    if answers[0] != answers[1]:
        sys.exit(f"the two disagree on the current state: {answers}")

    tail_lake, refreshed, tail_rows, by_tail, duck_tail = bench_state.tail(
        BIN, DATA, events, DAYS, measure, duckdb, arg_max.replace(str(lake), "{lake}")
    )
    longer = [BIN / "synclake", *SIMULATE, "--out", "-"]
    longer[longer.index(str(EVENTS))] = str(MORE * EVENTS)
    longer[longer.index("--days") + 1] = str(MORE * DAYS)
    history_lake, history_rows, by_history, duck_history = bench_state.history(
        BIN, DATA, longer, MORE * DAYS, measure, duckdb, arg_max.replace(str(lake), "{lake}")
    )
    small = bench_state.lookup(BIN, tail_lake, measure)
    many = DATA / "many-lake"
    if not many.exists():
        simulate = [BIN / "synclake", *SIMULATE, "--out", "-"]
        simulate[simulate.index(str(EVENTS))] = str(MORE * EVENTS)
        simulate[simulate.index("50000")] = "500000"
        with subprocess.Popen(simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
            subprocess.run([BIN / "synclake", "ingest", "--source", "file:-", "--lake", many], stdin=source.stdout, check=True, stdout=subprocess.DEVNULL)
    large = bench_state.lookup(BIN, many, measure)
    rows_of = lambda place: int(bench_state.run(BIN / "synclake-query", "--lake", place, "--format", "csv", "-c", "select count(*) from sync_records").split()[1])
    all_history = rows_of(history_lake)
    growth = bench_state.growth(BIN, DATA, 4000)
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    text = f"""# Benchmarks

`make bench`, {datetime.date.today()}, {os.cpu_count()} cores ({cpu}), DuckDB {duck.__version__} with 2 threads, local
disk. Best of {RUNS} runs each, whole processes, one after the other in one run; memory is the peak of resident memory.

Input: `synclake {" ".join(SIMULATE)}`: {size / 1e9:.2f} GB,
{summary["records"]:,} events, {summary["rows"]:,} rows.

| what | synclake | DuckDB |
|---|---|---|
| NDJSON to zstd Parquet by pool and date, wall | {ours[0]:.1f} s ({size / 1e6 / ours[0]:.0f} MB/s) | {theirs[0]:.1f} s ({size / 1e6 / theirs[0]:.0f} MB/s) |
| the same, peak memory | {ours[1]:.0f} MiB | {theirs[1]:.0f} MiB |
| current state over all rows (the view; DuckDB by arg_max over the same files), wall | {state[0]:.2f} s | {duck_state[0]:.2f} s |
| the same, peak memory | {state[1]:.0f} MiB | {duck_state[1]:.0f} MiB |
| the first `synclake refresh` (all rows but the last day's) | {refreshed[0]:.2f} s, {refreshed[1]:.0f} MiB | |
| current state with that and the last day's {tail_rows:,} rows since, wall (DuckDB from all rows) | {by_tail[0]:.2f} s | {duck_tail[0]:.2f} s |
| the same, peak memory | {by_tail[1]:.0f} MiB | {duck_tail[1]:.0f} MiB |
| the same of the same users after {MORE * DAYS} days, {all_history:,} rows in all and {history_rows:,} since, wall | {by_history[0]:.2f} s | {duck_history[0]:.2f} s |
| the same, peak memory | {by_history[1]:.0f} MiB | {duck_history[1]:.0f} MiB |

One dataset of one identity out of `current_state`, after a refresh, the whole process:

| rows in `sync_records` | wall | bytes read of data files |
|---|---|---|
| {rows_of(tail_lake):,} | {small[0][0] * 1000:.0f} ms | {small[1]:,} |
| {rows_of(many):,} | {large[0][0] * 1000:.0f} ms | {large[1]:,} |

Equal days (4,000 events each), `synclake refresh` and `synclake extract` of one more day; bytes of the *changes* that are
read (what the state or the day before has is read on top):

| day | refresh | extract | changes of the day | live keys at its end |
|---|---|---|---|---|
{"".join(f"| {day} | {read:,} | {change:,} | {changes:,} | {state:,} |" + chr(10) for day, read, change, changes, state in growth)}
synclake also sorts the rows of each file, checks every id and date, keeps unknown fields, sequence numbers and arrival
times, hashes the file to know it again, writes Bloom filters and statistics, and syncs each file to disk; DuckDB does
none of these here. Files: {summary["files"]}, {summary["file_bytes"] / 1e6:.0f} MB.
"""
    path = ROOT / "docs/benchmarks.md"
    kept = path.read_text().split("<!-- by hand -->")[1:] if path.exists() else []
    path.write_text(text + ("\n<!-- by hand -->" + kept[0] if kept else ""))
    print(text)


main()
