"""Writes sections of docs/benchmarks.md. bench.py, bench_spark.py and bench_steps.py use this module.

A section lies between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. Its last line names its run.
"""

import datetime
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/benchmarks.md"
# All sections, in their order.
SECTIONS = [
    "machine", "pairs", "questions", "analysts", "shell", "sizes", "stream", "commits", "care", "cost", "compact", "polled", "history",
    "spark", "steps",
]
BY_HAND = "<!-- by hand -->"


def field(path, name, otherwise):
    """Returns the value of the first line `name : value` of a file of /proc."""
    with open(path) as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), otherwise)


def cpu():
    """Returns the name of the processor."""
    return field("/proc/cpuinfo", "model name", platform.machine())


def last_line(*versions):
    """Returns the last line of a section. The first version is that of synclake, and gets the commit."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    synclake = f"{versions[0]} ({commit})" if commit else versions[0]
    return f"*{', '.join([str(datetime.date.today()), synclake, *versions[1:]])}.*"


def replaced(text, name, body):
    """Returns the document with the section `name` replaced, or added before the sections that follow it."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->\n"
    section = f"{begin}{body.strip()}\n{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        return before + section + rest.partition(end)[2]
    later = [f"<!-- bench:{other} -->\n" for other in SECTIONS[SECTIONS.index(name) + 1 :]] + [BY_HAND]
    at = min(text.index(marker) for marker in later if marker in text)
    return f"{text[:at]}{section}\n{text[at:]}"


def write(path, name, body):
    """Updates a section at once, so that a part that fails later costs nothing of the others."""
    text = path.read_text() if path.exists() else f"# Benchmarks\n\n{BY_HAND}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replaced(text, name, body))
