"""Measures synclake on this machine, beside DuckDB where both can do it: see `bench.py --help`.

Each part is a section of docs/benchmarks.md (bench_document.py). A run replaces the sections of the parts that it
measured, and nothing else. The figures hold for this machine and this run only.
"""

import argparse
import os
import pathlib
import platform
import time

import bench_analysts
import bench_commits
import bench_compact
import bench_pairs
import bench_polled
import bench_questions
import bench_shell
import bench_sizes
import bench_state
import bench_stream
from bench_document import DOCUMENT, ROOT, cpu, field, last_line, write
from bench_measure import Bench, once, rows

EVENTS = 1_150_000
COMMITS = 1_500
RUNS = 5
PARTS = {
    "pairs": bench_pairs.part,
    "questions": bench_questions.part,
    "analysts": bench_analysts.part,
    "shell": bench_shell.part,
    "sizes": bench_sizes.part,
    "stream": bench_stream.part,
    "commits": bench_commits.part,
    "care": bench_commits.tended,
    "cost": bench_commits.cost,
    "compact": bench_compact.part,
    "polled": bench_polled.part,
    "history": bench_state.part,
}
LONG_ONLY = {"sizes", "cost", "compact", "polled", "history"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, help="folder with the optimised synclake and synclake-query")
    parser.add_argument("--short", action="store_true", help=f"leave out the parts that take long: {', '.join(sorted(LONG_ONLY))}")
    parser.add_argument("--only", help=f"parts to measure, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"synchronizations of the main input [{EVENTS}]")
    parser.add_argument("--commits", type=int, default=COMMITS, help=f"commits of the lake of many commits [{COMMITS}]")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each command [{RUNS}]")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "bench-data", help="folder for inputs and lakes")
    parser.add_argument(
        "--out", type=pathlib.Path,
        help="document to update [docs/benchmarks.md; benchmarks.md in --data if --events, --commits or --runs differ]",
    )
    options = parser.parse_args()
    usual = (options.events, options.commits, options.runs) == (EVENTS, COMMITS, RUNS)
    options.out = options.out or (DOCUMENT if usual else options.data / "benchmarks.md")
    names = options.only.split(",") if options.only else [name for name in PARTS if not (options.short and name in LONG_ONLY)]
    unknown = set(names) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    options.parts = [name for name in PARTS if name in names]
    return options


def machine(bench):
    """Returns the section that describes the machine, and the line that each section ends with."""
    memory = int(field("/proc/meminfo", "MemTotal", "0 kB").split()[0]) / 2**20
    duckdb = rows(once(bench.duckdb("select version()")).out)[0][0].removeprefix("v")
    synclake = once(bench.synclake("--version")).out.strip()
    described = f"""## Machine and method

{cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release()}, local disk. {synclake}; DuckDB {duckdb} with 2 threads, from
Python {platform.python_version()}.

`make bench` measures whole processes, all of a line in turn, {bench.runs} times. The figures are medians of wall and CPU time (user and system), and
the peak of resident memory. The line below each section names its run.
"""
    return described, last_line(synclake, f"DuckDB {duckdb}")


def main():
    options = arguments()
    options.data.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        programs=options.programs.resolve(), data=options.data.resolve(), plots=options.out.resolve().parent / "plots",
        events=options.events, runs=options.runs, commits=options.commits, long=not options.short,
    )
    described, run = machine(bench)
    write(options.out, "machine", described)
    for name in options.parts:
        began = time.monotonic()
        body = PARTS[name](bench)
        print(f"{body}\n{name}: {time.monotonic() - began:.0f} s\n", flush=True)
        write(options.out, name, f"{body.strip()}\n\n{run}")


if __name__ == "__main__":
    main()
