"""Reads a Delta table by delta-rs."""

from deltalake import DeltaTable
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem


def read(path):
    """Returns the rows of the table as a pyarrow table.

    Unless told otherwise, delta-rs gives pyarrow a file system that is written in Python. A thread of pyarrow that closes
    such a file while the interpreter ends aborts the process (https://github.com/apache/arrow/issues/34314): one run of
    fifty did. The file system of pyarrow itself needs no interpreter.
    """
    return DeltaTable(path).to_pyarrow_table(filesystem=SubTreeFileSystem(str(path), LocalFileSystem()))
