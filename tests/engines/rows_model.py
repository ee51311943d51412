"""The rows and views of a lake, computed from the lines of its input files. It shares no code with synclake or its SQL.

`decode` gives the rows of a file; the other functions compute what a view must show of such rows. A row is a `Row`;
`place` orders rows that have the same sync count and server date: number of the file, line, index in the event.
"""

import collections
import datetime
import json

Row = collections.namedtuple("Row", "pool identity dataset key value op sync_count modified place")
Key = collections.namedtuple("Key", "identity dataset key")

TEXTS = ["identityPoolId", "identityId", "dataset", "operation"]
NUMBERS = ["syncCount", "lastModifiedDate"]


def decode(path, number):
    """Returns the rows of a file, and the number of its lines that are no event."""
    rows, broken = [], 0
    for line, text in enumerate(path.read_bytes().split(b"\n")):
        if not text:
            continue
        try:
            event = json.loads(text.decode())
        except ValueError:
            broken += 1
            continue
        if isinstance(event, dict):
            # Streams spell this field in two ways.
            event["dataset"] = event.get("dataSetName", event.get("datasetName"))
        is_event = isinstance(event, dict) and all(isinstance(event.get(name), str) for name in TEXTS)
        if not is_event or not all(isinstance(event.get(name), int) for name in NUMBERS):
            broken += 1
            continue
        rows.extend(rows_of(event, (number, line)))
    return rows, broken


def rows_of(event, place):
    name = (event["identityPoolId"], event["identityId"], event["dataset"])
    records = event.get("kinesisSyncRecords") or []
    if not records:
        yield Row(*name, None, None, event["operation"], event["syncCount"], event["lastModifiedDate"], (*place, 0))
    for index, record in enumerate(records):
        count = record.get("syncCount", event["syncCount"])
        modified = record.get("lastModifiedDate", event["lastModifiedDate"])
        yield Row(*name, record["key"], record.get("value"), record["op"], count, modified, (*place, index))


def order(row):
    return (row.sync_count, row.modified, row.place)


def moment(row):
    return (row.sync_count, row.modified)


def changing(rows):
    """Returns the rows without those of events that had neither records nor a removal."""
    return [row for row in rows if row.key is not None or row.op == "remove"]


def latest(rows):
    found = {}
    for row in changing(rows):
        key = Key(row.identity, row.dataset, row.key)
        if key not in found or order(found[key]) < order(row):
            found[key] = row
    return found


def current_state(rows):
    """Returns the value and the sync count of each live key."""
    newest = latest(rows)
    live = {}
    for key, row in newest.items():
        removal = newest.get(Key(key.identity, key.dataset, None))
        is_removed = removal is not None and moment(row) <= moment(removal)
        if key.key is not None and row.op != "remove" and not is_removed:
            live[key] = (row.value, row.sync_count)
    return live


def dataset_state(rows):
    """Returns the number of live keys of each dataset, and its highest sync count."""
    live = collections.Counter((key.identity, key.dataset) for key in current_state(rows))
    highest = {}
    for row in changing(rows):
        name = (row.identity, row.dataset)
        highest[name] = max(highest.get(name, 0), row.sync_count)
    return {name: (live[name], count) for name, count in highest.items()}


def changes(rows):
    """Returns the distinct changes."""
    return {(row.identity, row.dataset, row.key, row.value, row.op, row.sync_count, day(row)) for row in changing(rows)}


def day(row):
    return datetime.datetime.fromtimestamp(row.modified // 1000, datetime.UTC).date().isoformat()


def extract(rows, date):
    """Returns the extract of a day: the live keys at its end, and the latest change of each key on this day."""
    state = current_state([row for row in rows if day(row) <= date])
    change = latest([row for row in rows if day(row) == date])
    return state, {key: (row.value, row.op, row.sync_count) for key, row in change.items()}


def identities_of(rows):
    return collections.Counter((row.identity, row.dataset, row.key, row.op, row.sync_count, row.modified) for row in rows)
