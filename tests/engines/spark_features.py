"""What Spark does to a table of a lake, feature by feature: its statements, what they change, and how to undo a feature.

A feature has one `Deed` for each table. `{t}` in a statement is the table; a statement that begins with `?` may fail, because the
state of the table decides whether it is needed.
"""

import dataclasses

TABLES = ["sync_records", "state", "daily_state", "quarantine"]

OPTIMIZED = ("OPTIMIZE {t}",)
REWRITTEN = (*OPTIMIZED, "VACUUM {t} RETAIN 0 HOURS")


@dataclasses.dataclass
class Deed:
    statements: list
    # What the statements do to the rows: "delete", "update" or "restore"; None if they change none.
    effect: str | None = None
    # Statements that undo the feature. synclake must work after them.
    undo: list = dataclasses.field(default_factory=list)
    # A refusal must have one of these words: they name the feature.
    named: tuple = ()
    # What `verify` reports, because rows that ingest had read are gone.
    found_by_verify: str | None = None
    # Statements that let Spark delete rows at the end.
    allow_delete: list = dataclasses.field(default_factory=list)
    # What Spark does after this DELETE: the statements that the feature may change.
    at_end: tuple = ()


def chosen(table, lake):
    """Returns the condition of the rows that are deleted or updated."""
    return {
        "sync_records": f"identity_id = '{lake.person}'",
        "state": f"identity_id = '{lake.person}'",
        "daily_state": f"identity_id = '{lake.person}'",
        "quarantine": "reason = 'not_utf8'",
    }[table]


def updated(table, lake):
    if table == "quarantine":
        return f"UPDATE {{t}} SET detail = 'updated' WHERE {chosen(table, lake)}"
    return f"UPDATE {{t}} SET value = 'updated' WHERE {chosen(table, lake)} AND key IS NOT NULL"


def sorted_by(table):
    return "reason" if table == "quarantine" else "identity_id, dataset_name"


def properties(**values):
    pairs = ", ".join(f"'delta.{name}' = '{value}'" for name, value in values.items())
    return f"ALTER TABLE {{t}} SET TBLPROPERTIES ({pairs})"


def column_mapping(table, lake):
    name = "detail" if table == "quarantine" else "value"
    mode = {"columnMapping.mode": "name", "minReaderVersion": "2", "minWriterVersion": "5"}
    back = [f"ALTER TABLE {{t}} RENAME COLUMN mapped TO {name}", "ALTER TABLE {t} DROP FEATURE columnMapping"]
    return Deed([properties(**mode), f"ALTER TABLE {{t}} RENAME COLUMN {name} TO mapped"], undo=back, at_end=OPTIMIZED,
                named=("delta.columnMapping.mode", f"its column {name} was dropped or renamed; "))


def type_widening(table, lake):
    change = "sub_sequence TYPE decimal(20, 0)" if table == "quarantine" else "record_index TYPE bigint"
    return Deed(
        [properties(enableTypeWidening="true"), f"ALTER TABLE {{t}} ALTER COLUMN {change}"],
        # No statement narrows a type, and the feature stays after RESTORE. Without RESTORE, Delta 4.0.0 cannot drop the feature
        # under Spark 4.0.1: it calls a method that Spark 4.0.1 lacks.
        undo=[f"RESTORE TABLE {{t}} TO VERSION AS OF {lake.marks[table]['now']}", "ALTER TABLE {t} DROP FEATURE typeWidening"],
        at_end=OPTIMIZED, named=("Delta reader feature typeWidening", f"its column {change.split()[0]} is of type"),
    )


def check(table, lake):
    condition = "length(reason) > 0" if table == "quarantine" else "sync_count >= 0"
    return Deed([f"ALTER TABLE {{t}} ADD CONSTRAINT positive CHECK ({condition})"],
                undo=["ALTER TABLE {t} DROP CONSTRAINT positive"], at_end=OPTIMIZED, named=("CHECK constraint positive",))


VECTORS = properties(enableDeletionVectors="true")
# Delta 4.0.0 cannot drop the feature, and does not know the property that suspends it.
UNTRACKED = ["SET spark.databricks.delta.allowArbitraryProperties.enabled = true",
             properties(enableRowTracking="false", rowTrackingSuspended="true")]

# The features in the order of the matrix: a name, and a function of the table and the lake.
FEATURES = {
    "DELETE": lambda t, lake: Deed([f"DELETE FROM {{t}} WHERE {chosen(t, lake)}"], "delete"),
    "DELETE by deletion vectors": lambda t, lake: Deed([VECTORS, f"DELETE FROM {{t}} WHERE {chosen(t, lake)}"], "delete",
                                                      at_end=REWRITTEN),
    "UPDATE": lambda t, lake: Deed([updated(t, lake)], "update"),
    "RESTORE": lambda t, lake: Deed(
        [f"RESTORE TABLE {{t}} TO VERSION AS OF {lake.marks[t]['early']}"], "restore",
        found_by_verify="a RESTORE of version" if t == "sync_records" else None),
    "OPTIMIZE": lambda t, lake: Deed(["OPTIMIZE {t}"]),
    "OPTIMIZE ZORDER": lambda t, lake: Deed([f"OPTIMIZE {{t}} ZORDER BY ({sorted_by(t)})"]),
    "VACUUM RETAIN 0 HOURS": lambda t, lake: Deed(
        ["OPTIMIZE {t}", "VACUUM {t} RETAIN 0 HOURS"], at_end=REWRITTEN,
        named=("the original file was vacuumed; make a full copy",)),
    "delta.enableRowTracking": lambda t, lake: Deed(
        [properties(enableRowTracking="true")], undo=UNTRACKED, at_end=OPTIMIZED, named=("Delta writer feature rowTracking",)),
    "delta.enableInCommitTimestamps": lambda t, lake: Deed([properties(enableInCommitTimestamps="true")], at_end=OPTIMIZED),
    "delta.enableChangeDataFeed": lambda t, lake: Deed([properties(enableChangeDataFeed="true")], at_end=REWRITTEN),
    "delta.checkpointPolicy = v2": lambda t, lake: Deed(
        [properties(checkpointPolicy="v2", checkpointInterval="1"), VECTORS], at_end=REWRITTEN),
    "CHECK constraint": check,
    "ADD COLUMNS": lambda t, lake: Deed(["ALTER TABLE {t} ADD COLUMNS (note string)"]),
    "column mapping by name": column_mapping,
    "type widening": type_widening,
    "delta.appendOnly": lambda t, lake: Deed(
        [properties(appendOnly="true")], at_end=OPTIMIZED, named=("it is append-only",),
        undo=["ALTER TABLE {t} UNSET TBLPROPERTIES ('delta.appendOnly')"],
        allow_delete=["?ALTER TABLE {t} UNSET TBLPROPERTIES ('delta.appendOnly')"]),
}
