"""A stream whose every user record is known, for kcl.py: plain records and KPL aggregates, on the shard that the test names."""

import base64
import collections
import hashlib
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos"))

from fleet import call, varint  # noqa: E402

# A user record: its id (the identityId), where it is, and its number inside its aggregate (None: a plain record).
Event = collections.namedtuple("Event", "id shard sequence sub")


def field(number, data):
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def aggregate(keys, parts):
    """Packs user records into an aggregate, as the KPL does: a table of partition keys, to which each record refers."""
    body = b"".join(field(1, key.encode()) for key in keys)
    for n, part in enumerate(parts):
        body += field(3, b"\x08" + varint(n % len(keys)) + field(3, part))
    return b"\xf3\x89\x9a\xc2" + body + hashlib.md5(body).digest()


def payload(event_id):
    return json.dumps({
        "identityPoolId": "us-east-1:0a", "identityId": event_id, "dataSetName": "d", "operation": "replace",
        "kinesisSyncRecords": [{"key": "k", "value": "v", "op": "replace"}], "lastModifiedDate": 1, "syncCount": 1,
    }, separators=(",", ":")).encode()


class Stream:
    """A stream at a Kinesis endpoint; `events` lists every user record that was put, in the order of putting."""

    def __init__(self, endpoint, name, shards):
        self.endpoint, self.name, self.events = endpoint, name, []
        self.call("CreateStream", ShardCount=shards)
        self.await_active()

    def call(self, action, **body):
        return call(self.endpoint, f"Kinesis_20131202.{action}", {"StreamName": self.name, **body})

    def await_active(self):
        deadline = time.monotonic() + 30
        while self.call("DescribeStreamSummary")["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
            if time.monotonic() > deadline:
                sys.exit(f"stream {self.name} is not active after 30 s")
            time.sleep(0.02)

    def shards(self):
        """Returns the hash ranges of all shards: {id: (first, last)}."""
        listed = self.call("ListShards")["Shards"]
        keys = {s["ShardId"]: s["HashKeyRange"] for s in listed}
        return {shard: (int(k["StartingHashKey"]), int(k["EndingHashKey"])) for shard, k in keys.items()}

    def keys(self, shard, count):
        """Returns partition keys of a shard. KCL drops an aggregate with a partition key of another shard."""
        first, last = self.shards()[shard]
        found, n = [], 0
        while len(found) < count:
            key = f"user-{n}"
            if first <= int.from_bytes(hashlib.md5(key.encode()).digest(), "big") <= last:
                found.append(key)
            n += 1
        return found

    def put(self, shard, data, key):
        done = self.call("PutRecord", PartitionKey=key, Data=base64.b64encode(data).decode())
        if done["ShardId"] != shard:
            sys.exit(f"key {key} went to {done['ShardId']}, not to {shard}")
        return done["SequenceNumber"]

    def fill(self, shard, records, parts=5):
        """Puts `records` records on a shard: plain ones and aggregates of `parts` user records, in turn."""
        keys = self.keys(shard, 3)
        for n in range(records):
            count = parts if n % 2 else 1
            ids = [f"us-east-1:{len(self.events) + i:06x}" for i in range(count)]
            data = [payload(event_id) for event_id in ids]
            sequence = self.put(shard, aggregate(keys, data) if n % 2 else data[0], keys[n % 3 if n % 2 == 0 else 0])
            self.events += [Event(event_id, shard, sequence, i if n % 2 else None) for i, event_id in enumerate(ids)]

    def on(self, shard):
        return [event for event in self.events if event.shard == shard]

    def split(self, shard):
        """Splits a shard in the middle; returns the ids of the children."""
        first, last = self.shards()[shard]
        return self.reshard("SplitShard", ShardToSplit=shard, NewStartingHashKey=str((first + last) // 2))

    def merge(self, shard, adjacent):
        """Merges two shards; returns the list of the one child."""
        return self.reshard("MergeShards", ShardToMerge=shard, AdjacentShardToMerge=adjacent)

    def reshard(self, action, **body):
        before = set(self.shards())
        self.call(action, **body)
        self.await_active()
        return sorted(set(self.shards()) - before)
