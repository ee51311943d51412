"""Extracts days of a synclake lake by Spark into the table `daily_state`, as `synclake extract` does.

    spark-submit --packages io.delta:delta-spark_2.13:4.0.0 --py-files synclake_log.py,synclake_rows.py,extract_plan.py \\
        extract.py --lake LAKE --date 2026-11-20 | --from 2026-11-01 --to 2026-11-20 [--correct]

A day is computed from the newest extract of an earlier day and the rows that came since. One commit replaces the day, and records
the version of `sync_records` that it covers as the transaction id `extract/<day>`. The stale days that were found are recorded
before it, and its own version after it (`extracted/<day>`): until then, synclake builds no other day on it. The job and `synclake
extract` may take turns. A job that is killed is run again. It writes no files elsewhere, and no `_SUCCESS`. It prints one line of
JSON for each day.
"""

import argparse
import datetime
import functools

from pyspark.sql import DataFrame

from extract_plan import Plan, covers_id, day_in, extracted_id, is_as_written, removes_rows, stale_id
from synclake_log import Refused
from synclake_rows import CHANGES, DATASET, ORDER, RECORDS, STATE, Table, in_order, latest, new_token, parsed, run

COLUMNS = ["pool", "identity_pool_id", "identity_id", "dataset_name", "key", "value", "op", "sync_count", "last_modified_date",
           "device_last_modified_date"]
ORDERED = ["is_after_removal", "shard_id", "sequence_number", "sub_sequence", "record_index", "arrived_at"]
DAILY = ["extract_date", "pool", "kind", *COLUMNS[1:], *ORDERED]
LIVE = "(is_after_removal AND op <> 'remove')"
# The columns by which a row of an earlier extract is the same as one of now.
ROW = [name for name in COLUMNS if name != "identity_pool_id"]
CORRECTION = ["'correction' AS kind", *COLUMNS[:5], f"CASE WHEN {LIVE} THEN value END AS value",
              f"CASE WHEN {LIVE} THEN op ELSE 'remove' END AS op", *COLUMNS[7:]]
KEY = ["pool", "identity_id", "dataset_name", "key"]
ATTEMPTS = 5


def key_state(plan):
    """Returns the latest change of each key at the end of the day."""
    rows, names = plan.records.rows(), ["false AS is_after_removal", *RECORDS]
    of_day = f"(event_date <= '{plan.date}' OR event_date IS NULL)"
    if plan.base is None:
        return latest(rows.where(f"{CHANGES} AND {of_day}").selectExpr(*names).select(*STATE))
    tail = [rows.where(f"{CHANGES} AND {of_day} AND (event_date > '{plan.base}' OR event_date IS NULL)")]
    late = {path for path, (_, of) in plan.changes.files().items() if day_in(of) and day_in(of) <= plan.base}
    if late:
        tail.append(plan.records.rows_of(late, plan.changes.with_vectors).where(f"{CHANGES} AND event_date <= '{plan.base}'"))
    base = plan.daily.rows().where(f"extract_date = '{plan.base}' AND kind IN ('state', 'removed')").select(*STATE)
    return latest(functools.reduce(DataFrame.unionByName, [base, *(of.selectExpr(*names).select(*STATE) for of in tail)]))


def day_changes(plan):
    """Returns the last change of each key on the day."""
    rows = plan.records.rows().where(f"{CHANGES} AND event_date = '{plan.date}'")
    ranked = rows.selectExpr(*RECORDS, f"row_number() OVER (PARTITION BY {DATASET}, key ORDER BY {ORDER}) AS nth")
    return ranked.where("nth = 1").selectExpr("'change' AS kind", *COLUMNS)


def corrections(plan, keys):
    """Returns the keys whose live row differs from an earlier extract of this day; None if there can be none."""
    covers = plan.extracted.get(plan.date)
    if covers is None:
        return None
    if not is_as_written(plan.daily.log, plan.date):
        return keys.where("key IS NOT NULL").selectExpr(*CORRECTION)
    before = plan.daily.rows().where(f"extract_date = '{plan.date}'")
    earlier = before.where("kind = 'correction'").select(*KEY)
    changes = plan.records.log.changes(covers)
    is_known = changes is not None and not removes_rows(changes, covers, plan.date)
    unknown = [of for _, of in changes.files().values() if (day_in(of) or plan.date) <= plan.date] if is_known else None
    if unknown == [] and not earlier.take(1):
        return None
    both = before.where("kind = 'state'").select(*ROW).unionAll(keys.where(LIVE).select(*ROW))
    # A row that is on both sides is counted twice.
    changed = both.groupBy(*ROW).count().where("count = 1").select(*KEY).union(earlier).distinct()
    return keys.join(changed, KEY, "left_semi").selectExpr(*CORRECTION)


