"""Columns that are added later: computed a fragment at a time, each made visible by one commit.

When it is killed, only the current fragment is lost: null means still to be computed, also for rows that are appended
later. Only the column's own files are written, never those of the images.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import FragmentMetadata, LanceFragment

from clipkit.errors import DataError
from clipkit.store.dataset import Dataset, Rows
from clipkit.store.locks import is_remote
from clipkit.store.schema import is_blob
from clipkit.store.shards import STORAGE_VERSION, sync_data_file, writing_error

Compute = Callable[[Dataset, Rows], pa.Array]
Places = np.ndarray  # int64 numbers of rows in a fragment's files, deleted ones counted
NUM_TRIES = 5
WHOLE = "whole-"  # begins the name of a file that has a value for every row
READ_BYTES = 16_000_000
AGAIN = "run it again: finished fragments are kept"
WIDE_ROWS = 64
DROPPED_FIELD = -2  # Lance's mark for a field of a file that another file holds now


def fill_column(
    dataset: Dataset,
    field: pa.Field,
    compute: Compute,
    *,
    batch_rows: int = 256,
    advance: Callable[[int], object] | None = None,
) -> Dataset:
    """Compute a column for the rows where it is null, adding it where it is missing; gives the newest version.

    `compute` gets a dataset and offsets of its rows, and returns their values: null for a row that has none, which is
    tried again by the next call. `advance` gets the number of rows that were done.
    """
    _add_column(dataset.uri, field)
    newest = Dataset(dataset.uri, columns=dataset.columns)
    for number in [fragment.fragment_id for fragment in newest.lance.get_fragments()]:
        _fill_fragment(newest, number, field, compute, batch_rows, advance)
    return Dataset(dataset.uri, columns=dataset.columns)


def count_missing(dataset: Dataset, name: str) -> int:
    """How many rows `fill_column` still has to compute."""
    if name not in dataset.schema.names:
        return len(dataset)
    return sum(len(_missing(dataset, fragment, name)) for fragment in dataset.lance.get_fragments())


def _add_column(uri: str, field: pa.Field) -> None:
    newest = lance.dataset(uri)
    if field.name not in newest.schema.names:
        try:
            newest.add_columns(field)  # metadata alone: every row is null
        except OSError as error:
            raise writing_error(uri, error, again=AGAIN) from error
        return
    there = newest.schema.field(field.name)
    if there.type != field.type or is_blob(there):
        raise DataError(
            f"the column `{field.name}` of `{uri}` is {there.type}, not {field.type}",
            "give the new column another name, or drop the old one",
        )


def _fill_fragment(
    dataset: Dataset,
    number: int,
    field: pa.Field,
    compute: Compute,
    batch_rows: int,
    advance: Callable[[int], object] | None,
) -> None:
    """Write the fragment's file of this column and commit it, unless nothing is missing or nothing was found."""
    fragment = dataset.lance.get_fragment(number)
    missing = _missing(dataset, fragment, field.name)
    if not len(missing):
        return
    path = f"{dataset.uri.rstrip('/')}/data/{uuid.uuid4().hex}.lance"
    try:
        num_found = 0
        schema = pa.schema([field])
        with LanceFileWriter(path, schema, version=STORAGE_VERSION) as writer:
            for values, num_new, num_asked in _values(dataset, fragment, field, missing, compute, batch_rows):
                writer.write_batch(pa.record_batch([values], schema=schema))
                num_found += num_new
                if advance is not None:
                    advance(num_asked)
        if not num_found:
            _remove(path)
            return
        if num_found == len(missing):
            path = _mark_whole(path)
        if not is_remote(path):
            sync_data_file(Path(path))
        _commit(dataset.uri, number, field.name, path.rpartition("/")[2])
    except OSError as error:
        _remove(path)
        raise writing_error(dataset.uri, error, again=AGAIN) from error
    except BaseException:
        _remove(path)
        raise


def _values(
    dataset: Dataset,
    fragment: LanceFragment,
    field: pa.Field,
    missing_places: Places,
    compute: Compute,
    batch_rows: int,
) -> Iterator[tuple[pa.Array, int, int]]:
    """The column's values by place in the file, deleted rows as null; how many are new, and how many were asked."""
    before = _num_rows_before(dataset, fragment.fragment_id)
    is_live = _marks(_live(fragment), fragment.physical_rows)
    is_missing = _marks(missing_places, fragment.physical_rows)
    for start in range(0, fragment.physical_rows, batch_rows):
        live, missing = is_live[start : start + batch_rows], is_missing[start : start + batch_rows]
        rows = np.full(len(live), -1)
        rows[live] = before + np.arange(np.count_nonzero(live))
        before += int(np.count_nonzero(live))
        new = compute(dataset, rows[missing]) if missing.any() else pa.nulls(0, field.type)
        if len(new) != np.count_nonzero(missing):
            raise ValueError(f"`{field.name}`: {np.count_nonzero(missing)} rows were asked for, {len(new)} returned")
        values = new.cast(field.type)
        if not missing.all():
            old = dataset.take(rows[live & ~missing], [field.name]).column(0).combine_chunks()
            values = _merge([(missing, values), (live & ~missing, old)])
        yield values, len(new) - new.null_count, len(new)


