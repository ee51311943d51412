"""Measures the path from a Kinesis stream to a lake on S3: cost, and time from arrival to visibility. Part of bench.py."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from bench_measure import check_equal, in_turn, once, rows
from with_servers import Servers

SHARDS = 4
IDLE_SECONDS = 2
MEMORY = "256MiB"
AIM_MB_PER_CPU_SECOND = 130
FLUSH_SECONDS = 5
# Four shards of Kinesis accept so many.
EVENTS_PER_SECOND = 4_000
POLL_SECONDS = 0.05


def cpu_of(process):
    """Returns the CPU seconds of a process and of its descendants that run."""
    total, left = 0, [process.pid]
    while left:
        pid = left.pop()
        with open(f"/proc/{pid}/stat") as stat:
            # The name of the program is in parentheses and may have spaces.
            fields = stat.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                left += map(int, children.read().split())
    return total / os.sysconf("SC_CLK_TCK")


class Cloud:
    """The two servers, and requests to them."""

    def __init__(self, servers):
        self.s3, self.s3_process = servers.start_ministack()
        self.kinesis, self.kinesis_process = servers.start_ferrokinesis()
        self.env = {
            "AWS_ENDPOINT_URL_S3": self.s3, "AWS_ENDPOINT_URL_KINESIS": self.kinesis, "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
        }
        urllib.request.urlopen(urllib.request.Request(f"{self.s3}/bench", method="PUT")).close()

    def call(self, action, **body):
        """Calls the Kinesis server."""
        headers = {
            "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"Kinesis_20131202.{action}",
            "X-Amz-Date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature=0",
        }
        request = urllib.request.Request(self.kinesis, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def make_stream(self, name):
        self.call("CreateStream", StreamName=name, ShardCount=SHARDS)
        while self.call("DescribeStreamSummary", StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
            time.sleep(0.05)

    def get(self, path):
        """Returns an object of the bucket, or nothing if it is not there."""
        try:
            with urllib.request.urlopen(f"{self.s3}/bench/{path}", timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None


def ingest(bench, stream, lake, *more):
    """Returns the command that reads a stream into a lake."""
    return bench.synclake("ingest", "--source", f"kinesis:{stream}", "--lake", f"s3://bench/{lake}", "--memory", MEMORY, *more)


def stream(bench):
    """Returns the arguments of the simulation, and a file with the same events. A stream keeps one day by default."""
    arguments = bench.stream(events=bench.events // 4, days=1)
    return arguments, bench.simulated(f"stream-{bench.events // 4}", arguments)


def throughput(bench, cloud):
    """Reads a full stream into new lakes; returns the lines of the table."""
    arguments, events = stream(bench)
    cloud.make_stream("full")
    published = once(bench.synclake(*arguments, "--to", "kinesis:full"), env=cloud.env)
    count = sum(1 for _ in open(events, "rb"))
    # The file has a line break after each record.
    megabytes = (events.stat().st_size - count) / 1e6
    local = bench.data / "stream-lake"
    shutil.rmtree(local, ignore_errors=True)
    once(bench.ingest(events, local))
    lakes, servers = [], ([], [])

    def run(command):
        lakes.append(f"lake-{len(lakes)}")
        before = cpu_of(cloud.kinesis_process), cpu_of(cloud.s3_process)
        done = once([str(word).replace("LAKE", lakes[-1]) for word in command], env=cloud.env)
        servers[0].append(cpu_of(cloud.kinesis_process) - before[0])
        servers[1].append(cpu_of(cloud.s3_process) - before[1])
        return done

    (figure,) = in_turn(bench.runs, ingest(bench, "full", "LAKE", "--until-idle", f"{IDLE_SECONDS}s"), run=run)
    sql = "select count(*), count(key), sum(sync_count), count(distinct sequence_number) from sync_records"
    check_equal("the rows of the stream", once(bench.query(local, sql)), *(once(bench.query(f"s3://bench/{lake}", sql), env=cloud.env) for lake in lakes))
    found = rows(once(bench.query(local, sql)).out)[0]
    if int(found[3]) != count or json.loads(figure.out)["records"] != count:
        sys.exit(f"the lake has {found[3]} events of the {count} that were published")
    wall = figure.wall - IDLE_SECONDS
    kinesis, s3 = (sorted(found)[len(found) // 2] for found in servers)
    return f"""| input | {count:,} events, {int(found[0]):,} rows, {megabytes:.0f} MB of records in {SHARDS} shards |
