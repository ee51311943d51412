"""The services of a chaos run (stream, lake, lease table) and the faults to inject into each."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time

import checker
from faultproxy import FaultProxy
from fleet import Stream, Worker, lake_env, leases, make_bucket

FAILOVER = 1
# Failpoints at which a worker may be killed. `gap/…` needs a stream that trims and has a test of its own.
FAILPOINTS = [
    "read/after", "decode/after", "file/before", "file/after", "quarantine/before", "quarantine/after", "commit/before",
    "commit/after", "fence/before", "fence/after", "checkpoint/before", "checkpoint/after", "sweep/before", "sweep/after",
    "lease/create", "lease/take/before", "lease/take/after", "lease/renew/before", "lease/renew/after",
    "lease/give_back/before", "lease/give_back/after",
]
# Failpoints of the care beside an ingest. Of a fleet, only the worker that has the turn comes by.
CARE_FAILPOINTS = ["refresh/before", "refresh/after", "compact/written", "compact/before", "compact/after"]

S3_FAULTS = [
    {"name": "ambiguous commit", "match": r"^PUT .*_delta_log/\d{20}\.json", "do": "reset_after", "p": 0.25},
    {"name": "ambiguous put", "match": "^PUT ", "do": "reset_after", "p": 0.02},
    {"name": "false 412 on commit", "match": r"^PUT .*_delta_log/\d{20}\.json", "do": "error", "status": 412, "code": "PreconditionFailed", "p": 0.02},
    {"name": "409", "match": "^PUT ", "do": "error", "status": 409, "code": "ConditionalRequestConflict", "p": 0.01},
    {"name": "503", "do": "error", "status": 503, "code": "SlowDown", "p": 0.004},
    {"name": "500", "do": "error", "status": 500, "code": "InternalError", "p": 0.004},
    {"name": "reset", "do": "reset_before", "p": 0.004},
    {"name": "cut answer", "match": "^GET ", "do": "cut", "bytes": 300, "p": 0.004},
    {"name": "cut upload", "match": "^PUT ", "do": "truncate_upload", "bytes": 500, "p": 0.01},
    {"name": "late upload", "match": "^PUT ", "do": "delay", "seconds": 0.5, "p": 0.01},
    {"name": "slow answer", "match": "^GET ", "do": "slow", "rate": 200_000, "p": 0.004},
]
KINESIS_FAULTS = [
    {"name": "throttled", "match": "GetRecords", "do": "error", "status": 400, "code": "ProvisionedThroughputExceededException", "json": True, "p": 0.03},
    {"name": "expired iterator", "match": "GetRecords", "do": "error", "status": 400, "code": "ExpiredIteratorException", "json": True, "p": 0.02},
    {"name": "kinesis 500", "do": "error", "status": 500, "code": "InternalFailureException", "json": True, "p": 0.01},
    {"name": "limit", "match": "ListShards", "do": "error", "status": 400, "code": "LimitExceededException", "json": True, "p": 0.1},
    {"name": "kinesis answer lost", "do": "reset_after", "p": 0.01},
    {"name": "kinesis answer cut", "match": "GetRecords", "do": "cut", "bytes": 400, "p": 0.01},
]
DYNAMODB_FAULTS = [
    {"name": "lease answer lost", "match": "UpdateItem|PutItem", "do": "reset_after", "p": 0.03},
    {"name": "dynamodb 500", "do": "error", "status": 500, "code": "InternalServerError", "json": True, "p": 0.02},
    {"name": "dynamodb throttled", "do": "error", "status": 400, "code": "ThrottlingException", "json": True, "p": 0.02},
]


class Arena:
    """A stream, a lake, a lease table, and a proxy in front of each service."""

    def __init__(self, options, shards=8, payloads=None):
        self.work = pathlib.Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.binary, self.ambiguous = options.binary, options.ambiguous
        self.s3, kinesis = os.environ["SYNCLAKE_TEST_S3"], os.environ["SYNCLAKE_TEST_KINESIS"]
        port = lambda url: int(url.rsplit(":", 1)[1])
        self.name = f"chaos-{options.scenario}-{os.getpid()}"
        make_bucket(self.s3, self.name)
        self.lake = f"s3://{self.name}/lake"
        self.ledger = self.work / "ledger.ndjson"
        self.stream = Stream(kinesis, self.name, shards, self.ledger, options.seed, payloads)
        self.proxies = [FaultProxy(port(self.s3), 1), FaultProxy(port(kinesis), 2), FaultProxy(port(self.s3), 3)]
        for proxy in self.proxies:
            proxy.start()
        self.env = lake_env(*(p.url for p in self.proxies))
        self.args = [
            "--source", f"kinesis:{self.name}", "--lake", self.lake, "--lease-table", f"dynamodb:{self.name}",
            "--memory", "64MiB",
        ]

    def worker(self, name, failover=f"{FAILOVER}s", flush="300ms"):
        timing = ["--lease-failover", failover, "--flush-interval", flush]
        return Worker(self.binary, name, [*self.args, *timing], self.env, self.work / f"{name}.log")

    def fault(self):
        for proxy, rules in zip(self.proxies, (S3_FAULTS, KINESIS_FAULTS, DYNAMODB_FAULTS)):
            proxy.rules = [dict(rule) for rule in rules]
        self.proxies[0].rules[0]["p"] = self.ambiguous

    def heal(self):
        for proxy in self.proxies:
            proxy.heal()

    def fired(self):
        return dict(sum((p.fired for p in self.proxies), collections.Counter()))

    def leases(self):
        return leases(self.s3, self.name)

    def drain(self, workers=2, failpoints=None):
        """Lets healthy workers read everything that is left; returns the seconds that it took."""
        began = time.monotonic()
        fleet = [self.worker(f"drain{n}") for n in range(workers)]
        for worker in fleet:
            worker.start(failpoints, ["--until-idle", "3s"])
        for worker in fleet:
            code = worker.process.wait(180)
            if code != 0:
                sys.exit(f"{worker.name} ended with {code}: {pathlib.Path(worker.log).read_text()[-2000:]}")
        return time.monotonic() - began

    def judge(self):
        self.stream.close()
        objects = checker.load_s3(f"{self.s3}/{self.name}/lake")
        faults, summary = checker.check(objects, self.ledger.read_text().splitlines())
        for invariant, text in faults[:30]:
            print(f"{invariant} {text}", file=sys.stderr)
        env = {**{k: v for k, v in os.environ.items() if not k.startswith("AWS_")}, **self.env}
        verified = subprocess.run(
            [self.binary, "verify", "--lake", self.lake, "--format", "json"], env=env, capture_output=True, text=True,
        )
        if verified.returncode != 0:
            print(f"synclake verify: {verified.stderr.strip()}\n{verified.stdout[:2000]}", file=sys.stderr)
        summary["verify_exit"] = verified.returncode
        self.objects = objects
        return summary
