"""Measures how soon synclake-query answers: its first answer, and completion. Part of bench.py."""

import json
import shutil

from bench_measure import once, seconds
from bench_document import ROOT

PYTHON = ROOT / ".tools/shell/bin/python"


def demo(bench):
    """Returns the lake of the README: 5,000 synchronizations."""
    lake = bench.data / "lake-demo"
    if not (lake / "state/_delta_log").exists():
        shutil.rmtree(lake, ignore_errors=True)
        once(bench.ingest(bench.simulated("events-demo", ["simulate", "--seed", "7", "--events", "5000"]), lake))
        once(bench.synclake("refresh", "--lake", lake))
    return lake


def part(bench):
    """Returns the section with the times of a session, on a small lake and on the main one."""
    lakes = [demo(bench), bench.lake()]
    answers = [bench.in_turn(bench.query(lake, "select count(*) from current_state"))[0] for lake in lakes]
    tool = ROOT / "tests/tools/shell_times.py"
    times = [json.loads(once([PYTHON, tool, bench.programs, lake, "--runs", bench.runs]).out) for lake in lakes]
    lines = f"| first answer: `-c \"select count(*) from current_state\"`, whole process | {answers[0]} | {answers[1]} |\n"
    lines += "".join(f"| shell: {name} | {' | '.join(seconds(of[name] / 1000) for of in times)} |\n" for name in times[0])
    return f"""## The shell

A session in a pseudo-terminal of 80 columns (`tests/tools/shell_times.py`), from a key to what the screen shows; the small lake is
that of the README, refreshed; the large one is that of the first table.

| what | 5,000 synchronizations | {bench.events:,} synchronizations |
|---|---|---|
{lines}"""
