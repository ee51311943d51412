"""Measures one long ingest of many commits, with a reader that polls the lake beside it. Part of bench.py."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time

from bench_commits import Growing
from bench_measure import once, rows, seconds
from bench_plots import Series, plot

LEVELS = (100, 1_000, 3_000, 10_000)
EVENTS_A_COMMIT = 5
# Seconds between two questions of the reader.
PAUSE = 0.5
TICKS = os.sysconf("SC_CLK_TCK")
COUNT = "select count(*) as n from sync_records"


class Poller(threading.Thread):
    """Counts the rows of a lake again and again. The count may only grow."""

    def __init__(self, bench, lake):
        super().__init__(daemon=True)
        self.bench, self.lake = bench, lake
        self.ended = threading.Event()
        self.times, self.count, self.fault = [], 0, None

    def run(self):
        while not self.ended.wait(PAUSE) and not self.fault:
            began = time.monotonic()
            answer = subprocess.run(self.bench.query(self.lake, COUNT), capture_output=True, text=True)
            self.times.append(time.monotonic() - began)
            count = json.loads(answer.stdout or "[{}]")[0].get("n") if answer.returncode == 0 else None
            if count is None or count < self.count:
                self.fault = f"{count} rows after {self.count}: {answer.stderr}"
            self.count = count


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid):
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


class Ingest:
    """An ingest that gets a few events, and the next ones when those are committed."""

    def __init__(self, growing):
        self.growing = growing
        command = growing.bench.ingest("-", growing.lake, "--flush-bytes", "1KiB")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, **quiet)

    def commits(self, upto):
        """Makes commits until the lake has so many. Returns the seconds of each."""
        times = []
        while self.growing.counted() < upto:
            began, before = time.monotonic(), self.growing.commits
            self.process.stdin.write(self.growing.piece())
            self.process.stdin.flush()
            while self.growing.counted() == before:
                if time.monotonic() > began + 60 or self.process.poll() is not None:
                    sys.exit(f"no commit to {self.growing.lake} within 60 s")
                time.sleep(0.001)
            times.append(time.monotonic() - began)
        return times


def part(bench):
    """Returns the section about an ingest of many commits with a reader beside it."""
    levels = [level for level in LEVELS if level <= LEVELS[-1] * bench.commits // 1_500]
    growing = Growing(bench, levels[-1], "polled-lake", events=EVENTS_A_COMMIT)
    ingest = Ingest(growing)
    ingest.commits(10)
    poller = Poller(bench, growing.lake)
    poller.start()
    found, before = [], 10
    for level in levels:
        polls, used = len(poller.times), cpu(ingest.process.pid)
        times = ingest.commits(level)
        if poller.fault:
            sys.exit(f"the reader saw {poller.fault}")
        used = (cpu(ingest.process.pid) - used) / (growing.commits - before)
        (select,) = bench.in_turn(bench.query(growing.lake, "select 1"))
        found.append((growing.commits, times[-90:], used, resident(ingest.process.pid), poller.times[polls:], select))
        before = growing.commits
    poller.ended.set()
    poller.join()
    ingest.process.stdin.close()
    if ingest.process.wait() != 0:
        sys.exit("the ingest failed")
    count = rows(once(bench.query(growing.lake, COUNT)).out)[0]
    print(f"{growing.commits} commits, {len(poller.times)} polls, at the end {count}", flush=True)
    middle = statistics.median
    series = [
        Series("a commit", [(commits, middle(times) * 1000) for commits, times, *_ in found]),
        Series("count(*), whole process", [(commits, middle(polls) * 1000) for commits, _, _, _, polls, _ in found]),
        Series("select 1, whole process", [(commits, select.wall * 1000) for commits, *_, select in found]),
    ]
    plot(bench.plots / "polled.svg", "One ingest, and a reader beside it", "commits", "milliseconds", series)
    table = "".join(
        f"| {commits:,} | {seconds(middle(times))} | {used * 1000:.0f} ms | {memory:.0f} MiB | {seconds(middle(polls))} | {seconds(select.wall)} |\n"
        for commits, times, used, memory, polls, select in found
    )
    return f"""## One ingest of many commits, and a reader

One ingest with its default care makes commits of {EVENTS_A_COMMIT} events, one after the other, while a reader asks for `count(*)` every
half second on the same two cores: {len(poller.times):,} times, and no count was lower than the one before. A commit is measured from its events to its version
in the log (median of the last 90); CPU is that of the ingest with its care, per commit since the level before.

| commits | a commit | CPU of ingest | its resident memory | `count(*)` beside it | `select 1` |
|---|---|---|---|---|---|
{table}
![Time of a commit and of queries against the number of commits](plots/polled.svg)
"""
