"""Makes the lakes that the engines are asked about, and the rows that they must hold.

| lake | contents |
|---|---|
| `golden` | the golden cases (tests/golden/cases.json), a file per step; ties in each column of the order; two extracts |
| `collapsed` | the same, with exact copies collapsed (`compact --collapse-duplicates`) |
| `made_up` | about 20,000 random rows, compacted, with corrected extracts, and with rows since the last refresh |
"""

import datetime
import json
import os
import subprocess
import sys
import time

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

import events
from oracle import History
from relations import COLUMNS, ROOT, canonical, to_table

SEED = 20260101
BUCKET = "lakes"
AWS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Lake:
    """A lake and its history. It is in a folder, or on the S3 server at `endpoint`."""

    def __init__(self, programs, folder, name, endpoint=None):
        self.programs, self.name, self.inputs = programs, name, folder / name
        self.place, self.settings = str(self.inputs / "lake"), {}
        if endpoint:
            self.place, self.settings = f"s3://{BUCKET}/{name}/lake", {**AWS, "AWS_ENDPOINT_URL": endpoint}
        self.history, self.files, self.is_collapsed = History(), 0, False
        self.inputs.mkdir(parents=True)

    def run(self, *arguments):
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SYNCLAKE_"))}
        settings |= self.settings
        command = [str(self.programs / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr.strip()}")
        return done.stdout

    def synclake(self, command, *arguments):
        return self.run("synclake", command, "--lake", self.place, *arguments)

    def storage(self):
        """Returns what delta-rs needs to reach the lake."""
        return {**self.settings, "AWS_ALLOW_HTTP": "true", "aws_conditional_put": "etag"} if self.settings else None

    def table(self, name):
        return DeltaTable(f"{self.place}/{name}", storage_options=self.storage())

    def read(self, table, columns=None):
        """Returns the rows of a table, as delta-rs reads them by the log."""
        return pa.table(self.table(table).to_pyarrow_dataset().to_table(columns=columns))

    def ingest(self, data):
        self.files += 1
        file = self.inputs / f"{self.files}.ndjson"
        file.write_bytes(data)
        began = time.time_ns() // 1000
        self.synclake("ingest", "--source", f"file:{file}", "--care", "off")
        window = (began, time.time_ns() // 1000)
        arrivals = {}
        names = ["shard_id", "sequence_number", "arrived_at"]
        for table in ("sync_records", "quarantine"):
            for row in canonical(self.read(table, names), names).to_pylist():
                at = arrivals.setdefault((row["shard_id"], row["sequence_number"]), row["arrived_at"])
                if at != row["arrived_at"]:
                    raise ValueError(f"{self.name}: the rows of one record have two arrival times: {row}")
        self.history.ingest(data, arrivals, window)

    def append(self, rows):
        """Adds rows to `sync_records` by delta-rs, as another writer may."""
        columns = [name for name in COLUMNS["sync_records"] if name != "copies"]
        new = to_table(rows, "sync_records").select(columns)
        write_deltalake(f"{self.place}/sync_records", new, mode="append", storage_options=self.storage())
        self.history.append(rows)

    def refresh(self):
        self.synclake("refresh")
        self.history.refresh()

    def extract(self, day):
        report = json.loads(self.synclake("extract", "--date", day, "--no-refresh"))
        self.history.extract((datetime.date.fromisoformat(day) - datetime.date(1970, 1, 1)).days)
        return report

    def expected(self):
        """Returns the rows of each relation. Of the quarantine, the oracle knows which records it holds, and their bytes;
        the rest of its rows, and `gaps`, are what delta-rs reads."""
        tables = self.history.tables()
        if not self.is_collapsed:
            tables["sync_records"] = tables["sync_records"].drop_columns("copies")
        for name in ("quarantine", "gaps"):
            tables[name] = self.read(name).select(COLUMNS[name])
        kept = [(row["shard_id"], row["sequence_number"], row["raw"]) for row in tables["quarantine"].to_pylist()]
        if sorted(kept) != sorted(self.history.bad):
            bad = len(self.history.bad)
            sys.exit(f"error: the quarantine of {self.name} has {len(kept)} records, not the {bad} that cannot be decoded")
        return tables


def make_golden(programs, folder, name, collapse, endpoint=None):
    lake = Lake(programs, folder, name, endpoint)
    for data in events.golden(json.loads((ROOT / "tests/golden/cases.json").read_text(encoding="utf-8"))):
        lake.ingest(data)
    lake.append(events.ties())
    lake.refresh()
    lake.extract("2026-01-01")
    lake.extract("2026-01-02")
    if collapse:
        lake.synclake("compact", "--collapse-duplicates")
        lake.history.collapse()
        lake.is_collapsed = True
    lake.synclake("manifest")
    return lake


def make_made_up(programs, folder, scale=1.0, endpoint=None):
    lake = Lake(programs, folder, "made_up", endpoint)
    first, second, third, last = events.made_up(SEED, scale)
    lake.ingest(first)
    lake.refresh()
    lake.extract("2026-01-01")
    lake.extract("2026-01-02")
    lake.ingest(second)
    lake.extract("2026-01-03")
    lake.extract("2026-01-02")
    lake.ingest(third)
    lake.synclake("compact", "--to", "2026-01-03")
    lake.extract("2026-01-04")
    # Its third extract carries on the corrections of the second one.
    report = lake.extract("2026-01-02")
    if not report["corrections"]:
        sys.exit("error: the late rows of the lake made_up correct no extract")
    lake.refresh()
    lake.ingest(last)
    lake.synclake("manifest")
    return lake


def make(programs, folder, scale=1.0, endpoint=None):
    """Returns all lakes, in a folder or on the S3 server at `endpoint`."""
    return [
        make_golden(programs, folder, "golden", collapse=False, endpoint=endpoint),
        make_golden(programs, folder, "collapsed", collapse=True, endpoint=endpoint),
        make_made_up(programs, folder, scale, endpoint),
    ]
