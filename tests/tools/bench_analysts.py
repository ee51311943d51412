"""Measures the twelve questions of docs/sql.md beside DuckDB, over the same Parquet files. Part of bench.py.

The questions are those of the document. Only the identity, the dataset and the key in them become those of the measured lake.
"""

import re

from bench_document import ROOT
from bench_measure import PAIRED, check_equal, line, once
from bench_questions import FILES, STATE, subject

DAYS = ("2026-01-03", "2026-01-04")
EXTRACT = "read_parquet('{lake}/daily_state/extract_date={day}/*/*.parquet', hive_partitioning = true)"
LIVE = "is_after_removal and op <> 'remove'"
CHANGE = "pool, event_date, identity_id, dataset_name, key, op, value, sync_count"
CHANGES = f"""(select {CHANGE}, max(last_modified_date) as modified, count(*) as copies from {FILES}
    where key is not null or op = 'remove' group by {CHANGE})"""
USAGE = f"""(select identity_id, count(*) filter (where not removed) as datasets, sum(keys) as keys, sum(bytes) as bytes,
      max(keys) as most_keys, max(bytes) as most_bytes
    from (select pool, identity_id, bool_or(key is null) and not bool_or(is_after_removal) as removed,
        count(*) filter (where {LIVE}) as keys,
        coalesce(sum(strlen(key) + coalesce(strlen(value), 0)) filter (where {LIVE}), 0) as bytes
      from {STATE} group by pool, identity_id, dataset_name)
    group by pool, identity_id)"""


def instant(column):
    """Returns a timestamp as synclake writes it in JSON."""
    return f"strftime(make_timestamp(epoch_us({column})), '%Y-%m-%dT%H:%M:%S.%gZ')"


# DuckDB's form of each question, by its number. It gives the same answer on a lake of `synclake simulate`.
BEST = {
    1: f"""select {instant("modified")}, identity_id, key, op, value from {CHANGES}
        where event_date = '2026-01-04' and dataset_name = '{{dataset}}' order by modified desc, key limit 10""",
    2: f"""select row_number() over w, {instant("modified")}, op, lag(value) over w, value,
          (epoch_us(lead(modified) over w) - epoch_us(modified)) / 1e6
        from {CHANGES} where identity_id = '{{identity}}' and dataset_name = '{{dataset}}' and key = '{{key}}'
        window w as (order by sync_count, modified)""",
    3: f"""with seen as materialized (select distinct event_date, identity_id from {FILES})
        select cast(a.event_date as varchar), count(*), count(b.identity_id)
        from seen a left join seen b
          on b.identity_id = a.identity_id and b.event_date = cast(a.event_date + interval 1 day as date)
        group by a.event_date""",
    4: f"""select pool, identity_id, dataset_name, count(*), sum(strlen(key) + coalesce(strlen(value), 0)) as bytes
        from {STATE} where {LIVE} group by all order by bytes desc, identity_id limit 10""",
    5: f"""select identity_id, datasets, keys, bytes,
          case share when bytes / 20971520 then 'bytes of the identity' when datasets / 20 then 'datasets of the identity'
            when most_bytes / 1048576 then 'bytes of a dataset' else 'keys of a dataset' end, round(share, 3)
        from (select *, greatest(bytes / 20971520, datasets / 20, most_bytes / 1048576, most_keys / 1024) as share from {USAGE})
        where share >= 0.2 order by share desc, bytes desc limit 10""",
    6: f"""select case when op = 'remove' then 'key' else 'dataset' end, dataset_name, count(*),
          {instant("max(last_modified_date)")}
        from {STATE} where key is not null and (op = 'remove' or not is_after_removal) group by 1, 2""",
    7: f"""select coalesce(a.dataset_name, b.dataset_name), count(b.op) - count(a.op || b.op), count(a.op) - count(a.op || b.op),
          count(case when a.value is distinct from b.value then a.op || b.op end)
        from (select * from {EXTRACT.replace("{day}", DAYS[0])} where kind = 'state') a
        full join (select * from {EXTRACT.replace("{day}", DAYS[1])} where kind = 'state') b
          using (pool, identity_id, dataset_name, key) group by 1""",
    8: f"""select theme, count(*), avg(size) from (
          select json_extract_string(text, '$.theme') as theme, cast(json_extract_string(text, '$.size') as bigint) as size
          from (select case when json_valid(value) then value end as text from {STATE}
            where dataset_name = '{{dataset}}' and key = '{{key}}' and {LIVE}))
        group by theme""",
    9: f"""select cast(event_date as varchar), count(*), min(late), max(late) from (
          select event_date, cast(min(arrived_at) as date) - event_date as late from {FILES}
          where (key is not null or op = 'remove') and event_date between '2026-01-05' and '2026-01-07' group by {CHANGE})
        where late > 0 group by event_date""",
    10: f"""select pool, count(*), sum(copies), round(100.0 * (sum(copies) - count(*)) / sum(copies), 1)
        from {CHANGES} group by pool""",
    11: f"""select identity_id, regexp_replace(dataset_name, '^.*\\.([\\w-]+:[0-9a-f-]+)$', '\\1'), dataset_name,
          count(*) filter (where {LIVE})
        from {STATE} where regexp_matches(dataset_name, '\\.[\\w-]+:[0-9a-f-]+$')
        group by pool, identity_id, dataset_name""",
    12: f"""select pool, cast(event_date as varchar), fresh, changes, sum(fresh) over (partition by pool order by event_date)
        from (select pool, event_date, sum(changes) as changes, count(*) filter (where event_date = first) as fresh
          from (select pool, event_date, sum(n) as changes, min(event_date) over (partition by pool, identity_id) as first
            from (select pool, event_date, identity_id, count(*) as n from {CHANGES} group by all)
            group by pool, event_date, identity_id)
          group by pool, event_date)""",
}


def asked():
    """Returns number, title and SQL of the twelve questions of docs/sql.md."""
    section = (ROOT / "docs/sql.md").read_text().split("\n## Twelve questions of analysts\n")[1].split("\n## ")[0]
    found = re.findall(r"### (\d+)\. ([^\n]+)\n.*?```sql\n(.*?)\n```", section, re.DOTALL)
    return [(int(number), title, sql) for number, title, sql in found]


def filled(sql, names):
    """Returns a question of the document about the identity, dataset and key of `names`."""
    sql = re.sub(r"identity_id = '[^']+'", f"identity_id = '{names['identity']}'", sql)
    sql = re.sub(r"dataset_name = '[^']+'", f"dataset_name = '{names['dataset']}'", sql)
    return re.sub(r"\bkey = '[^']+'", f"key = '{names['key']}'", sql)


def part(bench):
    """Returns the section with the table of the twelve questions."""
    lake = bench.lake()
    for day in DAYS:
        if not (lake / f"daily_state/extract_date={day}").exists():
            once(bench.synclake("extract", "--lake", lake, "--date", day))
    names = subject(bench, lake)
    table = [PAIRED]
    for number, title, sql in asked():
        best = BEST[number].replace("{lake}", str(lake))
        for name, value in names.items():
            best = best.replace(f"{{{name}}}", value)
        ours, theirs = bench.in_turn(bench.query(lake, filled(sql, names)), bench.duckdb(best))
        check_equal(title, ours, theirs)
        table.append(line(title, ours, theirs))
    return f"""## The twelve questions of docs/sql.md

The lake of the first table, whole processes, the same answers (`tests/tools/bench_analysts.py`). DuckDB answers 4, 5, 6, 8 and 11
from the files of `state`, 7 from those of `daily_state`, and all others from those of `sync_records`.

{"".join(table)}"""
