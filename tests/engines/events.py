"""Input of the lakes that run.py makes: files of events in the format of the stream.

`golden(cases)` returns the golden cases, one file per step. `made_up(seed)` returns four files of random events: late
events, copies, removals of keys and of datasets, odd texts, missing fields, and records that cannot be decoded.
"""

import datetime
import itertools
import json
import random

UTC = datetime.timezone.utc
FIRST_DAY = datetime.datetime(2026, 1, 1, tzinfo=UTC)
POOLS = ["us-east-1:0a1b", "eu-west-1:00cc-11", "ap_south-1:d0d0"]
# Texts that a reader, a partition path, a CSV file or a collation could change. Keys that differ only in case, in white
# space at the end or in their Unicode normal form are different keys.
ODD = [
    "a", "A", "a ", " a", "a\u0301", "\u00e1", "ß", "ss", "\u0001\u001f", "tab\there", "line\nbreak", "cr\r\nlf",
    "\"quoted\"", "it's", "back\\slash", "a=b", "50%25", "%00", "a/b", "$x", "*?[", "null", "NULL", "\\N", "🦀",
    "👩\u200d👩\u200d👧", "\u202eright", "\ufeff", "\u00a0", "\x7f", "\u2028", "\U0010fffd", "{}", "--", ";", "é" * 300,
]
# Dates of a device: its clock may say anything. The last three have no representation in the lake.
DEVICE_DATES = [-62135596800000, -2208988800001, -1, 0, 4102444800000, 253402300799999, 253402300800000, "soon", 1.5]
BAD = [b"no json", b"[1, 2]", b"{\"identityPoolId\": 5}", b"{\"operation\": \"replace\"}", b"\xff\xfe", b"{\"a\": \"\xc3\"}"]


def millis(at):
    return round((at - FIRST_DAY) / datetime.timedelta(milliseconds=1)) + round(FIRST_DAY.timestamp() * 1000)


