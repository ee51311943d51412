"""Lets another Delta writer work on every table of a lake, beside all synclake commands that write, with kills.

    python foreign.py SYNCLAKE FOLDER [--rounds N] [--seed S] [--spark PYTHON JARS]

Two lakes get the same files; the other writer works on only one of them. Each round ingests a file and runs the
maintenance commands; each command is sometimes killed and started again. Meanwhile the other writer (delta-rs)
compacts, sorts, updates rows in place, writes checkpoints and cleans up logs; between rounds it compacts and restores.
With --spark, Spark follows as the other writer, with deletion vectors in every table, and deletes a person. In the end
a person is deleted and all tables are vacuumed. The lakes must be equal except for deleted persons, the consumer must
have got each row once, and `verify` must find no fault. The last line on stdout is a JSON object with the counts.
"""

import argparse
import collections
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pyarrow.parquet

from other_writers import Conflict, DeltaRs, Spark

# What identifies a row.
KEY = ["shard_id", "sequence_number", "sub_sequence", "record_index"]
TABLES = ["sync_records", "quarantine", "daily_state", "state"]
DAYS = 4
# Minimum of operations in each round, however fast the round is.
DEEDS_MIN = 12
# Spark works through several rounds, because it is slower than synclake.
SPARK_ROUNDS = 6


