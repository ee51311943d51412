"""Lets Spark work on each table of a small lake, one feature of Delta after the other, and synclake go on after it.

    .tools/spark/bin/python tests/engines/spark_writer.py PROGRAMS [--only FEATURE] [--table TABLE] [--write]

PROGRAMS is the folder of `synclake` and `synclake-query`. Each cell of the matrix (feature by table) gets a fresh copy of a lake.
Spark does what the feature is about. Then synclake ingests a file, runs all commands that write, and queries all views.
The rows must be those that `rows_model.py` computes from the input. A command may also refuse: by one line, which names the
feature, with exit code 1, before anything is written; then Spark undoes the feature as the line says, and everything must be
right. At last Spark works on the table again. Any other outcome is a fault, and the exit code is 1.

The matrix is printed as Markdown, and compared with the part of docs/spark.md between its markers; --write replaces that part.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import shutil
import sys
import tempfile
import time

import rows_model as model
import spark_session
from spark_features import FEATURES, TABLES
from spark_lake import DATES, LAST, LATER, Fault, Lake

DOCUMENT = spark_session.ROOT / "docs" / "spark.md"
MARKERS = ("<!-- spark-writer -->", "<!-- /spark-writer -->")
CELLS_AT_ONCE = 2
VIEWS = ["key_state", "changes", "daily_changes", "cognito_raw_data", "resolved", "gaps", "state", "daily_state", "quarantine"]


class Cell:
    """One feature on one table of one lake."""

    def __init__(self, spark, lake, feature, table):
        self.spark, self.lake, self.table = spark, lake, table
        self.deed = FEATURES[feature](table, lake)
        self.refused, self.corrected, self.faults = {}, set(), []

    def sql(self, statement):
        statement = statement.replace("{t}", f"delta.`{self.lake.lake / self.table}`")
        try:
            return self.spark.sql(statement.removeprefix("?")).collect()
        except Exception as error:
            if statement.startswith("?"):
                return None
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise Fault(f"Spark: {statement}: {' | '.join(lines[:2])}") from None

    def judge(self):
        """Returns what the cell of the matrix says."""
        for statement in self.deed.statements:
            self.sql(statement)
        self.work()
        if set(self.refused) == {"deliver"}:
            # The line asks for a full copy under another name.
            self.lake.start_over()
        elif self.refused:
            reasons = "; ".join(sorted(set(self.refused.values())))
            if not self.deed.undo:
                raise Fault(f"refused, and nothing is known to undo it: {reasons}")
            for statement in self.deed.undo:
                self.sql(statement)
            first, self.refused = self.refused, {}
            self.work()
            if self.refused:
                raise Fault("; ".join([*self.faults, f"still refused after {self.deed.undo}: {self.refused}"]))
            self.refused = first
        self.check_rows()
        self.check_spark()
        if self.faults:
            raise Fault("; ".join(self.faults))
        return self.refused

    def work(self):
        """Runs every command that writes, and all views. Each succeeds, or refuses and leaves the lake as it is."""
        steps = [("ingest", "--source", f"file:{self.lake.folder / '2.ndjson'}"), ("refresh",),
                 ("extract", "--date", LAST, "--correct"), self.lake.consume, ("verify",), ("redrive",), ("compact",),
                 ("compact", "--table", "quarantine"), ("vacuum", "--retain", "1h"), ("refresh",), ("verify",)]
        for step in steps:
            before = self.lake.files()
            done = self.lake.run(*step)
            if done.returncode == 0:
                if step[0] == "extract":
                    self.corrected.update(date for line in done.stdout.splitlines() for date in json.loads(line)["corrected"])
                continue
            if step[0] == "verify" and self.deed.found_by_verify and self.deed.found_by_verify in done.stdout:
                continue
            self.take_refusal(step[0], done)
            after = self.lake.files()
            changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            if changed and not (step[0] == "deliver" and all(map(self.lake.has_only_ids, changed))):
                self.faults.append(f"{step[0]} refused after it had written {changed[0]} and {len(changed) - 1} others: "
                                   f"{self.refused[step[0]]}")
        done = self.lake.ask(*(f"select count(*) from {view}" for view in VIEWS))
        if done.returncode:
            self.take_refusal("queries", done)

    def take_refusal(self, command, done):
        """Takes one line that names the feature as a refusal, and anything else as a fault."""
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        is_one = done.returncode == 1 and len(lines) == 1
        # A consumer that lacks rows is named in place of the table.
        is_named = is_one and (f"/{self.table}:" in lines[0] or command == "deliver") and any(
            name in lines[0] for name in self.deed.named)
        if not is_named:
            raise Fault(f"{command}: exit {done.returncode}: {done.stderr.strip()[:600]} {done.stdout.strip()[:400]}")
        self.refused[command] = lines[0].removeprefix("error: ")

    def expected(self):
        """Returns the rows of the lake, those of the extracts by day, and the number of records in quarantine by reason."""
        files = [model.decode(self.lake.folder / f"{number}.ndjson", number)[0] for number in range(3)]
        rows = [row for file in files for row in file]
        if self.table == "sync_records":
            rows = self.changed(files)
        return rows

    def changed(self, files):
        early, middle, late = files
        if self.deed.effect == "restore":
            return early + late
        of_spark = early + middle
        if self.deed.effect == "delete":
            of_spark = [row for row in of_spark if row.identity != self.lake.person]
        if self.deed.effect == "update":
            is_updated = lambda row: row.identity == self.lake.person and row.key is not None  # noqa: E731
            of_spark = [row._replace(value="updated") if is_updated(row) else row for row in of_spark]
        return of_spark + late

    def check_rows(self):
        rows = self.expected()
        self.check_views(rows)
        *extracts, quarantine = self.lake.query(
            *(f"select * from daily_extract where extract_date = '{date}' and kind <> 'correction'" for date in DATES),
            "select reason, detail from quarantine")
        for date, found in zip(DATES, extracts):
            self.check_extract(rows, date, found)
        self.check_quarantine(quarantine)
        self.check_deliveries(rows)

    def check_views(self, rows):
        records, current, datasets, changes = self.lake.query(
            "select identity_id, dataset_name, key, op, sync_count, arrow_cast(arrow_cast(last_modified_date, "
            "'Timestamp(Millisecond, None)'), 'Int64') as ms from sync_records",
            "select * from current_state", "select * from dataset_state", "select * from changes")
        equal("sync_records", model.identities_of(rows), collections.Counter(
            (r["identity_id"], r["dataset_name"], r["key"], r["op"], r["sync_count"], r["ms"]) for r in records))
        equal("current_state", model.current_state(rows), {key_of(r): (r["value"], r["sync_count"]) for r in current})
        equal("dataset_state", model.dataset_state(rows), {
            (r["identity_id"], r["dataset_name"]): (r["live_keys"], r["sync_count"]) for r in datasets})
        equal("changes", collections.Counter(model.changes(rows)), collections.Counter(
            (r["identity_id"], r["dataset_name"], r["key"], r["value"], r["op"], r["sync_count"], r["event_date"])
            for r in changes))

    def check_extract(self, rows, date, found):
        state, change = model.extract(rows, date)
        if self.table == "daily_state" and date != LAST and date not in self.corrected:
            # Spark changed the extract itself. synclake leaves it as it is, unless late rows ask for it anew.
            if self.deed.effect == "delete":
                state, change = ({k: v for k, v in of.items() if k.identity != self.lake.person} for of in (state, change))
            if self.deed.effect == "update":
                state, change = ({k: ("updated", *v[1:]) if k.identity == self.lake.person and k.key is not None else v
                                  for k, v in of.items()} for of in (state, change))
            if self.deed.effect == "restore" and date == LATER:
                state, change = {}, {}
        equal(f"extract of {date}: state", state, {
            key_of(r): (r["value"], r["sync_count"]) for r in found if r["kind"] == "state"})
        equal(f"extract of {date}: change", change, {
            key_of(r): (r["value"], r["op"], r["sync_count"]) for r in found if r["kind"] == "change"})

    def check_quarantine(self, found):
        broken = [model.decode(self.lake.folder / f"{number}.ndjson", number)[1] for number in range(3)]
        if self.table == "quarantine" and self.deed.effect == "restore":
            broken[1] = 0
        if self.table == "quarantine" and self.deed.effect == "delete":
            late = not_utf8(self.lake.folder / "2.ndjson")
            broken[:2] = [count - not_utf8(self.lake.folder / f"{n}.ndjson") for n, count in enumerate(broken[:2])]
            equal("quarantine: not_utf8", late, sum(r["reason"] == "not_utf8" for r in found))
        if self.table == "quarantine" and self.deed.effect == "update":
            many = sum(not_utf8(self.lake.folder / f"{number}.ndjson") for number in range(2))
            equal("quarantine: updated", many, sum(r["detail"] == "updated" for r in found))
        equal("quarantine", sum(broken), len(found))

    def check_deliveries(self, rows):
        got = collections.Counter()
        for manifest in (self.lake.folder / "feed").rglob("_SUCCESS"):
            for file in json.loads(manifest.read_text())["files"]:
                lines = (self.lake.folder / "feed" / file["path"]).read_text().splitlines()
                got.update(place_of(json.loads(line)) for line in lines)
        # The first file was delivered before Spark came.
        must = collections.Counter(place_of_row(row) for row in rows)
        first = collections.Counter(place_of_row(row) for row in model.decode(self.lake.folder / "0.ndjson", 0)[0])
        may = must | (first if self.table == "sync_records" else collections.Counter())
        if must - got or got - may:
            raise Fault(f"consumer: {sum((must - got).values())} rows are missing, {sum((got - may).values())} are too many")

    def check_spark(self):
        """Lets Spark work on the table again, and synclake after that."""
        for statement in self.deed.allow_delete:
            self.sql(statement)
        condition = "reason = 'not_json'" if self.table == "quarantine" else f"identity_id = '{self.lake.other}'"
        self.sql(f"DELETE FROM {{t}} WHERE {condition}")
        for statement in self.deed.at_end:
            self.sql(statement)
        rows = self.expected()
        if self.table == "sync_records":
            rows = [row for row in rows if row.identity != self.lake.other]
        self.check_views(rows)
        self.lake.done("refresh")
        verified = self.lake.run("verify")
        if verified.returncode and not (self.deed.found_by_verify and self.deed.found_by_verify in verified.stdout):
            raise Fault(f"verify after Spark: {verified.stdout[:600]}")
        self.check_views(rows)
        [[ours]] = self.lake.query(f"select count(*) as n from {self.table}")
        equal("rows that Spark reads", ours["n"], self.sql("SELECT count(*) FROM {t}")[0][0])


def not_utf8(path):
    count = 0
    for line in path.read_bytes().split(b"\n"):
        try:
            line.decode()
        except UnicodeDecodeError:
            count += 1
    return count


def key_of(row):
    return model.Key(row["identity_id"], row["dataset_name"], row["key"])


def place_of(row):
    return (row["identity_id"], row["dataset_name"], row["key"], row["op"], row["sync_count"], row["record_index"])


def place_of_row(row):
    return (row.identity, row.dataset, row.key, row.op, row.sync_count, row.place[2])


def equal(what, expected, found):
    if expected == found:
        return
    if isinstance(expected, (dict, collections.Counter)):
        missing = [k for k in expected if found.get(k) != expected[k]]
        many = [k for k in found if expected.get(k) != found[k]]
        raise Fault(f"{what}: {len(missing)} rows are missing or different, {len(many)} are too many or different, such as "
                    f"{(missing or [None])[0]} and {(many or [None])[0]}")
    raise Fault(f"{what}: {found}, and not {expected}")


def try_cell(spark, base, feature, table, folder):
    name = "".join(c if c.isalnum() else "-" for c in feature)
    lake = base.copy(folder / f"{name}.{table}")
    began = time.monotonic()
    try:
        cell, fault = Cell(spark, lake, feature, table), None
        refused = cell.judge()
    except Fault as error:
        refused, fault = {}, str(error)
    if not fault:
        shutil.rmtree(lake.folder)
    outcome = f"fault: {fault}" if fault else (f"refused: {', '.join(refused)}" if refused else "right")
    if not fault and cell.deed.found_by_verify and table == cell.table:
        outcome += "; `verify` names the rows that are gone"
    print(f"{feature}, {table}: {outcome} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
    for command, line in refused.items():
        print(f"    {command}: {line}", file=sys.stderr, flush=True)
    return outcome, fault


def matrix(outcomes, features, tables):
    lines = [f"| feature | {' | '.join(f'`{table}`' for table in tables)} |", "|---" * (len(tables) + 1) + "|"]
    for feature in features:
        lines.append(f"| {feature} | {' | '.join(outcomes[feature, table] for table in tables)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--only", action="append", choices=FEATURES)
    parser.add_argument("--table", action="append", choices=TABLES)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the lakes of faults here")
    parser.add_argument("--write", action="store_true", help="write the matrix into docs/spark.md")
    options = parser.parse_args()
    features, tables = options.only or list(FEATURES), options.table or TABLES
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or pathlib.Path(temporary)).resolve()
        (folder / "base").mkdir(parents=True)
        base = Lake(options.programs.resolve(), folder / "base")
        base.make()
        spark = spark_session.start(folder, spark__databricks__delta__retentionDurationCheck__enabled="false")
        with concurrent.futures.ThreadPoolExecutor(CELLS_AT_ONCE) as threads:
            cells = [(feature, table) for table in tables for feature in features]
            done = threads.map(lambda cell: try_cell(spark, base, *cell, folder), cells)
            outcomes = dict(zip(cells, done))
        spark.stop()
    faults = [fault for _, fault in outcomes.values() if fault]
    text = matrix({cell: outcome for cell, (outcome, _) in outcomes.items()}, features, tables)
    print(text)
    is_whole = len(outcomes) == len(FEATURES) * len(TABLES)
    is_current = not is_whole or faults or compare_document(text, options.write)
    if not is_current:
        print(f"{DOCUMENT} has another matrix; --write writes this one", file=sys.stderr)
    sys.exit(1 if faults or not is_current else 0)


def compare_document(text, write):
    """Returns whether the document has this matrix; writes it if that is wanted."""
    document = DOCUMENT.read_text()
    before, rest = document.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    wanted = f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}"
    if write:
        DOCUMENT.write_text(wanted)
        return True
    return document == wanted


if __name__ == "__main__":
    main()
