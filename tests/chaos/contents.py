"""Scenarios about the contents of records: payloads, aggregates, copies, poison, and their redrive."""

import functools
import gzip
import http.server
import json
import os
import pathlib
import random
import subprocess
import threading
import time

from arena import Arena
from checker import digest_raw, digest_rows
from fleet import Payloads


def environment(arena):
    return {**{k: v for k, v in os.environ.items() if not k.startswith("AWS_")}, **arena.env}


def redrive(arena):
    """Runs a redrive that is killed twice, then twice to its end; returns the reports of the last two runs."""
    env, command = environment(arena), [arena.binary, "redrive", "--lake", arena.lake]
    for point in ("apart/after", "move/after"):
        failpoint = {"FAILPOINTS": f"redrive/{point}=1*return(kill)"}
        subprocess.run(command, env={**env, **failpoint}, capture_output=True, check=False)
    run = lambda: json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    return run(), run()


def current_state(arena):
    sql = "select identity_pool_id, identity_id, dataset_name, key, value, sync_count from current_state"
    query = [f"{arena.binary}-query", "--lake", arena.lake, "--format", "ndjson", "-c", sql]
    state = subprocess.run(query, env=environment(arena), capture_output=True, check=True, text=True).stdout
    rows = (list(json.loads(line).values()) for line in state.splitlines())
    return {tuple(row[:4]): tuple(row[4:]) for row in rows}


def everything(options):
    """Sends aggregates, oversize payloads, copies and poison to three workers that are killed, then runs a redrive."""
    payloads = Payloads()
    arena = Arena(options, shards=4, payloads=payloads)
    arena.args += ["--payload-hosts", payloads.host]
    rng = random.Random(options.seed)
    poison = "poison=return(POISON)"
    arena.fault()
    workers = [arena.worker(f"slot{n}") for n in range(3)]
    for n, worker in enumerate(workers):
        worker.start(poison, ["--worker-id", f"slot{n}"])
    killed = 0
    while killed < options.cycles:
        arena.stream.put(30)
        time.sleep(rng.uniform(0.2, 0.8))
        if killed % 10 == 5:
            arena.stream.reshard()
        slot = rng.randrange(3)
        workers[slot].kill()
        point = rng.choice(["quarantine/after", "commit/after", "commit/before", "file/after", "read/after"])
        workers[slot].start(f"{poison};{point}=1*return(kill)" if rng.random() < 0.3 else poison, ["--worker-id", f"slot{slot}"])
        killed += 1
    for worker in workers:
        worker.kill()
    arena.heal()
    arena.drain(failpoints=poison)
    moved, again = redrive(arena)
    summary = arena.judge()
    state = current_state(arena)
    secret = payloads.SECRET.encode()
    leaks = [path for path, body in arena.objects.items() if secret in body]
    leaks += [str(log) for log in arena.work.glob("*.log") if secret in log.read_bytes()]
    truth = arena.stream.truth()
    return {
        "killed": killed, "events": arena.stream.events, "poisoned": arena.stream.poisoned, "payloads": len(payloads.contents), "live_keys": len(truth), "state_is_truth": state == truth,
        "moved_last": moved["moved"], "moved_again": again["moved"], "left": again["left"], "leaks": leaks, **summary,
    }


