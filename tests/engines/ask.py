"""Asks one engine about the lakes: ask.py ENGINE JOB FOLDER

JOB is a JSON file that run.py writes: lakes with the statements of each dialect, relations, programs and tools. The answer of
`SELECT *` goes to FOLDER/<reader>/<lake>/<relation>.parquet, for each reader of the engine (a dialect of `synclake ddl`, or
the engine's name). FOLDER/report.json has the version, and the errors by reader, lake and relation. run.py judges the answers.
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

TABLES = ["sync_records", "state", "daily_state", "quarantine", "gaps"]
VIEW = re.compile(r"(CREATE OR REPLACE VIEW )(\S+)( AS\s+)(.*)", re.S)


class Answers:
    """The answers of one engine."""

    def __init__(self, job, folder):
        self.job, self.folder, self.version, self.errors = job, pathlib.Path(folder), None, []

    def error(self, reader, lake, relation, error):
        self.errors.append([reader, lake["name"], relation, f"{type(error).__name__}: {error}"[:4000]])

    def file(self, reader, lake, relation):
        path = self.folder / reader / lake["name"] / f"{relation}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def take(self, reader, lake, relation, ask):
        """Stores what `ask()` returns, an Arrow table, or its error."""
        import pyarrow as pa
        import pyarrow.parquet

        try:
            table = ask()
            table = table.read_all() if isinstance(table, pa.RecordBatchReader) else pa.table(table)
            pa.parquet.write_table(table, self.file(reader, lake, relation))
        # An engine may fail in any way of its own: a BaseException is also how a panic of its native code arrives.
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self.error(reader, lake, relation, error)

    def statements(self, reader, lake, run, twice=True):
        """Runs the statements of a dialect, twice; returns whether all succeeded."""
        for statement in lake["sql"][reader] * (2 if twice else 1):
            try:
                run(statement)
            except Exception as error:
                self.error(reader, lake, f"statement {statement.split('(')[0].strip()[:80]!r}", error)
                return False
        return True

    def write(self):
        report = {"version": self.version, "errors": self.errors}
        (self.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def views_of(statements):
    """Returns the views that a dialect declares over its tables: name to SELECT, in the order of their dependencies."""
    found = (VIEW.fullmatch(statement) for statement in statements)
    views = {match.group(2).rsplit(".")[-1]: match.group(4) for match in found if match}
    return {name: text for name, text in views.items() if name not in TABLES}


def with_views(name, views):
    """Returns the text of a view as a query of its own, for engines that keep no views: views that it reads stand in a WITH."""
    uses, texts = [], [views[name]]
    for text in texts:
        found = [other for other in views if other not in uses and re.search(rf"\b(FROM|JOIN) {other}\b", text)]
        uses += found
        texts += [views[other] for other in found]
    head = ",\n".join(f"{other} AS (\n{views[other]}\n)" for other in views if other in uses)
    return (f"WITH {head}\n" if head else "") + views[name]


def synclake_query(answers):
    program = pathlib.Path(answers.job["programs"]) / "synclake-query"
    answers.version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    for lake in answers.job["lakes"]:
        for relation in answers.job["relations"]:
            # The only view that other engines have and synclake-query has not: its current_state uses the refresh by itself.
            if relation == "refreshed_state":
                continue
            out = answers.file("synclake-query", lake, relation)
            command = [program, "--lake", lake["path"], "--format", "parquet", "-c", f"select * from {relation}", "-o", out]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                answers.error("synclake-query", lake, relation, RuntimeError(done.stderr))


def duckdb(answers):
    import duckdb
    import duckdb_extension_delta

    extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
    answers.version = duckdb.__version__
    for reader in ("duckdb", "duckdb-parquet"):
        for lake in answers.job["lakes"]:
            connection = duckdb.connect(config={"threads": 2})
            connection.execute("SET TimeZone = 'UTC'")

            def run(statement):
                # DuckDB would fetch its extension from its own server; here a Python package has it.
                if statement != "INSTALL delta":
                    connection.execute(f"LOAD '{extension}'" if statement == "LOAD delta" else statement)

            if answers.statements(reader, lake, run):
                for relation in answers.job["declared"][reader]:
                    answers.take(reader, lake, relation, lambda: connection.execute(f"SELECT * FROM {relation}").to_arrow_table())


def polars(answers):
    import polars

    answers.version = polars.__version__
    for lake in answers.job["lakes"]:
        tables = {name: polars.scan_delta(f"{lake['path']}/{name}") for name in TABLES}
        for name, frame in tables.items():
            answers.take("polars", lake, name, lambda: frame.collect().to_arrow())
        context, views = polars.SQLContext(tables), views_of(lake["sql"]["duckdb"])
        for name in views:
            answers.take("polars", lake, name, lambda: context.execute(with_views(name, views), eager=True).to_arrow())


def delta_rs(answers):
    import deltalake
    from deltalake import DeltaTable, QueryBuilder

    answers.version = deltalake.__version__
    for lake in answers.job["lakes"]:
        builder, views = QueryBuilder(), views_of(lake["sql"]["duckdb"])
        for name in TABLES:
            builder = builder.register(name, DeltaTable(f"{lake['path']}/{name}"))
        for relation in [*TABLES, *views]:
            sql = with_views(relation, views) if relation in views else f"SELECT * FROM {relation}"
            answers.take("delta-rs", lake, relation, lambda: builder.execute(sql))


def chdb(answers):
    import pyarrow as pa
    from chdb import session

    # chDB reads only files below the folder that it starts in.
    os.chdir("/")
    connection = session.Session(":memory:")

    def arrow(sql):
        return pa.ipc.open_file(pa.BufferReader(connection.query(sql, "Arrow").bytes())).read_all()

    answers.version = arrow("SELECT CAST(version() AS String) AS version").column(0)[0].as_py()
    connection.query("SET session_timezone = 'UTC'")
    for lake in answers.job["lakes"]:
        connection.query(f"CREATE DATABASE {lake['name']}")
        connection.query(f"USE {lake['name']}")
        for name in TABLES:
            connection.query(f"CREATE VIEW {name} AS SELECT * FROM deltaLakeLocal('{lake['path']}/{name}')")
        views = views_of(lake["sql"]["duckdb"])
        for name, text in list(views.items()) * 2:
            try:
                connection.query(f"CREATE OR REPLACE VIEW {name} AS\n{text}")
            except Exception as error:
                answers.error("chdb", lake, name, error)
        for relation in [*TABLES, *views]:
            answers.take("chdb", lake, relation, lambda: arrow(f"SELECT * FROM {relation}"))
    connection.close()


def daft(answers):
    import daft

    answers.version = daft.__version__
    for lake in answers.job["lakes"]:
        tables = {name: daft.read_deltalake(f"{lake['path']}/{name}") for name in TABLES}
        views = views_of(lake["sql"]["duckdb"])
        for relation in [*TABLES, *views]:
            ask = (lambda: daft.sql(with_views(relation, views), **tables).to_arrow()) if relation in views else (
                lambda: tables[relation].to_arrow())
            answers.take("daft", lake, relation, ask)


def main():
    engine, job, folder = sys.argv[1:]
    answers = Answers(json.loads(pathlib.Path(job).read_text(encoding="utf-8")), folder)
    here = {
        "synclake-query": synclake_query, "duckdb": duckdb, "polars": polars, "delta-rs": delta_rs, "chdb": chdb, "daft": daft,
    }
    ask = here.get(engine) or importlib.import_module(f"ask_{engine}").ask
    ask(answers)
    answers.write()


if __name__ == "__main__":
    main()
