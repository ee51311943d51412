"""Lets two commands that maintain a lake work at the same time, kills them, and checks the lake that they leave.

    python pairs.py SYNCLAKE FOLDER [--runs N] [--seed S] [--only RUN] [--jobs N] [--plant]

A run makes a small lake of simulated events, in several ingests, some of them with a refresh, an extract, consumers that
are behind, manifests and records that cannot be decoded. Then two actors work on it at once: compact, ingest, refresh,
extract with deliver, delta-rs (OPTIMIZE), vacuum, care, and retention. One or both are killed, at a failpoint or at a
random time, and run again until they succeed. Meanwhile a reader counts the rows by DataFusion, delta-rs and DuckDB.
In the end the checker, `synclake verify`, and a second lake judge, into which the same files came at once (pair_checks.py).

--plant proves the checks: it breaks the lake of some runs by hand, and each bug must be found by the checks that it
concerns. SYNCLAKE needs the feature `failpoints`. The last line on stdout is a JSON object with the counts. The folder of a
run with a fault is kept.
"""

import argparse
import collections
import concurrent.futures
import datetime
import hashlib
import json
import multiprocessing
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import arena
import pair_checks
from contents import truth_of
from other_writers import Conflict, DeltaRs
from pair_checks import AHEAD_SECONDS, END_SECONDS, GONE, PLANTS, Keeper, Reader, environment

START = datetime.date(2026, 1, 1)
DAYS = 3
PARTS = 7
# Parts that an actor ingests, if there is one.
PARTS_BESIDE = 3
# Passes of an actor whose partner still works.
PASSES_MAX = 6
# Tries of a command that gives way to a vacuum, or is killed.
TRIES_MAX = 12

PAIRS = [
    "compact+compact", "compact+ingest", "compact+refresh", "compact+extract", "compact+foreign", "care+care", "care+ingest",
    "expire+compact", "expire+ingest", "vacuum+compact", "vacuum+ingest", "vacuum+refresh", "vacuum+extract",
    "vacuum+foreign", "vacuum+care", "vacuum+expire", "vacuum+vacuum",
]
FILE = ["file/before", "file/staged", "file/after"]
COMMIT = ["commit/before", "commit/after"]
MERGE = ["compact/written", "compact/before", "compact/after"]
REFRESH = ["refresh/before", "refresh/after"]
MANIFEST = ["manifest/written", "manifest/record"]
KILL_AT = {
    "compact": MERGE + FILE + COMMIT,
    "ingest": [point for point in arena.FAILPOINTS if not point.startswith("lease/")] + ["file/staged"],
    "refresh": REFRESH + FILE + COMMIT,
    "extract": ["extract/planned", "extract/committed", "consumer/written"] + FILE + COMMIT,
    "vacuum": ["vacuum/batch"],
    "care": REFRESH + MERGE + FILE + ["vacuum/batch"],
    "expire": ["expire/before", "expire/after"] + REFRESH + MERGE,
}
# Failpoints that a run may come by more than once.
REPEATED = {*FILE, *COMMIT, *MERGE, *MANIFEST, "vacuum/batch", "quarantine/before", "quarantine/after"}
ANY_TIME = "any time"


def plans(seed, runs):
    """Yields what happens in each run. A plan does not depend on the number of runs."""
    rng = random.Random(seed)
    chosen = collections.Counter()

    def kills(actor, has_manifests):
        return [kill(actor, has_manifests) for _ in range(rng.choice([1, 1, 2]))]

    def kill(actor, has_manifests):
        points = KILL_AT[actor] + (MANIFEST if has_manifests and actor not in ("ingest", "extract") else []) + [ANY_TIME]
        point = min(rng.sample(points, len(points)), key=chosen.__getitem__)
        chosen[point] += 1
        return [point, rng.choice([0, 0, 0, 1, 2, 4]) if point in REPEATED else 0]

    for number in range(runs):
        pair = PAIRS[number % len(PAIRS)]
        actors = pair.split("+")
        is_expiring, has_manifests = "expire" in actors, rng.random() < 0.4
        mortal = [slot for slot in (0, 1) if actors[slot] != "foreign"]
        victims = mortal if rng.random() < 0.5 else [rng.choice(mortal)]
        yield {
            "number": number, "seed": rng.randrange(1 << 32), "pair": pair, "actors": actors, "manifests": has_manifests,
            "kills": [kills(actor, has_manifests) if slot in victims else [] for slot, actor in enumerate(actors)],
            "poison": rng.choice([0.0, 0.03]), "refresh": rng.random() < 0.6,
            "consumers": "extract" in actors or rng.random() < 0.5, "extracts": "extract" in actors or rng.random() < 0.4,
            "first_date": str(START + datetime.timedelta(rng.choice([1, 2]))) if is_expiring else None,
            "target": rng.choice(["24KiB", "40KiB", "64KiB", "128MiB"]), "delay": rng.choice([0.0, 0.0, 0.1, 0.3]),
        }


