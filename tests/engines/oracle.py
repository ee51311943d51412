"""Computes the rows of each table and view from the input of a lake. It shares no code with synclake.

`History` is told what was done with a lake, in order: `ingest`, `refresh`, `extract`, `collapse`. `History.tables()` returns
the expected rows of each relation. `arrived_at` is the clock of the machine and so no result of the input: `ingest` gets it
by record, as the table has it, and checks that it is within the time of the ingest.
"""

import collections
import hashlib
import json
import re

from relations import to_table

DAY = 86_400_000_000
# Milliseconds of 0001-01-01 and of 9999-12-31T23:59:59.999: dates of a device beyond these have no representation.
MS_MIN, MS_MAX = -62_135_596_800_000, 253_402_300_799_999
EVENT_FIELDS = {
    "identityPoolId", "identityId", "dataSetName", "datasetName", "operation", "kinesisSyncRecords", "lastModifiedDate",
    "kinesisSyncRecordsURL", "payloadType", "syncCount",
}
RECORD_FIELDS = {"key", "value", "op", "syncCount", "lastModifiedDate", "deviceLastModifiedDate"}
DATASET = ["pool", "identity_id", "dataset_name"]
CHANGE = ["pool", "event_date", *DATASET[1:], "key", "sync_count", "op", "value"]
STATE = [
    "pool", "identity_pool_id", "identity_id", "dataset_name", "key", "value", "op", "sync_count", "last_modified_date",
    "device_last_modified_date",
]
POSITION = ["shard_id", "sequence_number", "sub_sequence", "record_index", "arrived_at"]


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def members(fields):
    return compact(fields)[1:-1]


def extra_of(record, event, flags):
    parts = [f'"{name}":{{{members(fields)}}}' for name, fields in (("record", record), ("event", event)) if fields]
    if flags:
        parts.append(f'"flags":{compact(flags)}')
    return "{" + ",".join(parts) + "}" if parts else None


def decode(raw):
    """Returns the rows of a record without those columns that its delivery gives; None if it must be quarantined."""
    try:
        event = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("identityPoolId"), str):
        return None
    operation = event["operation"]
    common = {
        "pool": event["identityPoolId"].replace(":", "_"), "identity_pool_id": event["identityPoolId"],
        "identity_id": event["identityId"], "dataset_name": event.get("dataSetName", event.get("datasetName")),
        "operation": operation, "event_sync_count": event["syncCount"],
        "event_last_modified_date": event["lastModifiedDate"] * 1000,
    }
    unknown = {name: value for name, value in event.items() if name not in EVENT_FIELDS}
    flags = []
    if operation not in ("replace", "remove"):
        flags.append("unknown_operation")
    if event["payloadType"].lower() not in ("inline", "s3url"):
        flags.append("unknown_payload_type")
    rows = []
    # An event without records is one row without a key: the removal of the dataset, or nothing that changes it.
    for index, record in enumerate(event["kinesisSyncRecords"] or [{}]):
        of_record = {name: value for name, value in record.items() if name not in RECORD_FIELDS}
        of_row, device = list(flags), record.get("deviceLastModifiedDate")
        if device is not None and not (isinstance(device, int) and MS_MIN <= device <= MS_MAX):
            of_record["deviceLastModifiedDate"] = device
            of_row.append("device_date_out_of_range")
            device = None
        op = record.get("op") or operation
        if "key" in record and op not in ("replace", "remove"):
            of_row.append("unknown_op")
        changed = record.get("lastModifiedDate", event["lastModifiedDate"]) * 1000
        rows.append({
            **common, "key": record.get("key"), "value": record.get("value"), "op": op,
            "sync_count": record.get("syncCount", event["syncCount"]), "last_modified_date": changed,
            "event_date": changed // DAY, "device_last_modified_date": None if device is None else device * 1000,
            "sub_sequence": None, "record_index": index, "extra": extra_of(of_record, unknown, of_row),
        })
    return rows


def arrival(row):
    sub = -1 if row["sub_sequence"] is None else row["sub_sequence"]
    return row["last_modified_date"], row["arrived_at"], int(row["sequence_number"]), sub, row["record_index"], row["shard_id"]


def order(row):
    return row["sync_count"], *arrival(row)


def grouped(rows, columns):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in columns)].append(row)
    return groups.values()


def counted(rows):
    """Returns the rows that change something: those with a key, and removals of datasets."""
    return [row for row in rows if row["key"] is not None or row["op"] == "remove"]


def changes(rows):
    """Returns each change once, as its latest copy, with the number of copies."""
    return [
        {**max(copies, key=arrival), "copies": sum(row.get("copies") or 1 for row in copies)}
        for copies in grouped(counted(rows), CHANGE)
    ]


def daily_changes(of_changes):
    days = grouped(of_changes, ["pool", "event_date", *DATASET[1:], "key"])
    return [{**max(of_day, key=order), "changes_in_day": len(of_day)} for of_day in days]


