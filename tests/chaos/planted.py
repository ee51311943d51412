"""Proves the checker: plants one bug at a time into a healthy lake, as a broken pipeline would leave it. The checker
must report each bug under an invariant that the bug breaks."""

import copy
import io
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq

import checker


class Lake:
    """A copy of a healthy lake that can be broken."""

    def __init__(self, objects, ledger, seed):
        self.objects, self.ledger = dict(objects), list(ledger)
        self.random = random.Random(seed)

    def path(self, version, table="sync_records"):
        return f"{table}/_delta_log/{version:020}.json"

    def commit(self, version, table="sync_records"):
        return [json.loads(line) for line in self.objects[self.path(version, table)].decode().splitlines()]

    def store(self, version, actions, table="sync_records"):
        self.objects[self.path(version, table)] = "".join(json.dumps(a) + "\n" for a in actions).encode()

    def newest(self, table="sync_records"):
        return max(int(m.group(1)) for p in self.objects if (m := re.fullmatch(rf"{table}/_delta_log/(\d+)\.json", p)))

    def versions(self, wanted):
        """Returns the versions of workers whose actions satisfy `wanted`, in random order. A compaction moves no position."""
        is_of_worker = lambda actions: any(a["txn"]["appId"].startswith("ingest/") for a in actions if "txn" in a)
        found = [v for v in range(self.newest() + 1) if is_of_worker(self.commit(v)) and wanted(self.commit(v))]
        self.random.shuffle(found)
        return found

    def version_with_files(self):
        """Returns a version that adds files of which none was moved since."""
        live = {add["path"] for _, add in self.files()}
        are_live = lambda actions: all(a["add"]["path"] in live for a in actions if "add" in a)
        is_ingest = lambda actions: sum("add" in a for a in actions) >= 2 and not any("remove" in a for a in actions)
        return self.versions(lambda actions: is_ingest(actions) and are_live(actions))[0]

    def files(self, table="sync_records"):
        """Returns the (version, add) of every active file of a table, in random order."""
        actions = [(v, a) for v in range(self.newest(table) + 1) for a in self.commit(v, table)]
        gone = {a["remove"]["path"] for _, a in actions if "remove" in a}
        found = [(v, a["add"]) for v, a in actions if "add" in a and a["add"]["path"] not in gone]
        self.random.shuffle(found)
        return found

    def a_file(self, wanted=lambda rows: True):
        """Returns a (version, add) whose rows satisfy `wanted`. Lakes differ by run; not every file can show a bug."""
        for version, add in self.files():
            if wanted(self.rows(add)):
                return version, add
        raise AssertionError("no file of this lake is a place for this bug")

    def rows(self, add, table="sync_records"):
        return pq.read_table(io.BytesIO(self.objects[f"{table}/{add['path']}"])).to_pylist()

    def drop_checkpoints(self):
        for path in [p for p in self.objects if ".checkpoint." in p or p.endswith("_last_checkpoint")]:
            del self.objects[path]

    def rewrite(self, add, change):
        """Replaces the rows of a file by `change(rows)` and adapts the log: this is a bug, not a damaged disk."""
        table = pq.read_table(io.BytesIO(self.objects[f"sync_records/{add['path']}"]))
        rows = change(table.to_pylist())
        body = written(rows, table.schema)
        self.objects[f"sync_records/{add['path']}"] = body
        for version in range(self.newest() + 1):
            actions = self.commit(version)
            for action in actions:
                if action.get("add", {}).get("path") == add["path"]:
                    action["add"]["size"] = len(body)
                    action["add"]["stats"] = json.dumps({"numRecords": len(rows)})
            self.store(version, actions)


def written(rows, schema):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
    return out.getvalue()


def position_without_files(lake):
    version = lake.version_with_files()
    lake.store(version, [a for a in lake.commit(version) if "add" not in a])


def no_transaction_ids(lake):
    version = lake.version_with_files()
    lake.store(version, [a for a in lake.commit(version) if "txn" not in a])


def files_deleted_after_a_lost_answer(lake):
    del lake.objects[f"sync_records/{lake.a_file()[1]['path']}"]


def resume_inclusive(lake):
    """A commit reads the last record of the commit before it again."""
    of_shard = {}
    for _, add in lake.files():
        row = lake.rows(add)[0]
        if (other := of_shard.setdefault(row["shard_id"], add)) is not add:
            return lake.rewrite(other, lambda theirs: [*theirs, row])
    raise AssertionError("no shard has two files")


