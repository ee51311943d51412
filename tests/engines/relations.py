"""Tables and views that `synclake ddl` declares: their columns and types, and how two sets of rows are compared."""

import collections
import heapq
import json
import pathlib
import re

import pyarrow as pa
import pyarrow.compute as pc

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLES = ["sync_records", "state", "daily_state", "quarantine", "gaps"]
VIEWS = [
    "cognito_raw_data", "changes", "daily_changes", "resolved", "key_state", "current_state", "dataset_state",
    "refreshed_state", "daily_extract",
]
RELATIONS = TABLES + VIEWS

DATES = {"event_date", "extract_date", "arrived_date"}
INTEGERS = {
    "sync_count", "synccount", "event_sync_count", "sub_sequence", "record_index", "copies", "changes_in_day", "live_keys",
}
BOOLEANS = {"is_after_removal", "is_latest", "is_dataset_removal", "removed", "whole_rest"}


def type_of(column):
    if column in DATES:
        return pa.date32()
    if column in INTEGERS:
        return pa.int64()
    if column in BOOLEANS:
        return pa.bool_()
    if column == "raw":
        return pa.large_binary()
    if re.search(r"_date$|lastmodifieddate$|_at$|^arrived_(from|until)$", column):
        return pa.timestamp("us", "UTC")
    return pa.large_string()


def documented():
    """Returns the columns of each relation, as docs/columns.md lists them."""
    columns, relation = {}, None
    for line in (ROOT / "docs/columns.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(\w+)` \((?:table|view)\)", line):
            relation = columns.setdefault(heading.group(1), [])
        elif relation is not None and (cell := re.match(r"\| `(\w+)` \|", line)):
            relation.append(cell.group(1))
    # The view of the last refresh has the columns of the view of the newest version.
    columns["refreshed_state"] = columns["current_state"]
    return columns


COLUMNS = documented()


def to_table(rows, relation):
    """Returns rows, which are dictionaries, as a table; timestamps are µs since the epoch, dates are days."""
    arrays = []
    for name in COLUMNS[relation]:
        kind = type_of(name)
        stored = pa.int64() if pa.types.is_timestamp(kind) else pa.int32() if pa.types.is_date(kind) else kind
        arrays.append(pa.array([row[name] for row in rows], stored).cast(kind))
    return pa.table(arrays, names=COLUMNS[relation])


def canonical(table, columns):
    """Returns the columns of an answer in one form, whatever the engine's types. Instants are µs in UTC."""
    arrays = []
    for name in columns:
        column, kind = table.column(name), type_of(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_timestamp(kind):
            if not pa.types.is_timestamp(column.type):
                raise ValueError(f"column {name} has the type {column.type}, not an instant")
            # Casts within time zones keep the instant; a column without one is taken as UTC.
            column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        elif pa.types.is_null(column.type) or column.type != kind:
            column = column.cast(kind)
        arrays.append(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    return pa.table(arrays, names=columns)


def ordered(table):
    # A boolean cannot be sorted by.
    keys = [
        pc.cast(column, pa.int8()) if pa.types.is_boolean(column.type) else column for column in table.columns
    ]
    names = [f"c{n}" for n in range(len(keys))]
    order = pc.sort_indices(pa.table(keys, names=names), sort_keys=[(name, "ascending") for name in names])
    return table.take(order).combine_chunks()


def shown(row):
    return json.dumps(row, ensure_ascii=True, default=lambda value: value.hex() if isinstance(value, bytes) else str(value))


def differences(expected, found, limit=2):
    """Returns lines that say how the rows of two tables differ; none if they are the same, in any order."""
    names = set(found.column_names)
    if "copies" not in expected.column_names and "copies" in names and found.column("copies").null_count == found.num_rows:
        # The column of collapsed copies, which only the table of a collapsed lake has: without it, it is null.
        found = found.drop_columns("copies")
        names.remove("copies")
    lines = [f"column {name} is missing" for name in expected.column_names if name not in names]
    lines += [f"column {name} is not expected" for name in sorted(names - set(expected.column_names))]
    both = [name for name in expected.column_names if name in names]
    if not both:
        return lines or ["it has no columns"]
    try:
        mine, theirs = canonical(expected, both), canonical(found, both)
    except (ValueError, pa.ArrowException) as error:
        return [*lines, f"a value has no equal type: {error}"]
    if mine.num_rows == theirs.num_rows and ordered(mine).equals(ordered(theirs)):
        return lines
    if not limit:
        return [*lines, f"{mine.num_rows} rows expected, {theirs.num_rows} found; some are not expected"]
    counts = [collections.Counter(zip(*(column.to_pylist() for column in side.columns))) for side in (mine, theirs)]
    lacking, extra = counts[0] - counts[1], counts[1] - counts[0]
    lines.append(
        f"{mine.num_rows} rows expected, {theirs.num_rows} found; {lacking.total()} are missing, {extra.total()} are not expected"
    )
    # Rows of one key side by side: sorted as text, with nulls.
    for what, rows in (("missing", lacking), ("not expected", extra)):
        for row in heapq.nsmallest(limit, rows, key=lambda row: [str(value) for value in row]):
            lines.append(f"  {what}: {shown(dict(zip(both, row)))}")
    return lines
