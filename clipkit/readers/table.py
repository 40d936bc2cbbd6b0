"""Tables in files: text, JSON (each also gzipped) and Parquet; one file, or a folder of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.errors import DataError
from clipkit.readers.arrow import BATCH_ROWS, batch_rows
from clipkit.readers.delimited import NAME, NUM_SNIFFED_BYTES, open_text
from clipkit.readers.paths import files_in, folders_in, join_listed
from clipkit.readers.roles import choose_roles
from clipkit.readers.rows import Table, TableRow, image_names, records
from clipkit.readers.search import ImageSearch
from clipkit.readers.source import Item, ReadOptions, SourceReport
from clipkit.readers.splits import split_lists_in, with_split_lists
from clipkit.readers.text_tables import DelimitedTable, JsonFile, JsonTable, file_suffix
from clipkit.readers.values import printable

EXCEL = frozenset((".xlsx", ".xls", ".xlsm", ".ods"))
TEXTS = frozenset((".txt", ".token", ".text", ".tab"))
# Files beside a corpus that say something else than captions.
NOT_CAPTIONS = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|authors|changelog|requirements|classes|class_names|labels?|synsets?)\b.*"
    r"|.*_stats\.json|attributes\.csv",
    re.IGNORECASE,
)
CAPTIONS_IN_NAME = re.compile(r"caption|caps|annotation|descri|prompt|comment|sentence|token", re.IGNORECASE)
MAX_CHECKED = 100  # files of which each is opened to see whether it holds captions


def detect(source: str) -> bool:
    return bool(caption_files(Path(source), ReadOptions()))


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order in which their images first stand in the table."""
    path = Path(source)
    files = caption_files(path, options) or ([path] if path.is_file() else [])
    if not files:
        raise DataError(
            f"`{source}` is neither a table nor a folder with one", f"a table ends in {', '.join(TABLES)} (also .gz)"
        )
    if path.is_dir():
        report.passed_over += [os.path.relpath(file, path) for file in candidates(path) if file not in files]
    return read_files(files, path if path.is_dir() else path.parent, options, skip, report)


def read_files(
    files: Sequence[Path], base: Path, options: ReadOptions, skip: int, report: SourceReport
) -> Iterator[Item]:
    """Records of tables whose images are at or below `base`, with the splits of the lists beside them."""
    report.files += [os.path.relpath(file, base) for file in files]
    table = open_table(files, options, report)
    search = ImageSearch(base, image_names(table, options, report), options, report, table=files[0])
    items = records(table, options, search, skip=skip, report=report)
    lists = {} if options.split or options.split_files else split_lists_in(files[0].parent)
    yield from with_split_lists(items, lists, report, is_whole=skip == 0)


def open_table(files: Sequence[Path], options: ReadOptions, report: SourceReport) -> Table:
    """A table of the kind that the files' suffix says; text if it is another one."""
    if file_suffix(files[0]) in EXCEL:
        raise DataError(f"`{files[0]}` is an Excel file", "save its sheet as CSV (UTF-8) and name that file")
    return TABLES.get(file_suffix(files[0]), DelimitedTable)(files, options, report)


def caption_files(source: Path, options: ReadOptions) -> list[Path]:
    """The table itself, or the folder's tables of captions, all of the one kind that comes first in TABLES.

    Where none of them can be read, those that should be, so that reading them says why.
    """
    if source.is_file():
        suffix = file_suffix(source)
        is_table = suffix in TABLES or suffix in EXCEL or (suffix in TEXTS and _is_readable(source, options))
        return [source] if is_table and _is_table(source) else []
    if not source.is_dir():
        return []
    files = [file for file in candidates(source) if _is_table(file)]
    by_suffix = {suffix: [file for file in files if file_suffix(file) == suffix] for suffix in (*TABLES, *TEXTS)}
    for group in by_suffix.values():
        if readable := group if len(group) > MAX_CHECKED else [file for file in group if _is_readable(file, options)]:
            return readable
    return next((group for suffix, group in by_suffix.items() if group and suffix in TABLES), [])


def candidates(folder: Path) -> list[Path]:
    """Files that may hold captions: tables and texts in the folder, else in the folders right below it."""
    lists = set(split_lists_in(folder).values())
    found = [file for file in files_in(folder) if file not in lists and _is_candidate(file)]
    if found:
        return found
    below = [file for place in folders_in(folder) for file in files_in(place) if _is_candidate(file, is_below=True)]
    return [file for file in below if not _names_an_image(file)]


def not_understood(folder: Path) -> DataError | None:
    """What to say of a file in a folder that seems to hold captions and cannot be read; None where there is none."""
    files = [file for file in candidates(folder) if _may_hold_captions(file)]
    excel = [file for file in files_in(folder) if file_suffix(file) in EXCEL]
    if excel:
        return DataError(f"`{excel[0]}` is an Excel file", "save its sheet as CSV (UTF-8) and name that file")
    if not files:
        return None
    named = [file for file in files if CAPTIONS_IN_NAME.search(file.name)] or files
    with open_text(named[0]) as stream:
        first = printable(stream.readline(300).strip()[:200])
    return DataError(
        f"`{named[0]}` may hold captions, but it is not understood: its first line is `{first}`"
        + (f"; so may {join_listed(file.name for file in files if file != named[0])}" if len(files) > 1 else ""),
        "clipkit reads lines `image.jpg,caption` (also with tabs), a table with a header such as `image,caption`, and "
        "JSON objects with `image` and `caption`; with --format imagefolder the folders' names become the captions",
    )


def _is_candidate(file: Path, *, is_below: bool = False) -> bool:
    suffix = file_suffix(file)
    if NOT_CAPTIONS.fullmatch(file.name):
        return False
    if suffix in TEXTS and is_below:
        return CAPTIONS_IN_NAME.search(file.name) is not None
    return suffix in TABLES or suffix in TEXTS


def _may_hold_captions(file: Path) -> bool:
    """Whether a file is named like captions, or names images or captions near its start."""
    if CAPTIONS_IN_NAME.search(file.name) or file_suffix(file) == ".parquet":
        return True
    with open_text(file) as stream:
        start = stream.read(NUM_SNIFFED_BYTES)
    return re.search(NAME + r"\b|caption", start, re.IGNORECASE) is not None


def _names_an_image(file: Path) -> bool:
    """Whether a file describes the one image beside it that has its name."""
    return any(file.with_suffix(suffix).exists() for suffix in (".jpg", ".png", ".jpeg", ".webp"))


def _is_readable(file: Path, options: ReadOptions) -> bool:
    """Whether a table has columns of images and of captions."""
    try:
        table = open_table([file], options, SourceReport())
        choose_roles(table.schema, options, table=table.name)
    except (DataError, OSError, EOFError):
        return False
    return True


def _is_table(path: Path) -> bool:
    """Whether a file is what its suffix says: a `.json` may be anything."""
    if file_suffix(path) != ".json":
        return True
    try:
        return JsonFile(path).is_table
    except (OSError, EOFError):
        return False


class ParquetTable:
    def __init__(self, files: Sequence[Path], options: ReadOptions, report: SourceReport) -> None:
        self.name = str(files[0])
        self._files = files
        self.schema = _open_parquet(files[0]).schema_arrow

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
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


TABLES: dict[str, Callable[[Sequence[Path], ReadOptions, SourceReport], Table]] = {
    ".parquet": ParquetTable,
    ".jsonl": JsonTable,
    ".ndjson": JsonTable,
    ".csv": DelimitedTable,
    ".tsv": DelimitedTable,
    ".json": JsonTable,
}
