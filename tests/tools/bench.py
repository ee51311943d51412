"""Compares synclake with DuckDB on this machine, in one run: bench.py BIN_FOLDER [EVENTS] [--short]

Makes a file of about 1 GB of events, converts it into partitioned zstd Parquet with both, and computes the current
views with both over the same lake (bench_pairs). Then the state and the extract as history grows (bench_state), unless --short.
Writes docs/benchmarks.md. The figures hold for this machine and this run only.
"""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import bench_pairs
import bench_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.argv[1])
SHORT = "--short" in sys.argv
EVENTS = next((int(word) for word in sys.argv[2:] if word.isdigit()), 1_150_000)
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

    transform = """
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
    pairs, summary = bench_pairs.table(BIN, DATA, events, transform)
    arg_max = bench_pairs.VIEWS[0][2]
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    head = f"""# Benchmarks

`make bench`, {datetime.date.today()}, {os.cpu_count()} cores ({cpu}), DuckDB {duck.__version__} with 2 threads, local
disk. Whole processes, synclake and DuckDB in turn, {bench_pairs.RUNS} times; medians of wall and CPU time, peak of resident memory.

Input: `synclake {" ".join(SIMULATE)}`: {size / 1e9:.2f} GB,
{summary["records"]:,} events, {summary["rows"]:,} rows, {summary["files"]} files.

{pairs}
DuckDB's questions are its best forms over the same files (`tests/tools/bench_pairs.py`); both give the same answers. Its table of the
first line is not sorted and has fewer columns. synclake also checks every id and date, keeps unknown fields, sequence numbers and
arrival times, hashes the file to know it again, writes Bloom filters and page indexes, and syncs each file to disk.
"""
    if SHORT:
        write(head, None)
        return
    tail_lake, refreshed, tail_rows, by_tail, duck_tail = bench_state.tail(
        BIN, DATA, events, DAYS, measure, duckdb, arg_max
    )
    longer = [BIN / "synclake", *SIMULATE, "--out", "-"]
    longer[longer.index(str(EVENTS))] = str(MORE * EVENTS)
    longer[longer.index("--days") + 1] = str(MORE * DAYS)
    history_lake, history_rows, by_history, duck_history = bench_state.history(
        BIN, DATA, longer, MORE * DAYS, measure, duckdb, arg_max
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
    long = f"""
## State and history

{datetime.date.today()}. Best of {RUNS} runs each.

| what | synclake | DuckDB |
|---|---|---|
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
"""
    write(head, long)


def write(head, long):
    """Writes docs/benchmarks.md. Without a long part, the one that is there stays, and so does what is written by hand."""
    path = ROOT / "docs/benchmarks.md"
    text = path.read_text()
    rest = text.index("<!-- by hand -->")
    kept = text[text.index("\n## State and history") : rest] if "\n## State and history" in text else "\n"
    path.write_text(head + (kept if long is None else long + "\n") + text[rest:])
    print(head)


main()