def committed_twice(lake):
    """A commit whose answer was lost is repeated under the next version."""
    newest = lake.newest()
    version = lake.version_with_files()
    lake.store(newest + 1, lake.commit(version))


def zombie_commits(lake):
    """A worker that was fenced long ago commits once more, with its old epoch and owner token."""
    version = lake.versions(lambda actions: sum("add" in a for a in actions) >= 1)[0]
    old = [a for a in lake.commit(version) if "txn" in a]
    lake.store(lake.newest() + 1, old)


def child_before_parent(lake):
    """A child shard begins before its parent's end is committed: two commits change places."""
    ends = lambda actions: {
        a["txn"]["appId"].split("/")[2] for a in actions
        if "txn" in a and a["txn"]["appId"].endswith("/seq0") and a["txn"]["version"] == 10**18 - 1
    }
    parents = {e["shard"]: e["parents"] for e in map(json.loads, lake.ledger) if "parents" in e}
    for version in range(lake.newest() + 1):
        ended = ends(lake.commit(version))
        child = next((c for c, ps in parents.items() if set(ps) & ended), None)
        if not child:
            continue
        for later in range(version + 1, lake.newest() + 1):
            if any(a["txn"]["appId"].endswith(f"/{child}") for a in lake.commit(later) if "txn" in a):
                first, second = lake.commit(version), lake.commit(later)
                lake.store(version, second)
                lake.store(later, first)
                return
    raise AssertionError("no shard ended in this lake")


def number_skipped(lake):
    change_txn(lake, lambda app, value: value + 1 if app.count("/") == 2 else value)


def position_back(lake):
    change_txn(lake, lambda app, value: 0 if "/seq" in app else value)


def owner_changes_with_files(lake):
    change_txn(lake, lambda app, value: value ^ 1 if app.endswith("/owner") else value)


def change_txn(lake, change):
    moved = lambda actions: any("add" in a for a in actions) and any("seq3" in json.dumps(a) for a in actions)
    version = lake.versions(moved)[0]
    actions = lake.commit(version)
    for action in actions:
        if "txn" in action:
            action["txn"]["version"] = change(action["txn"]["appId"], action["txn"]["version"])
    lake.store(version, actions)


def rows_lost_in_encoding(lake):
    lake.rewrite(lake.a_file()[1], lambda rows: rows[1:])


def value_truncated(lake):
    def cut(rows):
        row = next(r for r in rows if r["key"])
        row["value"] = (row["value"] or "?") + "x"
        return rows
    lake.rewrite(lake.a_file(lambda rows: any(r["key"] for r in rows))[1], cut)


def empty_becomes_null(lake):
    _, add = lake.a_file(lambda rows: any(r["value"] == "" for r in rows))
    lake.rewrite(add, lambda rows: [{**r, "value": r["value"] or None} for r in rows])


