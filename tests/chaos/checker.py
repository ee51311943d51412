"""Checks that a lake holds exactly the records that were produced.

The checker shares no code with the pipeline: it reads the producer's ledger, the Delta log and the Parquet files
itself.

    python checker.py LEDGER LAKE         LAKE is a folder, or http://host:port/bucket/prefix of an S3 server

The producer's ledger is NDJSON. It has one line per record: {"shard", "sequence_number", "sub_sequence", "digest",
"rows"}. `digest` covers the rows that the record must become, or its bytes if it must be quarantined ("rows": 0 and
"raw": true). `sub_sequence` is the number of a sub-record inside its aggregate. It also has one line per shard:
{"shard", "parents"}.

Invariants, by the names under which they are reported:
  I1  every record is exactly once in sync_records or in the quarantine (or in a gap that the table gaps lists)
  I2  the stored contents of a record are the produced contents
  I3  every file that the log lists exists, is readable, and has the rows that the log claims
  I4  commits of a shard are gapless, their ranges disjoint, owners change by fences alone, parents end before children
  I5  no position is ahead of the committed records
  I6  a commit without a change of data moves rows: those of the files that it removes are those of the files that it adds
  I7  the log has no hole, and its checkpoints agree with its commits
"""

import collections
import hashlib
import io
import json
import pathlib
import re
import sys
import urllib.parse
import urllib.request

import pyarrow.parquet as pq

END = int("9" * 72)


