"""Replaces an application of the Kinesis Client Library (KCL) by synclake, in the middle of its work: kcl.py PROGRAMS

PROGRAMS is the folder with the programs synclake and synclake-query. The application (tests/engines/kcl, built by
`make kcl`) is real, for KCL 2 and for KCL 3; ministack and kinesis-local are its DynamoDB and its Kinesis. The script
kills the application in the middle of a batch and of an aggregate, before and after a split and a merge of shards. Each
time, an import of its checkpoints must bring exactly the user records behind them into a lake.

The layout of KCL 1 is tested without KCL 1: the table of KCL 2 is copied with the attributes that KCL 1 has, less the
leases that KCL deletes once the children have begun.

Prints one line per check and `N passed, 0 failed`; ends at the first fault with exit code 1.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/tools"))

from kcl_application import Application  # noqa: E402
from kcl_stream import Stream, call  # noqa: E402
from with_servers import TOOLS, Servers  # noqa: E402

# Attributes of a lease in KCL 1 (com.amazonaws.services.kinesis.leases.impl.KinesisClientLeaseSerializer, LeaseSerializer).
KCL1_ATTRIBUTES = {
    "leaseKey", "leaseOwner", "leaseCounter", "ownerSwitchesSinceCheckpoint", "checkpoint", "checkpointSubSequenceNumber",
    "parentShardId",
}


class Trial:
    """One version of the library: its stream, its application and the lakes that import its checkpoints."""

    passed = 0

    def __init__(self, programs, version, servers, kinesis, dynamodb):
        self.programs, self.version, self.scratch = pathlib.Path(programs), version, servers.scratch
        self.kinesis, self.dynamodb = kinesis, dynamodb
        self.table = f"application-{version}"
        self.stream = Stream(kinesis, f"stream-{version}", 3)

    def check(self, what, found, expected):
        if found != expected:
            sys.exit(f"{self.version}: {what}: found\n{found}\nexpected\n{expected}")
        Trial.passed += 1
        print(f"{self.version}: {what}: ok", flush=True)

    def program(self, name, *args):
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SYNCLAKE_"))},
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_KINESIS": self.kinesis, "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb,
            "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        return subprocess.run([self.programs / name, *args], env=env, capture_output=True, text=True, check=False)

    def ok(self, name, *args):
        done = self.program(name, *args)
        if done.returncode:
            sys.exit(f"{self.version}: {name} {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    def ingest_args(self, lake, *more):
        return ["ingest", "--source", f"kinesis:{self.stream.name}", "--lake", lake, "--until-idle", "1s", *more]

    def leases(self, table=None):
        """Returns the leases of a table: {shard: attributes}."""
        answer = call(self.dynamodb, "DynamoDB_20120810.Scan", {"TableName": table or self.table, "ConsistentRead": True})
        return {item["leaseKey"]["S"]: item for item in answer["Items"]}

    def application(self, worker, plan):
        """Runs the application by a plan {shard: (event of the checkpoint or None, event of the hold)}; kills it."""
        steps = []
        for checkpoint, hold in plan.values():
            steps += [("checkpoint", checkpoint)] if checkpoint else []
            steps.append(("hold", hold))
        run = Application(
            TOOLS / "kcl" / self.version, self.scratch, self.stream.name, self.table, worker, self.kinesis, self.dynamodb, steps,
        )
        run.run_until(plan)
        for shard, (checkpoint, hold) in plan.items():
            if checkpoint:
                at = next(s for s in run.of("record", shard) if s["id"] == checkpoint.id)
                self.check(f"worker {worker} was killed in the middle of a batch of {shard}", at["left_in_batch"] > 0, True)
            lease = self.leases()[shard]
            found = (lease["checkpoint"]["S"], int(lease["checkpointSubSequenceNumber"]["N"]))
            expected = (checkpoint.sequence, checkpoint.sub or 0) if checkpoint else ("TRIM_HORIZON", 0)
            self.check(f"the lease of {shard} has the checkpoint", found, expected)
            self.check(f"{shard} was read up to the hold", run.of("record", shard)[-1]["id"], hold.id)
        return run

    def behind(self, table=None):
        """Returns the user records that the checkpoints of a table leave, by the order of KCL: sequence number, number."""
        leases = self.leases(table)
        # A lease that KCL deleted was that of an ended shard. The application's own table still has it.
        ended = {shard for shard, lease in self.leases().items() if lease["checkpoint"]["S"] == "SHARD_END"}

        def is_done(event):
            lease = leases.get(event.shard)
            if event.shard in ended or not lease or not lease["checkpoint"]["S"].isdigit():
                return event.shard in ended
            checkpoint = (int(lease["checkpoint"]["S"]), int(lease["checkpointSubSequenceNumber"]["N"]))
            return (int(event.sequence), event.sub or 0) <= checkpoint

        return [event for event in self.stream.events if not is_done(event)]

    def check_import(self, name, table=None, more=()):
        """Imports the checkpoints into a new lake and compares its rows; a second run must find nothing."""
        table, lake = table or self.table, f"{self.scratch}/{self.version}-{name}"
        before, left = self.leases(table), self.behind(table)
        if not 0 < len(left) < len(self.stream.events):
            sys.exit(f"{self.version}: {name}: {len(left)} of {len(self.stream.events)} records are left; that tests nothing")
        args = self.ingest_args(lake, "--import-kcl-checkpoints", table, *more)
        self.ok("synclake", *args)
        sql = "select identity_id, shard_id, sequence_number, sub_sequence from sync_records order by 1, 2, 3, 4"
        rows = self.ok("synclake-query", "--lake", lake, "--format", "ndjson", "-c", sql).splitlines()
        found = [tuple(json.loads(row).values()) for row in rows]
        expected = sorted((e.id, e.shard, e.sequence, e.sub) for e in left)
        self.check(f"{name}: the lake has the {len(expected)} records behind the checkpoints, once each", found, expected)
        again = json.loads(self.ok("synclake", *args))
        self.check(f"{name}: a second run finds nothing", again["records"], 0)
        faults = json.loads(self.ok("synclake", "verify", "--lake", lake, "--format", "json"))["faults"]
        self.check(f"{name}: the lake is whole", faults, [])
        self.check(f"{name}: the application's table is unchanged", self.leases(table), before)

    def check_refusal(self):
        before = self.leases()
        lake = f"{self.scratch}/{self.version}-refused"
        done = self.program("synclake", *self.ingest_args(lake, "--lease-table", f"dynamodb:{self.table}"))
        self.check("its table is refused as lease table", done.returncode, 1)
        remedy = rf"^error: .*Kinesis Client Library.*--import-kcl-checkpoints {self.table}\n$"
        self.check("the error names the remedy", bool(re.match(remedy, done.stderr)), True)
        self.check("its table is unchanged", self.leases(), before)

    def run(self):
        shards = sorted(self.stream.shards())
        for shard in shards:
            self.stream.fill(shard, 20)
        first, second, third = ({e.sub: e for e in self.stream.on(shard)[18:24]} for shard in shards)
        plan = {
            shards[0]: (first[None], first[2]),  # a plain record; the hold is in the next aggregate
            shards[1]: (second[2], second[4]),  # the middle of an aggregate
            shards[2]: (third[0], third[1]),  # the first of an aggregate
        }
        self.application("one", plan)
        self.check_import("before the split")
        self.check_refusal()

        children = self.stream.split(shards[0]) + self.stream.merge(shards[1], shards[2])
        for shard in children:
            self.stream.fill(shard, 12)
        left, right, merged = (self.stream.on(shard) for shard in children)
        plan_after = {
            children[0]: (left[10], left[12]),  # the middle of an aggregate
            children[1]: (right[11], right[12]),  # the last of an aggregate
            children[2]: (None, merged[0]),  # begun, without a checkpoint
        }
        run = self.application("two", plan_after)
        for shard, (checkpoint, _) in plan.items():
            events = self.stream.on(shard)
            following = events[events.index(checkpoint) + 1]
            self.check(f"KCL itself goes on after the checkpoint of {shard}", run.of("record", shard)[0]["id"], following.id)
            self.check(f"KCL has ended {shard}", self.leases()[shard]["checkpoint"]["S"], "SHARD_END")
        # Children that the application has not seen.
        for shard in self.stream.split(children[0]):
            self.stream.fill(shard, 6)
        self.check_import("after the split")
        self.check_import("with leases", more=("--lease-table", f"dynamodb:own-{self.version}"))

    def check_kcl1(self):
        """Copies the table into the layout of KCL 1, without the leases that KCL deletes: of ended shards with begun children."""
        table, leases = "application-kcl1", self.leases()
        begun = {shard for shard, lease in leases.items() if lease["checkpoint"]["S"] != "TRIM_HORIZON"}
        children = {}
        for shard, lease in leases.items():
            for parent in lease.get("parentShardId", {}).get("SS", []):
                children.setdefault(parent, set()).add(shard)
        kept = [s for s in leases if not children.get(s) or not children[s] <= begun]
        self.check("one lease is deleted", len(leases) - len(kept), 1)
        call(self.dynamodb, "DynamoDB_20120810.CreateTable", {
            "TableName": table, "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": "leaseKey", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        })
        for shard in kept:
            item = {name: value for name, value in leases[shard].items() if name in KCL1_ATTRIBUTES}
            call(self.dynamodb, "DynamoDB_20120810.PutItem", {"TableName": table, "Item": item})
        self.check_import("layout of KCL 1", table)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with Servers() as servers:
        dynamodb, _ = servers.start_ministack()
        kinesis = servers.start_kinesis_local()
        for version in ("kcl2", "kcl3"):
            trial = Trial(sys.argv[1], version, servers, kinesis, dynamodb)
            trial.run()
            if version == "kcl2":
                trial.check_kcl1()
    print(f"{Trial.passed} passed, 0 failed")


if __name__ == "__main__":
    main()