| wall, less the {IDLE_SECONDS} s of `--until-idle` | {wall:.2f} s ({megabytes / wall:.0f} MB/s) |
| CPU, synclake | {figure.cpu:.2f} CPU-s |
| MB of records per CPU-second of synclake (aim: {AIM_MB_PER_CPU_SECOND}) | {megabytes / figure.cpu:.0f} |
| CPU, Kinesis server | {kinesis:.2f} CPU-s |
| CPU, S3 server | {s3:.2f} CPU-s |
| peak of resident memory, `--memory {MEMORY}` | {figure.peak:.0f} MiB |
| CPU, `synclake simulate --to` | {published.cpu:.2f} CPU-s |
"""


def publish(cloud, stream, events, count, sent):
    """Publishes events at a steady rate. Writes the sequence number of each and the time before its request into `sent`."""
    began, batch = time.time(), []
    with open(events, "rb") as lines, open(sent, "w") as out:
        for n, line in enumerate(lines, 1):
            identity = re.search(rb'"identityId":"([^"]+)"', line).group(1).decode()
            batch.append({"Data": base64.b64encode(line.rstrip()).decode(), "PartitionKey": identity})
            if len(batch) == EVENTS_PER_SECOND // 20 or n == count:
                at = time.time()
                answer = cloud.call("PutRecords", StreamName=stream, Records=batch)
                if answer["FailedRecordCount"]:
                    raise RuntimeError("the Kinesis server refused records")
                out.writelines(f"{record['SequenceNumber']},{record['ShardId']},{at:.6f}\n" for record in answer["Records"])
                batch = []
                time.sleep(max(0, began + n / EVENTS_PER_SECOND - time.time()))
            if n == count:
                return n / (time.time() - began)
    raise RuntimeError(f"{events} has fewer than {count} events")


def watch(cloud, lake, seen, stop):
    """Notes when each commit of `sync_records` can be read for the first time."""
    version = 0
    while True:
        ended = stop.is_set()
        text = cloud.get(f"{lake}/sync_records/_delta_log/{version:020}.json")
        if text is not None:
            files = [json.loads(line).get("add") for line in text.splitlines()]
            seen.append((time.time(), [file["path"] for file in files if file]))
            version += 1
        elif ended:
            return
        else:
            time.sleep(POLL_SECONDS)


def freshness(bench, cloud):
    """Measures the time from the publishing of an event to the commit that has it; returns the lines of the table."""
    seconds = min(60 if bench.long else 20, bench.events // 4 // EVENTS_PER_SECOND)
    count = max(seconds * EVENTS_PER_SECOND, min(1_000, bench.events // 4))
    _, events = stream(bench)
    cloud.make_stream("steady")
    seen, stop, sent = [], threading.Event(), bench.data / "sent.csv"
    watcher = threading.Thread(target=watch, args=(cloud, "fresh", seen, stop), daemon=True)
    command = ingest(bench, "steady", "fresh", "--flush-interval", f"{FLUSH_SECONDS}s", "--until-idle", f"{FLUSH_SECONDS + 2}s")
    with open(bench.data / "fresh.log", "wb") as log:
        process = subprocess.Popen([str(word) for word in command], env={**os.environ, **cloud.env}, stdout=log, stderr=log)
        watcher.start()
        rate = publish(cloud, "steady", events, count, sent)
        if process.wait():
            sys.exit(f"the ingest failed: {(bench.data / 'fresh.log').read_text()[-2000:]}")
    stop.set()
    watcher.join()
    folder = bench.data / "fresh"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    times = []
    for at, paths in seen:
        for path in paths:
            name = folder / f"{len(times)}.parquet"
            name.write_bytes(cloud.get(f"fresh/sync_records/{urllib.request.quote(path)}"))
            times.append(f"('{name}', {at:.6f})")
    answer = rows(once(bench.duckdb(f"""
        with files(filename, visible) as (values {", ".join(times)}),
        events as (select distinct filename, shard_id, sequence_number from read_parquet('{folder}/*.parquet', filename = true)),
        found as (
          select files.visible - sent.published as seconds from events
          join read_csv('{sent}', columns = {{sequence_number: 'VARCHAR', shard_id: 'VARCHAR', published: 'DOUBLE'}}, header = false) sent
            on sent.sequence_number = events.sequence_number and ends_with(events.shard_id, sent.shard_id)
          join files on files.filename = events.filename)
        select count(*), quantile_cont(seconds, 0.5), quantile_cont(seconds, 0.99), max(seconds) from found""")).out)[0]
    if int(answer[0]) != count:
        sys.exit(f"the lake has {answer[0]} events of the {count} that were published steadily")
    p50, p99, most = map(float, answer[1:])
    commits = sum(bool(paths) for _, paths in seen)
    return f"""| input | {count:,} events, {rate:,.0f} a second; {commits} commits |
| p50 | {p50:.2f} s |
| p99 (aim: at most {FLUSH_SECONDS + 2} s, the flush interval and 2 s) | {p99:.2f} s |
| slowest | {most:.2f} s |
"""


def part(bench):
    """Returns the section about the stream."""
    with Servers() as servers:
        cloud = Cloud(servers)
        full, steady = throughput(bench, cloud), freshness(bench, cloud)
    return f"""## From Kinesis to S3

Local servers on the same cores: ferrokinesis 0.7.0 as Kinesis, ministack as S3. Their CPU time is not part of synclake's.
The stream has one day's events when the ingest starts; {bench.runs} runs into new lakes, which have the rows of the same events from a file.

| what | median |
|---|---|
{full}
From arrival to visibility: events are published at a steady rate, as much as {SHARDS} shards accept, with `--flush-interval {FLUSH_SECONDS}s`. The time
runs from before the request that publishes an event until its commit can be read from S3 (looked up every {POLL_SECONDS * 1000:.0f} ms).

| what | |
|---|---|
{steady}"""
