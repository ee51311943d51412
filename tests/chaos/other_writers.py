"""Other Delta writers: delta-rs, and Spark with Delta. Each does what its users do to a table, one operation at a time.

An operation that conflicts with a synclake commit raises `Conflict`; the caller may retry it.
"""

import json
import pathlib
import subprocess

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

# The text column of a table. An update of the column to itself rewrites files and changes no row.
TEXT = {"sync_records": "value", "quarantine": "detail"}
SORTED_BY = {"quarantine": "reason"}


class Conflict(Exception):
    pass


class DeltaRs:
    deeds = ["compact", "z_order", "checkpoint", "cleanup", "update"]

    def __init__(self, lake):
        self.lake = lake

    def do(self, what, table, rng):
        """Runs one operation on a table; returns whether the operation applies to that table."""
        try:
            delta = DeltaTable(self.lake / table)
            if what == "compact":
                delta.optimize.compact(target_size=rng.choice([1 << 12, 1 << 28]))
            elif what == "z_order":
                delta.optimize.z_order([SORTED_BY.get(table, "identity_id")])
            elif what == "checkpoint":
                delta.create_checkpoint()
            elif what == "cleanup":
                delta.cleanup_metadata()
            elif table in TEXT:
                delta.update(updates={TEXT[table]: TEXT[table]}, predicate=f"{TEXT[table]} is not null")
            else:
                return False
        except (DeltaError, OSError) as error:
            if "panic" in str(error).lower():
                raise
            # A synclake commit came first, or the table does not exist yet.
            raise Conflict(str(error)) from error
        return True

    def compact_and_take_back(self, table):
        """Compacts, then RESTOREs the version before: the rows are the same, but the log marks all files as changed."""
        delta = DeltaTable(self.lake / table)
        before = delta.version()
        if delta.optimize.compact(target_size=1 << 28)["numFilesRemoved"]:
            delta.restore(before)
            return True
        return False

    def delete(self, table, predicate):
        try:
            DeltaTable(self.lake / table).delete(predicate)
        except DeltaError as error:
            raise Conflict(str(error)) from error

    def vacuum(self, table):
        DeltaTable(self.lake / table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)

    def close(self):
        pass


class Spark:
    """Spark with deletion vectors: its DELETE and UPDATE mark rows and leave the data files unchanged."""

    deeds = ["compact", "z_order", "update", "vectors"]

    def __init__(self, lake, python, jars):
        self.lake = lake
        server = pathlib.Path(__file__).with_name("spark_server.py")
        jars = sorted(str(jar) for jar in pathlib.Path(jars).glob("*.jar"))
        self.process = subprocess.Popen([python, str(server), *jars], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sql(self, statement):
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"Spark ended at: {statement}"
        error = json.loads(line)
        if error is None:
            return
        if "Concurrent" in error or "MetadataChanged" in error or "ProtocolChanged" in error or "FileNotFound" in error:
            raise Conflict(error)
        raise AssertionError(f"{statement}: {error}")

    def name(self, table):
        return f"delta.`{self.lake / table}`"

    def do(self, what, table, rng):
        if not (self.lake / table / "_delta_log").exists():
            raise Conflict("the table is not there yet")
        name = self.name(table)
        if what == "compact":
            self.sql(f"OPTIMIZE {name}")
        elif what == "z_order":
            self.sql(f"OPTIMIZE {name} ZORDER BY ({SORTED_BY.get(table, 'identity_id')})")
        elif what == "vectors":
            self.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
        elif table in TEXT:
            column = TEXT[table]
            # Update only some rows of a file, so that Spark marks them and keeps the file.
            self.sql(f"UPDATE {name} SET {column} = {column} WHERE {column} IS NOT NULL AND hash({column}) % 3 = {rng.randrange(3)}")
        else:
            return False
        return True

    def compact_and_take_back(self, table):
        before = DeltaTable(self.lake / table).version()
        self.sql(f"OPTIMIZE {self.name(table)}")
        if DeltaTable(self.lake / table).version() == before:
            return False
        self.sql(f"RESTORE TABLE {self.name(table)} TO VERSION AS OF {before}")
        return True

    def delete(self, table, predicate):
        self.sql(f"DELETE FROM {self.name(table)} WHERE {predicate}")

    def vacuum(self, table):
        self.sql(f"VACUUM {self.name(table)} RETAIN 0 HOURS")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
