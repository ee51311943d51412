"""Answers queries over a lake with DuckDB: it reads the files that the Delta logs list, by the SQL of `synclake ddl`.

    duck.py DDL_FILE < QUERIES > ANSWERS

A query is one line with a JSON string. An answer is {"rows": […]} or {"error": "…"}. Cells are text, in the same form as
in mod.rs.
"""

import datetime
import decimal
import json
import pathlib
import re
import sys

import duckdb
import duckdb_extension_delta


def cell(value):
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, decimal.Decimal)):
        if value == int(value):
            return str(int(value))
        digits, exponent = f"{float(value):.9e}".split("e")
        return f"{digits}e{int(exponent)}"
    if isinstance(value, datetime.datetime):
        utc = value.astimezone(datetime.timezone.utc) if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        return "@" + str((utc - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1))
    return str(value)


def main():
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
    connection.execute(f"LOAD '{extension}'")
    text = "\n".join(line for line in open(sys.argv[1], encoding="utf-8") if not line.startswith("--"))
    for statement in (s.strip() for s in re.split(r";\s*(?:\n|$)", text)):
        if not statement or statement.endswith(" delta"):
            continue
        # Load each table once, as a table; keep the views as views.
        if "delta_scan" in statement:
            statement = statement.replace("OR REPLACE VIEW", "OR REPLACE TABLE")
        connection.execute(statement)
    for line in sys.stdin:
        try:
            rows = connection.execute(json.loads(line)).fetchall()
            answer = {"rows": [[cell(v) for v in row] for row in rows]}
        except duckdb.Error as error:
            answer = {"error": str(error).splitlines()[0]}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


main()
