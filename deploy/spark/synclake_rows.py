"""Tables of a synclake lake as Spark reads and writes them: versions, the latest change of each key, and commits with positions.

A position is a Delta transaction id with a version, as synclake writes it. Spark's writer sets one id in a commit, so an id that
needs the version of another commit follows in a commit of its own. **Delta skips a write, without an error, if its id has this
version or a higher one already.** So a write that would be skipped is made without an id, and every write is looked up in the
log afterwards.
"""

import functools
import json
import sys
import uuid

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from synclake_log import Log, Refused, path_of

# The formats of synclake's tables that these jobs know (`src/schema.rs`).
FORMAT_NEW, FORMAT_MAX = 2, 4

DATASET = "pool, identity_id, dataset_name"
STATE = ["pool", "identity_pool_id", "identity_id", "dataset_name", "key", "value", "op", "sync_count", "last_modified_date",
         "device_last_modified_date", "is_after_removal", "shard_id", "sequence_number", "sub_sequence", "record_index",
         "arrived_at"]
# Columns of the rows that the state is computed from.
RECORDS = [name for name in STATE if name != "is_after_removal"]
# A row without a key that is no removal stands for an event without records.
CHANGES = "(key IS NOT NULL OR op = 'remove')"
ORDER = ("sync_count DESC, last_modified_date DESC, arrived_at DESC, length(sequence_number) DESC, sequence_number DESC, "
         "coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC")
TYPES = {
    "sync_count": "bigint", "sub_sequence": "bigint", "record_index": "int", "is_after_removal": "boolean",
    "last_modified_date": "timestamp", "device_last_modified_date": "timestamp", "arrived_at": "timestamp",
    "extract_date": "date",
}


def configure(spark):
    """Sets what the jobs depend on: time zone, times with microseconds in the files, files that are read by their paths."""
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    # Databricks refuses to read files of a Delta table by their paths, as `rows_of` does.
    spark.conf.set("spark.databricks.delta.formatCheck.enabled", "false")


def parsed(parser):
    """Returns the options of the command line. Glue adds arguments of its own, such as --JOB_NAME, which are passed over."""
    return parser.parse_known_args()[0] if "--JOB_NAME" in sys.argv else parser.parse_args()


def run(name, job):
    """Runs a job in a session of its own, and prints each report that it returns as a line of JSON."""
    spark = SparkSession.builder.appName(name).getOrCreate()
    configure(spark)
    try:
        for report in job(spark):
            print(json.dumps(report), flush=True)
    except Refused as reason:
        sys.exit(f"error: {reason}")
    finally:
        spark.stop()


class Table:
    """A table of the lake at its newest version."""

    def __init__(self, spark, lake, name):
        self.spark, self.lake, self.name, self.path = spark, lake, name, f"{lake.rstrip('/')}/{name}"
        self.log = None
        self.reload()

    def reload(self):
        try:
            self.log = Log(self.spark, self.path, self.log)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" not in str(error):
                raise
            self.log = None
        return self

    def create(self, columns, partitioned_by):
        """Creates the table as synclake does, if it does not exist. A lake without sync_records is none."""
        if self.log is None:
            if Table(self.spark, self.lake, "sync_records").log is None:
                raise Refused(f"there is no lake at {self.lake}: it has no table sync_records")
            fields = ", ".join(f"{name} {TYPES.get(name, 'string')}" for name in columns)
            self.spark.sql(f"CREATE TABLE IF NOT EXISTS delta.`{self.path}` ({fields}) USING delta "
                           f"PARTITIONED BY ({partitioned_by}) TBLPROPERTIES ('synclake.format' = '{FORMAT_NEW}')")
            self.reload()
        return self

    def check_format(self):
        details = self.spark.sql(f"DESCRIBE DETAIL delta.`{self.path}`").collect()[0]
        stated = details.properties.get("synclake.format", "1")
        if not stated.isdigit() or int(stated) > FORMAT_MAX:
            raise Refused(f"{self.name} has format {stated} of synclake, but this job knows only formats up to {FORMAT_MAX}; "
                          "take the job of that version of synclake")

    def rows(self):
        return self.spark.read.format("delta").option("versionAsOf", self.log.version).load(self.path)

    def rows_of(self, paths, with_vectors):
        """Returns the rows of files of this version. Reads no other file, unless one of these has a deletion vector."""
        rows, found = self.rows(), []
        if plain := sorted(set(paths) - with_vectors):
            reader = self.spark.read.schema(rows.schema).option("basePath", self.path)
            found.append(reader.parquet(*[f"{self.path}/{path_of(path)}" for path in plain]).select(*rows.columns))
        if names := {path_of(path).rsplit("/", 1)[-1] for path in set(paths) & with_vectors}:
            # Only Delta's own reader leaves out the deleted rows.
            files = self.spark.createDataFrame([(name,) for name in sorted(names)], "file_name string")
            named = rows.selectExpr("*", "_metadata.file_name AS file_name")
            found.append(named.join(files.hint("broadcast"), "file_name", "left_semi").select(*rows.columns))
        return functools.reduce(DataFrame.unionByName, found)

    def write(self, rows, token, id=None, **options):
        """Overwrites rows, and returns the version of the commit; None if Delta skipped the write."""
        options = {"userMetadata": token, "optimizeWrite": "false", **options}
        if id and self.log.ids.get(id[0], -1) < id[1]:
            options.update(txnAppId=id[0], txnVersion=str(id[1]))
        rows.write.format("delta").mode("overwrite").options(**options).save(self.path)
        return self.find(token)

    def record(self, name, version):
        """Records a transaction id in a commit that changes no rows."""
        none = self.rows().limit(0)
        options = {"txnAppId": name, "txnVersion": str(version)}
        none.write.format("delta").mode("append").options(**options).save(self.path)

    def find(self, token):
        """Reloads the table, and returns the version of the commit with this token, if there is one."""
        before = self.log.version
        self.reload()
        for version, actions in self.log.read(before, self.log.version):
            if any(action.get("commitInfo", {}).get("userMetadata") == token for action in actions):
                return version
        return None


def new_token(job):
    return json.dumps({"synclake": job, "token": uuid.uuid4().hex})


def latest(rows):
    """Returns the latest change of each key, and whether it came after the last removal of its dataset."""
    removal = f"max(CASE WHEN key IS NULL THEN struct(sync_count, last_modified_date) END) OVER (PARTITION BY {DATASET})"
    ranked = rows.repartition("pool", "identity_id", "dataset_name").selectExpr(
        "*", f"{removal} AS removal", f"row_number() OVER (PARTITION BY {DATASET}, key ORDER BY {ORDER}) AS nth")
    after = ("key IS NOT NULL AND (removal IS NULL OR struct(sync_count, last_modified_date) > removal) AS is_after_removal")
    return ranked.where("nth = 1").selectExpr(*(after if name == "is_after_removal" else name for name in STATE))


def in_order(rows, *first):
    """Sorts rows for the files of a table: the files have ranges of identities that do not overlap."""
    return rows.repartitionByRange(*first, "pool", "identity_id").sortWithinPartitions(
        *first, "pool", "identity_id", "dataset_name", "key")


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def left_by_retention(log):
    """Returns whether rows have left sync_records by retention."""
    return any(name.startswith("expire/pool/") for name in log.ids)
