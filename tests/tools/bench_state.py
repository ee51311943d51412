"""Measures the current state and the daily extract as history grows, and beside DuckDB. Part of bench.py."""

import datetime
import json
import re
import shutil
import subprocess
import sys

import bench_pairs
import bench_questions
from bench_measure import DAYS, check_equal, once, rows, seconds

FIRST_DAY = datetime.date(2026, 1, 1)
# Factor for events, users and days in the measurements that must not grow with them.
MORE = 10


def day_start(days):
    """Returns the start of the day `days` after the first one, in the format of an event's date (ms)."""
    start = datetime.datetime.combine(FIRST_DAY + datetime.timedelta(days), datetime.time(), datetime.UTC)
    return str(int(start.timestamp() * 1000)).encode()


def date_of(line):
    """Returns the event's own date, which comes after the dates of its records."""
    field = b'"lastModifiedDate":'
    start = line.rindex(field) + len(field)
    return line[start : start + 13]


def split(events, folder, cuts):
    """Splits the events at the days `cuts`, by the server's date of the event; returns the files."""
    bounds = [day_start(cut) for cut in cuts]
    files = [open(folder / f"split-{n}.ndjson", "wb") for n in range(len(cuts) + 1)]
    with open(events, "rb") as lines:
        for line in lines:
            files[sum(date_of(line) >= bound for bound in bounds)].write(line)
    for file in files:
        file.close()
    return [folder / f"split-{n}.ndjson" for n in range(len(cuts) + 1)]


def scanned(bench, lake, sql):
    """Returns the bytes of data files that a query reads, footers included, from the metrics of the query."""
    plan = once(bench.query(lake, f"explain analyze {sql}")).out
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "K": 1e3, "M": 1e6, "": 1}
    found = re.findall(r"bytes_scanned=([\d.]+) ?([KMG]?B?)", plan)
    if not found:
        sys.exit(f"the plan of {sql} has no bytes_scanned")
    return int(sum(float(number) * units[unit] for number, unit in found))


def beside(bench, lake, last):
    """Adds the last day to a lake with a maintained state; measures the current state, beside DuckDB over all rows."""
    tail_rows = json.loads(once(bench.ingest(last, lake)).out)["rows"]
    sql, best = bench_pairs.view("current_state")
    ours, theirs = bench.in_turn(bench.query(lake, sql), bench.duckdb(best.format(lake=lake)))
    check_equal("the current state", ours, theirs)
    return tail_rows, ours, theirs


def tail(bench):
    """Measures current_state from a maintained state and a tail of the last day. Also returns the lake and its first refresh."""
    lake = bench.data / "tail-lake"
    shutil.rmtree(lake, ignore_errors=True)
    before, last = split(bench.input(), bench.data, [DAYS - 1])
    once(bench.ingest(before, lake))
    forget = lambda: shutil.rmtree(lake / "state", ignore_errors=True)
    (refresh,) = bench.in_turn(bench.synclake("refresh", "--lake", lake), prepare=forget)
    return lake, refresh, *beside(bench, lake, last)


def history(bench):
    """Measures the same for the same users after ten times the days, of which the state covers all but the last."""
    lake, last = bench.data / "history-lake", bench.data / "history-last.ndjson"
    shutil.rmtree(lake, ignore_errors=True)
    end = day_start(MORE * DAYS - 1)
    simulate = [str(word) for word in bench.synclake(*bench.stream(MORE * bench.events, MORE * DAYS), "--out", "-")]
    ingest = [str(word) for word in bench.ingest("-", lake)]
    with (
        subprocess.Popen(simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source,
        subprocess.Popen(ingest, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sink,
        open(last, "wb") as late,
    ):
        for line in source.stdout:
            (late if date_of(line) >= end else sink.stdin).write(line)
    if source.returncode or sink.returncode:
        sys.exit("the long history failed")
    once(bench.synclake("refresh", "--lake", lake))
    return lake, *beside(bench, lake, last)


def many_users(bench):
    """Returns a lake of ten times the events and users, in the same days."""
    lake = bench.data / f"many-lake-{bench.events}"
    if not lake.exists():
        simulate = bench.synclake(*bench.stream(MORE * bench.events, identities=500_000), "--out", "-")
        command = [str(word) for word in simulate]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
            once(bench.ingest("-", lake), stdin=source.stdout)
    return lake


def lookup(bench, lake):
    """Returns the line of a query for one dataset of one identity, with a maintained state that covers all rows."""
    once(bench.synclake("refresh", "--lake", lake))
    sql = bench_questions.lookup(bench, lake)
    (figure,) = bench.in_turn(bench.query(lake, sql))
    return f"| {all_rows(bench, lake):,} | {seconds(figure.wall)} | {scanned(bench, lake, sql):,} |\n"


def all_rows(bench, lake):
    return int(rows(once(bench.query(lake, "select count(*) from sync_records")).out)[0][0])


def growth(bench):
    """Returns the lines of refresh and extract of day 30 and of day 300 of one stream."""
    a_day = max(100, min(4000, bench.events // 250))
    # No copies of a bulk publish: their number grows with the users' datasets, so the days would not be equal.
    stream = bench.stream(300 * a_day, 300, 5000, "0", 9) + ["--reorder", "100", "--late", "0"]
    events = bench.simulated(f"growth-{a_day}-plain", stream)
    found = []
    parts = split(events, bench.data, [29, 30, 299])
    for day, before, then in ((30, parts[:1], parts[1]), (300, parts[:3], parts[3])):
        lake = bench.data / f"growth-lake-{day}"
        shutil.rmtree(lake, ignore_errors=True)
        extract = lambda n: bench.synclake("extract", "--lake", lake, "--date", FIRST_DAY + datetime.timedelta(n - 1))
        for file in before:
            once(bench.ingest(file, lake))
        once(bench.synclake("refresh", "--lake", lake))
        once(extract(day - 1))
        once(bench.ingest(then, lake))
        read = json.loads(once(bench.synclake("refresh", "--lake", lake)).out)["bytes_read"]
        done = json.loads(once(extract(day)).out)
        found.append(f"| {day} | {read:,} | {done['change_bytes']:,} | {done['change_rows']:,} | {done['state_rows']:,} |\n")
    return a_day, "".join(found)


def part(bench):
    """Returns the section about state and history."""
    tail_lake, refresh, tail_rows, by_tail, duck_tail = tail(bench)
    history_lake, history_rows, by_history, duck_history = history(bench)
    lookups = lookup(bench, tail_lake) + lookup(bench, many_users(bench))
    a_day, days = growth(bench)
    return f"""## State and history

| what | synclake | DuckDB |
|---|---|---|
| the first `synclake refresh` (all rows but the last day's) | {refresh} | |
| current state with that and the last day's {tail_rows:,} rows since (DuckDB from all rows) | {by_tail} | {duck_tail} |
| the same of the same users after {MORE * DAYS} days, {all_rows(bench, history_lake):,} rows in all and {history_rows:,} since | {by_history} | {duck_history} |

One dataset of one identity out of `current_state`, after a refresh, the whole process:

| rows in `sync_records` | wall | bytes read of data files |
|---|---|---|
{lookups}
Equal days ({a_day:,} events each), `synclake refresh` and `synclake extract` of one more day; bytes of the *changes* that are
read (what the state or the day before has is read on top):

| day | refresh | extract | changes of the day | live keys at its end |
|---|---|---|---|---|
{days}"""
