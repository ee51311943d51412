"""A small lake for `spark_writer.py`: its input in three files, and how synclake's programs run on it."""

import json
import shutil
import subprocess

import rows_model as model
from spark_features import TABLES

SECONDS_MAX = 60
EARLY, LATER, LAST = DATES = "2026-01-02", "2026-01-03", "2026-01-04"
END = "end_of_answer"


class Fault(Exception):
    pass


class Lake:
    """A lake of two files, extracted for two days, with a consumer that has the first file."""

    def __init__(self, programs, folder):
        self.programs, self.folder, self.lake = programs, folder, folder / "lake"
        self.person, self.other, self.marks, self.consumer = None, None, {}, "w"

    def make(self):
        events = self.folder / "events.ndjson"
        self.plain("simulate", "--seed", "11", "--events", "200", "--pools", "2", "--days", "4", "--identities", "12",
                   "--poison", "0.06", "--out", str(events))
        lines = events.read_bytes().split(b"\n")
        third = len(lines) // 3
        rows, _ = model.decode(events, 0)
        early = {row.identity for row in rows if row.place[1] < third and model.day(row) <= EARLY}
        self.person, self.other = sorted(early)[3:5]
        for number, part in enumerate([lines[:third], lines[third:2 * third], lines[2 * third:]]):
            # The persons whom Spark deletes send nothing more, so no row of them may come back.
            kept = [line for line in part if number < 2 or not any(p.encode() in line for p in (self.person, self.other))]
            (self.folder / f"{number}.ndjson").write_bytes(b"\n".join(kept) + b"\n")
        self.done("ingest", "--source", f"file:{self.folder / '0.ndjson'}")
        self.done("extract", "--date", EARLY)
        self.done(*self.consume)
        self.mark("early")
        self.done("ingest", "--source", f"file:{self.folder / '1.ndjson'}")
        self.done("extract", "--date", LATER, "--correct")
        self.mark("now")

    @property
    def consume(self):
        return "deliver", "--consumer", self.consumer, "--out", str(self.folder / "feed"), "--format", "ndjson"

    def start_over(self):
        """Delivers all rows to a new consumer."""
        self.consumer = "w2"
        shutil.rmtree(self.folder / "feed")
        self.done("deliver", "--forget", "w")
        self.done(*self.consume)

    def mark(self, name):
        for table in TABLES:
            self.marks.setdefault(table, {})[name] = max(int(path.stem) for path in self.log(table))

    def log(self, table):
        return [path for path in (self.lake / table / "_delta_log").glob("*.json") if path.stem.isdigit()]

    def copy(self, folder):
        shutil.copytree(self.folder, folder)
        lake = Lake(self.programs, folder)
        lake.person, lake.other, lake.marks = self.person, self.other, self.marks
        return lake

    def plain(self, *args):
        return subprocess.run([self.programs / "synclake", *args], capture_output=True, text=True, timeout=SECONDS_MAX)

    def run(self, *args):
        try:
            return self.plain(*args, "--lake", str(self.lake))
        except subprocess.TimeoutExpired:
            raise Fault(f"{args[0]} hangs") from None

    def done(self, *args):
        done = self.run(*args)
        if done.returncode:
            raise Fault(f"{args[0]}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()[:600]}")
        return done

    def ask(self, *queries):
        command = [self.programs / "synclake-query", "--lake", self.lake, "--format", "ndjson"]
        for sql in queries:
            command += ["-c", sql]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Fault(f"a query hangs: {queries}") from None

    def query(self, *queries):
        """Returns the rows of each query. One process answers all of them."""
        done = self.ask(*(of for sql in queries for of in (sql, f"select '{END}' as {END}")))
        if done.returncode:
            raise Fault(f"{queries}: {done.stderr.strip()}")
        answers = [[]]
        for row in map(json.loads, done.stdout.splitlines()):
            if END in row:
                answers.append([])
            else:
                answers[-1].append(row)
        return answers[:-1]

    def has_only_ids(self, name):
        """Returns whether a file is a commit without rows. A delivery records the version that it reaches before it begins."""
        is_commit = name.startswith("daily_state/_delta_log/") and name.endswith(".json")
        actions = map(json.loads, (self.lake / name).read_text().splitlines()) if is_commit else [{"add": {}}]
        return not any(action.keys() & {"add", "remove"} for action in actions)

    def files(self):
        return {str(path.relative_to(self.lake)): path.stat().st_size for path in self.lake.rglob("*") if path.is_file()}
