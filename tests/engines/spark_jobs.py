"""Lets Spark jobs and synclake take turns on one lake, with kills, and compares it with a lake on which synclake alone ran.

    .tools/venv/bin/python tests/engines/spark_jobs.py PROGRAMS [--lakes N] [--days N] [--seed S] [--folder FOLDER]

PROGRAMS is the folder of `synclake` and `synclake-query`, built with failpoints. Both lakes get the same files. On the mixed
lake, a refresh and an extract of each day are run by Spark or by synclake. The plan of a lake depends on the seed alone
(`spark_turns.py`): both programs take turns in both directions, each job of each program is killed at least once, and rows of a
person are deleted. At the end of each day the rows of `state`, `daily_state`, `current_state`, `daily_extract`, `dataset_state`
and of a consumer must be equal, and `verify` must find nothing. At the end synclake writes all days as files: rows and manifests
must be equal, too.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from spark_turns import SPARK, SYNCLAKE, Turns

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS_MAX = 1800
# The time at which a row was read differs between the lakes.
VIEWS = {
    "state": "select * except (arrived_at) from state", "current_state": "select * from current_state",
    "dataset_state": "select * from dataset_state", "daily_extract": "select * from daily_extract where kind <> 'correction'",
    "daily_state": "select * except (arrived_at) from daily_state where kind <> 'correction'",
    "corrections": "select * except (arrived_at) from daily_state where kind = 'correction'",
}
NEWEST = "select last_value(source order by arrived_at) as source from sync_records"
# What every run must have had; otherwise it has not tested what it should.
EXPECTED = ["late rows", "corrections", "deletions", "comparisons", "compared manifests", "refresh: Spark, then synclake",
            "refresh: synclake, then Spark", "extract: Spark, then synclake", "extract: synclake, then Spark"]
KILLS = [f"kills of {step} by {program}" for step in ("refresh", "extract") for program in (SPARK, SYNCLAKE)]


class Lake:
    def __init__(self, programs, folder):
        self.programs, self.path, self.feed, self.files = programs, folder / "lake", folder / "feed", folder / "files"

    def command(self, *args):
        return [str(self.programs / "synclake"), *args, "--quiet", "--lake", str(self.path)]

    def run(self, *args):
        done = subprocess.run(self.command(*args), capture_output=True, text=True, timeout=SECONDS_MAX)
        assert done.returncode == 0, f"{args}: exit {done.returncode}: {done.stderr} {done.stdout[:600]}"
        return done.stdout

    def rows(self, *queries):
        """Returns the rows of each query, as lines of JSON. One process answers all of them."""
        end = '{"end_of_answer":true}'
        args = [self.programs / "synclake-query", "--lake", self.path, "--format", "ndjson"]
        for sql in queries:
            args += ["-c", sql, "-c", "select true as end_of_answer"]
        done = subprocess.run(args, capture_output=True, text=True, timeout=SECONDS_MAX)
        assert done.returncode == 0, f"{queries}: {done.stderr}"
        found = [collections.Counter()]
        for line in done.stdout.splitlines():
            if line == end:
                found.append(collections.Counter())
            else:
                found[-1][line] += 1
        return found[:-1]

    def deliver(self):
        self.run("deliver", "--consumer", "w", "--out", str(self.feed), "--format", "ndjson")

    def written(self, folder):
        """Returns the rows of all files that the manifests below a folder list, and the manifests without names of files."""
        rows, manifests = collections.Counter(), {}
        for path in folder.rglob("_SUCCESS"):
            manifest = json.loads(path.read_text())
            for file in manifest.pop("files"):
                for line in (folder / file["path"]).read_text().splitlines():
                    row = json.loads(line)
                    row.pop("arrived_at", None)
                    rows[json.dumps({**row, "of": file.get("kind")}, sort_keys=True)] += 1
            manifests[str(path.relative_to(folder))] = manifest
        return rows, manifests


class Spark:
    """A session that runs jobs. A kill ends it, and the next job begins another."""

    def __init__(self, folder):
        self.folder, self.process, self.begun = folder, None, 0

    def ask(self, job, *args, kill=None):
        """Returns the report of a job; None if it was killed at the place `kill`."""
        self.begin()
        self.process.stdin.write(json.dumps({"job": job, "args": args, "kill": kill}).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.answer()
        if answer is None and kill and self.process.wait() == -signal.SIGKILL:
            self.process = None
            return None
        assert answer and not kill, f"{job}, {kill}: {answer}; see {self.folder}/spark-{self.begun}.log"
        assert "report" in answer, f"{job}: {answer}"
        return answer["report"]

    def begin(self):
        if self.process is None:
            self.begun += 1
            folder = self.folder / f"spark-{self.begun}"
            folder.mkdir()
            args = [str(ROOT / ".tools/spark/bin/python"), str(ROOT / "tests/engines/spark_job_server.py"), str(folder)]
            log = (self.folder / f"spark-{self.begun}.log").open("w")
            self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                            start_new_session=True)
            assert self.answer(), f"Spark did not start; see {log.name}"

    def answer(self):
        """Returns the next answer; None if the session has ended."""
        is_there = select.select([self.process.stdout], [], [], SECONDS_MAX)[0]
        assert is_there, f"Spark does not answer within {SECONDS_MAX} s; see {self.folder}/spark-{self.begun}.log"
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self):
        """Kills the session, its JVM included: the group of processes that this object started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Trial:
    """One pair of lakes."""

    def __init__(self, programs, folder, spark, turns, seen):
        self.programs, self.folder, self.spark, self.turns, self.seen = programs, folder, spark, turns, seen
        self.mixed, self.alone = Lake(programs, folder / "mixed"), Lake(programs, folder / "alone")
        # Days that a killed extract replaced in the mixed lake without recording it. They may have superfluous corrections.
        self.unrecorded, self.before = set(), {}

    def work(self):
        days = len(self.turns.days)
        events = self.folder / "events.ndjson"
        made = ["simulate", "--quiet", "--seed", str(self.turns.seed), "--events", "600", "--days", str(days),
                "--identities", "40", "--late", "0.05", "--out", str(events)]
        subprocess.run([self.programs / "synclake", *made], check=True)
        lines = events.read_bytes().splitlines(keepends=True)
        for number, day in enumerate(self.turns.days):
            part = self.folder / f"{number}.ndjson"
            part.write_bytes(b"".join(lines[len(lines) * number // days:len(lines) * (number + 1) // days]))
            self.day(part, day)
            self.compare(day.date)
        self.compare_files([day.date for day in self.turns.days])

    def day(self, part, day):
        for lake in (self.mixed, self.alone):
            lake.run("ingest", "--source", f"file:{part}")
        (late,) = self.alone.rows(f"select 1 from sync_records where source = ({NEWEST}) and event_date < '{day.date}'")
        # The extract of the day before has been written already, but on the first day.
        self.seen["late rows"] += late.total() if day is not self.turns.days[0] else 0
        if day.deletion:
            self.delete(day.deletion)
        for turn in day.turns:
            args = [turn.date] if turn.step == "extract" else []
            self.alone.run(*self.of_synclake(turn.step, args))
            if turn.kill:
                self.kill(*turn.kill, turn.step, args)
            self.run(turn.program, turn.step, args)
        for lake in (self.mixed, self.alone):
            lake.deliver()

    @staticmethod
    def of_synclake(step, args):
        return step, *(["--date", *args, "--correct", "--no-refresh"] if args else [])

    def run(self, program, step, args):
        if program == SPARK:
            self.spark.ask(step, str(self.mixed.path), *args)
        else:
            self.mixed.run(*self.of_synclake(step, args))
        if self.before.get(step) not in (None, program):
            self.seen[f"{step}: {self.before[step]}, then {program}"] += 1
        self.before[step] = program

    def kill(self, program, place, step, args):
        if program == SPARK:
            self.spark.ask(step, str(self.mixed.path), *args, kill=place)
            if step == "extract" and (day := self.unrecorded_extract()):
                self.unrecorded.add(day)
        else:
            done = subprocess.run(self.mixed.command(*self.of_synclake(step, args)), capture_output=True, timeout=SECONDS_MAX,
                                  env={**os.environ, "FAILPOINTS": f"{place}=return(kill)"})
            assert done.returncode == -signal.SIGKILL, f"{step} was not killed at {place}: {done.stderr} {done.stdout[:600]}"
        self.seen[f"kills of {step} by {program}"] += 1
        self.seen[f"kills at {place}"] += 1
        self.before[step] = program

    def unrecorded_extract(self):
        """Returns the day that the newest commit of daily_state replaced; None if that commit is not one of Spark with rows."""
        path = max((self.mixed.path / "daily_state" / "_delta_log").glob("*.json"))
        for action in map(json.loads, path.read_text().splitlines()):
            if token := action.get("commitInfo", {}).get("userMetadata"):
                return json.loads(token)["synclake"].removeprefix("extract ")
        return None

    def delete(self, deletion):
        newest = self.alone.rows(NEWEST)[0]
        which = f"source = '{json.loads(next(iter(newest)))['source']}'" if deletion.is_of_new else "true"
        persons = sorted(self.alone.rows(f"select distinct identity_id from sync_records where {which}")[0])
        person = json.loads(persons[deletion.nth % len(persons)])["identity_id"]
        for lake in (self.mixed, self.alone):
            table = f"delta.`{lake.path / 'sync_records'}`"
            if deletion.by_vectors:
                self.spark.ask("sql", f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
            self.spark.ask("sql", f"DELETE FROM {table} WHERE identity_id = '{person}' AND {which}")
        self.seen["deletions"] += 1

    def compare(self, date):
        ours, theirs = self.mixed.rows(*VIEWS.values()), self.alone.rows(*VIEWS.values())
        for name, our, their in zip(VIEWS, ours, theirs):
            if name == "corrections":
                self.seen["corrections"] += our.total()
                assert not their - our, f"{date}: {(their - our).total()} corrections are missing"
                our, their = map(self.recorded, (our, their))
            self.equal(f"{date}: {name}", our, their)
        self.equal(f"{date}: deliveries", self.mixed.written(self.mixed.feed)[0], self.alone.written(self.alone.feed)[0])
        self.mixed.run("verify")
        self.seen["comparisons"] += 1

    def recorded(self, rows):
        """Returns the rows of days that were not killed between their two commits."""
        kept = {row: count for row, count in rows.items() if json.loads(row)["extract_date"] not in self.unrecorded}
        return collections.Counter(kept)

    def compare_files(self, dates):
        for lake in (self.mixed, self.alone):
            for date in dates:
                lake.run("extract", "--date", date, "--no-refresh", "--format", "ndjson", "--out", str(lake.files))
        (ours, our_manifests), (theirs, their_manifests) = (lake.written(lake.files) for lake in (self.mixed, self.alone))
        assert our_manifests.keys() == their_manifests.keys(), f"{our_manifests.keys()} and {their_manifests.keys()}"
        for name, their in their_manifests.items():
            our = our_manifests[name]
            if their["date"] in self.unrecorded:
                assert our.pop("corrections") >= their.pop("corrections"), f"{name}: corrections are missing"
            for manifest in (our, their):
                # The version of daily_state: the mixed lake has more commits.
                manifest.pop("version")
            assert our == their, f"{name}: {our} is not {their}"
            self.seen["compared manifests"] += 1
        assert not theirs - ours, f"files: {(theirs - ours).total()} rows are missing"
        if not self.unrecorded:
            self.equal("files", ours, theirs)

    def equal(self, what, ours, theirs):
        missing, many = theirs - ours, ours - theirs
        assert not missing and not many, (f"{what}: {missing.total()} rows are missing, {many.total()} are too many, "
                                          f"such as {next(iter(missing), None)} and {next(iter(many), None)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--lakes", type=int, default=1)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=pathlib.Path, help="keep everything here")
    options = parser.parse_args()
    seen, begin = collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or pathlib.Path(temporary)).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spark = Spark(folder)
        try:
            for number in range(options.lakes):
                of = folder / f"trial-{number}"
                of.mkdir()
                turns = Turns(random.Random(f"{options.seed} {number}"), options.days)
                print(f"lake {number + 1} of {options.lakes}:\n{turns}", file=sys.stderr, flush=True)
                Trial(options.programs.resolve(), of, spark, turns, seen).work()
        finally:
            spark.end()
    missing = [name for name in [*EXPECTED, *KILLS] if not seen[name]]
    assert not missing, f"this run had no {', '.join(missing)}"
    print(json.dumps({**dict(sorted(seen.items())), "seconds": round(time.monotonic() - begin, 1)}))


if __name__ == "__main__":
    main()
