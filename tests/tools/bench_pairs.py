"""Measures synclake and DuckDB in turn: ingest, each view, the first refresh and the start. Part of bench.py."""

import json
import shutil

from bench_measure import PAIRED, check_equal, line, once

FILES = "read_parquet('{lake}/sync_records/*/*/*.parquet', hive_partitioning = true)"
ORDER = "(sync_count, last_modified_date, arrived_at, length(sequence_number), sequence_number, coalesce(sub_sequence, -1), record_index, shard_id)"
CHANGES = f"""
    select pool, event_date, identity_id, dataset_name, key, sync_count, op, value, count(*) as copies,
      max({ORDER}) as place, arg_max(struct_pack(last_modified_date, device_last_modified_date, arrived_at), {ORDER}) as r
    from {FILES} where key is not null or op = 'remove' group by all"""

# Name, the question to the view, and the same question in DuckDB's best form over the same files.
VIEWS = [
    (
        "current_state",
        "select count(*), sum(sync_count), count(value) from current_state",
        f"""with latest as (
              select identity_pool_id, identity_id, dataset_name, key,
                     arg_max(struct_pack(op := op, value := value, n := sync_count, at := last_modified_date),
                             (sync_count, last_modified_date, length(sequence_number), sequence_number, record_index)) as r
              from {FILES} where key is not null group by all),
            removal as (
              select identity_pool_id, identity_id, dataset_name, max(row(sync_count, last_modified_date)) as r
              from {FILES} where key is null and op = 'remove' group by all)
            select count(*), sum(l.r.n), count(l.r.value)
            from latest l left join removal d using (identity_pool_id, identity_id, dataset_name)
            where l.r.op <> 'remove' and (d.r is null or row(l.r.n, l.r.at) > d.r)""",
    ),
    (
        "changes",
        "select count(*), sum(copies), sum(octet_length(value)), count(distinct last_modified_date) from changes",
        f"select count(*), sum(copies), sum(strlen(value)), count(distinct r.last_modified_date) from ({CHANGES})",
    ),
    (
        "daily_changes",
        "select count(*), sum(changes_in_day), sum(octet_length(value)), sum(sync_count) from daily_changes",
        f"""select count(*), sum(n), sum(strlen(v)), sum(c) from (
              select count(*) as n, arg_max(struct_pack(v := value), place).v as v, max(sync_count) as c
              from ({CHANGES}) group by pool, event_date, identity_id, dataset_name, key)""",
    ),
]

TRANSFORM = """
    copy (
      select replace(identityPoolId, ':', '_') as pool,
             cast(make_timestamp(r.lastModifiedDate * 1000) as date) as event_date,
             identityPoolId, identityId, coalesce(dataSetName, datasetName_1) as dataset_name, operation,
             r.key as key, r.value as value, r.op as op, r.syncCount as sync_count,
             make_timestamp(r.lastModifiedDate * 1000) as last_modified_date,
             make_timestamp(r.deviceLastModifiedDate * 1000) as device_last_modified_date,
             syncCount as event_sync_count, make_timestamp(lastModifiedDate * 1000) as event_last_modified_date
      from (
        select * exclude kinesisSyncRecords, unnest(kinesisSyncRecords) as r
        from read_json({files}, format = 'newline_delimited', columns = {{
          identityPoolId: 'VARCHAR', identityId: 'VARCHAR', dataSetName: 'VARCHAR', datasetName_1: 'VARCHAR',
          operation: 'VARCHAR', lastModifiedDate: 'BIGINT', syncCount: 'BIGINT',
          kinesisSyncRecords: 'STRUCT(key VARCHAR, value VARCHAR, syncCount BIGINT, lastModifiedDate BIGINT, deviceLastModifiedDate BIGINT, op VARCHAR)[]'
        }}))
    ) to '{folder}' (format parquet, compression zstd, partition_by (pool, event_date))
"""
SUMS = "select count(*), sum(sync_count), sum({length}(value)), count(distinct {identity}) from {rows} where key is not null"


def view(name):
    """Returns the question to a view and DuckDB's form of it."""
    return next((sql, best) for known, sql, best in VIEWS if known == name)


def transform(bench, files, folder):
    """Returns DuckDB's command that converts files of events into partitioned Parquet."""
    return bench.duckdb(TRANSFORM.format(files=[str(file) for file in files], folder=folder))


def ingests(bench, events, lake, folder):
    """Measures the ingest of a file beside DuckDB's conversion of it, and compares what they wrote."""

    def clean():
        shutil.rmtree(lake, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    ours, theirs = bench.in_turn(bench.ingest(events, lake), transform(bench, [events], folder), prepare=clean)
    compare(bench, lake, folder)
    return ours, theirs


def compare(bench, lake, folder):
    mine = once(bench.query(lake, SUMS.format(length="octet_length", identity="identity_id", rows="sync_records")))
    same = SUMS.format(length="strlen", identity="identityId", rows=f"read_parquet('{folder}/*/*/*.parquet')")
    check_equal("the rows of the ingest", mine, once(bench.duckdb(same)))


def part(bench):
    """Returns the section with the table of all pairs."""
    events, lake, folder = bench.input(), bench.data / f"lake-{bench.events}", bench.data / f"duckdb-{bench.events}"
    size = events.stat().st_size / 1e6
    ours, theirs = bench.shared["ingest"] = ingests(bench, events, lake, folder)
    summary = json.loads(ours.out)
    table = [PAIRED, line(f"{size / 1e3:.2f} GB of NDJSON to Parquet by pool and date", ours, theirs, f" ({size / ours.wall:.0f} MB/s)")]
    sizes = [sum(file.stat().st_size for file in place.rglob("*.parquet")) / 1e6 for place in (lake / "sync_records", folder)]
    table.append(f"| size of the files | {sizes[0]:.0f} MB | {sizes[1]:.0f} MB | | |\n")
    for name, sql, best in VIEWS:
        ours, theirs = bench.in_turn(bench.query(lake, sql), bench.duckdb(best.format(lake=lake)))
        check_equal(name, ours, theirs)
        table.append(line(f"`{name}` over all rows", ours, theirs))
    table.append(line("`select 1`, whole process", *bench.in_turn(bench.query(lake, "select 1"), bench.duckdb("select 1"))))
    refresh = bench.synclake("refresh", "--lake", lake)
    (ours,) = bench.in_turn(refresh, prepare=lambda: shutil.rmtree(lake / "state", ignore_errors=True))
    table.append(line("the first `synclake refresh`", ours))
    arguments = " ".join(str(word) for word in bench.stream())
    return f"""## Beside DuckDB

Input: `synclake {arguments}`: {size / 1e3:.2f} GB,
{summary["records"]:,} events, {summary["rows"]:,} rows, {summary["files"]} files.

{"".join(table)}
DuckDB's questions are its best forms over the same files (`tests/tools/bench_pairs.py`); both give the same answers. Its table of the
first line is not sorted and has fewer columns. synclake also checks every id and date, keeps unknown fields, sequence numbers and
arrival times, hashes the file to know it again, writes Bloom filters and page indexes, and syncs each file to disk.
"""