def resolved(rows):
    out = []
    for dataset in grouped(counted(rows), DATASET):
        removals = [(row["sync_count"], row["last_modified_date"]) for row in dataset if row["key"] is None]
        latest = {id(max(of_key, key=order)) for of_key in grouped(dataset, ["key"])}
        for row in dataset:
            is_after = not removals or (row["sync_count"], row["last_modified_date"]) > max(removals)
            out.append({
                **row, "is_dataset_removal": row["key"] is None, "is_nth_1": id(row) in latest,
                "is_latest": row["key"] is not None and id(row) in latest,
                "is_after_removal": row["key"] is not None and is_after,
            })
    return out


def key_state(rows):
    return [row for row in resolved(rows) if row["is_nth_1"]]


def is_live(row):
    return row["is_after_removal"] and row["op"] != "remove"


def dataset_state(of_resolved):
    out, of_last = [], ["pool", "identity_pool_id", "identity_id", "dataset_name", "sync_count", "last_modified_date"]
    for dataset in grouped(of_resolved, [*DATASET, "identity_pool_id"]):
        last = max(dataset, key=lambda row: (row["sync_count"], row["last_modified_date"]))
        out.append({
            **{name: last[name] for name in of_last},
            "live_keys": sum(row["is_nth_1"] and is_live(row) for row in dataset),
            "removed": any(row["key"] is None for row in dataset) and not any(row["is_after_removal"] for row in dataset),
        })
    return out


class History:
    """What was done with a lake, and the rows that follow from it."""

    def __init__(self):
        self.rows, self.state, self.days, self.bad = [], [], {}, []

    def ingest(self, data, arrivals, window):
        """Adds a file's rows. `arrivals` gives the time of a record by shard and position; `window` holds all of them."""
        lines = data.splitlines(keepends=True) if b"\r" not in data else re.findall(rb"[^\n]*\n", data)
        shard = "file-" + hashlib.sha256(lines[0].rstrip(b"\r\n")).hexdigest()[:16]
        position = 0
        for raw in lines:
            position += len(raw)
            rows = decode(raw)
            at = arrivals.get((shard, str(position)))
            if at is None or not window[0] <= at <= window[1]:
                raise ValueError(f"record {position} of {shard} has the arrival time {at}, not one within {window}")
            if rows is None:
                self.bad.append((shard, str(position), raw[:-1]))
                continue
            delivery = {"shard_id": shard, "source": shard, "sequence_number": str(position), "arrived_at": at, "copies": None}
            self.rows += [{**row, **delivery} for row in rows]

    def append(self, rows):
        """Adds rows that another writer added to the table."""
        self.rows += rows

    def refresh(self):
        self.state = key_state(self.rows)

    def collapse(self):
        """Every group of exact copies became its latest row, with their number; a row without copies has no number."""
        delivery = {*POSITION, "source", "copies"}
        columns = [name for name in self.rows[0] if name not in delivery]
        self.rows = [
            {**max(copies, key=arrival), "copies": len(copies) if len(copies) > 1 else None}
            for copies in grouped(self.rows, columns)
        ]

    def extract(self, day):
        """`day` is in days since the epoch. A day that was extracted before also gets its corrections."""
        keys = key_state([row for row in self.rows if row["event_date"] <= day])
        extract = [{**row, "kind": "state" if is_live(row) else "removed"} for row in keys]
        nothing = dict.fromkeys([*POSITION, "is_after_removal"])
        extract += [
            {**row, "kind": "change", **nothing}
            for row in daily_changes(changes([row for row in self.rows if row["event_date"] == day]))
        ]
        before = self.days.get(day)
        if before is not None:
            name = lambda row: tuple(row[column] for column in (*DATASET, "key"))
            live = lambda rows: {name(row): tuple(row[c] for c in STATE) for row in rows if row["kind"] == "state"}
            old, new = live(before), live(extract)
            changed = {key for key in {*old, *new} if old.get(key) != new.get(key)}
            changed |= {name(row) for row in before if row["kind"] == "correction"}
            for row in keys:
                if row["key"] is not None and name(row) in changed:
                    now = {} if is_live(row) else {"value": None, "op": "remove"}
                    extract.append({**row, **now, "kind": "correction", **nothing})
        self.days[day] = [{**row, "extract_date": day} for row in extract]

    def tables(self):
        """Returns the expected rows of each relation but `quarantine` and `gaps`."""
        once, flagged = changes(self.rows), resolved(self.rows)
        keys, extracts = [row for row in flagged if row["is_nth_1"]], [row for day in self.days.values() for row in day]
        raw = [
            {
                **row, "identitypoolid": row["identity_pool_id"], "identityid": row["identity_id"],
                "datasetname": row["dataset_name"], "synccount": row["sync_count"],
                "devicelastmodifieddate": row["device_last_modified_date"],
                "lastmodifieddate": row["last_modified_date"],
            }
            for row in self.rows
        ]
        rows = {
            "sync_records": self.rows, "state": self.state, "daily_state": extracts, "cognito_raw_data": raw,
            "changes": once, "daily_changes": daily_changes(once), "resolved": flagged, "key_state": keys,
            "current_state": [row for row in keys if is_live(row)], "dataset_state": dataset_state(flagged),
            "refreshed_state": [row for row in self.state if is_live(row)],
            "daily_extract": [row for row in extracts if row["kind"] != "removed"],
        }
        return {name: to_table(found, name) for name, found in rows.items()}