def extract_day(spark, lake, date):
    """Extracts a day once. Returns the report; None if another writer was faster."""
    # The extracts first, so that they never cover more than the version of sync_records that is read.
    daily = Table(spark, lake, "daily_state").create(DAILY, "extract_date, pool")
    records = Table(spark, lake, "sync_records")
    records.check_format()
    daily.check_format()
    plan = Plan(records, daily, date)
    keys = key_state(plan).persist()
    try:
        of_keys = keys.selectExpr(f"CASE WHEN {LIVE} THEN 'state' ELSE 'removed' END AS kind", *COLUMNS, *ORDERED)
        kinds = [of_keys, day_changes(plan)]
        kinds.extend([found] if (found := corrections(plan, keys)) is not None else [])
        rows = functools.reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), kinds)
        rows = rows.selectExpr(f"date'{date}' AS extract_date", *DAILY[1:])
        for day in plan.stale:
            daily.record(stale_id(day), plan.version)
        daily.reload()
        written = daily.write(in_order(rows, "kind"), new_token(f"extract {date}"), (covers_id(date), plan.version),
                              replaceWhere=f"extract_date = '{date}'", partitionOverwriteMode="static")
    finally:
        keys.unpersist()
    if written is None:
        return None
    daily.record(extracted_id(date), written)
    counts = dict(daily.reload().rows().where(f"extract_date = '{date}'").groupBy("kind").count().collect())
    return {
        "date": str(date), "state_rows": counts.get("state", 0), "change_rows": counts.get("change", 0),
        "corrections": counts.get("correction", 0), "version": written, "covers": plan.version,
        "base": str(plan.base) if plan.base else None, "anew": plan.why_anew,
        "late_rows": {str(day): rows for day, rows in plan.late.items()}, "stale": [str(day) for day in plan.stale],
    }


def extract_until_done(spark, lake, date):
    for _ in range(ATTEMPTS):
        if report := extract_day(spark, lake, date):
            return report
    raise Refused(f"other writers were faster {ATTEMPTS} times; run this job again")


def extract(spark, lake, first, last, correct):
    """Extracts days, and yields a report for each. With `correct`, stale days are extracted again: earlier ones first."""
    date = first
    while date <= last:
        corrected = []
        if correct:
            daily = Table(spark, lake, "daily_state").create(DAILY, "extract_date, pool")
            records = Table(spark, lake, "sync_records")
            corrected = [day for day in Plan(records, daily, date).stale if day < date]
            for day in corrected:
                extract_until_done(spark, lake, day)
        report = extract_until_done(spark, lake, date)
        if correct and date == last:
            later = [day for day in map(datetime.date.fromisoformat, report["stale"]) if day > date]
            for day in later:
                extract_until_done(spark, lake, day)
            corrected += later
            report["stale"] = [day for day in report["stale"] if datetime.date.fromisoformat(day) not in later]
        yield {**report, "corrected": [str(day) for day in corrected]}
        date += datetime.timedelta(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="a folder or URL that Spark can write, such as s3a://bucket/cognito")
    first = parser.add_mutually_exclusive_group(required=True)
    first.add_argument("--date", type=datetime.date.fromisoformat, help="the day to extract")
    first.add_argument("--from", dest="first", type=datetime.date.fromisoformat, help="the first day of a range")
    parser.add_argument("--to", dest="last", type=datetime.date.fromisoformat, help="the last day of the range")
    parser.add_argument("--correct", action="store_true", help="also extract stale days again")
    options = parsed(parser)
    if (options.first is None) != (options.last is None):
        parser.error("--from and --to need each other")
    first, last = options.date or options.first, options.date or options.last
    run("synclake extract", lambda spark: extract(spark, options.lake, first, last, options.correct))


if __name__ == "__main__":
    main()
