"""Runs dbt over the sources.yml files that `ddl --engine dbt` prints, by DuckDB and by Trino.

A project has the sources of all lakes, each in a schema of its own, and for each lake a model of its `current_state`.
`dbt build` runs the models and all tests of the sources. The rows of the models are answers, which run.py judges.
"""

import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

from engines import statements

PROJECT = (
    "name: lakes\nprofile: lakes\nflags: {send_anonymous_usage_stats: false}\nmodels: {lakes: {+materialized: view}}\n"
)
MODELS = "dbt_models"


def build(answers, reader, folder, target, schema_of):
    """Runs `dbt build` with a target of profiles.yml. Each model or test that fails is an error of the reader."""
    models = folder / "models"
    models.mkdir(parents=True)
    (folder / "dbt_project.yml").write_text(PROJECT, encoding="utf-8")
    # JSON is YAML too.
    profiles = {"lakes": {"target": "lakes", "outputs": {"lakes": target}}}
    (folder / "profiles.yml").write_text(json.dumps(profiles), encoding="utf-8")
    tests = 0
    for lake in answers.job["lakes"]:
        schema = schema_of(lake["name"])
        done = subprocess.run(
            [f"{answers.job['programs']}/synclake", "ddl", "--engine", "dbt", "--lake", lake["path"], "--database", schema],
            capture_output=True, text=True, check=True)
        (models / f"{schema}.yml").write_text(done.stdout, encoding="utf-8")
        (models / f"{lake['name']}.sql").write_text(
            f"SELECT * FROM {{{{ source('{schema}', 'current_state') }}}}\n", encoding="utf-8")
        tests += done.stdout.count("data_tests:")
    program = pathlib.Path(answers.job["tools"], "dbt/bin/dbt")
    done = subprocess.run(
        [program, "--no-use-colors", "build", "--profiles-dir", folder, "--project-dir", folder], stdin=subprocess.DEVNULL,
        cwd=folder, env={**os.environ, "DO_NOT_TRACK": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False)
    print(done.stdout)
    report = folder / "target/run_results.json"
    if not report.exists():
        raise RuntimeError(f"dbt build ended with {done.returncode}:\n{done.stdout[-2000:]}")
    results = json.loads(report.read_text(encoding="utf-8"))["results"]
    # The lakes have operations that nobody knows, so the test of operations must warn of them.
    warns = {result["unique_id"] for result in results if result["status"] == "warn"}
    warned = {name for name in warns if ".source_accepted_values_" in name}
    failed = [
        result for result in results if result["status"] not in ("success", "pass") and result["unique_id"] not in warned
    ]
    nobody = {"name": "all"}
    for result in failed:
        answers.error(reader, nobody, result["unique_id"], RuntimeError(f"{result['status']}: {result['message']}"))
    ran = sum(result["unique_id"].startswith("test.") for result in results)
    if ran != tests or not tests:
        answers.error(reader, nobody, "tests", RuntimeError(f"{ran} tests of the sources were run, not {tests}"))
    if not warned:
        answers.error(reader, nobody, "tests", RuntimeError("no test warned of an unknown operation"))
    if done.returncode and not failed:
        raise RuntimeError(f"dbt build ended with {done.returncode}:\n{done.stdout[-2000:]}")


def ask(answers):
    """Asks by DuckDB: the statements of `ddl` are run in a schema of each lake in a database file, which dbt then reads."""
    import duckdb
    import duckdb_extension_delta

    folder = answers.folder / "project"
    folder.mkdir()
    # DuckDB would fetch its extension from its own server; here a Python package has it.
    options = {"extension_directory": str(folder / "extensions")}
    extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
    database = folder / "lakes.duckdb"
    with duckdb.connect(str(database), config=options) as connection:
        connection.execute(f"INSTALL '{extension}'")
        for lake in answers.job["lakes"]:
            connection.execute(f"CREATE SCHEMA dbt_{lake['name']}")
            connection.execute(f"USE dbt_{lake['name']}")
            for statement in lake["sql"]["duckdb"]:
                connection.execute(statement)
    target = {
        "type": "duckdb", "path": str(database), "schema": MODELS, "threads": 2, "extensions": ["delta"],
        "config_options": options, "settings": {"TimeZone": "UTC"},
    }
    build(answers, "dbt-duckdb", folder / "lakes", target, lambda name: f"dbt_{name}")
    answers.version = duckdb.__version__
    with duckdb.connect(str(database), config=options) as connection:
        connection.execute("LOAD delta")
        connection.execute("SET TimeZone = 'UTC'")
        for lake in answers.job["lakes"]:
            answers.take(
                "dbt-duckdb", lake, "current_state",
                lambda: connection.execute(f"SELECT * FROM {MODELS}.{lake['name']}").to_arrow_table())


def ask_trino(answers, port, table):
    """Asks by Trino: the sources are the schemas of the statements of `ddl --engine trino`."""
    target = {
        "type": "trino", "method": "none", "user": "synclake", "host": "127.0.0.1", "port": port, "http_scheme": "http",
        "database": "delta", "schema": MODELS, "threads": 2,
    }
    try:
        build(answers, "dbt-trino", answers.folder / "project", target, lambda name: f"trino_{name}")
    except RuntimeError as error:
        answers.error("dbt-trino", {"name": "all"}, "dbt build", error)
    for lake in answers.job["lakes"]:
        answers.take("dbt-trino", lake, "current_state", lambda: table(f"{MODELS}.{lake['name']}"))