def half_a_file(lake):
    path = f"sync_records/{lake.a_file()[1]['path']}"
    lake.objects[path] = lake.objects[path][: len(lake.objects[path]) // 2]


def wrong_count_in_the_log(lake):
    version, add = lake.a_file()
    actions = lake.commit(version)
    for action in actions:
        if action.get("add", {}).get("path") == add["path"]:
            stats = json.loads(action["add"]["stats"])
            action["add"]["stats"] = json.dumps({**stats, "numRecords": stats["numRecords"] + 1})
    lake.store(version, actions)


def version_missing(lake):
    del lake.objects[lake.path(lake.newest() // 2)]


def checkpoint_forgets_a_file(lake):
    for path in [p for p in lake.objects if p.startswith("sync_records/") and p.endswith(".checkpoint.parquet")]:
        table = pq.read_table(io.BytesIO(lake.objects[path]))
        rows = table.to_pylist()
        listed = next((r for r in rows if r["add"]), None)
        # The first checkpoint may hold only fences.
        if listed:
            rows.remove(listed)
            lake.objects[path] = written(rows, table.schema)
            return
    raise AssertionError("no checkpoint lists a file")


def poison_dropped(lake):
    """A decode error is only logged and its record is skipped, as in the predecessor."""
    version, _ = lake.files("quarantine")[0]
    lake.store(version, [a for a in lake.commit(version, "quarantine") if "add" not in a], "quarantine")


def quarantined_and_stored(lake):
    """A replay decodes a record that is quarantined already, so that the record is in both tables."""
    held = {lake.rows(add, "quarantine")[0]["shard_id"]: add for _, add in lake.files("quarantine")}
    # Choose a shard that has both: a shard that split soon after its start may have no quarantined record.
    _, add = lake.a_file(lambda rows: rows[0]["shard_id"] in held)
    row = lake.rows(add)[0]
    add = held[row["shard_id"]]
    rows, path = lake.rows(add, "quarantine"), f"quarantine/{add['path']}"
    rows.append({**rows[0], "sequence_number": row["sequence_number"]})
    lake.objects[path] = written(rows, pq.read_schema(io.BytesIO(lake.objects[path])))


def wrong_partition(lake):
    """Rows of one day lie in another day's folder."""
    version, add = lake.a_file()
    path = re.sub(r"event_date=[0-9-]+", "event_date=2020-01-01", add["path"])
    lake.objects[f"sync_records/{path}"] = lake.objects.pop(f"sync_records/{add['path']}")
    actions = lake.commit(version)
    for action in actions:
        if action.get("add", {}).get("path") == add["path"]:
            action["add"].update(path=path, partitionValues={**add["partitionValues"], "event_date": "2020-01-01"})
    lake.store(version, actions)


def moved(lake, change=lambda rows: rows, data_change=False):
    """A compaction moves the rows of a file into another one."""
    _, add = lake.a_file(lambda rows: len(rows) >= 2)
    old = f"sync_records/{add['path']}"
    rows, schema = change(lake.rows(add)), pq.read_schema(io.BytesIO(lake.objects[old]))
    path = f"{add['path'].rpartition('/')[0]}/compact-0000000000000000-0.parquet"
    lake.objects[f"sync_records/{path}"] = body = written(rows, schema)
    new = {"path": path, "size": len(body), "stats": json.dumps({"numRecords": len(rows)}), "dataChange": data_change}
    remove = {"path": add["path"], "dataChange": data_change, "deletionTimestamp": 0}
    lake.store(lake.newest() + 1, [{"remove": remove}, {"add": {**add, **new}}])


def rows_lost_by_a_merge(lake):
    moved(lake, lambda rows: rows[1:])


def rows_doubled_by_a_merge(lake):
    moved(lake, lambda rows: [rows[0], *rows])


def a_merge_told_as_new(lake):
    moved(lake, data_change=True)


def merged_file_vacuumed_too_early(lake):
    moved(lake)
    path = next(p for p in lake.objects if "/compact-0000000000000000-0" in p)
    del lake.objects[path]


BUGS = {
    position_without_files: {"I5"},
    no_transaction_ids: {"I4", "I1"},
    files_deleted_after_a_lost_answer: {"I3"},
    resume_inclusive: {"I1", "I4"},
    committed_twice: {"I1"},
    zombie_commits: {"I4"},
    child_before_parent: {"I4"},
    number_skipped: {"I4"},
    position_back: {"I4"},
    owner_changes_with_files: {"I4"},
    rows_lost_in_encoding: {"I1", "I5"},
    value_truncated: {"I2"},
    empty_becomes_null: {"I2"},
    half_a_file: {"I3"},
    wrong_count_in_the_log: {"I3"},
    version_missing: {"I7"},
    checkpoint_forgets_a_file: {"I7"},
    poison_dropped: {"I1", "I5"},
    quarantined_and_stored: {"I1"},
    wrong_partition: {"I3"},
    rows_lost_by_a_merge: {"I6"},
    rows_doubled_by_a_merge: {"I6"},
    a_merge_told_as_new: {"I4"},
    merged_file_vacuumed_too_early: {"I3"},
}


def prove(objects, ledger):
    """Returns the number of bugs planted and caught; raises on the first bug that is not caught."""
    healthy, _ = checker.check(objects, ledger)
    if healthy:
        raise AssertionError(f"the lake is not healthy to begin with: {healthy[:3]}")
    for bug, invariants in BUGS.items():
        lake = Lake(objects, copy.copy(ledger), 1)
        if bug is not checkpoint_forgets_a_file:
            lake.drop_checkpoints()
        bug(lake)
        faults, _ = checker.check(lake.objects, lake.ledger)
        if not invariants & {invariant for invariant, _ in faults}:
            raise AssertionError(f"{bug.__name__} was not caught as {invariants}, only {faults[:3]}")
    return len(BUGS)