class Failed(Exception):
    """A command that ended with an error which it should not have."""


class Actor(threading.Thread):
    """Runs its commands until they succeed, and again while its partner has not done so."""

    def __init__(self, run, slot):
        super().__init__(daemon=True)
        self.owner, self.slot, self.actor = run, slot, run.plan["actors"][slot]
        self.kills = [list(kill) for kill in run.plan["kills"][slot]]
        self.rng = random.Random(run.plan["seed"] + 1 + slot)
        self.done, self.raised, self.partner = threading.Event(), None, None

    def run(self):
        try:
            if self.slot == 1:
                time.sleep(self.owner.plan["delay"])
            for number in range(PASSES_MAX):
                for step in self.owner.steps(self.actor, self.rng):
                    self.until_done(step)
                self.done.set()
                if self.partner.done.is_set():
                    break
        except BaseException as error:
            self.raised = error
        finally:
            self.done.set()

    def until_done(self, step):
        if callable(step):
            return step()
        for _ in range(TRIES_MAX):
            failpoints, after = self.owner.clock(step), None
            kill = self.kills[0] if self.kills else None
            if kill and kill[0] == ANY_TIME:
                after = self.rng.uniform(0.01, 0.5)
            elif kill:
                skipped = f"{kill[1]}*off->" if kill[1] else ""
                failpoints = ";".join(filter(None, [failpoints, f"{kill[0]}={skipped}1*return(kill)"]))
            code, _, error = self.owner.call(step, failpoints, after)
            if code == 0:
                return None
            if code == -signal.SIGKILL:
                self.owner.killed[kill[0]] += 1
                self.kills.pop(0)
            elif self.owner.may_miss and GONE.search(error):
                self.owner.seen[f"{step[0]} gave way"] += 1
            else:
                raise Failed(f"{' '.join(step)}: exit {code}: {error[-1500:]}")
        raise Failed(f"{' '.join(step)}: not done after {TRIES_MAX} tries")


