"""Measures a lake of many small commits: what a commit costs, and what the lake costs its readers. Part of bench.py."""

import itertools
import json
import shutil
import subprocess
import sys
import time

import bench_pairs
import bench_questions
from bench_measure import check_equal, in_turn, once, seconds
from bench_plots import Series, plot

WRITERS = 4
EVENTS_A_COMMIT = 40
LEVELS = (10, 100, 300, 1000, 3000)
TENDED_LEVELS = 10


class Growing:
    """A lake that grows by commits of few events each. Four writers, because one alone waits for its pipe most of the time."""

    def __init__(self, bench, commits, name="commits-lake", care="off", events=EVENTS_A_COMMIT):
        self.bench = bench
        self.lake = bench.data / name
        self.care = care
        self.events = events
        shutil.rmtree(self.lake, ignore_errors=True)
        total = events * (commits + 100)
        self.lines = open(bench.simulated(f"day-{total}", bench.stream(events=total, days=1)), "rb")
        # All events that the lake has, for the lake of one commit.
        self.fed = bench.data / f"{name}-fed.ndjson"
        self.fed.write_bytes(b"")
        self.commits = 0

    def piece(self):
        """Returns the events of one commit."""
        text = b"".join(itertools.islice(self.lines, self.events))
        if not text:
            sys.exit("the events of the day do not suffice for so many commits")
        with open(self.fed, "ab") as fed:
            fed.write(text)
        return text

    def counted(self):
        """Returns the number of commits to `sync_records`, the table's creation not counted."""
        log = self.lake / "sync_records/_delta_log"
        while (log / f"{self.commits + 1:020}.json").exists():
            self.commits += 1
        return self.commits

    def grow(self, commits, levels=(), measure=None):
        """Adds commits until there are so many. A writer gets its next events when all have committed the last ones.

        Calls `measure` at each of the levels, while the writers wait.
        """
        levels = list(levels)
        ingest = [str(word) for word in self.bench.ingest("-", self.lake, "--flush-bytes", "1KiB", "--care", self.care)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        writers = [subprocess.Popen(ingest, stdin=subprocess.PIPE, **quiet) for _ in range(WRITERS)]
        while self.counted() < commits:
            aim, deadline = min(self.commits + WRITERS, commits), time.monotonic() + 60
            for writer in writers:
                writer.stdin.write(self.piece())
                writer.stdin.flush()
            while self.counted() < aim:
                if time.monotonic() > deadline:
                    sys.exit(f"no commit to {self.lake} within 60 s")
                time.sleep(0.002)
            if levels and self.commits >= levels[0]:
                levels.pop(0)
                measure()
        for writer in writers:
            writer.stdin.close()
        if any([writer.wait() for writer in writers]):
            sys.exit(f"a writer to {self.lake} failed")
        return self.counted()

    def level(self):
        """Measures an ingest of a small file, and a query that reads no data. The ingests add commits."""
        small = self.bench.data / "commits-small.ndjson"
        commits = self.counted()
        (ingest,) = self.bench.in_turn(self.bench.ingest(small, self.lake, "--care", "off"), prepare=lambda: small.write_bytes(self.piece()))
        (select,) = self.bench.in_turn(self.bench.query(self.lake, "select 1"))
        return commits, ingest, select


def sizes(bench, lake):
    """Returns the number of active data files, their MB, and the MB of the log."""
    table = json.loads(once(bench.synclake("status", "--format", "json", "--lake", lake)).out)["tables"]["sync_records"]
    log = sum(file.stat().st_size for file in (lake / "sync_records/_delta_log").iterdir() if file.is_file())
    return f"{table['files']:,} files, {table['bytes'] / 1e6:.1f} MB, log {log / 1e6:.1f} MB"


def beside(bench, many, cared, one):
    """Returns the lines of a table: the lake of many commits, a copy of it after care, and the same events in one commit."""
    for lake in (cared, one):
        shutil.rmtree(lake, ignore_errors=True)
    once(bench.ingest(bench.data / "commits-lake-fed.ndjson", one))
    shutil.copytree(many, cared)
    care = in_turn(1, bench.synclake("care", "--lake", cared))[0]
    lakes = (many, cared, one)

    def forget():
        for lake in lakes:
            shutil.rmtree(lake / "state", ignore_errors=True)

    forget()
    table = []
    for name in ("current_state", "changes"):
        sql, best = bench_pairs.view(name)
        figures = in_turn(bench.few, *(bench.query(lake, sql) for lake in lakes), *(bench.duckdb(best.format(lake=lake)) for lake in (many, one)))
        check_equal(name, *figures)
        table.append(f"| `{name}` over all rows | {' | '.join(map(str, figures))} |\n")
    lookup = bench_questions.lookup(bench, many)

    def compare(what, sql):
        figures = in_turn(bench.few, *(bench.query(lake, sql) for lake in lakes))
        check_equal(what, *figures)
        table.append(f"| {what} | {' | '.join(map(str, figures))} | | |\n")

    compare("one dataset of one identity", lookup)
    compare("`select 1`, whole process (aim: 50 ms)", "select 1")
    figures = in_turn(bench.few, *(bench.synclake("refresh", "--lake", lake) for lake in lakes), prepare=forget)
    table.append(f"| the first `synclake refresh` | {' | '.join(map(str, figures))} | | |\n")
    compare("one dataset of one identity, after it", lookup)
    forget()
    shape = " | ".join(sizes(bench, lake) for lake in lakes)
    table.append(f"| `synclake care` itself | | {care} | | | |\n")
    return "".join([f"| `sync_records` | {shape} | | |\n", *table])


def part(bench):
    """Returns the section about a lake of many commits beside the same events in one commit."""
    growing = Growing(bench, bench.commits)
    began = time.monotonic()
    commits = growing.grow(bench.commits)
    print(f"{commits} commits after {time.monotonic() - began:.0f} s", flush=True)
    table = beside(bench, growing.lake, bench.data / "commits-cared-lake", bench.data / "commits-one-lake")
    return f"""## Many commits

{commits:,} commits of about {EVENTS_A_COMMIT} events of one day each, by {WRITERS} writers in turn, beside a copy of that lake after
`synclake care`, and the same events in one ingest. The views are computed from all rows; {bench.few} runs.

| what | {commits:,} commits | after care | one commit | DuckDB, {commits:,} commits | DuckDB, one commit |
|---|---|---|---|---|---|
{table}"""


def tended(bench):
    """Returns the section about a lake that its writers care for, beside one of the same events; writes the plot of it."""
    levels = [bench.commits * n // TENDED_LEVELS for n in range(1, TENDED_LEVELS + 1)]
    growing = Growing(bench, levels[-1], "commits-tended-lake", "full")
    one = bench.data / "commits-one-lake"
    questions = [("current_state", bench_pairs.view("current_state")[0]), ("changes", bench_pairs.view("changes")[0])]
    found = []

    def measure():
        shutil.rmtree(one, ignore_errors=True)
        once(bench.ingest(growing.fed, one))
        pairs = []
        for name, sql in questions:
            pair = in_turn(bench.few, bench.query(growing.lake, sql), bench.query(one, sql))
            check_equal(name, *pair)
            pairs.append(pair)
        found.append((growing.commits, sizes(bench, growing.lake), pairs))

    began = time.monotonic()
    growing.grow(levels[-1], levels, measure)
    print(f"{growing.commits} commits with care after {time.monotonic() - began:.0f} s", flush=True)
    series = [
        Series(f"{name}, {lake}", [(commits, pairs[at][side].wall * 1000) for commits, _, pairs in found])
        for at, (name, _) in enumerate(questions)
        for side, lake in enumerate(["with care", "one commit"])
    ]
    plot(bench.plots / "care.svg", "A lake that its writers care for", "commits", "milliseconds, whole process", series)
    cell = lambda pair: f"{seconds(pair[0].wall)} | {seconds(pair[1].wall)} | {pair[0].wall / pair[1].wall:.2f}"
    table = "".join(f"| {commits:,} | {shape} | {' | '.join(map(cell, pairs))} |\n" for commits, shape, pairs in found)
    return f"""## Care along the way

Commits as above, by {WRITERS} writers with the default `--care full`, as fast as they can (rounds of care come after 64 versions). At
each level the writers wait, the care does not; beside it, the same events in one ingest; {bench.few} runs.

| commits | `sync_records` | `current_state` | one commit | ratio | `changes` | one commit | ratio |
|---|---|---|---|---|---|---|---|
{table}
![Time of current_state and of changes against the number of commits, with care and in one commit](plots/care.svg)
"""


def cost(bench):
    """Returns the section about the cost of a commit as their number grows; writes the plot of it."""
    levels = [level for level in LEVELS if level <= 2 * bench.commits]
    growing = Growing(bench, levels[-1])
    found = []
    for commits in levels:
        growing.grow(commits)
        found.append(growing.level())
    series = [
        Series(f"ingest of {EVENTS_A_COMMIT} events", [(commits, ingest.wall * 1000) for commits, ingest, _ in found]),
        Series("select 1", [(commits, select.wall * 1000) for commits, _, select in found]),
    ]
    plot(bench.plots / "commits.svg", "A lake of many commits", "commits", "milliseconds, whole process", series)
    table = "".join(
        f"| {commits:,} | {seconds(ingest.wall)}, {ingest.cpu:.2f} CPU-s | {seconds(select.wall)}, {select.cpu:.2f} CPU-s |\n"
        for commits, ingest, select in found
    )
    return f"""## Cost of a commit

What a small ingest ({EVENTS_A_COMMIT} events, a file) and `select 1` take as the number of commits grows, without a maintained state:

| commits | `synclake ingest` | `select 1` |
|---|---|---|
{table}
![Wall time of a small ingest and of select 1 against the number of commits](plots/commits.svg)
"""