def digest_rows(rows):
    """Returns the digest of the rows of one record, in order; the pipeline must preserve it."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def digest_raw(raw):
    return hashlib.sha256(raw).hexdigest()


def load_folder(folder):
    root = pathlib.Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def load_s3(url):
    """Returns all objects below http://host/bucket/prefix by unsigned requests, which the test servers accept."""
    parts = urllib.parse.urlsplit(url)
    bucket, _, prefix = parts.path.strip("/").partition("/")
    base = f"{parts.scheme}://{parts.netloc}/{bucket}"
    found, token = {}, None
    while True:
        query = {"list-type": "2", "prefix": prefix + "/", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        with urllib.request.urlopen(f"{base}?{urllib.parse.urlencode(query)}") as answer:
            text = answer.read().decode()
        for key in re.findall(r"<Key>([^<]*)</Key>", text):
            with urllib.request.urlopen(f"{base}/{urllib.parse.quote(key)}") as answer:
                found[key[len(prefix) + 1:]] = answer.read()
        more = re.search(r"<NextContinuationToken>([^<]*)</NextContinuationToken>", text)
        if not more:
            return found
        token = more.group(1)


# Every planted bug checks the whole lake again, and most files stay the same: cache the parsed rows by body.
_parsed = {}


def rows_of(body):
    if id(body) not in _parsed:
        # Keep the body too, so that no other object can get the same id.
        _parsed[id(body)] = (body, pq.read_table(io.BytesIO(body)).to_pylist())
    return _parsed[id(body)][1]


class Table:
    """A Delta table, replayed from its commits."""

    def __init__(self, objects, name, fault):
        self.name, self.objects, self.fault = name, objects, fault
        self.live, self.txns, self.commits, self.moves, self.at = {}, {}, [], [], {}
        prefix = f"{name}/_delta_log/"
        checkpoint = re.compile(re.escape(prefix) + r"(\d{20})\.checkpoint\.parquet")
        self.checkpoints = {int(m.group(1)): path for path in objects if (m := checkpoint.fullmatch(path))}
        versions = sorted(
            int(m.group(1)) for path in objects if (m := re.fullmatch(re.escape(prefix) + r"(\d{20})\.json", path))
        )
        self.exists = bool(versions)
        if versions and versions != list(range(versions[-1] + 1)):
            missing = sorted(set(range(versions[-1] + 1)) - set(versions))
            fault("I7", f"{name}: the log lacks the versions {missing[:5]}")
        for version in versions:
            self._apply(version, objects[f"{prefix}{version:020}.json"])
        self._check_checkpoints()

    def _apply(self, version, body):
        adds, removes, txns = [], [], {}
        for line in body.decode().splitlines():
            if not line.strip():
                continue
            try:
                action = json.loads(line)
            except ValueError:
                self.fault("I7", f"{self.name} version {version}: a line is no JSON")
                continue
            if "add" in action:
                adds.append(action["add"])
            elif "remove" in action:
                removes.append(action["remove"])
            elif "txn" in action:
                if action["txn"]["appId"] in txns:
                    self.fault("I7", f"{self.name} version {version}: one transaction id twice")
                txns[action["txn"]["appId"]] = action["txn"]["version"]
        out = [self.live.pop(remove["path"], None) for remove in removes]
        kinds = {action["dataChange"] for action in adds + removes}
        if kinds == {False}:
            if None in out:
                self.fault("I6", f"{self.name} version {version} moves a file that was not listed")
            # Their rows are checked by the rows that they replace, not as new ones.
            self.moves.append((version, [add for add in out if add], adds))
        elif False in kinds:
            self.fault("I6", f"{self.name} version {version} both moves and changes rows")
        for add in adds:
            if add["path"] in self.live:
                self.fault("I1", f"{self.name} version {version}: {add['path']} is listed twice")
            self.live[add["path"]] = add
        before = dict(self.txns)
        self.txns.update(txns)
        self.commits.append((version, [] if kinds == {False} else adds, before, dict(self.txns), txns))
        if version in self.checkpoints:
            self.at[version] = (set(self.live), dict(self.txns))

    def _check_checkpoints(self):
        for version, path in self.checkpoints.items():
            if version not in self.at:
                continue
            try:
                rows = pq.read_table(io.BytesIO(self.objects[path]), columns=["add", "txn"]).to_pylist()
            except Exception as error:
                self.fault("I7", f"{path} cannot be read: {error}")
                continue
            files = {r["add"]["path"] for r in rows if r["add"]}
            ids = {r["txn"]["appId"]: r["txn"]["version"] for r in rows if r["txn"]}
            if files != self.at[version][0]:
                self.fault("I7", f"{path} lists {len(files)} files, the commits list {len(self.at[version][0])}")
            if ids != self.at[version][1]:
                self.fault("I7", f"{path} holds other transaction ids than the commits")

    def read(self, add):
        """Returns the rows of a file with its partition values; None if the file is missing or unreadable."""
        path = add["path"]
        body = self.objects.get(f"{self.name}/{path}")
        if body is None:
            self.fault("I3", f"{self.name}: {path} is listed and is not there")
            return None
        if len(body) != add["size"]:
            self.fault("I3", f"{self.name}: {path} has {len(body)} bytes, the log claims {add['size']}")
        try:
            rows = rows_of(body)
        except Exception as error:
            self.fault("I3", f"{self.name}: {path} cannot be read: {error}")
            return None
        claimed = json.loads(add["stats"])["numRecords"] if add.get("stats") else None
        if claimed != len(rows):
            self.fault("I3", f"{self.name}: {path} has {len(rows)} rows, the log claims {claimed}")
        return [{**row, "_partition": add["partitionValues"]} for row in rows]


def state_of(txns, app_id):
    limbs = [txns.get(f"{app_id}/seq{i}") for i in range(4)]
    position = None
    if all(limb is not None for limb in limbs):
        position = int("".join(f"{limb:018}" for limb in limbs))
        # The position of a file is its offset, and 54 digits of a digest of the bytes before it.
        if app_id.split("/")[1] == "file" and position != END:
            position //= 10**54
    return {"number": txns[app_id], "owner": txns[f"{app_id}/owner"], "position": position}


def check_shard_steps(table, records_of, parents, fault):
    """Checks I4 over the commits of a table; `records_of` returns the sequence numbers in a file by shard."""
    ended, begun = {}, {}
    for version, adds, before, after, changed in table.commits:
        touched = {m.group(0) for app in changed if (m := re.match(r"ingest/[^/]+/[^/]+", app))}
        listed = collections.defaultdict(list)
        for add in adds:
            # The shard's position passed the rows of a redrive long ago; I1 and I2 still check those rows.
            if not re.match(r"(redrive|rest)-", add["path"].rsplit("/", 1)[-1]):
                for shard, numbers in records_of(add).items():
                    listed[shard].extend(numbers)
        for app in touched:
            shard = app.split("/")[2]
            if app not in changed:
                fault("I4", f"{table.name} version {version}: {app} is changed without its number")
                continue
            new = state_of(after, app)
            old = state_of(before, app) if app in before else None
            if new["number"] != (old["number"] + 1 if old else 1):
                fault("I4", f"{table.name} version {version}: {shard} has number {new['number']}, not the next one")
            if old:
                if (new["position"] or -1) < (old["position"] or -1):
                    fault("I4", f"{table.name} version {version}: the position of {shard} went back")
                if new["owner"] != old["owner"] and (new["position"] != old["position"] or listed.get(shard)):
                    fault("I4", f"{table.name} version {version}: {shard} changed its owner and more in one commit")
            low = old["position"] if old and old["position"] is not None else -1
            high = new["position"] if new["position"] is not None else -1
            for number in listed.pop(shard, []):
                if not low < number <= high:
                    fault("I4", f"{table.name} version {version}: {shard} lists {number} outside of ({low}, {high}]")
                    break
            begun.setdefault(shard, version)
            if new["position"] == END:
                ended.setdefault(shard, version)
        for shard in listed:
            fault("I4", f"{table.name} version {version}: rows of {shard} without a step of that shard")
    if table.name == "sync_records":
        for shard, version in begun.items():
            for parent in parents.get(shard, []):
                if parent in parents and parent in begun and ended.get(parent, 1 << 62) >= version:
                    fault("I4", f"{shard} begins at version {version}, its parent {parent} had not ended")


def check_moves(table, rows, fault):
    """Checks I6. The removed files must still be there: a vacuum keeps them for a week."""
    for version, removed, added in table.moves:
        before, after = (
            collections.Counter(json.dumps(row, sort_keys=True, default=str) for add in adds for row in rows(table, add))
            for adds in (removed, added)
        )
        if before != after:
            lost, new = before - after, after - before
            fault("I6", f"{table.name} version {version}: a move loses {lost.total()} rows and invents {new.total()}")


def key_of(row):
    return row["shard_id"], int(row["sequence_number"]), row["sub_sequence"]


def row_of(row):
    """Returns a stored row in the form of the producer's ledger."""
    ms = lambda at: None if at is None else int(at.timestamp() * 1000 + 0.5)
    return [
        row["identity_pool_id"], row["identity_id"], row["dataset_name"], row["operation"], row["key"], row["value"],
        row["op"], row["sync_count"], ms(row["last_modified_date"]), row["event_sync_count"],
    ]


def check(objects, ledger_lines):
    """Returns all faults, as (invariant, text), and a summary."""
    faults = []
    fault = lambda invariant, text: faults.append((invariant, text))
    produced, parents = {}, {}
    for line in ledger_lines:
        entry = json.loads(line)
        if "parents" in entry:
            parents[entry["shard"]] = entry["parents"]
        else:
            produced[(entry["shard"], int(entry["sequence_number"]), entry.get("sub_sequence"))] = entry
    main = Table(objects, "sync_records", fault)
    quarantine = Table(objects, "quarantine", fault)
    gaps = Table(objects, "gaps", fault)
    cache = {}

    def rows(table, add):
        key = (table.name, add["path"])
        if key not in cache:
            cache[key] = table.read(add) or []
        return cache[key]

    def records_of(table):
        def numbers(add):
            found = collections.defaultdict(set)
            for row in rows(table, add):
                found[row["shard_id"]].add(int(row["sequence_number"]))
            return found
        return numbers

    for table in (main, quarantine):
        check_shard_steps(table, records_of(table), parents, fault)
        check_moves(table, rows, fault)
    stored = collections.defaultdict(list)
    for add in main.live.values():
        for row in rows(main, add):
            stored[key_of(row)].append(row)
            day = row["last_modified_date"]
            pool = row["identity_pool_id"].replace(":", "_")
            if row["_partition"]["pool"] != pool or (day and row["_partition"]["event_date"] != f"{day:%Y-%m-%d}"):
                fault("I3", f"{add['path']}: a row lies in another partition's folder")
    kept = collections.defaultdict(list)
    for add in quarantine.live.values():
        for row in rows(quarantine, add):
            kept[key_of(row)].append(row)
            if not row["reason"]:
                fault("I1", f"{add['path']}: a record without a reason")
    trimmed = collections.defaultdict(list)
    for add in gaps.live.values():
        for row in rows(gaps, add):
            trimmed[row["shard_id"]].append(int(row["after_sequence_number"] or 0))
    for key, entry in produced.items():
        name = f"{key[0]} {key[1]}" + ("" if key[2] is None else f" part {key[2]}")
        found, held = stored.pop(key, []), kept.pop(key, [])
        if not found and not held:
            if not any(key[1] > after for after in trimmed.get(key[0], [])):
                app = next((a for a in main.txns if a.endswith("/" + key[0])), None)
                position = state_of(main.txns, app)["position"] if app else None
                ahead = position is not None and position >= key[1]
                fault("I5" if ahead else "I1", f"{name} is lost" + (", and the position is past it" if ahead else ""))
            continue
        if found and held:
            fault("I1", f"{name} is in sync_records and in the quarantine")
        if entry.get("raw"):
            if len(held) != 1 or found:
                fault("I1", f"{name} should be quarantined once: {len(held)} there, {len(found)} rows")
            elif digest_raw(held[0]["raw"]) != entry["digest"]:
                fault("I2", f"{name} is kept with other bytes")
            continue
        if held:
            fault("I1", f"{name} is quarantined and should not be ({held[0]['reason']})")
            continue
        if len(found) != entry["rows"] or len({r["record_index"] for r in found}) != len(found):
            fault("I1", f"{name} has {len(found)} rows, {entry['rows']} were produced")
        elif digest_rows([row_of(r) for r in sorted(found, key=lambda r: r["record_index"])]) != entry["digest"]:
            fault("I2", f"{name} is stored with other contents")
    for key in [*stored, *kept]:
        fault("I1", f"{key[0]} {key[1]} was never produced")
    listed = {f"{t.name}/{path}" for t in (main, quarantine, gaps) for path in t.live}
    # Files whose rows were moved stay until a vacuum.
    listed |= {f"{t.name}/{add['path']}" for t in (main, quarantine, gaps) for _, removed, _ in t.moves for add in removed}
    orphans = [p for p in objects if re.search(r"/part-[^/]*\.parquet$", p) and p not in listed]
    summary = {
        "records": len(produced), "files": len(main.live), "versions": len(main.commits), "moves": len(main.moves), "shards": len(parents),
        "quarantined": sum(1 for e in produced.values() if e.get("raw")), "orphans": len(orphans), "faults": len(faults),
    }
    return faults, summary


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ledger, lake = sys.argv[1:]
    objects = load_s3(lake) if lake.startswith("http") else load_folder(lake)
    faults, summary = check(objects, pathlib.Path(ledger).read_text().splitlines())
    for invariant, text in faults[:50]:
        print(f"{invariant} {text}")
    print(json.dumps(summary))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