class Lakes:
    def __init__(self, options):
        self.synclake = options.synclake
        self.query_program = str(pathlib.Path(options.synclake).with_name("synclake-query"))
        self.folder = pathlib.Path(options.folder).resolve()
        self.lake = self.folder / "lake"
        self.peace = self.folder / "peace"
        self.feed = self.folder / "feed"
        self.rng = random.Random(options.seed)
        self.seen = collections.Counter()
        self.consume = ["deliver", "--consumer", "w", "--out", str(self.feed), "--format", "parquet"]

    def command(self, args, lake):
        return [self.synclake, *args, "--quiet", "--lake", str(lake)]

    def run(self, args, lake):
        done = subprocess.run(self.command(args, lake), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stderr}"
        return done.stdout

    def run_killed(self, args):
        """Runs a command until it ends by itself; sometimes kills it and starts it again."""
        while self.rng.random() < 0.4:
            child = subprocess.Popen(self.command(args, self.lake), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                child.wait(self.rng.uniform(0.01, 0.2))
                break
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                self.seen["kills"] += 1
        self.run(args, self.lake)
        self.seen[args[0]] += 1

    def rows(self, lake, sql):
        done = subprocess.run([self.query_program, "--lake", str(lake), "--format", "ndjson", "-c", sql],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{sql}: {done.stderr}"
        return collections.Counter(done.stdout.splitlines())


def deeds(writer, rng):
    """Yields every operation on every table, without end and in another order each time."""
    every = list(itertools.product(writer.deeds, TABLES))
    while True:
        rng.shuffle(every)
        yield from every


def meddle(lakes, writer, stop, rng, todo, at_least):
    """Runs one operation after another until the round is over."""
    done = 0
    while not stop.is_set() or done < at_least:
        done += 1
        what, table = next(todo)
        try:
            if writer.do(what, table, rng):
                lakes.seen[f"{what} {table}"] += 1
        except Conflict:
            lakes.seen[f"{what} conflicted"] += 1
        stop.wait(rng.uniform(0, 0.1))


class Meddler(threading.Thread):
    """A thread that runs the other writer beside synclake; `end` raises the exception of the thread."""

    def __init__(self, *args):
        super().__init__()
        self.stop, self.args, self.raised = threading.Event(), args, None

    def run(self):
        lakes, writer, *rest = self.args
        try:
            meddle(lakes, writer, self.stop, *rest)
        except BaseException as error:
            self.raised = error

    def end(self):
        self.stop.set()
        self.join()
        if self.raised:
            raise self.raised


def delete_until_done(writer, table, predicate):
    for attempt in range(40):
        try:
            return writer.delete(table, predicate)
        except Conflict as conflict:
            last = conflict
            time.sleep(0.05 * attempt)
    raise last


def work(lakes, number, options):
    """Ingests more events into both lakes; runs every command on one of them, in any order and with kills."""
    events = lakes.folder / f"{number}.ndjson"
    made = ["simulate", "--quiet", "--seed", str(options.seed * 1000 + number), "--events", "400", "--days", str(DAYS)]
    subprocess.run([options.synclake, *made, "--identities", "30", "--poison", "0.02", "--out", str(events)], check=True)
    lakes.run(["ingest", "--source", f"file:{events}"], lakes.peace)
    lakes.run_killed(["ingest", "--source", f"file:{events}"])
    steps = [["refresh"], ["extract", "--date", f"2026-01-{1 + number % DAYS:02}"], ["redrive"], ["compact"], lakes.consume]
    lakes.rng.shuffle(steps)
    for step in steps:
        lakes.run_killed(step)


def delivered(feed):
    """Returns how often the consumer got each row."""
    found = collections.Counter()
    for manifest in feed.rglob("_SUCCESS"):
        for file in json.loads(manifest.read_text())["files"]:
            table = pyarrow.parquet.ParquetFile(feed / file["path"]).read(columns=KEY)
            found.update(tuple(str(v) for v in row.values()) for row in table.to_pylist())
    return found


def a_person(lakes):
    sql = "select identity_id from current_state order by 1 limit 1 offset 5"
    return json.loads(next(iter(lakes.rows(lakes.lake, sql))))["identity_id"]


def without(persons):
    return " where identity_id not in (" + ", ".join(f"'{person}'" for person in persons) + ")" if persons else ""


def different(lakes, what, sql, faults, where=""):
    ours, peace = lakes.rows(lakes.lake, sql), lakes.rows(lakes.peace, sql + where)
    if ours != peace:
        faults.append(f"{what}: {sum((peace - ours).values())} rows are missing, {sum((ours - peace).values())} are too many")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("synclake")
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spark", nargs=2, metavar=("PYTHON", "JARS"), help="then Spark with Delta is the other writer")
    options = parser.parse_args()
    lakes = Lakes(options)
    rng = random.Random(options.seed + 1)
    faults = []
    writer = DeltaRs(lakes.lake)
    todo = deeds(writer, rng)
    for number in range(options.rounds):
        other = Meddler(lakes, writer, rng, todo, DEEDS_MIN)
        other.start()
        try:
            work(lakes, number, options)
        finally:
            other.end()
        for table in TABLES:
            lakes.seen[f"restore {table}"] += writer.compact_and_take_back(table)
    forgotten = set()
    if options.spark:
        writer = Spark(lakes.lake, *options.spark)
        todo = deeds(writer, rng)
        for table in TABLES:
            writer.do("vectors", table, rng)
        other = Meddler(lakes, writer, rng, todo, len(writer.deeds) * len(TABLES))
        other.start()
        number = options.rounds + SPARK_ROUNDS
        try:
            for earlier in range(options.rounds, number):
                work(lakes, earlier, options)
        finally:
            other.end()
        person = a_person(lakes)
        forgotten.add(person)
        # Delete the person by deletion vectors, beside another round.
        eraser = threading.Thread(target=delete_until_done, args=(writer, "sync_records", f"identity_id = '{person}'"))
        eraser.start()
        work(lakes, number, options)
        eraser.join()
        delete_until_done(writer, "sync_records", f"identity_id = '{person}'")
        for table in TABLES:
            lakes.seen[f"restore {table}"] += writer.compact_and_take_back(table)
    lakes.run(lakes.consume, lakes.lake)
    every = lakes.rows(lakes.peace, f"select {', '.join(KEY)} from sync_records")
    got = delivered(lakes.feed)
    expected = collections.Counter()
    for line, count in every.items():
        expected[tuple(str(v) for v in json.loads(line).values())] += count
    # The consumer may lack rows that were deleted before their delivery.
    may_lack = collections.Counter()
    for person in forgotten:
        sql = f"select {', '.join(KEY)} from sync_records where identity_id = '{person}'"
        may_lack.update(tuple(str(v) for v in json.loads(line).values()) for line in lakes.rows(lakes.peace, sql))
    if got - expected or expected - got - may_lack:
        missing, many = expected - got - may_lack, got - expected
        faults.append(f"consumer: {sum(missing.values())} rows are missing, {sum(many.values())} are too many")
    different(lakes, "sync_records", "select * except (arrived_at) from sync_records", faults, without(forgotten))
    different(lakes, "quarantine", "select reason, detail, encode(raw, 'hex') from quarantine", faults)

    # Delete a person beside a refresh; all rows computed from that person must disappear too.
    person = a_person(lakes)
    forgotten.add(person)
    refresh = threading.Thread(target=lakes.run_killed, args=(["refresh"],))
    refresh.start()
    delete_until_done(writer, "sync_records", f"identity_id = '{person}'")
    refresh.join()
    lakes.seen["deleted persons"] += len(forgotten)
    lakes.run(["refresh"], lakes.lake)
    for table in TABLES:
        writer.vacuum(table)
    lakes.run(["extract", "--date", f"2026-01-{DAYS + 1:02}"], lakes.lake)
    lakes.run(["extract", "--date", f"2026-01-{DAYS + 1:02}"], lakes.peace)
    others = without(forgotten)
    different(lakes, "sync_records without the person", "select * except (arrived_at) from sync_records", faults, others)
    different(lakes, "current_state", "select * from current_state", faults, others)
    state = f"select pool, identity_id, dataset_name, key, value from daily_state where extract_date = '2026-01-{DAYS + 1:02}' and kind = 'state'"
    different(lakes, "extract", state, faults, others.replace("where", "and"))
    if lakes.rows(lakes.lake, f"select 1 from state where not ({others.removeprefix(' where ')})"):
        faults.append("state: a deleted person is still there")
    writer.close()
    verify = subprocess.run([options.synclake, "verify", "--lake", str(lakes.lake)], capture_output=True, text=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if verify.returncode:
        print(verify.stdout, verify.stderr, file=sys.stderr)
    rows = sum(every.values())
    print(json.dumps({"rows": rows, "faults": len(faults), "verify_exit": verify.returncode, "seen": dict(lakes.seen)}))
    sys.exit(1 if faults or verify.returncode else 0)


if __name__ == "__main__":
    main()
