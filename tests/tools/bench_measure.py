"""Runs commands in turn and measures them. All parts of bench.py use this module.

This process must stay small: at a fork, Linux counts the memory of the parent into the peak of the child. So the parts
never import DuckDB, and never read a large file as a whole.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

DAYS = 30
IDENTITIES = 50_000


@dataclasses.dataclass
class Run:
    """One run of a process: wall seconds, CPU seconds (user and system), peak of resident memory (MiB), its output."""

    wall: float
    cpu: float
    peak: float
    out: str


class Figure:
    """The runs of one command: medians of wall and CPU, the highest peak, the last output."""

    def __init__(self):
        self.runs = []

    @property
    def wall(self):
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self):
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak(self):
        return max(run.peak for run in self.runs)

    @property
    def out(self):
        return self.runs[-1].out

    def __str__(self):
        return f"{seconds(self.wall)}, {self.cpu:.{2 if self.cpu < 1 else 1}f} CPU-s, {self.peak:.0f} MiB"


def seconds(value):
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def once(command, stdin=None, env=None):
    """Runs a command to its end and returns its `Run`. Ends the benchmark if the command fails."""
    command = [str(word) for word in command]
    # Files, because a process with two pipes blocks when the pipe that is read later is full.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err, env=env and {**os.environ, **env})
        # `wait4` in place of `wait`: it also returns the resources that this one child used.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)[:500]} failed with {process.returncode}: {err.read().decode()[-2000:]}")
        return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read().decode())


def in_turn(runs, *commands, prepare=lambda: None, run=once):
    """Runs the commands one after the other, `runs` times, so that all see the same machine. Returns their figures."""
    figures = [Figure() for _ in commands]
    for _ in range(runs):
        prepare()
        for figure, command in zip(figures, commands):
            figure.runs.append(run(command))
    return figures


def rows(out):
    """Returns the rows of an answer in JSON, of synclake-query or of `Bench.duckdb`, as lists of texts and nulls."""
    answer = json.loads(out, object_pairs_hook=lambda pairs: [value for _, value in pairs])
    return [[None if value is None else str(value) for value in row] for row in answer]


def check_equal(what, *figures):
    """Ends the benchmark if the answers differ. The order of rows does not matter."""
    answers = [sorted(map(str, rows(figure.out))) for figure in figures]
    for answer in answers[1:]:
        if answer != answers[0]:
            sys.exit(f"the answers differ about {what}: {answers[0][:3]} and {answer[:3]}")


def line(what, ours, theirs=None, note=""):
    """Returns a line of a table that compares synclake with DuckDB."""
    if theirs is None:
        return f"| {what} | {ours}{note} | | | |\n"
    return f"| {what} | {ours}{note} | {theirs} | {theirs.wall / ours.wall:.2f} | {ours.cpu / theirs.cpu:.2f} |\n"


PAIRED = "| what | synclake | DuckDB | wall, DuckDB ÷ synclake | CPU, synclake ÷ DuckDB |\n|---|---|---|---|---|\n"


@dataclasses.dataclass
class Bench:
    """What all parts share: the programs, the folders, the size of the run."""

    programs: pathlib.Path
    data: pathlib.Path
    plots: pathlib.Path
    events: int
    runs: int
    commits: int
    long: bool
    # Figures that one part measures and another one uses too.
    shared: dict = dataclasses.field(default_factory=dict)

    @property
    def few(self):
        """Number of runs where a short benchmark would take too long with all."""
        return self.runs if self.long else min(self.runs, 3)

    def synclake(self, *words):
        return [self.programs / "synclake", *words]

    def query(self, lake, sql):
        return [self.programs / "synclake-query", "--lake", lake, "--format", "json", "-c", sql]

    def duckdb(self, sql):
        """Returns the command of a DuckDB process that answers `sql` in JSON."""
        script = (
            "import duckdb, json\nc = duckdb.connect()\n"
            "c.execute('set threads = 2'); c.execute('set enable_progress_bar = false')\n"
            f"print(json.dumps([dict(enumerate(row)) for row in c.execute({sql!r}).fetchall()], default=str))"
        )
        return [sys.executable, "-c", script]

    def in_turn(self, *commands, **options):
        return in_turn(self.runs, *commands, **options)

    def ingest(self, source, lake, *more):
        return self.synclake("ingest", "--source", f"file:{source}", "--lake", lake, *more)

    def stream(self, events=None, days=DAYS, identities=IDENTITIES, bulk_copies="0.005", seed=7):
        """Returns the arguments of `synclake simulate` for a stream."""
        return [
            "simulate", "--seed", seed, "--events", events or self.events, "--identities", identities, "--pools", "3",
            "--days", days, "--bulk-copies", bulk_copies,
        ]

    def simulated(self, name, arguments):
        """Returns the file with the events of a simulation; makes it if it is not there."""
        path = self.data / f"{name}.ndjson"
        if not path.exists():
            part = path.with_suffix(".part")
            once(self.synclake(*arguments, "--out", part))
            part.rename(path)
        return path

    def input(self):
        """Returns the file with the events that most parts read."""
        return self.simulated(f"events-{self.events}", self.stream())

    def lake(self):
        """Returns a lake with all events of `input` and a maintained state; makes it if it is not there."""
        lake = self.data / f"lake-{self.events}"
        if not (lake / "state/_delta_log").exists():
            shutil.rmtree(lake, ignore_errors=True)
            once(self.ingest(self.input(), lake))
            once(self.synclake("refresh", "--lake", lake))
        return lake
