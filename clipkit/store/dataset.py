"""Opening and reading a Lance dataset; only this module knows how images are stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.errors import DataError, first_line
from clipkit.store.locks import staging_folder
from clipkit.store.schema import Columns, check_captions, check_id, check_image, is_blob, is_list

UNQUOTED = re.compile(r"(\w+ *(?:=|!=|<>) *)([A-Za-z_]\w*)\b(?!\s*\()")  # a text without its quotes
Rows = np.ndarray  # int64 offsets of rows in one version of the dataset


class Dataset:
    """One version of a Lance dataset of images and captions.

    `version` is a number or a tag. Rows are named by their offset in that version, as `lance.LanceDataset.take`
    counts them. Only the id column must be there; the others are checked when they are first used. Pickles to its
    address and version.
    """

    def __init__(self, uri: str | Path, *, version: int | str | None = None, columns: Columns | None = None) -> None:
        self.uri = str(uri)
        self.columns = columns or Columns()
        if isinstance(version, str) and version.isdigit():
            version = int(version)
        try:
            self.lance = lance.dataset(self.uri, version=version)
        except (ValueError, OSError) as error:
            raise _cannot_open(self.uri, version, error) from error
        check_id(self.lance.schema, self.columns.image_id, uri=self.uri)

    def __len__(self) -> int:
        return int(self.lance.count_rows())

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.uri, self.version, self.columns)

    @property
    def version(self) -> int:
        return int(self.lance.version)

    @property
    def schema(self) -> pa.Schema:
        return self.lance.schema

    @cached_property
    def image_column(self) -> str:
        """The column of encoded images; raises DataError for a dataset without one."""
        check_image(self.schema, self.columns.image, uri=self.uri)
        return self.columns.image

    @cached_property
    def captions_column(self) -> str:
        """The column of captions; raises DataError for a dataset without one."""
        check_captions(self.schema, self.columns.captions, uri=self.uri)
        return self.columns.captions

    @cached_property
    def image_is_blob(self) -> bool:
        return is_blob(self.schema.field(self.image_column))

    def tag(self, name: str) -> None:
        """Name this version, which keeps clean-up from removing it."""
        try:
            tags = self.lance.tags.list()
            if name not in tags:
                self.lance.tags.create(name, self.version)
            elif int(tags[name]["version"]) != self.version:
                self.lance.tags.update(name, self.version)
        except (ValueError, OSError) as error:
            raise DataError(f"`{self.uri}` cannot be tagged: {first_line(error)}") from error

    def select(self, where: str | None = None, *, limit: int | None = None) -> Rows:
        """Offsets of the rows that an SQL expression over the columns chooses, in stored order."""
        if where is None:
            return np.arange(min(len(self), limit or len(self)), dtype=np.int64)
        try:
            scanner = self.lance.scanner(columns=["_rowoffset"], filter=where, limit=limit, scan_in_order=True)
            offsets = scanner.to_table().column(0)
        except (ValueError, OSError) as error:
            names = ", ".join(f"`{name}`" for name in self.schema.names)
            unquoted = UNQUOTED.search(where)
            hint = f"it is an SQL expression over the columns {names}"
            if unquoted and unquoted[2] not in self.schema.names:
                hint = f"put text in single quotes: `{unquoted[1]}'{unquoted[2]}'`"
            raise DataError(f"the filter `{where}` does not work on `{self.uri}`: {first_line(error)}", hint) from error
        return np.sort(offsets.to_numpy().astype(np.int64))

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows' values in these columns, as stored."""
        return self.lance.scanner(columns=list(columns), scan_in_order=True).to_table()

    def take(self, rows: Rows | Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows' values in these columns, in the order asked for (not for images: see `take_images`)."""
        return self.lance.take(rows, columns=list(columns))

    def take_images(self, rows: Rows | Sequence[int]) -> list[memoryview]:
        """The rows' encoded images, in the order asked for and without copying; a null image is empty."""
        name = self.image_column
        if self.image_is_blob:
            return [memoryview(data or b"") for _, data in self.lance.read_blobs(name, indices=[int(r) for r in rows])]
        values = self.lance.take(rows, columns=[name]).column(0)
        return [view for chunk in values.chunks for view in binary_views(chunk)]

    def take_vectors(self, rows: Rows | Sequence[int], column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, in the order asked for; a null is an error.

        Read-only where nothing is copied.
        """
        values = self.take(rows, [column]).column(0)
        if values.null_count:
            raise DataError(
                f"row {rows[values.is_null().index(True).as_py()]} of `{self.uri}` has no `{column}`",
                f"fill the column, or leave such rows out with the filter `{column} is not null`",
            )
        parts = [fixed_size_values(chunk) for chunk in values.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take_pixels(self, rows: Rows | Sequence[int], column: str) -> list[np.ndarray | None]:
        """The rows' bytes in a column of fixed-size binaries, in the order asked for; None for a null."""
        pixels: list[np.ndarray | None] = []
        for chunk in self.take(rows, [column]).column(0).chunks:
            valid = chunk.is_valid().to_pylist()
            pixels += [row if ok else None for row, ok in zip(fixed_size_values(chunk), valid, strict=True)]
        return pixels

    def count_captions(self) -> np.ndarray:
        """How many captions each row has, by one pass over them."""
        batches = self.lance.scanner(columns=[self.captions_column], scan_in_order=True).to_batches()
        return np.concatenate([count_captions(batch.column(0)) for batch in batches])

    def take_captions(self, rows: Rows | Sequence[int]) -> list[list[str]]:
        """The rows' captions, in the order asked for; a string column is a list of one."""
        return as_captions(self.take(rows, [self.captions_column]).column(0))


def as_captions(values: pa.ChunkedArray) -> list[list[str]]:
    """A column of captions as lists of strings, whether it holds lists or strings."""
    if is_list(values.type):
        return [[text for text in texts or [] if text] for texts in values.to_pylist()]
    return [[text] if text else [] for text in values.to_pylist()]


def count_captions(values: pa.Array) -> np.ndarray:
    """(B,) how many captions `as_captions` finds in each row."""
    texts = values.values if is_list(values.type) else values
    is_text = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False).to_numpy(zero_copy_only=False)
    counts: np.ndarray = is_text.astype(np.int64)
    if is_list(values.type):
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        offsets = values.offsets.to_numpy()
        counts = (before[offsets[1:]] - before[offsets[:-1]]) * values.is_valid().to_numpy(zero_copy_only=False)
    return counts


def binary_views(array: pa.Array) -> list[memoryview]:
    """Zero-copy views of a binary array's values (`as_buffer` and `as_py` copy each)."""
    _, offsets_buffer, data = array.buffers()
    dtype = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, dtype=dtype)[array.offset : array.offset + len(array) + 1]
    view = memoryview(data).cast("B") if data is not None else memoryview(b"")  # Arrow's own view is of signed bytes
    return [view[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def fixed_size_values(array: pa.Array) -> np.ndarray:
    """(B, F) of an array of fixed-size lists or binaries."""
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
        return data[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)
    flat = array.flatten().to_numpy(zero_copy_only=False)
    values: np.ndarray = flat.reshape(len(array), array.type.list_size)
    return values


def _reopen(uri: str, version: int, columns: Columns) -> Dataset:
    return Dataset(uri, version=version, columns=columns)


def _cannot_open(uri: str, version: int | str | None, error: Exception) -> DataError:
    if "://" not in uri and not Path(uri).exists():
        return DataError(f"there is no dataset at `{uri}`", "make one with `clipkit ingest SOURCE OUT.lance`")
    if "://" not in uri and staging_folder(uri).exists() and not (Path(uri) / "_versions").exists():
        return DataError(f"the ingest into `{uri}` is not finished", "run its command again with --resume")
    if version is not None:
        return DataError(
            f"`{uri}` has no version or tag `{version}`: {first_line(error)}",
            f"`clipkit info {uri}` lists the versions",
        )
    return DataError(
        f"`{uri}` is not a Lance dataset ({first_line(error)})",
        f"make one of a folder of images with `clipkit ingest {uri} OUT.lance`",
    )
