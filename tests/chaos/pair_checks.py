"""What a run of `pairs.py` is judged by: readers beside the actors, and the lake that is left.

Each fault is a (class, text). The class names the check, so that `--plant` can prove each check by itself.
"""

import collections
import datetime
import json
import os
import pathlib
import re
import subprocess
import threading
import time
import urllib.parse

import duckdb
import duckdb_extension_delta
import pyarrow.dataset
from deltalake import DeltaTable

import checker
import planted
from foreign import KEY, delivered

TABLES = ["sync_records", "quarantine", "gaps", "daily_state", "state"]
# A reader or a command that needs a file which the vacuum has deleted says one of these.
GONE = re.compile(r"a vacuum deletes files|was vacuumed|not found|No such file|Cannot open file|does not exist", re.I)
# What the clock of the vacuum beside the actors is ahead: a removed file is old at once, an unlisted one is not.
AHEAD_SECONDS = 7_200
# What the clock of the last vacuum is ahead: everything is old.
END_SECONDS = 9 * 86_400
# Columns of `changes` that are the same for every copy of a change.
CHANGE = """pool, event_date, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count, last_modified_date,
    copies"""


def environment(failpoints=None):
    """Returns an environment without the tester's own settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SYNCLAKE_"))}
    env.update({"SYNCLAKE_LOG": "warn", "RUST_BACKTRACE": "0"})
    return {**env, "FAILPOINTS": failpoints} if failpoints else env


def query(program, lake, statements):
    """Returns (exit code, lines of the answer, stderr) of some statements in one process."""
    command = [program, "--quiet", "--lake", str(lake), "--format", "ndjson"]
    for statement in statements:
        command += ["-c", statement]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout.splitlines(), done.stderr.strip()


class Keeper(threading.Thread):
    """Links every data file into a second folder, so that the checker can compare rows that were moved with the files
    that they came from, although a vacuum has deleted those."""

    def __init__(self, lake, kept):
        super().__init__(daemon=True)
        self.lake, self.kept, self.stopped, self.known = lake, kept, threading.Event(), set()
        kept.mkdir()

    def look(self, folder=None):
        folder = folder or str(self.lake)
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.name.startswith(("_", ".")) or entry.path in self.known:
                continue
            if entry.is_dir():
                self.look(entry.path)
            elif entry.name.endswith(".parquet"):
                try:
                    os.link(entry.path, self.kept / os.path.relpath(entry.path, self.lake).replace("/", "|"))
                except FileNotFoundError:
                    continue
                except FileExistsError:
                    pass
                self.known.add(entry.path)

    def run(self):
        while not self.stopped.wait(0.01):
            self.look()

    def objects(self):
        return {path.name.replace("|", "/"): path for path in self.kept.iterdir()}


class Reader(threading.Thread):
    """Counts rows through the log, by DataFusion, delta-rs and DuckDB in turn.

    No count is above the rows that were sent or below an earlier count, and no row is counted twice. Where no actor
    ingests (`low` is `high`), each count is the number of rows that were sent, and the current state has its keys.
    """

    def __init__(self, program, lake, low, high, keys, first_date, may_miss):
        super().__init__(daemon=True)
        self.program, self.lake, self.high, self.may_miss = program, lake, high, may_miss
        self.seen, self.keys = low, keys if low == high else None
        self.date = datetime.date.fromisoformat(first_date) if first_date else None
        self.where = f" where event_date >= '{first_date}'" if first_date else ""
        self.stopped, self.faults, self.readings = threading.Event(), [], collections.Counter()
        self.table = str(lake / "sync_records")
        self.duckdb = duckdb.connect(config={"threads": 1})
        extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
        self.duckdb.execute(f"LOAD '{extension}'; SET enable_progress_bar = false; SET enable_progress_bar_print = false")

    def by_query(self):
        distinct = "concat_ws('/', shard_id, sequence_number, coalesce(sub_sequence, -1), record_index)"
        code, lines, error = query(self.program, self.lake, [
            f"select count(*) as counted from sync_records{self.where}",
            f"select count(*) as read, count(distinct {distinct}) as different from sync_records{self.where}",
            "select count(*) as keys from current_state",
        ])
        if code != 0:
            raise OSError(f"exit {code}: {error}")
        found = {name: value for line in lines for name, value in json.loads(line).items()}
        if self.keys is not None and found["keys"] != self.keys:
            self.faults.append(("reader", f"current_state has {found['keys']} keys, not {self.keys}"))
        return [(found["counted"], found["counted"]), (found["read"], found["different"])]

    def by_delta_rs(self):
        rows = DeltaTable(self.table).to_pyarrow_dataset()
        wanted = None if self.date is None else pyarrow.dataset.field("event_date") >= self.date
        rows = rows.to_table(columns=KEY, filter=wanted)
        return [(rows.num_rows, rows.group_by(KEY).aggregate([]).num_rows)]

    def by_duckdb(self):
        key = ", ".join(KEY)
        sql = f"select count(*), count(distinct ({key})) from delta_scan('{self.table}'){self.where}"
        return [self.duckdb.execute(sql).fetchone()]

    def read(self, is_last):
        for way in (self.by_query, self.by_delta_rs, self.by_duckdb):
            name = way.__name__
            try:
                counts = way()
            except Exception as error:
                if self.may_miss and not is_last and GONE.search(str(error)):
                    self.readings[f"{name} gave way"] += 1
                else:
                    self.faults.append(("reader", f"{name}: {type(error).__name__}: {str(error)[:600]}"))
                continue
            self.readings[name] += 1
            for count, different in counts:
                if count != different:
                    self.faults.append(("reader", f"{name}: {count} rows, {different} of them different"))
                if not self.seen <= count <= self.high:
                    self.faults.append(("reader", f"{name}: {count} rows, not {self.seen} to {self.high}"))
                self.seen = max(self.seen, count)

    def run(self):
        while not self.stopped.is_set() and len(self.faults) < 20:
            self.read(False)
            self.stopped.wait(0.02)

    def end(self):
        """Reads once more, when nobody deletes files any more, and returns the faults."""
        self.stopped.set()
        self.join()
        self.read(True)
        self.duckdb.close()
        return self.faults


def active(objects, table, fault=lambda *_: None):
    return {urllib.parse.unquote(path) for path in checker.Table(objects, table, fault).live}


def before_expiry(objects):
    """Returns the objects of a lake as if no row had left by its policy. What left is checked by the twin."""
    objects, name, is_changed = dict(objects), re.compile(r"sync_records/_delta_log/\d{20}\.json"), False
    for path in [path for path in objects if name.fullmatch(path)]:
        actions = [json.loads(line) for line in objects[path].decode().splitlines() if line.strip()]
        if any(a.get("commitInfo", {}).get("operation") == "DELETE" for a in actions):
            is_changed = True
            objects[path] = "".join(json.dumps(a) + "\n" for a in actions if "remove" not in a).encode()
    for path in [p for p in objects if is_changed and re.match(r"sync_records/_delta_log/.*checkpoint", p)]:
        del objects[path]
    return objects


def check_records(run, faults):
    """The independent checker, with the ledger of the files that were sent."""
    objects = checker.load_folder(run.lake)
    fault = lambda invariant, text: faults.append(("checker", f"{invariant} {text}"))
    listed = {f"{table}/{path}" for table in TABLES for path in active(objects, table, fault)}
    objects = before_expiry(objects)
    for name, path in run.keeper.objects().items():
        if name not in objects and name not in listed:
            objects[name] = path.read_bytes()
    found, summary = checker.check(objects, run.ledger)
    for invariant, text in found[:20]:
        fault(invariant, text)
    checker._parsed.clear()
    return summary


def unnoticed_compactions(run):
    """Returns the commits of delta-rs that remove a file which is not active: its rows are there twice from then on.

    delta-rs compares the files that it removes only with removals of commits that change data, so an OPTIMIZE of it takes no
    notice of a compaction meanwhile (deltalake-core 1.1.3, `check_for_deleted_files_against_current_txn_deleted_files`).
    """
    objects, found = checker.load_folder(run.lake), []
    for table in TABLES:
        faults = []
        checker.Table(objects, table, lambda _, text: faults.append(text))
        moves = (re.search(r"version (\d+) moves a file that was not listed", text) for text in faults)
        versions = [int(move.group(1)) for move in moves if move]
        body = lambda version: objects[f"{table}/_delta_log/{version:020}.json"]
        found += [(table, version) for version in versions if b'"delta-rs:py-' in body(version)]
    return found


def check_verify(run, faults):
    done = subprocess.run(
        [run.synclake, "verify", "--deep", "--format", "json", "--lake", str(run.lake)], env=environment(),
        capture_output=True, text=True, timeout=300,
    )
    if done.returncode != 0:
        faults.append(("verify", f"exit {done.returncode}: {done.stderr.strip()} {done.stdout[:1500]}"))


def check_twin(run, faults):
    """The rows of every table and view are those of a lake into which all files came at once, and nothing else."""
    where = f" where event_date >= '{run.plan['first_date']}'" if run.plan["first_date"] else ""
    views = {
        "sync_records": ("* except (arrived_at) from sync_records", where),
        "changes": (f"{CHANGE} from changes", where),
        "current_state": ("* from current_state", ""),
        "quarantine": ("reason, detail, encode(raw, 'hex') as raw, shard_id, sequence_number from quarantine", ""),
    }
    if run.plan["extracts"]:
        day = f" where kind = 'state' and extract_date = '{run.last_day}'"
        views["extract"] = (f"pool, identity_id, dataset_name, key, value, sync_count from daily_extract{day}", "")
    rows = {}
    for lake in (run.lake, run.twin):
        select = [f"select '{n}' as what, {sql}{where if lake == run.twin else ''}" for n, (sql, where) in views.items()]
        code, lines, error = query(run.query_program, lake, select)
        if code != 0:
            faults.append(("twin", f"{lake.name} cannot be read: exit {code}: {error}"))
            return
        rows[lake] = {name: collections.Counter() for name in views}
        for line in lines:
            rows[lake][json.loads(line)["what"]][line] += 1
    for name in views:
        ours, theirs = rows[run.lake][name], rows[run.twin][name]
        if ours != theirs:
            missing, many = theirs - ours, ours - theirs
            example = next(iter([*missing, *many]))[:500]
            text = f"{sum(missing.values())} rows are missing, {sum(many.values())} are too many, such as {example}"
            faults.append((f"twin {name}", text))


def check_consumers(run, faults):
    """Each consumer got each row of the twin exactly once."""
    if not run.consumers:
        return
    code, lines, error = query(run.query_program, run.twin, [f"select {', '.join(KEY)} from sync_records"])
    assert code == 0, error
    expected = collections.Counter(tuple(str(v) for v in json.loads(line).values()) for line in lines)
    for consumer in run.consumers:
        got = delivered(run.feed / consumer)
        if got != expected:
            missing, many = (expected - got).total(), (got - expected).total()
            faults.append(("consumer", f"{consumer}: {missing} rows are missing, {many} are too many"))


def check_files(run, report, faults):
    """After a vacuum for which everything is old, only listed files are there, and those that it kept for their writer."""
    objects, unlisted = checker.load_folder(run.lake), []
    for table in TABLES:
        listed = {f"{table}/{path}" for path in active(objects, table)}
        for path in objects:
            folders, _, name = path.rpartition("/")
            is_hidden = any(folder.startswith(("_", ".")) for folder in folders.split("/"))
            if path.startswith(f"{table}/") and not is_hidden and ".parquet" in name and path not in listed:
                unlisted.append(path)
    tables = report.get("tables", {}).values()
    later = [path for path in unlisted if re.match(r"\.?(part|state)-", path.rsplit("/", 1)[-1])]
    if len(unlisted) != sum(t["kept_pending"] for t in tables) or later != unlisted:
        faults.append(("files", f"no version lists these files, and the vacuum left them: {unlisted[:5]}: {report}"))
    if any(t["kept_recent"] or t["kept_undelivered"] for t in tables):
        faults.append(("files", f"the last vacuum kept files that are old and delivered: {report}"))
    return len(unlisted)


def check_manifests(run, faults):
    objects = checker.load_folder(run.lake)
    for table in TABLES:
        manifests = [p for p in objects if p.startswith(f"{table}/_symlink_format_manifest/") and p.endswith("/manifest")]
        if manifests:
            lines = [line for path in manifests for line in objects[path].decode().splitlines()]
            files = collections.Counter(line.removeprefix(f"file://{run.lake}/{table}/") for line in lines)
            if files != collections.Counter(active(objects, table)):
                faults.append(("manifest", f"{table}: manifests list {len(lines)} files, and not the active ones"))


def judge(run, report):
    """Returns the faults of the lake that a run left, and numbers for the summary."""
    faults = []
    summary = check_records(run, faults)
    check_verify(run, faults)
    check_twin(run, faults)
    check_consumers(run, faults)
    left = check_files(run, report, faults)
    check_manifests(run, faults)
    return faults, {**{name: summary[name] for name in ("records", "versions", "moves")}, "left_for_later": left}


# Planted bugs: how the lake is broken, when, and the checks of which each must see it.


def rows_lost(lake):
    planted.moved(lake, lambda rows: rows[:1])


def copy_told_as_new(lake):
    """A commit adds a copy of a file as new rows. The file has the name that another writer would give it."""
    _, add = lake.a_file()
    path = f"{add['path'].rpartition('/')[0]}/part-00000-planted.c000.snappy.parquet"
    lake.objects[f"sync_records/{path}"] = lake.objects[f"sync_records/{add['path']}"]
    append = {"operation": "WRITE", "operationParameters": {"mode": "Append"}}
    lake.store(lake.newest() + 1, [{"commitInfo": append}, {"add": {**add, "path": path, "dataChange": True}}])


def left_without_policy(lake):
    """A file leaves by retention, although no policy names its date."""
    _, add = lake.a_file()
    remove = {"path": add["path"], "dataChange": True, "deletionTimestamp": int(time.time() * 1000)}
    lake.store(lake.newest() + 1, [{"commitInfo": {"operation": "DELETE"}}, {"remove": remove}])


def extract_lacks_a_file(lake):
    day = max(add["partitionValues"]["extract_date"] for _, add in lake.files("daily_state"))
    is_state = lambda add: any(row["kind"] == "state" for row in lake.rows(add, "daily_state"))
    add = next(a for _, a in lake.files("daily_state") if a["partitionValues"]["extract_date"] == day and is_state(a))
    remove = {"path": add["path"], "dataChange": True, "deletionTimestamp": int(time.time() * 1000)}
    lake.store(lake.newest("daily_state") + 1, [{"remove": remove}], "daily_state")


def stray_file(lake):
    lake.objects["sync_records/compact-00000000000000ff-0.parquet"] = b"x"


def manifest_lists_a_file_that_is_gone(lake):
    path = next(p for p in lake.objects if p.startswith("sync_records/_symlink") and p.endswith("/manifest"))
    lake.objects[path] += b"file:///gone.parquet\n"


# name: (pair, before the last commands or after the last vacuum, bug, classes of faults, changes of the plan)
PLANTS = {
    "rows lost by a merge": (
        "compact+refresh", "before", rows_lost, {"checker", "reader", "twin sync_records", "twin changes"}, {},
    ),
    "rows doubled by a merge": (
        "compact+compact", "before", planted.rows_doubled_by_a_merge,
        {"checker", "reader", "twin sync_records", "twin changes"}, {},
    ),
    "a copy told as new": (
        "compact+extract", "before", copy_told_as_new, {"checker", "reader", "consumer", "twin sync_records"}, {},
    ),
    "a file vacuumed too early": (
        "vacuum+compact", "before", planted.merged_file_vacuumed_too_early, {"checker", "verify", "reader"}, {},
    ),
    "rows left without a policy": (
        "expire+compact", "before", left_without_policy, {"reader", "twin sync_records"}, {},
    ),
    # Without a maintained state, which still has the rows.
    "a lost change of the state": (
        "compact+compact", "after", rows_lost, {"twin current_state"}, {"refresh": False, "extracts": False},
    ),
    "an extract lacks a file": ("compact+extract", "after", extract_lacks_a_file, {"twin extract"}, {}),
    "a quarantined record is dropped": (
        "compact+ingest", "after", planted.poison_dropped, {"checker", "twin quarantine"}, {},
    ),
    "a file is left": ("vacuum+refresh", "after", stray_file, {"files"}, {}),
    "a manifest lists a file that is gone": (
        "vacuum+compact", "after", manifest_lists_a_file_that_is_gone, {"manifest"}, {},
    ),
}


def plant(run, bug):
    """Breaks the lake of a run on disk."""
    lake = planted.Lake(checker.load_folder(run.lake), run.ledger, run.plan["seed"])
    before = dict(lake.objects)
    bug(lake)
    checker._parsed.clear()
    for path in before.keys() - lake.objects.keys():
        (run.lake / path).unlink()
    for path, body in lake.objects.items():
        if before.get(path) != body:
            # A new file takes the place of the old one, whose bytes a link in another folder may share.
            place, staged = run.lake / path, run.lake / f"{path}.planted"
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(body)
            staged.replace(place)
