"""Reads an archive of objects into a lake with workers that are killed: backfill.py PROGRAMS [--objects N] [--seed N]

PROGRAMS is the folder with the programs synclake and synclake-query. The archive looks like that of a Firehose: folders of
hours, plain, gzip and zstd objects, one event a line or events without a line break between them. Three workers share it by
leases in DynamoDB and are killed at random times. Then more objects arrive and another run reads them. In the end every event
must be in the lake exactly once, and nothing from outside of the prefix.

Prints one line per check and `N passed, 0 failed`; ends at the first fault with exit code 1.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pyarrow

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/tools"), str(ROOT / "tests/chaos")]

from fleet import lake_env, make_bucket  # noqa: E402
from kcl_stream import payload  # noqa: E402
from with_servers import Servers  # noqa: E402

BUCKET, PREFIX, TABLE = "backfill", "archive/cognito", "backfill-leases"
WORKERS, KILLS = 3, 25
SECONDS_MAX = 600


class Archive:
    """The objects of the archive; `ids` are those of all events below the prefix."""

    def __init__(self, url, seed):
        self.url, self.rng, self.ids, self.objects = f"{url}/{BUCKET}", random.Random(seed), [], 0
        self.shapes = collections.Counter()
        make_bucket(url, BUCKET)

    def put(self, key, body):
        request = urllib.request.Request(f"{self.url}/{urllib.parse.quote(key)}", data=body, method="PUT")
        urllib.request.urlopen(request).close()

    def events(self, count, place="a"):
        ids = [f"us-east-1:{place}{self.objects:05}-{n:02}" for n in range(count)]
        self.objects += 1
        return ids, [payload(event_id) for event_id in ids]

    def add(self, count):
        """Puts objects with up to 20 events each, at random hours of three days."""
        for _ in range(count):
            ids, events = self.events(self.rng.randint(1, 20))
            layout = self.rng.choices(["lines", "no last line break", "concatenated"], [6, 2, 3])[0]
            body = (b"" if layout == "concatenated" else b"\n").join(events) + (b"\n" if layout == "lines" else b"")
            packing = self.rng.choices(["", ".gz", ".zst"], [4, 4, 2])[0]
            if packing == ".gz":
                body = gzip.compress(body)
            elif packing == ".zst":
                body = pyarrow.Codec("zstd").compress(body, asbytes=True)
            self.shapes[f"{layout}{packing}"] += 1
            hour = f"2026/0{self.rng.randint(1, 3)}/{self.rng.randint(1, 28):02}/{self.rng.randrange(24):02}"
            self.put(f"{PREFIX}/{hour}/delivery-{self.objects:05}.json{packing}", body)
            self.ids += ids

    def add_strangers(self):
        """Puts objects that the run must not read: beside the prefix, and without a byte."""
        for key in (f"{PREFIX}-other/2026/01/01/00/a.json", "archive/b.json"):
            self.put(key, b"\n".join(self.events(3, "b")[1]))
        self.put(f"{PREFIX}/2026/01/01/00/", b"")
        self.put(f"{PREFIX}/2026/01/01/00/empty.json", b"")


class Fleet:
    """The workers of a run, by slot."""

    def __init__(self, programs, env, scratch):
        self.programs, self.env, self.scratch = programs, env, scratch
        self.runs, self.killed = 0, 0

    def start(self, slot):
        log = open(f"{self.scratch}/worker-{slot}.log", "ab")
        self.runs += 1
        command = [
            f"{self.programs}/synclake", "ingest", "--source", f"s3://{BUCKET}/{PREFIX}/", "--lake", f"s3://{BUCKET}/lake",
            "--lease-table", f"dynamodb:{TABLE}", "--lease-failover", "2s", "--worker-id", f"worker-{slot}",
        ]
        return subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def run(self, kills, rng):
        """Runs all workers until each has ended by itself with exit code 0; kills some of them before."""
        began = time.monotonic()
        processes = {slot: self.start(slot) for slot in range(WORKERS)}
        try:
            while processes:
                if time.monotonic() - began > SECONDS_MAX:
                    sys.exit(f"the workers have not ended in {SECONDS_MAX} s; their logs are in {self.scratch}")
                slot = rng.choice(sorted(processes))
                process = processes[slot]
                try:
                    # The time until the next kill, at which any step of the worker may be under way.
                    code = process.wait(rng.uniform(0.1, 1.5))
                except subprocess.TimeoutExpired:
                    if kills:
                        kills -= 1
                        process.send_signal(signal.SIGKILL)
                        code = process.wait()
                    else:
                        continue
                if code == -signal.SIGKILL:
                    self.killed += 1
                    processes[slot] = self.start(slot)
                elif code == 0:
                    del processes[slot]
                else:
                    text = pathlib.Path(f"{self.scratch}/worker-{slot}.log").read_text(errors="replace")
                    sys.exit(f"worker {slot} ended with {code}:\n{text[-2000:]}")
        finally:
            for process in processes.values():
                process.kill()
                process.wait()

    def query(self, sql):
        command = [f"{self.programs}/synclake-query", "--lake", f"s3://{BUCKET}/lake", "--format", "ndjson", "-c", sql]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{sql}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]


class Checks:
    passed = 0

    def __call__(self, what, found, expected):
        if found != expected:
            sys.exit(f"{what}: found {str(found)[:2000]}, expected {str(expected)[:2000]}")
        self.passed += 1
        print(f"{what}: ok", flush=True)

    def every_event_once(self, when, fleet, archive):
        rows = fleet.query("select identity_id, count(*) as n from sync_records group by 1")
        counts = {row["identity_id"]: row["n"] for row in rows}
        ids = set(archive.ids)
        self(f"{when}: no event is lost", sorted(ids - set(counts)), [])
        self(f"{when}: no event is doubled", {i: n for i, n in counts.items() if n != 1}, {})
        self(f"{when}: no event is from elsewhere", sorted(set(counts) - ids), [])
        self(f"{when}: nothing is quarantined", fleet.query("select count(*) as n from quarantine")[0]["n"], 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs")
    parser.add_argument("--objects", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rng, check = random.Random(options.seed), Checks()
    with Servers() as servers:
        s3, _ = servers.start_ministack()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SYNCLAKE_"))} | lake_env(s3, s3, s3)
        archive = Archive(s3, options.seed)
        archive.add(options.objects)
        archive.add_strangers()
        print(f"{options.objects} objects, {len(archive.ids)} events: {dict(archive.shapes)}", flush=True)
        fleet = Fleet(options.programs, env, servers.scratch)
        fleet.run(KILLS, rng)
        check("some workers were killed", fleet.killed > 0, True)
        check.every_event_once(f"after {fleet.killed} kills", fleet, archive)
        archive.add(options.objects // 10)
        fleet.run(3, rng)
        check.every_event_once("after more objects", fleet, archive)
        fleet.run(0, rng)
        check.every_event_once("after a run without new objects", fleet, archive)
        verified = subprocess.run(
            [f"{options.programs}/synclake", "verify", "--lake", f"s3://{BUCKET}/lake", "--format", "json"],
            env=env, capture_output=True, text=True, check=False,
        )
        check("the lake is whole", (verified.returncode, json.loads(verified.stdout or "{}").get("faults")), (0, []))
    print(f"{check.passed} passed, 0 failed")


if __name__ == "__main__":
    main()