def _live(fragment: LanceFragment, where: str | None = None, batch_size: int | None = None) -> Places:
    """Where the fragment's files hold rows that were not deleted, and that the filter chooses."""
    scanner = fragment.scanner(columns=[], with_row_address=True, filter=where, batch_size=batch_size)
    addresses = scanner.to_table().column("_rowaddr").to_numpy()
    places: Places = addresses.astype(np.int64) & 0xFFFFFFFF
    return places


def _missing(dataset: Dataset, fragment: LanceFragment, name: str) -> Places:
    """Where the fragment has rows without a value in this column.

    Only reading a value shows whether it is null, and pixels are gigabytes: files that are known to be whole are not
    read.
    """
    leaves = set(_leaf_ids(dataset.lance, name))
    files = [file.path for file in fragment.metadata.files if leaves & set(file.fields)]
    if not files:
        return _live(fragment)
    if all(path.startswith(WHOLE) for path in files):
        return np.empty(0, np.int64)
    return _live(fragment, f"`{name}` is null", _rows_to_read(dataset.schema.field(name).type))


def _rows_to_read(data_type: pa.DataType) -> int | None:
    """How many rows to read at once of a column whose values are wide."""
    if pa.types.is_fixed_size_list(data_type):
        return max(1, int(READ_BYTES * 8 // (data_type.value_type.bit_width * data_type.list_size)))
    return WIDE_ROWS if pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type) else None


def _mark_whole(path: str) -> str:
    """Rename a new file: its name says that it has a value for every row."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name}" if is_remote(path) else str(Path(path).rename(f"{folder}/{WHOLE}{name}"))


def _marks(places: Places, size: int) -> np.ndarray:
    marks = np.zeros(size, bool)
    marks[places] = True
    return marks


def _merge(parts: Sequence[tuple[np.ndarray, pa.Array]]) -> pa.Array:
    """Each part's values at the places that it marks; null where no part has one."""
    indices = np.full(len(parts[0][0]), -1)
    offset = 0
    for marks, values in parts:
        indices[marks] = offset + np.arange(len(values))
        offset += len(values)
    return pa.concat_arrays([values for _, values in parts]).take(pa.array(indices, mask=indices < 0))


def _num_rows_before(dataset: Dataset, number: int) -> int:
    count = 0
    for fragment in dataset.lance.get_fragments():
        if fragment.fragment_id == number:
            return count
        count += fragment.count_rows()
    raise ValueError(f"no fragment {number}")


def _commit(uri: str, number: int, column: str, file_name: str) -> None:
    """Make the new file the fragment's file of this column; retried on a conflict with another writer."""
    for attempt in range(NUM_TRIES):
        newest = lance.dataset(uri)
        fragment = newest.get_fragment(number)
        if fragment is None:  # replaced meanwhile: its rows are elsewhere, and null there
            return
        leaves = _leaf_ids(newest, column)
        operation = lance.LanceOperation.Update(
            updated_fragments=[_with_file(fragment.metadata, file_name, leaves)],
            fields_modified=leaves,
            update_mode="rewrite_columns",
        )
        try:
            lance.LanceDataset.commit(uri, operation, read_version=newest.version, commit_message=f"fill {column}")
            return
        except OSError as error:
            if "conflict" not in str(error).lower() or attempt == NUM_TRIES - 1:
                raise


def _with_file(metadata: FragmentMetadata, file_name: str, leaves: list[int]) -> FragmentMetadata:
    """The fragment with these fields in a file of their own."""
    values = metadata.to_json()
    files: list[dict[str, Any]] = values["files"]
    for file in files:
        file["fields"] = [DROPPED_FIELD if number in leaves else number for number in file["fields"]]
    files = [file for file in files if any(number != DROPPED_FIELD for number in file["fields"])]
    major, minor = map(int, STORAGE_VERSION.split("."))
    new = {
        "path": file_name,
        "fields": leaves,
        "column_indices": list(range(len(leaves))),
        "file_major_version": major,
        "file_minor_version": minor,
        "file_size_bytes": None,
        "base_id": None,
    }
    return FragmentMetadata.from_json(json.dumps({**values, "files": [*files, new]}))


def _leaf_ids(dataset: lance.LanceDataset, column: str) -> list[int]:
    """Numbers of the fields that hold a column's values: a list's are in the field of its items."""

    def leaves(field: Any) -> list[int]:
        children = field.children()
        return [number for child in children for number in leaves(child)] if children else [field.id()]

    (field,) = (field for field in dataset.lance_schema.fields() if field.name() == column)
    return leaves(field)


def _remove(path: str) -> None:
    if not is_remote(path):
        Path(path).unlink(missing_ok=True)