def parts_of(data):
    """Returns (number, bytes) of the sub-records of a record; parses the KPL aggregate without a library."""
    if not data.startswith(b"\xf3\x89\x9a\xc2"):
        return [(None, data)]

    def fields(body):
        at = 0

        def varint():
            nonlocal at
            value = shift = 0
            while True:
                byte = body[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(body):
            tag = varint()
            value = varint()
            if tag & 7 == 2:
                value, at = body[at : at + value], at + value
            yield tag >> 3, value

    records = [dict(fields(value))[3] for field, value in fields(data[4:-16]) if field == 3]
    return list(enumerate(records))


def truth_of(data, folder):
    """Returns the ledger entry of one sub-record: the rows that it must become, or its raw bytes."""
    try:
        event = json.loads(data)
        pool, identity, operation = event["identityPoolId"], event["identityId"], event["operation"]
    except (ValueError, KeyError, TypeError):
        return {"rows": 0, "raw": True, "digest": digest_raw(data)}
    dataset, count = event.get("dataSetName", event.get("datasetName")), event["syncCount"]
    records = event["kinesisSyncRecords"]
    if event["payloadType"] == "S3Url":
        name = event["kinesisSyncRecordsURL"].split("?")[0].rsplit("/", 1)[1]
        body = (folder / name).read_bytes()
        records = json.loads(gzip.decompress(body) if name.endswith(".gz") else body)
    if records is None:
        rows = [[pool, identity, dataset, operation, None, None, "remove", count, event["lastModifiedDate"], count]]
    else:
        rows = [
            [pool, identity, dataset, operation, r["key"], r["value"], r["op"], r["syncCount"], r["lastModifiedDate"], count]
            for r in records
        ]
    return {"rows": len(rows), "digest": digest_rows(rows)}


def simulated(options):
    """Does the same with `synclake simulate` as producer; the lake must match the stream read back, and the oracle."""
    arena = Arena(options, shards=4)
    folder = arena.work / "payloads"
    folder.mkdir(exist_ok=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    arena.args += ["--payload-hosts", host]
    oracle = arena.work / "oracle.ndjson"
    command = [
        arena.binary, "simulate", "--seed", str(options.seed % 1000), "--events", "3000", "--identities", "60",
        "--bulk-copies", "0.05", "--aggregates", "0.2", "--poison", "0.03", "--oversize", "0.1",
        "--payload-folder", str(folder), "--payload-url", host, "--to", f"kinesis:{arena.name}", "--oracle", str(oracle),
    ]
    direct = {**environment(arena), "AWS_ENDPOINT_URL_KINESIS": os.environ["SYNCLAKE_TEST_KINESIS"]}
    making = subprocess.Popen(command, env=direct, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Until it is "fixed", the decoder refuses events with this word in a value.
    poison = "poison=return(granite)"
    rng = random.Random(options.seed)
    arena.fault()
    workers = [arena.worker(f"slot{n}") for n in range(3)]
    for n, worker in enumerate(workers):
        worker.start(poison, ["--worker-id", f"slot{n}"])
    for killed in range(options.cycles):
        time.sleep(rng.uniform(0.2, 0.8))
        slot = rng.randrange(3)
        workers[slot].kill()
        workers[slot].start(poison, ["--worker-id", f"slot{slot}"])
        if killed % 10 == 5:
            arena.stream.reshard()
    for worker in workers:
        worker.kill()
    if making.wait(120) != 0:
        raise SystemExit(f"simulate ended with {making.returncode}")
    arena.heal()
    arena.drain(failpoints=poison)
    aggregates = 0
    for shard in arena.stream.shards():
        for record in arena.stream.records(shard["ShardId"]):
            parts = parts_of(record["Data"])
            aggregates += len(parts) > 1
            arena.stream.note(shard["ShardId"], record["SequenceNumber"], [
                {**truth_of(data, folder), **({} if number is None else {"sub_sequence": number})} for number, data in parts
            ])
    moved, again = redrive(arena)
    summary = arena.judge()
    lines = (json.loads(line) for line in oracle.read_text().splitlines())
    names = ("identity_pool_id", "identity_id", "dataset_name", "key")
    truth = {tuple(line[n] for n in names): (line["value"], line["sync_count"]) for line in lines}
    return {
        "killed": options.cycles, "aggregates": aggregates, "payloads": len(list(folder.iterdir())), "live_keys": len(truth),
        "state_is_truth": current_state(arena) == truth, "moved_last": moved["moved"], "moved_again": again["moved"],
        "left": again["left"], **summary,
    }
