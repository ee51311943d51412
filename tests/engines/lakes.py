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


class Lake:
    """A lake and its history."""

    def __init__(self, programs, folder, name):
        self.programs, self.name, self.path = programs, name, folder / name / "lake"
        self.history, self.files, self.is_collapsed = History(), 0, False
        self.path.parent.mkdir(parents=True)

    def run(self, *arguments):
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SYNCLAKE_"))}
        command = [str(self.programs / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr.strip()}")
        return done.stdout

    def synclake(self, command, *arguments):
        return self.run("synclake", command, "--lake", str(self.path), *arguments)

    def read(self, table, columns=None):
        """Returns the rows of a table, as delta-rs reads them by the log."""
        return pa.table(DeltaTable(str(self.path / table)).to_pyarrow_dataset().to_table(columns=columns))

    def ingest(self, data):
        self.files += 1
        file = self.path.with_name(f"{self.files}.ndjson")
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
        write_deltalake(str(self.path / "sync_records"), to_table(rows, "sync_records").select(columns), mode="append")
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


def make_golden(programs, folder, name, collapse):
    lake = Lake(programs, folder, name)
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


def make_made_up(programs, folder, scale=1.0):
    lake = Lake(programs, folder, "made_up")
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


def make(programs, folder, scale=1.0):
    """Returns all lakes."""
    return [
        make_golden(programs, folder, "golden", collapse=False),
        make_golden(programs, folder, "collapsed", collapse=True),
        make_made_up(programs, folder, scale),
    ]
