"""Measures compaction: a lake of many small files, and one of the files of a large ingest. Part of bench.py."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading

from bench_commits import Growing
from bench_measure import once, seconds

# An ingest of one day in three pools adds up to three files a commit.
FILES_A_COMMIT = 2.93
FILES = 20_000
COUNT = "select count(*) as n from sync_records"
VIEWS = ("sync_records", "changes", "daily_changes", "current_state", "dataset_state", "key_state")


def digest(bench, lake, view):
    """Returns the number of rows of a view, and a digest of all rows that does not depend on their order."""
    command = [bench.programs / "synclake-query", "--lake", lake, "--format", "ndjson", "-c", f"select * from {view}"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    rows, total = 0, 0
    for row in process.stdout:
        rows += 1
        total += int.from_bytes(hashlib.blake2b(row, digest_size=8).digest())
    if process.wait() != 0:
        sys.exit(f"cannot read {view} of {lake}")
    return rows, total % 2**64


class Counter(threading.Thread):
    """Counts the rows of a lake again and again. The count must stay the same."""

    def __init__(self, bench, lake, rows):
        super().__init__(daemon=True)
        self.command = [str(word) for word in bench.query(lake, COUNT)]
        self.rows, self.counts, self.fault = rows, 0, None
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set() and not self.fault:
            answer = subprocess.run(self.command, capture_output=True, text=True)
            found = json.loads(answer.stdout or "[{}]")[0].get("n") if answer.returncode == 0 else None
            if found != self.rows:
                self.fault = f"{found} rows, not {self.rows}: {answer.stderr}"
            self.counts += 1


def compact(bench, lake, name):
    """Compacts two copies of a lake: one alone, and one while its rows are counted. Returns a line of the table."""
    copy, watched = bench.data / f"{name}-compacted", bench.data / f"{name}-watched"
    for folder in (copy, watched):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(lake, folder)
        shutil.rmtree(folder / "state", ignore_errors=True)
    before = {view: digest(bench, copy, view) for view in VIEWS}
    run = once(bench.synclake("compact", "--format", "json", "--lake", copy))
    report = json.loads(run.out)
    for view in VIEWS:
        if digest(bench, copy, view) != before[view]:
            sys.exit(f"{view} of {copy} is not what it was")
    counter = Counter(bench, watched, before["sync_records"][0])
    counter.start()
    once(bench.synclake("compact", "--lake", watched))
    counter.ended.set()
    counter.join()
    if counter.fault:
        sys.exit(f"a reader beside the compaction of {watched} saw {counter.fault}")
    read, written = report["bytes_removed"] / 1e6, report["bytes_added"] / 1e6
    return (
        f"| {report['files_removed']:,} files, {read:.1f} MB, to {report['files_added']:,} of {written:.1f} MB | {report['rows']:,} "
        f"| {seconds(run.wall)} | {run.cpu:.1f} CPU-s | {run.peak:.0f} MiB | {read / run.cpu:.0f} MB | {counter.counts} |\n"
    )


def part(bench):
    """Returns the section about compaction."""
    growing = Growing(bench, round(FILES * bench.commits / 1_500 / FILES_A_COMMIT), "small-lake")
    growing.grow(round(FILES * bench.commits / 1_500 / FILES_A_COMMIT))
    small = compact(bench, growing.lake, "small")
    large = compact(bench, bench.lake(), "large")
    return f"""## Compaction

`synclake compact` with its default memory (512 MiB) and target size, in a local folder. The small files are those of {growing.commits:,} commits
of an ingest without care, the large ones those of the main input. Before and after it, every row of {", ".join(f"`{view}`" for view in VIEWS)}
was the same. The last column: counts of all rows by `synclake-query` beside a second run; each found all rows.

| files of `ingest` | rows | wall | CPU | peak | input for each CPU-second | counts beside it |
|---|---|---|---|---|---|---|
{small}{large}"""
