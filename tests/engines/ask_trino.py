"""Asks Trino, over its Delta Lake connector: the statements of `ddl --engine trino`, then the views of `ddl --engine athena`,
whose engine is Trino, over the same tables; then what `catalog sync` registered (catalog.py), and by dbt (ask_dbt.py).
"""

import ask_dbt
import catalog
from ask import views_of
from trino_process import Client, server

DELTA = (
    "connector.name=delta_lake\nhive.metastore=file\nhive.metastore.catalog.dir=local://{folder}/metastore\n"
    "fs.native-local.enabled=true\nlocal.location=/\ndelta.register-table-procedure.enabled=true\n"
    "delta.enable-non-concurrent-writes=true\n"
)


def ask(answers):
    with server(answers.job["tools"], {"delta": DELTA, **catalog.properties(answers.job["catalog"])}) as port:
        client = Client(port, "delta")
        version = client.run("SELECT node_version FROM system.runtime.nodes")[1][0][0]
        answers.version = {"trino": version, "athena": version}
        for lake in answers.job["lakes"]:
            if not make(answers, lake, client.run):
                continue
            for relation in answers.job["declared"]["trino"]:
                answers.take("trino", lake, relation, lambda: client.table(f"trino_{lake['name']}.{relation}"))
            for relation in views_of(lake["sql"]["athena"]):
                answers.take("athena", lake, relation, lambda: client.table(f"athena_{lake['name']}.{relation}"))
        catalog.ask(answers, port)
        ask_dbt.ask_trino(answers, port, client.table)


def make(answers, lake, run):
    """Declares tables and views in both dialects; returns whether all statements succeeded."""
    tables = [statement for statement in lake["sql"]["trino"] if not statement.startswith("CREATE OR REPLACE VIEW")]
    views = [statement for statement in lake["sql"]["trino"] if statement.startswith("CREATE OR REPLACE VIEW")]
    # The tables that the views of `athena` read: those of `trino`, in the schema of `athena`.
    of_athena = [statement.replace(f"trino_{lake['name']}", f"athena_{lake['name']}") for statement in tables]
    athena = [statement for statement in lake["sql"]["athena"] if statement.startswith("CREATE OR REPLACE VIEW")]
    # Trino's procedure registers a table once: a second call is an error, as sql/trino/tables.sql says.
    again = [statement for statement in tables if not statement.startswith("CALL ")]
    for statement in [*tables, *views, *again, *views, *of_athena, *athena, *athena]:
        try:
            run(statement)
        except Exception as error:
            answers.error("trino", lake, f"statement {statement.split('(')[0].strip()[:80]!r}", error)
            return False
    try:
        call = next(statement for statement in tables if statement.startswith("CALL "))
        run(call)
        answers.error("trino", lake, "statement 'CALL' run again", RuntimeError("it succeeded; run all statements twice"))
    except Exception as error:
        if "ALREADY_EXISTS" not in str(error):
            answers.error("trino", lake, "statement 'CALL' run again", error)
    return True