def line(event):
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def golden(cases):
    """Returns the files of the golden cases; each case is an identity."""

    def at(text):
        return millis(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")))

    def record(event, short):
        when = short.get("t", event["t"])
        return {
            "key": short["k"], "value": short.get("v"), "op": short.get("op", "replace"),
            "syncCount": short.get("n", event["n"]),
            "lastModifiedDate": at(when), "deviceLastModifiedDate": at(short.get("dev", when)),
        }

    files = [b""] * max(len(case["steps"]) for case in cases)
    for number, case in enumerate(cases):
        for step, events in enumerate(case["steps"]):
            for event in events:
                records = event.get("r")
                files[step] += line({
                    "identityPoolId": "us-east-1:0a", "identityId": f"us-east-1:{number:04x}", "dataSetName": event["d"],
                    "operation": event["op"],
                    "kinesisSyncRecords": None if records is None else [record(event, short) for short in records],
                    "lastModifiedDate": at(event["t"]), "payloadType": "Inline", "syncCount": event["n"],
                })
    return files


# Columns that decide between rows of one key, in their order, each with an earlier and a later value.
ORDER = [
    ("sync_count", 1, 2), ("last_modified_date", 1, 2), ("arrived_at", 1, 2), ("sequence_number", "99", "100"),
    ("sequence_number", "49", "50"), ("sub_sequence", None, 0), ("sub_sequence", 9, 10), ("record_index", 9, 10),
    ("shard_id", "shardId-000000000001", "shardId-000000000002"),
]


def ties():
    """Returns rows of `sync_records` as another writer may add them: pairs that differ first in one column of the order, and
    then, the other way round, in all later columns. Half of the pairs have one value, so they are copies of one change. A
    file has no aggregates, and the positions of its records do not tie, so events cannot make these rows."""
    pool, start, rows = "us-east-1:0a", millis(FIRST_DAY) * 1000, []
    # An engine that forgets a column may still choose the right row by chance, so each pair stands in both orders.
    for number, ordered, values in itertools.product(range(len(ORDER)), [False, True], ["xx", "yz"]):
        decisive, pair = ORDER[number][0], []
        for is_later, value in enumerate(values):
            row = {
                "pool": pool.replace(":", "_"), "event_date": start // 86_400_000_000, "identity_pool_id": pool,
                "identity_id": "us-east-1:ffff", "dataset_name": f"{number} {ordered}", "operation": "replace",
                "key": values, "value": value, "op": "replace", "extra": None, "source": "another writer",
            }
            for place, (column, low, high) in enumerate(ORDER):
                is_high = place >= number and is_later == (place == number)
                if place == number or column != decisive:
                    row.setdefault(column, high if is_high else low)
            for column in ("last_modified_date", "arrived_at"):
                row[column] = start + row[column] * 1_000_000
            row |= {
                "event_sync_count": row["sync_count"], "event_last_modified_date": row["last_modified_date"],
                "device_last_modified_date": row["last_modified_date"], "copies": None,
            }
            pair.append(row)
        rows += pair if ordered else pair[::-1]
    return rows


class MadeUp:
    """A made-up world: datasets with their sync counts, and the events that changed them."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.counts, self.sent = {}, []

    def text(self):
        rng = self.rng
        if rng.random() < 0.3:
            return rng.choice(ODD)
        return "".join(rng.choice("abcdefgh ") for _ in range(rng.randrange(1, 24)))

    def records(self, count, at):
        rng, records = self.rng, []
        for _ in range(rng.randrange(1, 7)):
            removes = rng.random() < 0.15
            record = {"key": rng.choice(ODD) if rng.random() < 0.5 else f"key{rng.randrange(12)}"}
            value = None if removes or rng.random() < 0.03 else "" if rng.random() < 0.05 else self.text()
            if value is not None or rng.random() < 0.5:
                record["value"] = value
            if rng.random() < 0.97:
                record["op"] = "remove" if removes else "replace" if rng.random() < 0.995 else "merge"
            if rng.random() < 0.9:
                record["syncCount"] = max(0, count - (rng.randrange(3) if rng.random() < 0.1 else 0))
            if rng.random() < 0.9:
                record["lastModifiedDate"] = at - (rng.randrange(100_000_000) if rng.random() < 0.02 else 0)
            if rng.random() < 0.9:
                odd = rng.random() < 0.02
                record["deviceLastModifiedDate"] = rng.choice(DEVICE_DATES) if odd else at + rng.randrange(-9999, 9999)
            if rng.random() < 0.02:
                record["newField"] = {"a": [1, None, "é"]}
            records.append(record)
        return records

    def event(self, day):
        rng = self.rng
        pool = rng.choice(POOLS)
        dataset = rng.choice(ODD[:-1]) if rng.random() < 0.3 else f"set{rng.randrange(3)}"
        known = (pool, f"{pool.partition(':')[0]}:{rng.randrange(100):08x}", dataset)
        # An equal count ties two events, whose order the dates and the arrival decide.
        count = self.counts[known] = self.counts.get(known, 0) + (rng.random() < 0.9)
        # Whole seconds make equal dates likely.
        midnight = millis(FIRST_DAY) + day * 86_400_000
        at = midnight + rng.randrange(86_400) * 1000 + (0 if rng.random() < 0.5 else rng.randrange(1000))
        if rng.random() < 0.02:
            at = midnight + rng.choice([0, 86_399_999])
        kind = rng.random()
        event = {
            "identityPoolId": pool, "identityId": known[1], "dataSetName" if rng.random() < 0.8 else "datasetName": dataset,
            "operation": "replace", "kinesisSyncRecords": self.records(count, at), "lastModifiedDate": at,
            "kinesisSyncRecordsURL": None, "payloadType": "Inline", "syncCount": count,
        }
        if kind < 0.03:
            event |= {"operation": "remove", "kinesisSyncRecords": rng.choice([None, []])}
        elif kind < 0.035:
            event |= {"kinesisSyncRecords": []}
        elif kind < 0.04:
            event |= {"operation": "merge"}
        elif kind < 0.05:
            event |= {"payloadType": "Carrier\"Pigeon", "eventField": "x"}
        return event

    def file(self, events, days):
        """Returns a file whose events are of some days, with copies of its own and of earlier events."""
        rng, out = self.rng, b""
        for _ in range(events):
            new = line(self.event(rng.choice(days)))
            self.sent.append(new)
            out += new
            if rng.random() < 0.06:
                out += rng.choice(self.sent)
            if rng.random() < 0.003:
                out += rng.choice(BAD) + b"\n"
        return out


def made_up(seed, scale=1.0):
    """Returns four files. The later ones also have events of the earlier days."""
    world = MadeUp(seed)
    plan = [(2000, [0, 0, 1, 1]), (1800, [0, 1, 2, 2, 2]), (1500, [0, 1, 3, 3, 3]), (700, [0, 2, 3, 4])]
    return [world.file(int(events * scale), days) for events, days in plan]
