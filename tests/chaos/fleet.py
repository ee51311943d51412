"""Parts of a chaos run: a stream with its producer, a payload server, workers, and calls to the test services."""

import base64
import collections
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import random
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zlib

from checker import digest_raw, digest_rows


def call(endpoint, target, body):
    """Calls an operation by AWS's JSON protocol; the test servers want a signature header but do not verify it."""
    headers = {
        "Content-Type": "application/x-amz-json-1.0" if "Dynamo" in target else "application/x-amz-json-1.1",
        "X-Amz-Target": target,
        "X-Amz-Date": "20260101T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature=0",
    }
    request = urllib.request.Request(endpoint, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else {}


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def aggregate(parts):
    """Packs sub-records into an aggregate, as the Kinesis Producer Library does."""
    body = b"\x0a\x01k"
    for part in parts:
        record = b"\x08\x00" + b"\x1a" + varint(len(part)) + part
        body += b"\x1a" + varint(len(record)) + record
    return b"\xf3\x89\x9a\xc2" + body + hashlib.md5(body).digest()


class Payloads:
    """A server of the payloads of oversize events. It answers the first request for about a tenth of them with 503."""

    SECRET = "CANARY0123456789abcdef"

    def __init__(self):
        self.contents, self.asked = {}, collections.Counter()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path, _, query = self.path.partition("?")
                outer.asked[path] += 1
                body = outer.contents.get(path)
                status = 404 if body is None else 200 if outer.SECRET in query else 403
                if status == 200 and outer.asked[path] == 1 and zlib.crc32(path.encode()) % 10 == 0:
                    status, body = 503, b"slow down"
                self.send_response(status)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def store(self, records):
        path = f"/{len(self.contents)}"
        body = json.dumps(records, ensure_ascii=False).encode()
        self.contents[path] = gzip.compress(body) if len(self.contents) % 2 else body
        return f"{self.host}{path}?X-Amz-Date=20990101T000000Z&X-Amz-Expires=600&X-Amz-Signature={self.SECRET}"


class Stream:
    """A Kinesis stream, and the ledger of the records put into it.

    With `payloads`, some events are oversize, some are packed into aggregates, some come again as copies, and some hold
    the word POISON. A failpoint makes the decoder refuse that word until it is "fixed".
    """

    def __init__(self, endpoint, name, shards, ledger, seed, payloads=None):
        self.endpoint, self.name, self.payloads = endpoint, name, payloads
        self.changes, self.copies, self.events, self.poisoned = [], [], 0, 0
        self.random = random.Random(seed)
        self.ledger = open(ledger, "a")
        self.lock = threading.Lock()
        self.produced = 0
        self.counts = collections.Counter()
        self.last = {}
        self._kinesis("CreateStream", StreamName=name, ShardCount=shards)
        self.wait_active()

    def _kinesis(self, operation, **body):
        return call(self.endpoint, f"Kinesis_20131202.{operation}", body)

    def wait_active(self):
        while True:
            answer = self._kinesis("DescribeStreamSummary", StreamName=self.name)
            if answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                return
            time.sleep(0.02)

    def shards(self):
        found, token = [], None
        while True:
            body = {"NextToken": token} if token else {"StreamName": self.name}
            answer = self._kinesis("ListShards", **body)
            found += answer["Shards"]
            token = answer.get("NextToken")
            if not token:
                return found

    def open_shards(self):
        return [s for s in self.shards() if not s["SequenceNumberRange"].get("EndingSequenceNumber")]

    def event(self):
        """Returns an event and the digest of its rows, or bytes that are a decode error."""
        r = self.random
        if r.random() < 0.03:
            raw = r.choice([b"", b"not json", b"\xff\xfe{", b"{}{}", b"[]", b'{"identityPoolId":"us-east-1:0a"}', b"null"])
            # Kinesis accepts empty records. The digest must tell one poison from another.
            return raw, {"rows": 0, "raw": True, "digest": digest_raw(raw)}
        number = self.events = self.events + 1
        pool, identity = f"us-east-1:0{r.randrange(3)}", f"us-east-1:{r.randrange(50):04x}"
        dataset, count = r.choice(["profile", "settings", "..", "prefs.old"]), number + 1
        at = 1_767_225_600_000 + r.randrange(3) * 86_400_000 + number % 86_000_000
        records, rows = [], []
        for index in range(r.choice([0, 1, 1, 2, 3])):
            removed = r.random() < 0.1
            key = f"k{r.randrange(6)}.{index}" + ("POISON" if self.payloads and r.random() < 0.02 else "")
            value = None if removed else r.choice(["", "ü\u0000x", "v" * r.randrange(200)])
            op = "remove" if removed else "replace"
            record = {"key": key, "op": op, "syncCount": count, "lastModifiedDate": at, "deviceLastModifiedDate": at}
            if not removed:
                record["value"] = value
            records.append(record)
            rows.append([pool, identity, dataset, "replace", key, value, op, count, at, count])
        operation = "replace"
        if not records:
            operation = "remove"
            rows = [[pool, identity, dataset, "remove", None, None, "remove", count, at, count]]
        event = {
            "identityPoolId": pool, "identityId": identity, "dataSetName": dataset, "operation": operation,
            "kinesisSyncRecords": records, "lastModifiedDate": at, "payloadType": "Inline", "syncCount": count,
        }
        if operation == "remove":
            del event["kinesisSyncRecords"], event["payloadType"]
        elif self.payloads and r.random() < 0.1 and "POISON" not in json.dumps(records):
            event["kinesisSyncRecordsURL"] = self.payloads.store(event.pop("kinesisSyncRecords"))
            event["payloadType"] = "S3Url"
        self.changes += rows
        self.poisoned += "POISON" in json.dumps(records)
        return json.dumps(event, ensure_ascii=False).encode(), {"rows": len(rows), "digest": digest_rows(rows)}

    def record(self):
        """Returns the bytes of one Kinesis record, and the ledger entry of each of its sub-records."""
        if not self.payloads:
            data, truth = self.event()
            return data, [truth]
        if self.copies and self.random.random() < 0.1:
            return self.random.choice(self.copies)
        if self.random.random() < 0.2:
            parts = [self.event() for _ in range(self.random.randrange(0, 5))]
            made = aggregate([data for data, _ in parts]), [
                {**truth, "sub_sequence": n} for n, (_, truth) in enumerate(parts)
            ]
        else:
            data, truth = self.event()
            made = data, [truth]
        self.copies.append(made)
        return made

    def truth(self):
        """Returns the current state by an independent model; sync counts are unique here, so they order the changes."""
        live = {}
        for pool, identity, dataset, _, key, value, op, count, _, _ in sorted(self.changes, key=lambda row: row[7]):
            if key is None:
                for known in [k for k in live if k[:3] == (pool, identity, dataset)]:
                    del live[known]
            elif op == "remove":
                live.pop((pool, identity, dataset, key), None)
            else:
                live[(pool, identity, dataset, key)] = (value, count)
        return live

    def put(self, n):
        with self.lock:
            batch = []
            for _ in range(n):
                batch.append(self.record())
                self.produced += 1
            entries = [
                {"Data": base64.b64encode(data).decode(), "PartitionKey": str(self.random.random())} for data, _ in batch
            ]
            while entries:
                answer = self._kinesis("PutRecords", StreamName=self.name, Records=entries)
                again = []
                for entry, result, (data, truth) in zip(entries, answer["Records"], batch):
                    if result.get("ErrorCode"):
                        again.append((entry, (data, truth)))
                        continue
                    self.note(result["ShardId"], result["SequenceNumber"], truth)
                    self.counts[result["ShardId"]] += 1
                    self.last[result["ShardId"]] = int(result["SequenceNumber"])
                entries, batch = [e for e, _ in again], [t for _, t in again]
            self.ledger.flush()

    def note(self, shard, number, truth):
        for part in truth:
            self.ledger.write(json.dumps({"shard": shard, "sequence_number": number, **part}) + "\n")

    def records(self, shard):
        """Yields every record of a shard."""
        start = {"StreamName": self.name, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = self._kinesis("GetShardIterator", **start)["ShardIterator"]
        while iterator:
            answer = self._kinesis("GetRecords", ShardIterator=iterator)
            for record in answer["Records"]:
                yield {**record, "Data": base64.b64decode(record["Data"])}
            iterator = answer.get("NextShardIterator") if answer["Records"] or answer["MillisBehindLatest"] else None

    def reshard(self):
        """Splits a random open shard or merges two neighbours, which keeps about eight shards open."""
        with self.lock:
            open_now = self.open_shards()
            span = lambda s: (int(s["HashKeyRange"]["StartingHashKey"]), int(s["HashKeyRange"]["EndingHashKey"]))
            if len(open_now) < 8 or (len(open_now) == 8 and self.random.random() < 0.5):
                shard = self.random.choice([s for s in open_now if span(s)[1] - span(s)[0] > 4])
                low, high = span(shard)
                self._kinesis(
                    "SplitShard", StreamName=self.name, ShardToSplit=shard["ShardId"],
                    NewStartingHashKey=str((low + high) // 2),
                )
            else:
                ordered = sorted(open_now, key=span)
                left = self.random.randrange(len(ordered) - 1)
                self._kinesis(
                    "MergeShards", StreamName=self.name, ShardToMerge=ordered[left]["ShardId"],
                    AdjacentShardToMerge=ordered[left + 1]["ShardId"],
                )
            self.wait_active()

    def close(self):
        for shard in self.shards():
            parents = [shard[k] for k in ("ParentShardId", "AdjacentParentShardId") if shard.get(k)]
            self.ledger.write(json.dumps({"shard": shard["ShardId"], "parents": parents}) + "\n")
        self.ledger.close()


class Worker:
    """An ingest process."""

    def __init__(self, binary, name, args, env, log):
        self.binary, self.name, self.args, self.env, self.log = binary, name, args, env, log
        self.process = None
        self.ended_by = collections.Counter()

    def start(self, failpoints=None, more=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SYNCLAKE_"))}
        env.update(self.env)
        env["SYNCLAKE_LOG"] = os.environ.get("SYNCLAKE_CHAOS_LOG", "warn")
        if failpoints:
            env["FAILPOINTS"] = failpoints
        with open(self.log, "ab") as log:
            log.write(f"--- {self.name} {failpoints}\n".encode())
            self.process = subprocess.Popen(
                [self.binary, "ingest", *self.args, *more], env=env, stdout=subprocess.DEVNULL, stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def send(self, what):
        if self.alive():
            self.process.send_signal(what)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.wait()

    def rss_peak_kib(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def lake_env(s3, kinesis, dynamodb):
    return {
        "AWS_ENDPOINT_URL_S3": s3, "AWS_ENDPOINT_URL_KINESIS": kinesis, "AWS_ENDPOINT_URL_DYNAMODB": dynamodb,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "RUST_BACKTRACE": "0",
    }


def make_bucket(s3, name):
    urllib.request.urlopen(urllib.request.Request(f"{s3}/{name}", method="PUT")).close()


def leases(dynamodb, table):
    try:
        items = call(dynamodb, "DynamoDB_20120810.Scan", {"TableName": table, "ConsistentRead": True})["Items"]
    except urllib.error.HTTPError:
        return {}
    return {
        i["leaseKey"]["S"]: (i.get("leaseOwner", {}).get("S"), i["checkpoint"]["S"]) for i in items if "leaseCounter" in i
    }
