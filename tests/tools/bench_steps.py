"""Writes the section about the steps of ingest from the results of tests/bench/steps.rs: bench_steps.py CRITERION_FOLDER"""

import json
import os
import pathlib
import sys
import tomllib

from bench_document import DOCUMENT, ROOT, cpu, last_line, write

STEPS = {
    "decode": "decode",
    "append": "append to partition buffers",
    "sort": "sort",
    "encode": "encode as Parquet",
    "hash": "hash (read a file, split lines, BLAKE3)",
    "commit": "commit (store the files, log entry)",
}
LIMIT = "limit: "


def results(folder):
    """Returns for each step the name, median (s), bytes of events and rows of it and then of its limits."""
    found = {step: [] for step in STEPS}
    for path in folder.glob("*/*/new/benchmark.json"):
        about = json.loads(path.read_text())
        median = json.loads(path.with_name("estimates.json").read_text())["median"]["point_estimate"] / 1e9
        throughput = about["throughput"]["ElementsAndBytes"]
        found[about["group_id"]].append((about["function_id"], median, throughput["bytes"], throughput["elements"]))
    for step, lines in found.items():
        # The step itself, then the nearest limit first.
        lines.sort(key=lambda line: (line[0].startswith(LIMIT), -line[1]))
        if len(lines) < 2 or lines[0][0] != "step":
            sys.exit(f"error: {folder} lacks results of {step}; run all benches: make bench-steps")
    return found


def rate(seconds, size):
    return f"{size / seconds / 1e6:,.0f}"


def lines_of(step, found):
    """Returns the lines of a step: one for each of its limits."""
    (_, median, size, _), *limits = found
    first = f"| {STEPS[step]} | {rate(median, size)} "
    for name, limit, _, _ in limits:
        yield f"{first}| {name.removeprefix(LIMIT)} | {rate(limit, size)} | {100 * limit / median:.0f} % |\n"
        first = "| | "


def section(found):
    _, _, size, rows = found["decode"][0]
    table = "".join(line for step in STEPS for line in lines_of(step, found[step]))
    in_turn = sum(found[step][0][1] for step in STEPS if step != "commit")
    return f"""## Steps of ingest

`make bench-steps` measures each step alone, beside what a library or the machine needs for the least that the step must do
(`tests/bench/steps.rs`). {os.cpu_count()} cores ({cpu()}), medians. Input: {size / 1e6:.1f} MB of simulated events, {rows:,} rows. Each step has
the result of the one before in memory, as a whole. All rates are in MB of events a second, so that they can be compared;
a limit says how many MB it moves itself. All but the commit run on one thread: one after the other {rate(in_turn, size)} MB/s.

| step | MB/s | limit | MB/s | reached |
|---|---|---|---|---|
{table}
A commit stores one file for each partition, side by side and each with two syncs, in a local folder; then it writes the log entry. The
copy in memory is of the JSON for decode and hash, of the partition buffers for append and sort. zstd has the level of the data files and the
same pages."""


def main():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    body = section(results(pathlib.Path(sys.argv[1])))
    print(body)
    write(DOCUMENT, "steps", f"{body}\n\n{last_line(f'synclake {version}')}")


main()
