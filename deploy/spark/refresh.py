"""Refreshes the maintained state of a synclake lake by Spark, as `synclake refresh` does.

    spark-submit --packages io.delta:delta-spark_2.13:4.0.0 --py-files synclake_log.py,synclake_rows.py refresh.py --lake LAKE

Of `sync_records`, the job reads the files that came since the version which the state covers; of `state`, the pools of their
rows, which it writes anew in one commit. This commit records the covered version as the transaction id `refresh/sync_records`. A
second commit records the version of the first as `refresh/state`: until then, synclake ignores the state, and computes from all
rows. The job and `synclake refresh` may take turns; README.md says where they may run at the same time. A job that is killed is
run again. It prints one line of JSON.
"""

import argparse

from synclake_log import Refused
from synclake_rows import (CHANGES, RECORDS, STATE, Table, in_order, latest, left_by_retention, new_token, parsed, quoted,
                           run)

COVERS = "refresh/sync_records"
REFRESHED = "refresh/state"
ATTEMPTS = 5
AGAIN = "run `synclake refresh`"


def why_anew(state, records):
    """Returns why the state must be computed from all rows; None if it can be gone on from."""
    covers, refreshed = state.log.ids.get(COVERS), state.log.ids.get(REFRESHED)
    if covers is None:
        return "there is no state yet"
    of_state = state.log.changes(refreshed) if refreshed is not None else None
    if of_state is None or of_state.removed or of_state.files():
        return "another writer changed the state, or a job was killed before its second commit"
    changes = records.log.changes(covers)
    if changes is None:
        return "the log does not reach back to the version that the state covers"
    if changes.expired_new:
        raise Refused(f"rows left sync_records by retention that the state lacks; {AGAIN}")
    if changes.removed_with_rows_of(covers):
        return "another writer removed or changed rows that the state holds"
    return None


def as_state(rows):
    """Returns rows of sync_records that change something, with the columns of the state."""
    return rows.where(CHANGES).selectExpr(*RECORDS, "false AS is_after_removal").select(*STATE)


def refresh(spark, lake, rebuild):
    """Refreshes once. Returns the report; None if another writer was faster."""
    # The state first, so that it never covers more than the version of sync_records that is read.
    state = Table(spark, lake, "state").create(STATE, "pool")
    records = Table(spark, lake, "sync_records")
    records.check_format()
    state.check_format()
    version, covers = records.log.version, state.log.ids.get(COVERS)
    if covers is not None and covers > version:
        raise Refused(f"the state covers version {covers} of sync_records, which is only at version {version}; {AGAIN}")
    why = "it was asked for" if rebuild else why_anew(state, records)
    if why and left_by_retention(records.log):
        raise Refused(f"the state must be computed anew ({why}), but rows have left sync_records by retention; {AGAIN}")
    report = {"covers": version, "covered": covers, "anew": why, "files_read": None}
    changes = None if why else records.log.changes(covers)
    files = changes.files() if changes else {}
    if not why:
        report["files_read"] = len(files)
        if not files:
            if covers < version:
                state.record(COVERS, version)
            return {**report, "version": state.reload().log.version}
    read, token = state.log.version, new_token("refresh")
    if why:
        rows, mode = as_state(records.rows()), "static"
    else:
        pools = sorted({partition.get("pool") or "" for _, partition in files.values()})
        of_pools = state.rows().where(f"pool IN ({', '.join(map(quoted, pools))})").select(*STATE)
        tail = as_state(records.rows_of(files, changes.with_vectors))
        rows, mode = of_pools.unionByName(tail), "dynamic"
    written = state.write(in_order(latest(rows)), token, (COVERS, version), partitionOverwriteMode=mode)
    if written is None:
        return None
    if mode == "dynamic" and state.log.changed(read, written - 1):
        # The pools that stay as they were may not be those that were read.
        return None
    state.record(REFRESHED, written)
    return {**report, "version": state.reload().log.version}


def refresh_until_done(spark, lake, rebuild=False):
    for _ in range(ATTEMPTS):
        if report := refresh(spark, lake, rebuild):
            return report
    raise Refused(f"other writers were faster {ATTEMPTS} times; run this job again")


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="a folder or URL that Spark can write, such as s3a://bucket/cognito")
    parser.add_argument("--rebuild", action="store_true", help="compute the state from all rows")
    options = parsed(parser)
    run("synclake refresh", lambda spark: [refresh_until_done(spark, options.lake, options.rebuild)])


if __name__ == "__main__":
    main()
