"""Asks every engine about the same lakes and compares its answers, row by row, with what the lakes must hold:

    run.py PROGRAMS [--only ENGINE ...] [--update-docs] [--view NAME=FILE ...] [--keep FOLDER]

PROGRAMS is the folder of synclake and synclake-query. The run makes three lakes (lakes.py), computes their rows from the input
(oracle.py), has each engine read them (ask.py, ask_spark.py, ask_trino.py, ask_dbt.py), and fails if a table or view is not
exact, unless known.py says so and why; what known.py says must be so, too. Trino also reads smaller lakes on an S3 server, by
the Glue catalogue (catalog.py). Then the run compares the tables of docs/engines.md with the results;
`--update-docs` writes them instead. Times go to stderr.

`--view` replaces the SQL of a view, with ${db} as in sql/ansi: to try a change, or to see this run fail.
`--keep` keeps lakes and answers in a folder, which must not exist.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import pyarrow.parquet as pq

import catalog
import dialects
import document
import known
import lakes
from ask import VIEW
from relations import RELATIONS, ROOT, differences
from with_servers import Servers

TOOLS = ROOT / ".tools"
# Two lanes run beside each other. One has the engines on a Java virtual machine, so that one such machine runs at a time.
LANES = [["synclake-query", "duckdb", "polars", "delta-rs", "chdb", "daft", "dbt"], ["spark", "trino"]]
ENGINES = [engine for lane in LANES for engine in lane]


def say(text):
    print(text, file=sys.stderr, flush=True)


def replaced(statement, views):
    """Returns a statement of `ddl` with the views that the command line replaces."""
    found = VIEW.fullmatch(statement)
    if not found or found.group(2).rsplit(".")[-1] not in views:
        return statement
    prefix = found.group(2)[: -len(found.group(2).rsplit(".")[-1])]
    text = "\n".join(line for line in views[found.group(2).rsplit(".")[-1]].splitlines() if not line.startswith("--"))
    return found.group(1) + found.group(2) + found.group(3) + text.replace("${db}", prefix).replace("${copies}", "count(*)")


def job_of(made, programs, views):
    job = {"programs": str(programs), "relations": RELATIONS, "tools": str(TOOLS), "lakes": [], "declared": {}}
    for lake in made:
        sql = {}
        for dialect in dialects.LOCAL:
            text = lake.synclake("ddl", "--engine", dialect, "--database", dialects.database(dialect, lake.name))
            sql[dialect] = [replaced(statement, views) for statement in dialects.statements(text)]
        # Its views go into the schema that has the tables of this lake.
        arguments = ["--collapsed"] if lake.is_collapsed else []
        text = lake.run(
            "synclake", "ddl", "--engine", "athena", "--lake", "s3://bucket/lake",
            "--database", dialects.database("athena", lake.name), *arguments)
        sql["athena"] = [replaced(statement, views) for statement in dialects.statements(text)]
        job["lakes"].append({"name": lake.name, "path": lake.place, "sql": sql})
    for dialect in [*dialects.LOCAL, "athena"]:
        job["declared"][dialect] = dialects.declared(job["lakes"][0]["sql"][dialect])
    return job


def ask(engine, job, folder):
    """Runs one engine in a process of its own; returns its report."""
    began = time.monotonic()
    python = TOOLS / (engine if engine in ("spark", "daft") else "engines") / "bin/python"
    (folder / engine).mkdir()
    done = subprocess.run(
        [python, ROOT / "tests/engines/ask.py", engine, job, folder / engine], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False, stdin=subprocess.DEVNULL)
    (folder / engine / "log").write_text(done.stdout, encoding="utf-8")
    say(f"{engine}: {time.monotonic() - began:.0f} s")
    report = folder / engine / "report.json"
    if done.returncode or not report.exists():
        return {"failed": f"ended with {done.returncode}:\n{done.stdout[-3000:]}"}
    return json.loads(report.read_text(encoding="utf-8"))


def ask_all(engines, job, folder):
    reports = {}

    def lane(names):
        for engine in names:
            if engine in engines:
                reports[engine] = ask(engine, job, folder)

    threads = [threading.Thread(target=lane, args=(names,)) for names in LANES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reports


def judge(engine, report, job, expected, folder):
    """Compares the answers of an engine. Returns {reader: {relation: what known.py says of it, or None}}, and the faults."""
    if "failed" in report:
        return {}, [f"{engine} {report['failed']}"]
    results, faults = {}, []
    for reader in [*known.READERS.get(engine, []), *known.BESIDE.get(engine, [])]:
        place = "s3" if reader in catalog.READERS else "folder"
        errors = {(lake, relation): text for of, lake, relation, text in report["errors"] if of == reader}
        of_statements = [
            f"{reader}: lake {lake}: {what}: {text}" for (lake, what), text in errors.items() if what not in RELATIONS
        ]
        faults += of_statements
        results[reader] = {}
        for relation in [] if of_statements else known.asked(reader, job):
            exception = known.exception(reader, relation)
            lines = []
            for lake in (job["catalog"] if place == "s3" else job)["lakes"]:
                path = folder / engine / reader / lake["name"] / f"{relation}.parquet"
                if (lake["name"], relation) in errors:
                    lines.append(f"lake {lake['name']}: {errors[lake['name'], relation]}")
                elif not path.exists():
                    lines.append(f"lake {lake['name']}: there is no answer")
                else:
                    found, right = pq.read_table(path), expected[place][lake["name"]][relation]
                    here = differences(right, found, *([0] if exception else []))
                    lines += [f"lake {lake['name']}: {line}" for line in here]
            results[reader][relation] = exception
            faults += [f"{reader}: {relation}: {line}" for line in unexpected(exception, lines)]
    return results, faults


def unexpected(exception, lines):
    """Returns what known.py does not say of the differences of a relation: all of them, or that there are none."""
    if exception is None:
        return lines
    if not lines:
        return [f"is exact; known.py says: {exception.text}"]
    return [] if any(exception.evidence in line for line in lines) else [f"does not differ by {exception.evidence!r}", *lines]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--update-docs", action="store_true")
    parser.add_argument("--view", action="append", default=[])
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    named = dict(view.split("=", 1) for view in options.view)
    views = {name: pathlib.Path(file).read_text(encoding="utf-8") for name, file in named.items()}
    with tempfile.TemporaryDirectory(prefix="synclake-engines-") as scratch, Servers() as servers:
        folder = options.keep.absolute() if options.keep else pathlib.Path(scratch, "run")
        folder.mkdir()
        began = time.monotonic()
        made = lakes.make(options.programs.absolute(), folder)
        expected = {"folder": {lake.name: lake.expected() for lake in made}}
        job = job_of(made, options.programs.absolute(), views)
        if "trino" in options.only:
            endpoint, _ = servers.start_ministack()
            on_s3 = catalog.make(options.programs.absolute(), folder / "s3", endpoint)
            expected["s3"] = {lake.name: lake.expected() for lake in on_s3}
            job["catalog"] = catalog.job_of(on_s3, endpoint)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        say(f"lakes: {time.monotonic() - began:.0f} s")
        faults = dialects.check(made[0], job)
        reports = ask_all(options.only, folder / "job.json", folder)
        results = {}
        for engine in ENGINES:
            if engine in reports:
                found, failed = judge(engine, reports[engine], job, expected, folder)
                results |= found
                faults += failed
        say(f"all: {time.monotonic() - began:.0f} s")
    versions = {engine: report.get("version") for engine, report in reports.items()}
    if not faults and set(options.only) == set(ENGINES):
        of_tables = {reader: results[reader] for readers in known.READERS.values() for reader in readers}
        faults += document.update(versions, of_tables, write=options.update_docs)
    for fault in faults:
        print(f"FAULT {fault}")
    told = [exception for relations in results.values() for exception in relations.values()]
    inexact = sum(map(bool, told))
    print(f"{len(results)} readers, {len(told)} tables and views, {inexact} not exact as known.py says; {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
