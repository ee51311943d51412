"""Measures synclake and DuckDB in turn: ingest, each view, the first refresh and the start. Part of bench.py.

Each pair runs RUNS times, synclake and DuckDB one after the other, so that both see the same machine. The figures are
medians: wall seconds, CPU seconds (user and system), and the peak of resident memory over all runs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

RUNS = 5

FILES = "read_parquet('{lake}/sync_records/*/*/*.parquet', hive_partitioning = true)"
ORDER = "(sync_count, last_modified_date, arrived_at, length(sequence_number), sequence_number, coalesce(sub_sequence, -1), record_index, shard_id)"
CHANGES = f"""
    select pool, event_date, identity_id, dataset_name, key, sync_count, op, value, count(*) as copies,
      max({ORDER}) as place, arg_max(struct_pack(last_modified_date, device_last_modified_date, arrived_at), {ORDER}) as r
    from {FILES} where key is not null or op = 'remove' group by all"""

# Name, the question to the view, and the same question in DuckDB's best form over the same files.
VIEWS = [
    (
        "current_state",
        "select count(*), sum(sync_count), count(value) from current_state",
        f"""with latest as (
              select identity_pool_id, identity_id, dataset_name, key,
                     arg_max(struct_pack(op := op, value := value, n := sync_count, at := last_modified_date),
                             (sync_count, last_modified_date, length(sequence_number), sequence_number, record_index)) as r
              from {FILES} where key is not null group by all),
            removal as (
              select identity_pool_id, identity_id, dataset_name, max(row(sync_count, last_modified_date)) as r
              from {FILES} where key is null and op = 'remove' group by all)
            select count(*), sum(l.r.n), count(l.r.value)
            from latest l left join removal d using (identity_pool_id, identity_id, dataset_name)
            where l.r.op <> 'remove' and (d.r is null or row(l.r.n, l.r.at) > d.r)""",
    ),
    (
        "changes",
        "select count(*), sum(copies), sum(octet_length(value)), count(distinct last_modified_date) from changes",
        f"select count(*), sum(copies), sum(strlen(value)), count(distinct r.last_modified_date) from ({CHANGES})",
    ),
    (
        "daily_changes",
        "select count(*), sum(changes_in_day), sum(octet_length(value)), sum(sync_count) from daily_changes",
        f"""select count(*), sum(n), sum(strlen(v)), sum(c) from (
              select count(*) as n, arg_max(struct_pack(v := value), place).v as v, max(sync_count) as c
              from ({CHANGES}) group by pool, event_date, identity_id, dataset_name, key)""",
    ),
    (
        "active identities by day",
        "select sum(n) from (select event_date, count(distinct identity_id) as n from sync_records group by event_date)",
        f"select sum(n) from (select event_date, count(distinct identity_id) as n from {FILES} group by event_date)",
    ),
]


def once(command):
    """Runs a command; returns wall seconds, CPU seconds, peak memory (MiB) and its output."""
    began = time.perf_counter()
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} failed: {err.decode()[-2000:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.decode()


class Figure:
    """The runs of one command."""

    def __init__(self):
        self.runs = []

    def add(self, run):
        self.runs.append(run)

    @property
    def wall(self):
        return statistics.median(run[0] for run in self.runs)

    @property
    def cpu(self):
        return statistics.median(run[1] for run in self.runs)

    @property
    def peak(self):
        return max(run[2] for run in self.runs)

    @property
    def out(self):
        return self.runs[-1][3]


def pair(ours, theirs, prepare=lambda: None):
    """Runs two commands in turn. The second may be None."""
    figures = Figure(), Figure()
    for _ in range(RUNS):
        prepare()
        figures[0].add(once(ours))
        if theirs:
            figures[1].add(once(theirs))
    return figures


def duckdb(sql):
    script = (
        "import duckdb\nc = duckdb.connect()\nc.execute('set threads = 2'); c.execute('set enable_progress_bar = false')\n"
        f"print(c.execute({sql!r}).fetchall())"
    )
    return [sys.executable, "-c", script]


def answer(ours, theirs):
    """Returns both answers as comparable texts."""
    mine = ours.strip().splitlines()[-1]
    return mine, ",".join(str(int(value)) for value in eval(theirs.strip().splitlines()[-1])[0])


def line(what, ours, theirs=None, note=""):
    cells = [f"| {what} | {ours.wall:.2f} s, {ours.cpu:.1f} CPU-s, {ours.peak:.0f} MiB{note} "]
    if theirs:
        cells.append(f"| {theirs.wall:.2f} s, {theirs.cpu:.1f} CPU-s, {theirs.peak:.0f} MiB ")
        cells.append(f"| {theirs.wall / ours.wall:.2f} | {ours.cpu / theirs.cpu:.2f} |\n")
    else:
        cells.append("| | | |\n")
    return "".join(cells)


def table(binary, data, events, transform):
    """Returns the table of all pairs, and the summary of the ingest."""
    lake, other = data / "lake", data / "duckdb"

    def clean():
        shutil.rmtree(lake, ignore_errors=True)
        shutil.rmtree(other, ignore_errors=True)

    rows = ["| what | synclake | DuckDB | wall, DuckDB ÷ synclake | CPU, synclake ÷ DuckDB |\n|---|---|---|---|---|\n"]
    size = events.stat().st_size / 1e6
    ingest = [binary / "synclake", "ingest", "--source", f"file:{events}", "--lake", lake]
    ours, theirs = pair(ingest, duckdb(transform.format(events=events, other=other)), clean)
    summary = json.loads(ours.out)
    sums = "count(*), sum(sync_count), sum({length}(value)), count(distinct identity_id)"
    query = [binary / "synclake-query", "--lake", lake, "--format", "csv", "-c"]
    mine = once(query + [f"select {sums.format(length='octet_length')} from sync_records where key is not null"])[3]
    same = once(duckdb(f"select {sums.format(length='strlen').replace('identity_id', 'identityId')} from read_parquet('{other}/*/*/*.parquet') where key is not null"))[3]
    if len(set(answer(mine, same))) != 1:
        sys.exit(f"the two ingests disagree: {answer(mine, same)}")
    rows.append(line(f"{size / 1e3:.2f} GB of NDJSON to Parquet by pool and date", ours, theirs, f" ({size / ours.wall:.0f} MB/s)"))
    bytes_of = lambda folder: sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    sizes = bytes_of(lake / "sync_records") / 1e6, bytes_of(other) / 1e6
    rows.append(f"| size of the files | {sizes[0]:.0f} MB | {sizes[1]:.0f} MB | | |\n")
    for name, sql, best in VIEWS:
        ours, theirs = pair(query + [sql], duckdb(best.format(lake=lake)))
        if len(set(answer(ours.out, theirs.out))) != 1:
            sys.exit(f"the two disagree about {name}: {answer(ours.out, theirs.out)}")
        rows.append(line(f"`{name}` over all rows" if "_" in name or name == "changes" else name, ours, theirs))
    ours, theirs = pair(query + ["select 1"], duckdb("select 1"))
    rows.append(line("`select 1`, whole process", ours, theirs))
    refresh = [binary / "synclake", "refresh", "--lake", lake]
    ours, _ = pair(refresh, None, lambda: shutil.rmtree(lake / "state", ignore_errors=True))
    rows.append(line("the first `synclake refresh`", ours))
    return "".join(rows), summary
