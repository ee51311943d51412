"""What is known not to be exact, and why. run.py fails if such a relation is exact, or differs in another way."""

import collections

import catalog
from relations import TABLES

# Readers of each engine, and how each reads the lake.
READERS = {
    "synclake-query": {"synclake-query": "log"}, "duckdb": {"duckdb": "log", "duckdb-parquet": "manifests"},
    "polars": {"polars": "log"}, "delta-rs": {"delta-rs": "log"}, "chdb": {"chdb": "log"}, "daft": {"daft": "log"},
    "spark": {"spark": "log", "spark-parquet": "folders"}, "trino": {"trino": "log", "athena": "log"},
}

# Readers that docs/engines.md describes in sentences: the catalogue of lakes on S3 (catalog.py), and models of dbt (ask_dbt.py).
BESIDE = {"trino": ["athena-catalog", "redshift-catalog", "dbt-trino"], "dbt": ["dbt-duckdb"]}

# `text` is for the document; `evidence` is a part of a line that the run finds: a difference, or the engine's error.
Exception_ = collections.namedtuple("Exception_", "text evidence mark", defaults=("no",))
FOLDERS = Exception_(
    "reads the folders: rows of files that a compaction replaced are there twice", evidence="some are not expected")
NO_COUNT, NO_FIRST_VALUE = (
    Exception_(f"Daft's SQL has no {what}, so it rejects the text of the view", evidence, mark="not run")
    for what, evidence in (
        ("`count(*)` over a window", "'window function expected'"), ("`first_value`", "'Function `first_value` not found'"),
    )
)
EXCEPTIONS = {
    **{("daft", name): NO_COUNT for name in ("changes", "daily_changes")},
    **{("daft", name): NO_FIRST_VALUE for name in ("resolved", "key_state", "dataset_state")},
    **{("spark-parquet", name): FOLDERS for name in ("sync_records", "cognito_raw_data", "resolved", "changes")},
}


def exception(reader, relation):
    return EXCEPTIONS.get((reader, relation))


def asked(reader, job):
    """Returns the relations that a reader is asked for."""
    if reader == "synclake-query":
        # Its current_state uses the last refresh by itself.
        return [relation for relation in job["relations"] if relation != "refreshed_state"]
    if reader in catalog.READERS:
        return catalog.READERS[reader]
    if reader.startswith("dbt-"):
        return ["current_state"]
    # The tables of `athena` are those of Trino.
    return [name for name in job["declared"].get(reader, job["relations"]) if reader != "athena" or name not in TABLES]
