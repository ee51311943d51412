"""Breaks a fleet of ingest workers in every way, then checks the lake that they leave behind.

    python chaos.py SCENARIO BINARY WORK_FOLDER [--cycles N] [--seed S]

Scenarios:
  fleet             kills, pauses and faults, N cycles
  sigterm, sigkill  the signal at every failpoint
  recovery          time that a fleet needs after the death of a worker, N times
  credentials       credentials that expire
  everything        every kind of record that Cognito can send, N kills, then a redrive
  simulated         the same with `synclake simulate` as producer
  ambiguous         N commits, half of whose answers are lost
  lineage           shards split and merge while the services are slow
  memory            many open partitions, and an S3 that hangs

The servers come from SYNCLAKE_TEST_S3 and SYNCLAKE_TEST_KINESIS, as `with_servers.py` sets them. The last line on
stdout is a JSON object with the results.
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
from arena import CARE_FAILPOINTS, FAILOVER, FAILPOINTS, S3_FAULTS, Arena
from contents import everything, simulated
from faultproxy import FaultProxy
from fleet import lake_env, make_bucket

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
        # Most workers restart under their old name, as on a set of named machines; the others get a new name.
        name = f"slot{slot}" if rng.random() < 0.75 else f"fresh{next(fresh)}"
        worker = arena.worker(f"slot{slot}")
        plan = {"worker": worker, "began": time.monotonic(), "life": rng.uniform(0.2, 3.5) * options.life, "paused": None}
        how = rng.random()
        failpoints = None
        if how < 0.6:
            plan["how"] = point = rng.choice(FAILPOINTS + CARE_FAILPOINTS)
            failpoints = f"{point}={int(rng.choice([0, 0, 1, 3]) * options.life)}*off->1*return(kill)".replace("=0*off->", "=")
            plan["life"] = 4.0 * options.life
        elif how < 0.85:
            plan["how"] = "kill"
        elif how < 0.95:
            plan["how"] = "pause"
        else:
            plan["how"] = "terminate"
        worker.start(failpoints, ["--worker-id", name, "--care-every", "1s"])
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
                    # A worker may end with an error, and the fleet goes on without it. But it must not crash.
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
    """Terminates a worker at every failpoint: it exits with 0 in 30 s, gives its leases back, and loses no record."""
    return each_failpoint(options, "terminate")


def sigkill(options):
    """Kills a worker at every failpoint in turn, each time under the same name; no record is lost."""
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
        # Some failpoints are reached only after SIGTERM: giving a lease back is one of them.
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
    """Measures the time from the death of a worker to the commit that moves the last of its shards forward."""
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
    """Returns the committed position of every shard, from the log itself."""
    objects = checker.load_s3(f"{arena.s3}/{arena.name}/lake/sync_records/_delta_log")
    table = checker.Table({f"sync_records/_delta_log/{k}": v for k, v in objects.items()}, "sync_records", lambda *_: None)
    apps = [a for a in table.txns if a.count("/") == 2]
    return {a.split("/")[2]: checker.state_of(table.txns, a)["position"] for a in apps}


CREDENTIALS_SECONDS = 6


def credentials(options):
    """Uses credentials that live for six seconds; the services refuse expired ones."""
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


def ambiguous(options):
    """Lets four writers commit N times in all while half of the answers are lost; the log holds each once."""
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


def lineage(options):
    """Checks that a worker with --until-idle has read everything when it stops.

    Shards split and merge while the services are slower than the idle time. Then another worker is dead for less than
    the failover time, or dies right after it ended a shard.
    """
    arena = Arena(options, shards=2)
    arena.proxies[1].rules = [{"name": "slow listing", "match": "ListShards", "do": "delay", "seconds": 2}]
    arena.proxies[2].rules = [{"name": "slow leases", "match": "Scan", "do": "delay", "seconds": 0.6}]
    left = {}

    def done(name, worker):
        code = worker.process.wait(120)
        known = positions(arena)
        left[name] = code or sum((known.get(shard) or 0) < last for shard, last in arena.stream.last.items())

    for name in ("alone", "in a fleet"):
        arena.stream.put(30)
        for _ in range(2):
            arena.stream.reshard()
            arena.stream.put(30)
        worker = arena.worker(name.replace(" ", "-"))
        if name == "alone":
            at = worker.args.index("--lease-table")
            del worker.args[at : at + 2]
        done(name, worker.start(more=["--until-idle", "400ms"]))
    arena.heal()

    def until(what, holds, worker):
        deadline = time.monotonic() + 60
        while not holds():
            if time.monotonic() > deadline or not worker.alive():
                sys.exit(f"{what} did not come about: {worker.log.read_text()[-2000:]}")
            arena.stream.put(1)
            time.sleep(0.05)

    is_held = lambda: {s["ShardId"] for s in arena.stream.open_shards()} <= {k for k, (o, _) in arena.leases().items() if o}
    dies = arena.worker("dies", "4s").start()
    until("a reader for every shard", is_held, dies)
    dies.kill()
    arena.stream.put(60)
    done("after a death", arena.worker("after", "4s").start(more=["--until-idle", "400ms"]))

    # A worker ends a shard and dies before any other worker can know of the children.
    ends = arena.worker("ends").start("lease/create=1*return(kill)", ["--worker-id", "ends"])
    until("a reader for every shard", is_held, ends)
    stays = arena.worker("stays").start(more=["--worker-id", "stays", "--until-idle", "3s"])
    owners = lambda: {o for o, checkpoint in arena.leases().values() if o and checkpoint != "SHARD_END"}
    until("two readers", lambda: owners() == {"ends", "stays"}, stays)
    while ends.alive():
        arena.stream.reshard()
        arena.stream.put(20)
        time.sleep(1)
    arena.stream.put(60)
    done("after an end", stays)
    return {"shards_left": left, "faults_injected": arena.fired(), **arena.judge()}


def memory(options):
    """Measures peak memory with a thousand open partitions, and with an S3 that hangs while the stream goes on."""
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
    scenarios = {"fleet": fleet, "sigterm": sigterm, "sigkill": sigkill, "recovery": recovery, "credentials": credentials, "everything": everything, "simulated": simulated, "ambiguous": ambiguous, "lineage": lineage, "memory": memory}
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
