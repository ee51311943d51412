"""Another Delta writer (delta-rs) works on every table of a lake beside ingest, refresh, extract and consumers, with kills.

    python foreign.py SYNCLAKE FOLDER [--rounds N] [--seed S]

Two lakes get the same files: one in peace, one with the other writer. In each round a file is ingested and the maintenance
runs, each killed now and then and begun again, while the other writer compacts, sorts, updates a person's rows in place, makes
checkpoints and cleans logs up. At last it deletes a person and vacuums. The lakes must be equal but for the deleted person, the
consumer must have got each row once, and `verify` must be content. The last line on stdout is a JSON object of what was seen.
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
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

# What identifies a row.
KEY = ["shard_id", "sequence_number", "sub_sequence", "record_index"]
TABLES = ["sync_records", "quarantine", "daily_state", "state"]
DAYS = 4
# In each round, however fast it is.
DEEDS_MIN = 12


class Lakes:
    def __init__(self, options):
        self.synclake = options.synclake
        self.query_program = str(pathlib.Path(options.synclake).with_name("synclake-query"))
        self.folder = pathlib.Path(options.folder)
        self.lake = self.folder / "lake"
        self.peace = self.folder / "peace"
        self.feed = self.folder / "feed"
        self.rng = random.Random(options.seed)
        self.seen = collections.Counter()

    def command(self, args, lake):
        return [self.synclake, *args, "--quiet", "--lake", str(lake)]

    def run(self, args, lake):
        done = subprocess.run(self.command(args, lake), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stderr}"
        return done.stdout

    def run_killed(self, args):
        """Runs a command until it ends by itself; now and then it is killed and begun again."""
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


def deeds(rng):
    """Everything on every table, in another order each time."""
    every = list(itertools.product(["compact", "z_order", "checkpoint", "cleanup", "update"], TABLES))
    while True:
        rng.shuffle(every)
        yield from every


def meddle(lakes, stop, rng, todo):
    """One thing after another, until the round is over. What conflicts with us is delta-rs's to try again."""
    done = 0
    while not stop.is_set() or done < DEEDS_MIN:
        done += 1
        what, table = next(todo)
        try:
            delta = DeltaTable(lakes.lake / table)
            if what == "compact":
                delta.optimize.compact(target_size=rng.choice([1 << 12, 1 << 28]))
            elif what == "z_order":
                delta.optimize.z_order({"quarantine": ["reason"]}.get(table, ["identity_id"]))
            elif what == "checkpoint":
                delta.create_checkpoint()
            elif what == "cleanup":
                delta.cleanup_metadata()
            elif table in ("sync_records", "quarantine"):
                # Every row stays what it was; the files do not.
                column = "value" if table == "sync_records" else "detail"
                delta.update(updates={column: column}, predicate=f"{column} is not null")
            else:
                continue
            lakes.seen[f"{what} {table}"] += 1
        except (DeltaError, OSError) as error:
            # Our commit came first, or the table is not there yet.
            lakes.seen[f"{what} conflicted"] += 1
            if "panic" in str(error).lower():
                raise
        stop.wait(rng.uniform(0, 0.1))


def delivered(feed):
    """How often the consumer got each row."""
    found = collections.Counter()
    for manifest in feed.rglob("_SUCCESS"):
        for file in json.loads(manifest.read_text())["files"]:
            table = pyarrow.parquet.ParquetFile(feed / file["path"]).read(columns=KEY)
            found.update(tuple(str(v) for v in row.values()) for row in table.to_pylist())
    return found


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
    options = parser.parse_args()
    lakes = Lakes(options)
    rng = random.Random(options.seed + 1)
    todo = deeds(rng)
    faults = []
    for number in range(options.rounds):
        events = lakes.folder / f"{number}.ndjson"
        made = ["simulate", "--quiet", "--seed", str(options.seed * 1000 + number), "--events", "400", "--days", str(DAYS)]
        subprocess.run([options.synclake, *made, "--identities", "30", "--poison", "0.02", "--out", str(events)], check=True)
        lakes.run(["ingest", "--source", f"file:{events}"], lakes.peace)
        stop = threading.Event()
        other = threading.Thread(target=meddle, args=(lakes, stop, rng, todo))
        other.start()
        try:
            lakes.run_killed(["ingest", "--source", f"file:{events}"])
            day = f"2026-01-{1 + number % DAYS:02}"
            steps = [["refresh"], ["extract", "--date", day], ["redrive"],
                     ["extract", "--consumer", "w", "--out", str(lakes.feed), "--format", "parquet"]]
            lakes.rng.shuffle(steps)
            for step in steps:
                lakes.run_killed(step)
        finally:
            stop.set()
            other.join()
    lakes.run(["extract", "--consumer", "w", "--out", str(lakes.feed), "--format", "parquet"], lakes.lake)
    every = lakes.rows(lakes.peace, f"select {', '.join(KEY)} from sync_records")
    got = delivered(lakes.feed)
    expected = collections.Counter()
    for line, count in every.items():
        expected[tuple(str(v) for v in json.loads(line).values())] += count
    if got != expected:
        faults.append(f"consumer: {sum((expected - got).values())} rows are missing, {sum((got - expected).values())} are too many")
    different(lakes, "sync_records", "select * except (arrived_at) from sync_records", faults)
    different(lakes, "quarantine", "select reason, detail, encode(raw, 'hex') from quarantine", faults)

    # A person is deleted, beside a refresh; whatever was computed of that person goes with it.
    person = json.loads(next(iter(lakes.rows(lakes.peace, "select identity_id from current_state limit 1"))))["identity_id"]
    refresh = threading.Thread(target=lakes.run_killed, args=(["refresh"],))
    refresh.start()
    for attempt in range(20):
        try:
            DeltaTable(lakes.lake / "sync_records").delete(f"identity_id = '{person}'")
            break
        except DeltaError:
            time.sleep(0.05 * attempt)
    refresh.join()
    lakes.seen["deleted persons"] += 1
    lakes.run(["refresh"], lakes.lake)
    for table in TABLES:
        DeltaTable(lakes.lake / table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    lakes.run(["extract", "--date", f"2026-01-{DAYS + 1:02}"], lakes.lake)
    lakes.run(["extract", "--date", f"2026-01-{DAYS + 1:02}"], lakes.peace)
    others = f" where identity_id <> '{person}'"
    different(lakes, "sync_records without the person", "select * except (arrived_at) from sync_records", faults, others)
    different(lakes, "current_state", "select * from current_state", faults, others)
    state = f"select pool, identity_id, dataset_name, key, value from daily_state where extract_date = '2026-01-{DAYS + 1:02}' and kind = 'state'"
    different(lakes, "extract", state, faults, f" and identity_id <> '{person}'")
    if lakes.rows(lakes.lake, f"select 1 from state where identity_id = '{person}'"):
        faults.append("state: the deleted person is still there")
    verify = subprocess.run([options.synclake, "verify", "--lake", str(lakes.lake)], capture_output=True, text=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if verify.returncode:
        print(verify.stdout, verify.stderr, file=sys.stderr)
    rows = sum(every.values())
    print(json.dumps({"rows": rows, "faults": len(faults), "verify_exit": verify.returncode, "seen": dict(lakes.seen)}))
    sys.exit(1 if faults or verify.returncode else 0)


main()
