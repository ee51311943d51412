"""Breaks a fleet of ingest workers in every way, and lets the checker judge what they leave behind.

    python chaos.py SCENARIO BINARY WORK_FOLDER [--cycles N] [--seed S]

Scenarios: `fleet` (kills, pauses and faults, N cycles), `sigterm` and `sigkill` (at every failpoint), `recovery` (how long
a fleet needs after a death), `credentials` (that expire), `everything` (whatever Cognito can send, N kills, a redrive), `ambiguous`
(N commits, half of whose answers are lost), `memory` (many partitions, and an S3 that hangs). Servers come
from SYNCLAKE_TEST_S3 and SYNCLAKE_TEST_KINESIS, as `with_servers.py` sets them. The last line on stdout is a JSON object of what was seen.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import checker
from faultproxy import FaultProxy
from fleet import Payloads, Stream, Worker, lake_env, leases, make_bucket

FAILOVER = 1
# Where a worker may be killed; `gap/…` needs a stream that trims, which has a test of its own.
FAILPOINTS = [
    "read/after", "decode/after", "file/before", "file/after", "quarantine/before", "quarantine/after", "commit/before",
    "commit/after", "fence/before", "fence/after", "checkpoint/before", "checkpoint/after", "sweep/before", "sweep/after",
    "lease/create", "lease/take/before", "lease/take/after", "lease/renew/before", "lease/renew/after",
    "lease/give_back/before", "lease/give_back/after",
]

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
        timing = ["--lease-failover", failover, "--flush-age", flush]
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
        """Healthy workers read everything that is left. Returns the seconds that it took."""
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


def fleet(options):
    arena = Arena(options)
    rng = random.Random(options.seed)
    arena.fault()
    seen = collections.Counter()
    by_failpoint = collections.Counter()
    stop = threading.Event()

    def produce():
        turn = 0
        while not stop.is_set():
            arena.stream.put(10)
            turn += 1
            if turn % 60 == 0:
                arena.stream.reshard()
                seen["reshards"] += 1
            stop.wait(0.15)

    producer = threading.Thread(target=produce)
    producer.start()
    fresh = iter(range(1 << 30))

    def begin(slot):
        # Most of them come back under their old name, as in a set of named machines; the others are strangers.
        name = f"slot{slot}" if rng.random() < 0.75 else f"fresh{next(fresh)}"
        worker = arena.worker(f"slot{slot}")
        plan = {"worker": worker, "began": time.monotonic(), "life": rng.uniform(0.2, 3.5) * options.life, "paused": None}
        how = rng.random()
        failpoints = None
        if how < 0.6:
            plan["how"] = point = rng.choice(FAILPOINTS)
            failpoints = f"{point}={int(rng.choice([0, 0, 1, 3]) * options.life)}*off->1*return(kill)".replace("=0*off->", "=")
            plan["life"] = 4.0 * options.life
        elif how < 0.85:
            plan["how"] = "kill"
        elif how < 0.95:
            plan["how"] = "pause"
        else:
            plan["how"] = "terminate"
        worker.start(failpoints, ["--worker-id", name])
        return plan

    began = time.monotonic()
    plans = [begin(slot) for slot in range(3)]
    cycles = 0
    told = 0
    while cycles < options.cycles:
        time.sleep(0.02)
        now = time.monotonic()
        for slot, plan in enumerate(plans):
            worker = plan["worker"]
            age = now - plan["began"]
            if not worker.alive():
                code = worker.process.returncode
                if code == -signal.SIGKILL:
                    by_failpoint[plan["how"]] += 1
                    seen["killed"] += 1
                elif code == 0 and plan["how"] == "terminated":
                    seen["terminated"] += 1
                else:
                    # A worker may give up, with an error; the fleet goes on without it. But it must not crash.
                    seen[f"exit {code}"] += 1
                    if code not in (0, 1):
                        stop.set()
                        sys.exit(f"worker ended with {code}: {worker.log.read_text()[-3000:]}")
                cycles += 1
                plans[slot] = begin(slot)
            elif plan["paused"]:
                if now - plan["paused"] > FAILOVER + 1:
                    worker.send(signal.SIGCONT)
                    seen["zombies"] += 1
                    cycles += 1
                    plan.update(paused=None, how="kill", began=now, life=rng.uniform(1, 3))
            elif age > plan["life"]:
                if plan["how"] == "pause":
                    worker.send(signal.SIGSTOP)
                    plan["paused"] = now
                elif plan["how"] == "terminate":
                    worker.send(signal.SIGTERM)
                    plan.update(how="terminated", life=30.0, began=now)
                elif plan["how"] == "terminated":
                    stop.set()
                    sys.exit(f"SIGTERM was not obeyed in 30 s: {worker.log.read_text()[-3000:]}")
                else:
                    plan["how"] = "kill"
                    worker.send(signal.SIGKILL)
        if cycles - told >= 50:
            told = cycles
            print(f"{cycles} cycles, {arena.stream.produced} events, {now - began:.0f} s", file=sys.stderr, flush=True)
    stop.set()
    producer.join()
    for plan in plans:
        plan["worker"].kill()
    chaos_seconds = time.monotonic() - began
    arena.heal()
    drain_seconds = arena.drain()
    summary = arena.judge()
    caught = plant(arena) if options.plant else None
    return {
        "cycles": cycles, **summary, **seen, "by_failpoint": dict(sorted(by_failpoint.items())), "faults_injected": arena.fired(),
        "chaos_seconds": round(chaos_seconds), "drain_seconds": round(drain_seconds), "planted_bugs_caught": caught,
    }


def plant(arena):
    import planted
    return planted.prove(arena.objects, arena.ledger.read_text().splitlines())


def sigterm(options):
    """At every failpoint: exit 0 within 30 s, leases given back, and in the end nothing lost."""
    return each_failpoint(options, "terminate")


def sigkill(options):
    """Killed at every failpoint in turn, each time under the same name, and in the end nothing lost."""
    return each_failpoint(options, "kill")


def each_failpoint(options, action):
    arena = Arena(options, shards=2)
    arena.stream.put(30)
    arena.worker("first").start(more=["--until-idle", "1s"]).process.wait(120)
    slowest, reached = 0.0, []
    for point in FAILPOINTS:
        arena.stream.put(20)
        if point == "lease/create":
            arena.stream.reshard()
        worker = arena.worker(point.replace("/", "-"))
        worker.start(f"{point}=1*return({action})", ["--worker-id", "one"] if action == "kill" else [])
        began = time.monotonic()
        # Some points are only reached once the worker is told to stop anyway: giving a lease back is one of them.
        late = point.startswith("lease/give_back")
        deadline = began + (4.0 if late else 30.0)
        while worker.alive() and time.monotonic() < deadline:
            arena.stream.put(1)
            time.sleep(0.1)
        if worker.alive():
            if not late:
                sys.exit(f"{point} was not reached in 30 s: {worker.log.read_text()[-2000:]}")
            worker.send(signal.SIGTERM)
        code = worker.process.wait(30)
        took = time.monotonic() - began
        slowest = max(slowest, took)
        if action == "kill":
            if code != -signal.SIGKILL:
                sys.exit(f"{point}: exit {code}, not killed: {worker.log.read_text()[-2000:]}")
            reached.append(point)
            continue
        held = {k: o for k, (o, checkpoint) in arena.leases().items() if o and checkpoint != "SHARD_END"}
        if code != 0 or held:
            sys.exit(f"{point}: exit {code}, leases still held {held}: {worker.log.read_text()[-2000:]}")
        reached.append(point)
    drained = arena.drain(1)
    return {"failpoints": len(reached), "slowest_seconds": round(slowest, 1), "drain_seconds": round(drained, 1), **arena.judge()}


def recovery(options):
    """From the death of a worker to the commit that moves the last of its shards on."""
    arena = Arena(options, shards=4)
    times = []

    def until(what, holds):
        deadline = time.monotonic() + 60
        while not holds():
            if time.monotonic() > deadline:
                sys.exit(f"{what} did not come about in a minute")
            arena.stream.put(5)
            time.sleep(0.1)

    def held_by(name):
        return {shard for shard, (owner, _) in arena.leases().items() if owner == name}

    for n in range(options.cycles):
        dies, stays = f"dies{n}", f"stays{n}"
        first = arena.worker(dies, "10s", "1s").start(more=["--worker-id", dies])
        until("the first worker's share", lambda: len(held_by(dies)) == 4)
        second = arena.worker(stays, "10s", "1s").start(more=["--worker-id", stays])
        until("the second worker's share", lambda: len(held_by(stays)) == 2)
        orphaned = held_by(dies)
        first.kill()
        died = time.monotonic()
        before = positions(arena)
        until("recovery", lambda: all(positions(arena).get(shard) != before.get(shard) for shard in orphaned))
        times.append(round(time.monotonic() - died, 1))
        second.send(signal.SIGTERM)
        second.process.wait(30)
    arena.drain(1)
    return {"failover_seconds": 10, "recovery_seconds": times, **arena.judge()}


def positions(arena):
    """The committed position of every shard, from the log itself."""
    objects = checker.load_s3(f"{arena.s3}/{arena.name}/lake/sync_records/_delta_log")
    table = checker.Table({f"sync_records/_delta_log/{k}": v for k, v in objects.items()}, "sync_records", lambda *_: None)
    apps = [a for a in table.txns if a.count("/") == 2]
    return {a.split("/")[2]: checker.state_of(table.txns, a)["position"] for a in apps}


CREDENTIALS_SECONDS = 6


def credentials(options):
    """Credentials live for six seconds, and the services refuse any that are older."""
    arena = Arena(options, shards=2)
    refused, keys = collections.Counter(), set()

    def guard(headers):
        found = re.search(r"Credential=AKIA(\d+)/", headers.get("authorization", ""))
        if not found:
            refused["unsigned"] += 1
            return {"do": "error", "status": 403, "code": "AccessDenied", "json": "x-amz-target" in headers}
        keys.add(found.group(1))
        if int(found.group(1)) + CREDENTIALS_SECONDS < time.time():
            refused["expired"] += 1
            json_service = "x-amz-target" in headers
            code = "ExpiredTokenException" if json_service else "ExpiredToken"
            return {"do": "error", "status": 400, "code": code, "json": json_service}
        return None

    for proxy in arena.proxies:
        proxy.guard = guard
    script = arena.work / "credentials.py"
    script.write_text(
        "import json, time\n"
        "now = int(time.time())\n"
        f"until = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now + {CREDENTIALS_SECONDS}))\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'AKIA{now}', 'SecretAccessKey': 's', 'SessionToken': 't',"
        " 'Expiration': until}))\n"
    )
    config = arena.work / "config"
    config.write_text(f"[default]\nregion = us-east-1\ncredential_process = {sys.executable} {script}\n")
    env = {k: v for k, v in arena.env.items() if k not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    worker = arena.worker("expiring")
    worker.env = {**env, "AWS_CONFIG_FILE": str(config)}
    worker.start()
    until = time.monotonic() + 5 * CREDENTIALS_SECONDS
    while time.monotonic() < until:
        arena.stream.put(5)
        time.sleep(0.2)
        if not worker.alive():
            sys.exit(f"the worker ended with {worker.process.returncode}: {worker.log.read_text()[-2000:]}")
    moved = {k: p for k, p in positions(arena).items() if p}
    worker.send(signal.SIGTERM)
    code = worker.process.wait(30)
    for proxy in arena.proxies:
        proxy.guard = None
    arena.drain(1)
    return {"exit": code, "keys_used": len(keys), "refused": dict(refused), "shards_moved": len(moved), **arena.judge()}


def everything(options):
    """Aggregates, oversize payloads, copies and poison, three workers that are killed, and then a redrive."""
    payloads = Payloads()
    arena = Arena(options, shards=4, payloads=payloads)
    arena.args += ["--payload-hosts", payloads.host]
    rng = random.Random(options.seed)
    poison = "poison=return(POISON)"
    arena.fault()
    workers = [arena.worker(f"slot{n}") for n in range(3)]
    for n, worker in enumerate(workers):
        worker.start(poison, ["--worker-id", f"slot{n}"])
    killed = 0
    while killed < options.cycles:
        arena.stream.put(30)
        time.sleep(rng.uniform(0.2, 0.8))
        if killed % 10 == 5:
            arena.stream.reshard()
        slot = rng.randrange(3)
        workers[slot].kill()
        point = rng.choice(["quarantine/after", "commit/after", "commit/before", "file/after", "read/after"])
        workers[slot].start(f"{poison};{point}=1*return(kill)" if rng.random() < 0.3 else poison, ["--worker-id", f"slot{slot}"])
        killed += 1
    for worker in workers:
        worker.kill()
    arena.heal()
    arena.drain(failpoints=poison)
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("AWS_")}, **arena.env}
    redrive = [arena.binary, "redrive", "--lake", arena.lake]
    for point in ("apart/after", "move/after"):
        subprocess.run(redrive, env={**env, "FAILPOINTS": f"redrive/{point}=1*return(kill)"}, capture_output=True, check=False)
    moved = json.loads(subprocess.run(redrive, env=env, capture_output=True, check=True).stdout)
    again = json.loads(subprocess.run(redrive, env=env, capture_output=True, check=True).stdout)
    summary = arena.judge()
    sql = "select identity_pool_id, identity_id, dataset_name, key, value, sync_count from current_state"
    query = [f"{arena.binary}-query", "--lake", arena.lake, "--format", "ndjson", "-c", sql]
    state = subprocess.run(query, env=env, capture_output=True, check=True, text=True).stdout
    state = {tuple(row[:4]): tuple(row[4:]) for row in (list(json.loads(line).values()) for line in state.splitlines())}
    secret = payloads.SECRET.encode()
    leaks = [path for path, body in arena.objects.items() if secret in body]
    leaks += [str(log) for log in arena.work.glob("*.log") if secret in log.read_bytes()]
    truth = arena.stream.truth()
    return {
        "killed": killed, "events": arena.stream.events, "poisoned": arena.stream.poisoned, "payloads": len(payloads.contents), "live_keys": len(truth), "state_is_truth": state == truth,
        "moved_last": moved["moved"], "moved_again": again["moved"], "left": again["left"], "leaks": leaks, **summary,
    }


def ambiguous(options):
    """Four writers commit N times in all while half of the answers are lost: each commit is in the log once."""
    writers, each = 4, options.cycles // 4
    s3 = os.environ["SYNCLAKE_TEST_S3"]
    bucket = f"chaos-ambiguous-{os.getpid()}"
    make_bucket(s3, bucket)
    proxy = FaultProxy(int(s3.rsplit(":", 1)[1]), options.seed).start()
    proxy.rules = [{"name": "ambiguous commit", "match": S3_FAULTS[0]["match"], "do": "reset_after", "p": 0.5}]
    bench = pathlib.Path(options.binary).parent / "examples" / "commit_bench"
    env = {**os.environ, **lake_env(proxy.url, proxy.url, proxy.url)}
    done = subprocess.run(
        [bench, f"s3://{bucket}/lake", str(writers), str(each)], env=env, capture_output=True, text=True, check=True,
    )
    faults = []
    objects = checker.load_s3(f"{s3}/{bucket}/lake")
    table = checker.Table(objects, "sync_records", lambda invariant, text: faults.append(f"{invariant} {text}"))
    checker.check_shard_steps(table, lambda add: {}, {}, lambda invariant, text: faults.append(f"{invariant} {text}"))
    numbers = {app: value for app, value in table.txns.items() if app.count("/") == 2}
    if set(numbers.values()) != {each + 1} or len(numbers) != writers or len(table.live) != writers * each:
        faults.append(f"{numbers}, {len(table.live)} files: not every commit is there once")
    return {**json.loads(done.stdout), "ambiguous": proxy.fired["ambiguous commit"], "faults": len(faults), "told": faults[:5]}


def memory(options):
    """A thousand partitions are open at once; and S3 hangs while the stream goes on."""
    budget_kib = 64 * 1024
    work = pathlib.Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    events, lake = work / "events.ndjson", work / "lake"
    subprocess.run(
        [options.binary, "simulate", "--events", "120000", "--pools", "100", "--identities", "2000", "--days", "12",
         "--reorder", "100000", "--value-chars", "200", "--out", str(events)], check=True, stderr=subprocess.DEVNULL,
    )
    run = subprocess.Popen(
        [options.binary, "ingest", "--source", f"file:{events}", "--lake", str(lake), "--memory", "64MiB"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    many = peak_of(run)
    partitions = len({p.parent for p in lake.rglob("*.parquet") if "sync_records" in str(p)})
    arena = Arena(options, shards=2)
    worker = arena.worker("stalled", flush="500ms").start()
    while not positions_known(arena):
        arena.stream.put(20)
        time.sleep(0.2)
    arena.proxies[0].rules = [{"match": r"^PUT .*\.parquet", "do": "delay", "seconds": 15, "times": 2}]
    until = time.monotonic() + 15
    stalled = 0
    while time.monotonic() < until:
        arena.stream.put(400)
        stalled = max(stalled, worker.rss_peak_kib())
    arena.heal()
    worker.send(signal.SIGTERM)
    code = worker.process.wait(40)
    drained = arena.drain(1)
    return {
        "budget_mib": 64, "partitions": partitions, "many_partitions_peak_mib": many // 1024,
        "stalled_s3_peak_mib": stalled // 1024, "stalled_exit": code, "drain_seconds": round(drained), **arena.judge(),
        "budget_kib": budget_kib,
    }


def positions_known(arena):
    try:
        return any(p for p in positions(arena).values())
    except OSError:
        return False


def peak_of(process):
    peak = 0
    while process.poll() is None:
        try:
            text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak, *(int(l.split()[1]) for l in text.splitlines() if l.startswith("VmHWM"))])
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"ingest ended with {process.returncode}")
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scenarios = {"fleet": fleet, "sigterm": sigterm, "sigkill": sigkill, "recovery": recovery, "credentials": credentials, "everything": everything, "ambiguous": ambiguous, "memory": memory}
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("binary")
    parser.add_argument("work")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--life", type=float, default=1, help="let workers of `fleet` live this many times longer")
    parser.add_argument("--ambiguous", type=float, default=0.25, help="share of commits whose answer is lost")
    parser.add_argument("--plant", action="store_true", help="prove the checker on the lake that is left")
    options = parser.parse_args()
    print(json.dumps({"scenario": options.scenario, "seed": options.seed, **scenarios[options.scenario](options)}))


if __name__ == "__main__":
    main()
