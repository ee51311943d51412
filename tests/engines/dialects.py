"""The SQL that `synclake ddl` prints, by dialect: split into statements, and parsed where no engine here runs it."""

import pathlib
import re
import sys

import sqlglot
from sqlglot.errors import SqlglotError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
from engines import statements  # noqa: E402, F401

# Dialects whose statements an engine runs here; the views of `athena` are run by Trino.
LOCAL = ["duckdb", "duckdb-parquet", "spark", "spark-parquet", "trino"]
PARSED = {"athena": "athena", "athena-hive": "athena", "redshift": "redshift"}
# sqlglot has no tree for this statement; its form is that of Redshift's manual.
EXTERNAL_SCHEMA = (
    r"CREATE EXTERNAL SCHEMA IF NOT EXISTS \w+\s+FROM DATA CATALOG DATABASE '\w+'\s+IAM_ROLE 'arn:aws:iam::\d{12}:role/[\w-]+'\s+"
    r"CREATE EXTERNAL DATABASE IF NOT EXISTS")


def database(dialect, lake):
    """Returns a schema of its own for each dialect and lake."""
    return f"{dialect.replace('-', '_')}_{lake}"


def declared(sql):
    """Returns the tables and views that statements declare, in their order."""
    create = r"CREATE (?:OR REPLACE )?(?:EXTERNAL )?(?:TABLE|VIEW)(?: IF NOT EXISTS)? "
    pattern = re.compile(rf"(?:{create}|CALL \S+register_table\(.*?table_name => ')([\w.]+)", re.S)
    found = (pattern.match(statement) for statement in sql)
    return [match.group(1).rsplit(".")[-1] for match in found if match]


def views(sql):
    return [statement for statement in sql if statement.startswith("CREATE OR REPLACE VIEW")]


def check(lake, job):
    """Parses the dialects that no engine here runs as a whole; returns faults."""
    faults, texts = [], {}
    for dialect, parser in PARSED.items():
        for collapsed in ([], ["--collapsed"]):
            text = lake.run("synclake", "ddl", "--engine", dialect, "--lake", "s3://bucket/lake", "--database", "d", *collapsed)
            for statement in statements(text):
                if dialect == "redshift" and re.fullmatch(EXTERNAL_SCHEMA, statement):
                    continue
                try:
                    tree = sqlglot.parse_one(statement, dialect=parser)
                    # What sqlglot does not understand becomes a command, of which it checks nothing.
                    if isinstance(tree, sqlglot.exp.Command):
                        faults.append(f"{dialect}: not parsed as a statement: {statement[:200]!r}")
                except SqlglotError as error:
                    faults.append(f"{dialect}: {str(error)[:300]}: {statement[:200]!r}")
            texts[dialect, bool(collapsed)] = views(statements(text))
    for collapsed in (False, True):
        if texts["athena", collapsed] != texts["athena-hive", collapsed]:
            faults.append("the views of athena-hive are not those of athena, which Trino runs")
    return faults