class Run:
    """One lake, its twin, two actors and a reader."""

    def __init__(self, synclake, folder, plan):
        self.synclake, self.plan = synclake, plan
        self.query_program = str(pathlib.Path(synclake).with_name("synclake-query"))
        self.folder = pathlib.Path(folder).resolve() / f"run-{plan['number']}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.parts, self.feed = self.folder / "parts", self.folder / "feed"
        self.lake, self.twin = self.folder / "lake", self.folder / "twin"
        for folder in (self.parts, self.lake):
            folder.mkdir(parents=True)
        self.rng = random.Random(plan["seed"])
        self.killed, self.seen = collections.Counter(), collections.Counter()
        self.may_miss = "vacuum" in plan["actors"] or plan["pair"] == "care+care"
        self.last_day = str(START + datetime.timedelta(DAYS))
        self.consumers = ["slow", "fast"] if plan["consumers"] else []
        self.keeper = Keeper(self.lake, self.folder / "kept")

    def call(self, args, failpoints=None, kill_after=None, lake=None):
        """Runs a command; returns its exit code, its answer and its errors."""
        command = [self.synclake, *args, "--quiet", "--lake", str(lake or self.lake)]
        child = subprocess.Popen(
            command, env=environment(failpoints), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        try:
            answer, error = child.communicate(timeout=kill_after or 120)
        except subprocess.TimeoutExpired:
            child.kill()
            answer, error = child.communicate()
            if not kill_after:
                raise Failed(f"{' '.join(args)} did not end in two minutes: {error[-1500:]}") from None
        with open(self.folder / "commands.log", "a") as log:
            how = failpoints or kill_after or ""
            log.write(f"{time.time():.3f} {' '.join(args)} [{how}] exit {child.returncode} {error}\n")
        self.seen[args[0]] += 1
        if child.returncode == 0 and args[0] in ("compact", "care", "vacuum"):
            self.count(args[0], json.loads(answer))
        return child.returncode, answer, error

    def count(self, command, report):
        """Counts what a command did."""
        steps = report if command == "care" else {command: report}
        if merged := steps.get("compact"):
            self.seen["files merged"] += merged["files_removed"]
            self.seen["groups of compact that another one changed"] += merged["groups_changed"]
        if deleted := steps.get("vacuum"):
            self.seen["files vacuumed"] += sum(table["files"] for table in deleted["tables"].values())
        if left := steps.get("expire"):
            self.seen["files expired"] += left["sync_records"]["files"] + left["daily_state"]["files"]

    def do(self, *args, lake=None, failpoints=None):
        code, answer, error = self.call(args, failpoints, lake=lake)
        if code != 0:
            raise Failed(f"{' '.join(args)}: exit {code}: {error[-1500:]}")
        return answer

    def clock(self, step):
        """Lets files that were removed be old for the commands that delete such files."""
        is_vacuum = step[0] == "vacuum" or (step[0] == "care" and self.may_miss)
        return f"store/clock=return({AHEAD_SECONDS})" if is_vacuum else None

    def ingest(self, part):
        return ["ingest", "--care", "off", "--source", f"file:{self.parts / f'{part}.ndjson'}"]

    def deliver(self, consumer):
        return ["deliver", "--consumer", consumer, "--out", str(self.feed / consumer), "--format", "parquet"]

    def steps(self, actor, rng):
        """Returns the commands of an actor."""
        if actor == "compact":
            return [["compact", "--target-size", self.plan["target"]]]
        if actor == "ingest":
            if rng.random() < 0.3:
                return [["ingest", "--care", "off", "--source", f"file:{self.parts}"]]
            return [self.ingest(part) for part in range(PARTS - PARTS_BESIDE, PARTS)]
        if actor == "extract":
            day = str(START + datetime.timedelta(rng.randrange(DAYS)))
            return [["extract", "--date", day], *map(self.deliver, self.consumers)]
        if actor == "foreign":
            return [lambda: self.optimize(rng)]
        if actor == "vacuum" or (actor == "care" and self.may_miss):
            return [[actor, "--retain", "1h"]]
        return [["care"]] if actor in ("care", "expire") else [[actor]]

    def optimize(self, rng):
        """Lets delta-rs merge and sort the files of every table."""
        writer = DeltaRs(self.lake)
        tables = ("sync_records", "state", "daily_state", "quarantine")
        deeds = [(what, table) for what in ("compact", "z_order", "checkpoint") for table in tables]
        for what, table in rng.sample(deeds, 4) + [("compact", "sync_records")]:
            try:
                self.seen[f"delta-rs {what} {table}"] += writer.do(what, table, rng)
            except Conflict:
                self.seen[f"delta-rs {what} conflicted"] += 1

    def simulate(self):
        """Writes the parts, the ledger of what they hold, and the number of live keys."""
        events, oracle = self.folder / "events.ndjson", self.folder / "oracle.ndjson"
        subprocess.run([
            self.synclake, "simulate", "--quiet", "--seed", str(self.plan["seed"] % 100_000), "--events", "220",
            "--days", str(DAYS), "--start", str(START), "--identities", "25", "--pools", "2", "--reorder", "40",
            "--late", "0.03", "--bulk-copies", "0.03", "--dataset-removals", "0.02", "--poison", str(self.plan["poison"]),
            "--out", str(events), "--oracle", str(oracle),
        ], check=True, env=environment(), stdout=subprocess.DEVNULL)
        self.keys = sum(1 for _ in open(oracle, "rb"))
        lines = events.read_bytes().splitlines(keepends=True)
        self.ledger, first_lines, begin = [], {lines[0]}, 0
        for part in range(PARTS):
            end = len(lines) * (part + 1) // PARTS
            # A file is known by its first line: it must be an event, and no other file may begin with it.
            is_first = lambda line: line.startswith(b'{"') and b'"syncCount"' in line and line not in first_lines
            while end < len(lines) and not is_first(lines[end]):
                end += 1
            chunk = lines[begin:end]
            first_lines |= set(lines[end:end + 1])
            (self.parts / f"{part}.ndjson").write_bytes(b"".join(chunk))
            first_line = chunk[0].rstrip(b"\r\n")
            shard, offset = f"file-{hashlib.sha256(first_line).hexdigest()[:16]}", 0
            for line in chunk:
                offset += len(line)
                entry = {"shard": shard, "sequence_number": str(offset), **truth_of(line.rstrip(b"\r\n"), self.folder)}
                self.ledger.append(json.dumps(entry))
            self.ledger.append(json.dumps({"shard": shard, "parents": []}))
            begin = end

    def prepare(self):
        """Makes the twin, and the lake as the actors find it."""
        self.do("ingest", "--care", "off", "--source", f"file:{self.parts}", lake=self.twin)
        beside = PARTS_BESIDE if "ingest" in self.plan["actors"] else 0
        is_worn = "vacuum" in self.plan["actors"]
        for part in range(PARTS - beside):
            self.do(*self.ingest(part))
            for consumer in self.consumers:
                if consumer == "fast" or part == 0:
                    self.do(*self.deliver(consumer))
            if part == 1 and (self.plan["refresh"] or is_worn):
                self.do("refresh")
            if part == 2 and self.plan["extracts"]:
                self.do("extract", "--date", str(START), "--no-refresh")
            if part == 2 and self.plan["manifests"]:
                self.do("manifest")
            if part == 2 and is_worn:
                # There must be something to delete.
                self.do("compact", "--target-size", self.plan["target"])
                self.do("refresh")
        if self.plan["first_date"]:
            today = datetime.datetime.now(datetime.timezone.utc).date()
            retain = f"{(today - datetime.date.fromisoformat(self.plan['first_date'])).days}d"
            for table in ["sync_records"] + ["daily_state"] * self.plan["extracts"]:
                self.do("policy", "--table", table, "--retain", retain)

    def rows(self, lake):
        where = f" where event_date >= '{self.plan['first_date']}'" if self.plan["first_date"] else ""
        statement = f"select count(*) as rows from sync_records{where}"
        code, lines, error = pair_checks.query(self.query_program, lake, [statement])
        if code != 0:
            raise Failed(f"count the rows of {lake}: exit {code}: {error}")
        return json.loads(lines[0])["rows"]

    def act(self):
        actors = [Actor(self, slot) for slot in (0, 1)]
        actors[0].partner, actors[1].partner = actors[1], actors[0]
        for actor in actors:
            actor.start()
        for actor in actors:
            actor.join()
        for actor in actors:
            if actor.raised:
                raise actor.raised
            self.seen["kills not reached"] += len(actor.kills)

    def finish(self):
        """Brings the lake to an end that can be compared with the twin."""
        for consumer in self.consumers:
            self.do(*self.deliver(consumer))
        if self.plan["extracts"]:
            for lake in (self.lake, self.twin):
                self.do("extract", "--date", self.last_day, lake=lake)
        if self.plan["first_date"]:
            self.do("care")
        elif self.plan["refresh"]:
            self.do("refresh")

    def end(self, planted=None):
        self.keeper.look()
        late = f"store/clock=return({END_SECONDS})"
        report = json.loads(self.do("vacuum", "--retain", "1h", "--format", "json", failpoints=late))
        if planted and planted[1] == "after":
            pair_checks.plant(self, planted[2])
        return pair_checks.judge(self, report)

    def execute(self, planted=None):
        """Returns the faults, and numbers for the summary."""
        self.simulate()
        self.prepare()
        low, high = self.rows(self.lake), self.rows(self.twin)
        reader = Reader(self.query_program, self.lake, low, high, self.keys, self.plan["first_date"], self.may_miss)
        self.keeper.look()
        self.keeper.start()
        reader.start()
        faults, numbers = [], {"rows": high}
        try:
            self.act()
            if planted and planted[1] == "before":
                pair_checks.plant(self, planted[2])
            self.finish()
        except Failed as failed:
            faults.append(("command", str(failed)))
        faults += reader.end()
        self.keeper.stopped.set()
        self.keeper.join()
        numbers["readings"] = dict(reader.readings)
        if "foreign" in self.plan["actors"] and (found := pair_checks.unnoticed_compactions(self)):
            # The rows are doubled, which the other checks would only repeat.
            return [*faults, ("moved twice", f"OPTIMIZE of delta-rs took no notice of a compaction: {found}")], numbers
        try:
            found, more = self.end(planted)
            faults += found
            numbers.update(more)
        except Failed as failed:
            faults.append(("command", str(failed)))
        return faults, numbers


def one(synclake, folder, plan, planted=None):
    """Makes a run in a process of its own. Returns its result."""
    began = time.monotonic()
    run = Run(synclake, folder, plan)
    try:
        faults, numbers = run.execute(planted and PLANTS[planted])
    except Exception:
        faults, numbers = [("harness", traceback.format_exc())], {}
    if not faults or planted:
        shutil.rmtree(run.folder)
    return {
        "plan": plan, "faults": faults, "numbers": numbers, "killed": dict(run.killed), "seen": dict(run.seen),
        "folder": str(run.folder), "seconds": time.monotonic() - began,
    }


def tell(result, outcome):
    plan = result["plan"]
    killed = ", ".join(f"{point} {count}" for point, count in result["killed"].items()) or "nobody"
    readings = sum(result["numbers"].get("readings", {}).values())
    text = f"run {plan['number']} {plan['pair']}: {result['seconds']:.1f} s, killed {killed}; {readings} readings; {outcome}"
    print(text, file=sys.stderr, flush=True)


def summary(results, options, seconds):
    total = lambda name: sum((collections.Counter(r["numbers"].get(name, {})) for r in results), collections.Counter())
    number = lambda name: sum(r["numbers"].get(name, 0) for r in results)
    killed = sum((collections.Counter(r["killed"]) for r in results), collections.Counter())
    seen = sum((collections.Counter(r["seen"]) for r in results), collections.Counter())
    faulty = [r for r in results if r["faults"]]
    return {
        "seed": options.seed, "runs": len(results), "faults": len(faulty), "seconds": round(seconds),
        "by_pair": dict(sorted(collections.Counter(r["plan"]["pair"] for r in results).items())),
        "kills": killed.total(), "by_failpoint": dict(sorted(killed.items())), "seen": dict(sorted(seen.items())),
        "readings": dict(sorted(total("readings").items())),
        **{name: number(name) for name in ("records", "rows", "versions", "moves", "left_for_later")},
        "faulty": [{"run": r["plan"]["number"], "pair": r["plan"]["pair"], "faults": r["faults"][:3]} for r in faulty],
    }


def in_processes(options, work):
    """Yields the results of calls of `one`, in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        calls = [pool.submit(one, options.synclake, options.folder, *call) for call in work]
        yield from concurrent.futures.as_completed(calls)


def prove(options):
    """Plants each bug into a run; returns the names of those that a check did not see."""
    missed = []
    every = {plan["pair"]: plan for plan in plans(options.seed, len(PAIRS))}
    work = []
    everything = {"consumers": True, "extracts": True, "manifests": True, "poison": 0.03}
    for number, (name, (pair, *_, changes)) in enumerate(PLANTS.items()):
        work.append(({**every[pair], "number": number, **everything, **changes}, name))
    for done in in_processes(options, work):
        result = done.result()
        name = list(PLANTS)[result["plan"]["number"]]
        found = {kind for kind, _ in result["faults"]}
        lacking = PLANTS[name][3] - found
        missed_by = f"NOT FOUND by {sorted(lacking)}, only {result['faults'][:5]}"
        tell(result, f"{name}: {missed_by if lacking else f'found by {sorted(found)}'}")
        missed += [name] * bool(lacking)
    caught = len(work) - len(missed)
    print(json.dumps({"seed": options.seed, "planted_bugs": len(work), "planted_bugs_caught": caught, "missed": missed}))
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synclake")
    parser.add_argument("folder")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="make only the run with this number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--plant", action="store_true", help="prove the checks instead: break the lakes of some runs")
    options = parser.parse_args()
    if options.plant:
        sys.exit(1 if prove(options) else 0)
    began = time.monotonic()
    runs = options.runs if options.only is None else options.only + 1
    work = [(plan,) for plan in plans(options.seed, runs) if options.only in (None, plan["number"])]
    results = []
    for done in in_processes(options, work):
        result = done.result()
        results.append(result)
        tell(result, f"{len(result['faults'])} FAULTS" if result["faults"] else "ok")
        for kind, text in result["faults"][:10]:
            print(f"  {kind}: {text}", file=sys.stderr)
        if result["faults"]:
            command = ["python tests/chaos/pairs.py", options.synclake, options.folder, f"--seed {options.seed}"]
            again = " ".join([*command, f"--only {result['plan']['number']}"])
            print(f"  kept in {result['folder']}; to repeat it: {again}", file=sys.stderr, flush=True)
    report = summary(results, options, time.monotonic() - began)
    print(json.dumps(report))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
