"""The Delta log of a table of a synclake lake, read by Spark: transaction ids, and what changed between two versions.

Only the log's JSON commits and the Parquet checkpoints are read, through Spark, so any file system that Spark reads will do.
`src/lake/since.rs` is the same classification of commits in synclake.
"""

import dataclasses
import json
import re
import urllib.parse

COMMIT = re.compile(r"/(\d{20})\.json$")
CHECKPOINT = re.compile(r"/(\d{20})\.checkpoint\.")
# Commits of synclake with new rows have such a transaction id; nobody else's have.
NEW_ROWS = ("ingest/", "redrive/")
EXPIRY = "expire/"
# Commits that are read at a time, and kept.
COMMITS_MAX = 1000
# Names that only synclake gives to files of new rows, so a commit of another writer that adds one brings it back.
NAMED_BY_SYNCLAKE = re.compile(r"^(part-.+\.[^.]+-[0-9a-f]+-\d+-\d+\.parquet|compact-.*|redrive-.*)$")


class Refused(Exception):
    """The job cannot do this, and has written nothing."""


class Log:
    """The log of one table at its newest version. `before` is an earlier one: its commits are not read again."""

    def __init__(self, spark, table, before=None):
        self.spark, self.table, self.folder = spark, table.rstrip("/"), f"{table.rstrip('/')}/_delta_log"
        # Commits that were read: the plan of a job reads the same few several times.
        self.known = before.known if before else {}
        names = [row.path for row in spark.read.format("binaryFile").load(self.folder).select("path").collect()]
        commits = [int(found.group(1)) for name in names if (found := COMMIT.search(name))]
        self.checkpoints = [(int(found.group(1)), name) for name in names if (found := CHECKPOINT.search(name))]
        self.commits = set(commits)
        self.version = max(commits + [version for version, _ in self.checkpoints])
        self.ids = self.read_ids()

    def read_ids(self):
        """Returns the transaction ids: those of the newest checkpoint, then those of the commits after it."""
        newest = max((version for version, _ in self.checkpoints), default=-1)
        ids = {}
        for _, path in sorted(found for found in self.checkpoints if found[0] == newest):
            read = self.spark.read.json(path) if path.endswith(".json") else self.spark.read.parquet(path)
            if "txn" in read.columns:
                rows = read.where("txn IS NOT NULL").select("txn.appId", "txn.version").collect()
                ids.update((row.appId, row.version) for row in rows)
        for _, actions in self.read(newest, self.version):
            ids.update((action["txn"]["appId"], action["txn"]["version"]) for action in actions if "txn" in action)
        return ids

    def read(self, after, last):
        """Yields the commits after a version up to another, in order. The log must have them all."""
        versions = range(after + 1, last + 1)
        for part in (versions[start:start + COMMITS_MAX] for start in range(0, len(versions), COMMITS_MAX)):
            commits = {version: self.known[version] for version in part if version in self.known}
            missing = [version for version in part if version not in commits]
            if missing:
                commits.update(self.read_anew(missing))
            if len(versions) <= COMMITS_MAX:
                self.known.update(commits)
            yield from ((version, commits[version]) for version in part)

    def read_anew(self, versions):
        paths = [f"{self.folder}/{version:020}.json" for version in versions]
        commits = {version: [] for version in versions}
        for line in self.spark.read.text(paths).selectExpr("value", "_metadata.file_name AS name").collect():
            if line.value:
                commits[int(line.name[:20])].append(json.loads(line.value))
        return commits

    def changes(self, after, last=None):
        """Returns the changes after a version; None if the log does not reach back to it."""
        last = self.version if last is None else last
        if any(version not in self.commits for version in range(after + 1, last + 1)):
            return None
        changes = Changes()
        for version, actions in self.read(after, last):
            changes.apply(version, actions)
        return changes

    def changed(self, after, last):
        """Returns whether a commit after a version up to another added, removed or changed rows."""
        files = (action.get("add") or action.get("remove") for _, actions in self.read(after, last) for action in actions)
        return any(file and file.get("dataChange", True) for file in files)

    def read_existing(self, after):
        """Yields the commits after a version that the log still has, in order."""
        start = self.version
        while start > after and start in self.commits:
            start -= 1
        yield from self.read(start, self.version)

    def changed_values(self, after, column):
        """Returns the values of a partition column whose rows were added, removed or changed after a version.

        The value None stands for every value. Returns None if the log does not reach back.
        """
        if any(version not in self.commits for version in range(after + 1, self.version + 1)):
            return None
        files = (action.get("add") or action.get("remove") for _, actions in self.read(after, self.version) for action in actions)
        return {(file.get("partitionValues") or {}).get(column) for file in files if file and file.get("dataChange", True)}


