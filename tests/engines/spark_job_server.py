"""Runs the Spark jobs of deploy/spark in one session, one after the other: spark_job_server.py FOLDER

Each line of stdin is JSON: {"job": "refresh" | "extract" | "sql", "args": [lake, day] or [statement], "kill": place}. Each
answer is a line of JSON: {"report": …} or {"error": …}. With `kill`, one of PLACES, the job kills the session at this place.
The session's temporary files are in FOLDER. Starting a session takes longer than a job, so a test of many jobs uses this.
"""

import datetime
import json
import os
import pathlib
import signal
import sys
import threading
import time

import spark_session

# The checks of deploy/ read every file there.
sys.dont_write_bytecode = True
sys.path.insert(0, str(spark_session.ROOT / "deploy" / "spark"))
# Before the commit that replaces rows: nothing is written, or some data files are. After it. After a commit of an id alone.
PLACES = "rows/before", "rows/files", "rows/after", "id/after"
LOOK_SECONDS = 0.002


def kill():
    """Kills the processes of this session, its JVM included: the test starts the session as a group of its own."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def data_files(folder):
    return {path for path in pathlib.Path(folder).glob("*=*/**/*.parquet")}


def kill_at_new_file(folder):
    before = data_files(folder)
    while data_files(folder) <= before:
        time.sleep(LOOK_SECONDS)
    kill()


def kill_at(table, place):
    """Makes the methods of the class `Table` kill the session at a place."""
    write, find, record = table.write, table.find, table.record

    def killing_write(self, *args, **options):
        if place == "rows/before":
            kill()
        if place == "rows/files":
            threading.Thread(target=kill_at_new_file, args=(self.path,), daemon=True).start()
        return write(self, *args, **options)

    def killing_find(self, *args):
        # A write looks for its commit as soon as Delta has returned.
        if place in ("rows/after", "rows/files"):
            kill()
        return find(self, *args)

    def killing_record(self, *args):
        record(self, *args)
        if place == "id/after":
            kill()

    table.write, table.find, table.record = killing_write, killing_find, killing_record


def main():
    # Spark writes to standard output too, so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spark = spark_session.start(pathlib.Path(sys.argv[1]))
    from extract import extract
    from refresh import refresh_until_done
    from synclake_log import Refused
    from synclake_rows import Table, configure

    configure(spark)
    jobs = {
        "refresh": lambda lake: refresh_until_done(spark, lake),
        "extract": lambda lake, day: list(extract(spark, lake, *[datetime.date.fromisoformat(day)] * 2, True)),
        "sql": lambda statement: spark.sql(statement).collect() and None,
    }
    print(json.dumps({"report": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("kill"):
            kill_at(Table, asked["kill"])
        try:
            answer = {"report": jobs[asked["job"]](*asked["args"])}
        except Refused as reason:
            answer = {"error": str(reason)}
        print(json.dumps(answer), file=answers, flush=True)


main()
