"""Measures the current state and the daily extract as history grows, and next to DuckDB. Part of bench.py."""

import datetime
import json
import re
import shutil
import subprocess
import sys

FIRST_DAY = datetime.date(2026, 1, 1)
ASK = "select count(*) as n, sum(sync_count) as s, count(value) as v from current_state"


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed: {done.stderr}")
    return done.stdout


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


def scanned(binary, lake, sql):
    """Returns the bytes of data files that a query reads, footers included, from the metrics of the query."""
    plan = run(binary / "synclake-query", "--lake", lake, "--format", "csv", "-c", f"explain analyze {sql}")
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "K": 1e3, "M": 1e6, "": 1}
    total = 0.0
    for number, unit in re.findall(r"bytes_scanned=([\d.]+) ?([KMG]?B?)", plan):
        total += float(number) * units[unit]
    return int(total)


def tail(binary, data, events, days, measure, duckdb, arg_max):
    """Measures current_state from a maintained state and a tail of the last day, and DuckDB over all rows."""
    lake = data / "tail-lake"
    shutil.rmtree(lake, ignore_errors=True)
    before, last = split(events, data, [days - 1])
    run(binary / "synclake", "ingest", "--source", f"file:{before}", "--lake", lake)
    whole = measure([str(binary / "synclake"), "refresh", "--lake", str(lake)], lambda: shutil.rmtree(lake / "state", ignore_errors=True))
    tail_rows, ours, theirs = beside(binary, lake, last, measure, duckdb, arg_max)
    return lake, whole, tail_rows, ours, theirs


def history(binary, data, simulate, days, measure, duckdb, arg_max):
    """Measures the same for the same users after `days` days, of which the state covers all but the last."""
    lake, last = data / "history-lake", data / "history-last.ndjson"
    shutil.rmtree(lake, ignore_errors=True)
    end = day_start(days - 1)
    ingest = [binary / "synclake", "ingest", "--source", "file:-", "--lake", lake]
    with (
        subprocess.Popen(simulate, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source,
        subprocess.Popen(ingest, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sink,
        open(last, "wb") as late,
    ):
        for line in source.stdout:
            (late if date_of(line) >= end else sink.stdin).write(line)
    if source.returncode or sink.returncode:
        sys.exit("the long history failed")
    run(binary / "synclake", "refresh", "--lake", lake)
    return lake, *beside(binary, lake, last, measure, duckdb, arg_max)


def beside(binary, lake, last, measure, duckdb, arg_max):
    tail_rows = json.loads(run(binary / "synclake", "ingest", "--source", f"file:{last}", "--lake", lake))["rows"]
    ours = measure([str(binary / "synclake-query"), "--lake", str(lake), "--format", "csv", "-c", ASK])
    theirs = measure(duckdb(arg_max.replace("{lake}", str(lake))))
    answers = ours[2].split("\n")[1], ",".join(str(int(v)) for v in eval(theirs[2].strip().splitlines()[-1])[0])
    if answers[0] != answers[1]:
        sys.exit(f"the two disagree on the current state: {answers}")
    return tail_rows, ours, theirs


def lookup(binary, lake, measure):
    """Measures a query for one dataset of one identity, with a maintained state that covers all rows."""
    run(binary / "synclake", "refresh", "--lake", lake)
    row = run(binary / "synclake-query", "--lake", lake, "--format", "csv", "-c",
              "select identity_id, dataset_name from current_state order by md5(identity_id) limit 1").split("\n")[1]
    identity, dataset = row.split(",")
    sql = f"select key, value from current_state where identity_id = '{identity}' and dataset_name = '{dataset}'"
    wall = measure([str(binary / "synclake-query"), "--lake", str(lake), "--format", "csv", "-c", sql])
    return wall, scanned(binary, lake, sql)


def growth(binary, data, events_a_day):
    """Measures refresh and extract of day 30 and of day 300 of one stream."""
    # No copies of a bulk publish: their number grows with the users' datasets, so the days would not be equal.
    events = data / f"growth-{events_a_day}-plain.ndjson"
    if not events.exists():
        run(binary / "synclake", "simulate", "--seed", "9", "--events", 300 * events_a_day, "--identities", 5000,
            "--days", 300, "--reorder", "100", "--late", "0", "--bulk-copies", "0", "--out", events)
    found = []
    parts = split(events, data, [29, 30, 299])
    for day, before, then in ((30, parts[:1], parts[1]), (300, parts[:3], parts[3])):
        lake = data / f"growth-lake-{day}"
        shutil.rmtree(lake, ignore_errors=True)
        date = lambda n: str(FIRST_DAY + datetime.timedelta(n - 1))
        for part in before:
            run(binary / "synclake", "ingest", "--source", f"file:{part}", "--lake", lake)
        run(binary / "synclake", "refresh", "--lake", lake)
        run(binary / "synclake", "extract", "--lake", lake, "--date", date(day - 1))
        run(binary / "synclake", "ingest", "--source", f"file:{then}", "--lake", lake)
        refresh = json.loads(run(binary / "synclake", "refresh", "--lake", lake))
        extract = json.loads(run(binary / "synclake", "extract", "--lake", lake, "--date", date(day)))
        found.append((day, refresh["bytes_read"], extract["change_bytes"], extract["change_rows"], extract["state_rows"]))
    return found
