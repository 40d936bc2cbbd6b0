"""Tables in files: CSV, TSV, JSON (each also gzipped) and Parquet; one file, or a folder of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.errors import DataError
from clipkit.readers.arrow import BATCH_ROWS, batch_rows
from clipkit.readers.paths import NUM_PROBES, Root, find_image_folder
from clipkit.readers.roles import choose_roles, is_text
from clipkit.readers.rows import Row, Table, records
from clipkit.readers.source import Item, ReadOptions
from clipkit.readers.text_tables import CsvTable, JsonTable, file_suffix, holds_array


def detect(source: str) -> bool:
    return bool(_files(Path(source)))


def read(source: str, options: ReadOptions, skip: int = 0) -> Iterator[Item]:
    """Records in the order in which their images first stand in the table."""
    path = Path(source)
    files = _files(path) or ([path] if path.is_file() else [])
    if not files:
        raise DataError(
            f"`{source}` is no table, nor a folder of some", f"a table ends in {', '.join(TABLES)} (also .gz)"
        )
    table = open_table(files, options)
    base = path if path.is_dir() else path.parent
    folder = options.image_dir or find_image_folder(base, _probes(table, options), allow_outside=options.allow_outside)
    root = Root(folder, allow_outside=options.allow_outside)
    return records(table, options, root, skip=skip)


def open_table(files: Sequence[Path], options: ReadOptions) -> Table:
    """A table of the kind that the files' suffix says; CSV if it is none of theirs."""
    return TABLES.get(file_suffix(files[0]), CsvTable)(files, options)


def _probes(table: Table, options: ReadOptions) -> list[str]:
    """The first images that are named as files, if images are."""
    image = choose_roles(table.schema, options, table=table.name).image
    if not is_text(table.schema.field(image).type):
        return []
    values = (row.values[0] for row in islice(table.rows([image]), NUM_PROBES) if row.values)
    return [name for value in values if (name := str(value or "")) and not re.match(r"\w+:", name)]


def _files(source: Path) -> list[Path]:
    """The table itself, or the folder's tables, all of the one kind that comes first in TABLES."""
    if source.is_file():
        return [source] if file_suffix(source) in TABLES and _is_table(source) else []
    if not source.is_dir():
        return []
    candidates = [path for path in sorted(source.iterdir()) if path.is_file()]
    candidates += [path for path in sorted((source / "data").glob("*")) if path.is_file()]  # as on the hub
    for suffix in TABLES:
        if files := [path for path in candidates if file_suffix(path) == suffix and _is_table(path)]:
            return files
    return []


def _is_table(path: Path) -> bool:
    """Whether a file is what its suffix says: a `.json` may be anything, and is one with an array of objects."""
    if file_suffix(path) != ".json":
        return True
    try:
        return holds_array(path)
    except (OSError, EOFError):
        return False


class ParquetTable:
    def __init__(self, files: Sequence[Path], options: ReadOptions) -> None:
        self.name = str(files[0])
        self._files = files
        self.schema = _open_parquet(files[0]).schema_arrow

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[Row]:
        number = 0
        for path in self._files:
            with _open_parquet(path) as file:
                groups: list[int] = []
                for group in range(file.num_row_groups):
                    num_rows = file.metadata.row_group(group).num_rows
                    if groups or number + num_rows > start:
                        groups.append(group)
                    else:
                        number += num_rows
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns)):
                    rows = batch_rows(batch, columns, number, path.name)
                    yield from (row for row in rows if row.number >= start)
                    number += batch.num_rows


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        # Column chunks are read a megabyte at a time: one of images may hold gigabytes.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"`{path}` cannot be read as Parquet: {error}", "is the file complete?") from error


TABLES: dict[str, Callable[[Sequence[Path], ReadOptions], Table]] = {
    ".parquet": ParquetTable,
    ".jsonl": JsonTable,
    ".ndjson": JsonTable,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".json": JsonTable,
}