@dataclasses.dataclass
class NewFile:
    version: int
    partition: dict
    rows: int
    removed: bool = False


@dataclasses.dataclass
class RemovedFile:
    version: int
    # The version that added the file; None if the file may hold rows of any version before.
    added: int | None
    partition: dict | None


@dataclasses.dataclass
class Changes:
    """What changed after a version: files of new rows, files that may hold some, and files whose rows were removed."""

    new: dict = dataclasses.field(default_factory=dict)
    rewritten: dict = dataclasses.field(default_factory=dict)
    removed: list = dataclasses.field(default_factory=list)
    # Files of which some rows are deleted by a deletion vector.
    with_vectors: set = dataclasses.field(default_factory=set)
    # Whether rows that the first version lacks left by retention.
    expired_new: bool = False

    def files(self):
        """Returns the files that together hold every row which the first version lacks, with version and partition."""
        return {**self.rewritten, **{path: (file.version, file.partition) for path, file in self.new.items() if not file.removed}}

    def removed_with_rows_of(self, version):
        return [file for file in self.removed if file.version > version and (file.added is None or file.added <= version)]

    def apply(self, version, actions):
        kind = kind_of(actions)
        inherited = None
        for remove in (action["remove"] for action in actions if "remove" in action):
            path, changed = remove["path"], remove.get("dataChange", True)
            file = self.new.get(path)
            added, partition = None, remove.get("partitionValues")
            if file and not file.removed:
                file.removed = True
                added = newest = file.version
                partition = partition or file.partition
            else:
                newest = self.rewritten.pop(path, (None, None))[0]
            if kind == "expiry":
                self.expired_new |= newest is not None
                continue
            inherited = max((v for v in (inherited, newest) if v is not None), default=None)
            if changed:
                self.removed.append(RemovedFile(version, added, partition))
        for add in (action["add"] for action in actions if "add" in action):
            path, partition = add["path"], add.get("partitionValues", {})
            (self.with_vectors.add if add.get("deletionVector") else self.with_vectors.discard)(path)
            if kind == "new" and add["dataChange"]:
                rows = json.loads(add.get("stats") or "{}").get("numRecords", 0)
                self.new[path] = NewFile(version, partition, rows)
            elif kind == "change":
                self.rewritten[path] = (version, partition)
            elif kind == "same" and inherited is not None:
                self.rewritten[path] = (inherited, partition)


def kind_of(actions):
    """Returns what a commit does to the rows: "new", "same", "change" or "expiry"."""
    ids = [action["txn"]["appId"] for action in actions if "txn" in action]
    if any(name.startswith(EXPIRY) for name in ids):
        return "expiry"
    if any(name.startswith(NEW_ROWS) for name in ids):
        return "new"
    changes = is_rewrite = False
    for action in actions:
        if "commitInfo" in action:
            is_rewrite |= action["commitInfo"].get("operation") == "RESTORE"
        if "remove" in action:
            is_rewrite = True
            changes |= action["remove"].get("dataChange", True)
        if "add" in action:
            changes |= action["add"]["dataChange"]
            name = action["add"]["path"].rsplit("/", 1)[-1]
            is_rewrite |= bool(action["add"].get("deletionVector")) or bool(NAMED_BY_SYNCLAKE.match(name))
    if not changes:
        return "same"
    return "change" if is_rewrite else "new"


def path_of(path):
    """Returns the path of a file below its table. Paths are URLs in the log."""
    return urllib.parse.unquote(path)
