"""The tables of docs/engines.md, between two marker comments: written, or compared with the results of a run."""

import dialects
import known
from relations import RELATIONS, ROOT, TABLES

DOCUMENT = ROOT / "docs/engines.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = {
    "synclake-query": "this version", "duckdb": "DuckDB {}, extension delta", "duckdb-parquet": "DuckDB {}",
    "polars": "Polars {}", "delta-rs": "deltalake {} (Python)", "chdb": "ClickHouse {} (chDB)", "daft": "Daft {}",
    "spark": "Spark {}", "spark-parquet": "Spark {}", "trino": "Trino {}", "athena": "Trino {}, in place of Athena",
}
HOW = {
    "log": "the Delta log", "manifests": "the files that the manifests list", "folders": "the Parquet files of the folders",
}


def statements_of(reader):
    if reader == "synclake-query":
        return "its own"
    if reader == "athena":
        return "the views of `ddl --engine athena` and `athena-hive`, over the tables of `trino`"
    if reader in dialects.LOCAL:
        return f"`ddl --engine {reader}`"
    return "the views of `ddl --engine duckdb`, word for word, over tables of its own"


def cell(reader, relation, results, notes):
    if relation not in results[reader]:
        return "—"
    exception = results[reader][relation]
    if exception is None:
        return "exact"
    if exception.text not in notes:
        notes.append(exception.text)
    return f"{exception.mark} ({notes.index(exception.text) + 1})"


def tables(versions, results):
    """Returns the text between the markers."""
    lines = ["| reader | engine and version | reads | tables and views |", "|---|---|---|---|"]
    for engine, readers in known.READERS.items():
        for reader, how in readers.items():
            version = versions[engine] if isinstance(versions[engine], str) else versions[engine][reader]
            lines.append(f"| `{reader}` | {NAMES[reader].format(version)} | {HOW[how]} | {statements_of(reader)} |")
    readers, notes = list(results), []
    lines += ["", f"| table or view | {' | '.join(f'`{reader}`' for reader in readers)} |", "|---" * (len(readers) + 1) + "|"]
    for relation in RELATIONS:
        kind = "table" if relation in TABLES else "view"
        cells = [cell(reader, relation, results, notes) for reader in readers]
        lines.append(f"| `{relation}` ({kind}) | {' | '.join(cells)} |")
    lines += ["", "A number in brackets is that of a note. —: the reader does not have this table or view.", ""]
    lines += [f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


def update(versions, results, write):
    """Writes the tables into the document, or returns a fault if they differ from it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not rest or not tail:
        return [f"{DOCUMENT.name} has no {BEGIN} … {END}"]
    new = f"{head}{BEGIN}\n{tables(versions, results)}\n{END}{tail}"
    if new == text:
        return []
    if write:
        DOCUMENT.write_text(new, encoding="utf-8")
        return []
    old = text.splitlines()
    differing = [f"docs/engines.md lacks the line: {line}" for line in new.splitlines() if line not in old]
    return [*differing, "docs/engines.md differs from this run; run make engines UPDATE=1, and read what changed"]
