"""Measures the daily questions of an analyst beside DuckDB, over the same Parquet files. Part of bench.py."""

import sys

from bench_measure import PAIRED, check_equal, line, once, rows

FILES = "read_parquet('{lake}/sync_records/*/*/*.parquet', hive_partitioning = true)"
STATE = "read_parquet('{lake}/state/*/*.parquet', hive_partitioning = true)"
KEY = "identity_id = '{identity}' and dataset_name = '{dataset}' and key = '{key}'"

# Name, the question to synclake, and the same question in DuckDB's best form.
QUESTIONS = [
    (
        "one dataset of one identity, after a refresh",
        "select key, value, sync_count from current_state where identity_id = '{identity}' and dataset_name = '{dataset}'",
        f"""select key, value, sync_count from {STATE}
            where identity_id = '{{identity}}' and dataset_name = '{{dataset}}' and is_after_removal and op <> 'remove'""",
    ),
    (
        "history of one key",
        f"select sync_count, op, value, copies from changes where {KEY}",
        f"""select sync_count, op, value, count(*) as copies from {FILES} where {KEY}
            group by pool, event_date, identity_id, dataset_name, key, sync_count, op, value""",
    ),
    (
        "active identities by day",
        "select cast(event_date as varchar), count(distinct identity_id) from sync_records group by event_date",
        f"select cast(event_date as varchar), count(distinct identity_id) from {FILES} group by event_date",
    ),
    (
        "active identities by week",
        """select cast(cast(date_trunc('week', event_date) as date) as varchar), count(distinct identity_id)
           from sync_records group by 1""",
        f"""select cast(cast(date_trunc('week', event_date) as date) as varchar), count(distinct identity_id)
            from {FILES} group by 1""",
    ),
    (
        "retention: identities of a day that are active again seven days later, for each day",
        """with seen as (select distinct event_date, identity_id from sync_records)
           select cast(a.event_date as varchar), count(*), count(b.identity_id)
           from seen a left join seen b
             on b.identity_id = a.identity_id and b.event_date = a.event_date + interval '7 days'
           group by a.event_date""",
        f"""with seen as materialized (select distinct event_date, identity_id from {FILES})
            select cast(a.event_date as varchar), count(*), count(b.identity_id)
            from seen a left join seen b
              on b.identity_id = a.identity_id and b.event_date = cast(a.event_date + interval 7 days as date)
            group by a.event_date""",
    ),
    (
        "share of copies among the rows, by day",
        "select cast(event_date as varchar), sum(copies) - count(*), sum(copies) from changes group by event_date",
        f"""select cast(event_date as varchar), sum(copies) - count(*), sum(copies) from (
              select event_date, count(*) as copies from {FILES} where key is not null or op = 'remove'
              group by pool, event_date, identity_id, dataset_name, key, sync_count, op, value)
            group by event_date""",
    ),
]


def subject(bench, lake):
    """Returns the identity, dataset and key for questions about one of them: any, but always the same one of a lake."""
    sql = "select identity_id, dataset_name, key from current_state order by md5(identity_id), dataset_name, key limit 1"
    found = rows(once(bench.query(lake, sql)).out)
    if not found:
        sys.exit(f"{lake} has no live key")
    return dict(zip(("identity", "dataset", "key"), found[0]))


def lookup(bench, lake):
    """Returns the question of a point lookup: one dataset of one identity."""
    return QUESTIONS[0][1].format(**subject(bench, lake))


def part(bench):
    """Returns the section with the table of all questions."""
    lake = bench.lake()
    names = subject(bench, lake)
    table = [PAIRED]
    for what, sql, best in QUESTIONS:
        commands = bench.query(lake, sql.format(**names)), bench.duckdb(best.format(lake=lake, **names))
        ours, theirs = bench.in_turn(*commands)
        check_equal(what, ours, theirs)
        table.append(line(what, ours, theirs))
    return f"""## An analyst's daily questions

The lake of the first table, whole processes, the same answers (`tests/tools/bench_questions.py`). DuckDB answers the first question
from the files of the table `state`, all others from those of `sync_records`.

{"".join(table)}"""
