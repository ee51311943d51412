"""Runs SQL statements from stdin in Spark with Delta, one per line; answers each with one JSON line: null or the error.

    python spark_server.py JAR [JAR …]
"""

import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "engines"))
import spark_session  # noqa: E402


def main():
    # Spark writes to standard output too (VACUUM does), so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        session = spark_session.start(folder, spark__jars=",".join(sys.argv[1:]), spark__driver__memory="1g",
                                      spark__databricks__delta__retentionDurationCheck__enabled="false")
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
