"""Measures what an ingest costs as the input grows, beside DuckDB. Part of bench.py."""

import shutil
import subprocess

import bench_pairs
from bench_measure import in_turn, once
from bench_plots import Series, plot

PAIR = "| {size:.2f} GB | {ours} | {speed:.0f} MB/s | {each:.2f} | {theirs} | {other_speed:.0f} MB/s | {other_each:.2f} |\n"


def head(bench, events):
    """Returns a file with the first tenth of the events."""
    path = bench.data / f"head-{bench.events}.ndjson"
    if not path.exists():
        left = events.stat().st_size // 10
        with open(events, "rb") as lines, open(path, "wb") as out:
            for text in lines:
                left -= len(text)
                if left < 0:
                    break
                out.write(text)
    return path


def piped(bench, events, times):
    """Measures the ingest of the file `times` times through a pipe, beside DuckDB's conversion of as many files.

    A pipe, because synclake would skip a file that it has read before.
    """
    lake, folder = bench.data / "sizes-lake", bench.data / "sizes-duckdb"

    def clean():
        shutil.rmtree(lake, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    def run(command):
        if command[-1] != lake:
            return once(command)
        with subprocess.Popen(["cat", *[str(events)] * times], stdout=subprocess.PIPE) as source:
            return once(command, stdin=source.stdout)

    # The largest size only three times: the run takes long enough.
    runs = bench.runs if times < 10 else min(bench.runs, 3)
    commands = bench.ingest("-", lake), bench_pairs.transform(bench, [events] * times, folder)
    figures = in_turn(runs, *commands, prepare=clean, run=run)
    bench_pairs.compare(bench, lake, folder)
    clean()
    return figures


def measured(bench):
    """Returns (GB, figure of synclake, figure of DuckDB) by size."""
    events = bench.input()
    small, size = head(bench, events), events.stat().st_size / 1e9
    place = lambda name: bench.data / f"sizes-{name}"
    found = [(small.stat().st_size / 1e9, *bench_pairs.ingests(bench, small, place("lake"), place("duckdb")))]
    whole = bench.shared.get("ingest") or bench_pairs.ingests(bench, events, place("lake"), place("duckdb"))
    found.append((size, *whole))
    for times in (3, 10):
        found.append((size * times, *piped(bench, events, times)))
    return found


def part(bench):
    """Returns the section with the table of all sizes; writes the plot of them."""
    found = measured(bench)
    speeds = [Series(name, [(row[0], row[0] * 1e3 / row[at].wall) for row in found]) for at, name in ((1, "synclake"), (2, "DuckDB"))]
    plot(bench.plots / "throughput.svg", "Ingest: NDJSON to partitioned Parquet", "GB of events", "MB per second", speeds)
    table = "".join(
        PAIR.format(
            size=size, ours=ours, speed=size * 1e3 / ours.wall, each=ours.cpu / size,
            theirs=theirs, other_speed=size * 1e3 / theirs.wall, other_each=theirs.cpu / size,
        )
        for size, ours, theirs in found
    )
    return f"""## Ingest by size

Up to {found[1][0]:.2f} GB a file; beyond, that file 3 and 10 times through a pipe (`cat … | synclake ingest --source file:-`), and as a list
of files to DuckDB; the largest has at most 3 runs. synclake has its default budget, `--memory 256MiB`.

| input | synclake | | CPU-s per GB | DuckDB | | CPU-s per GB |
|---|---|---|---|---|---|---|
{table}
![Throughput of the ingest against the size of the input, synclake and DuckDB](plots/throughput.svg)
"""
