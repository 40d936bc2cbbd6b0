"""Columns of a dataset by row: from memory where they are small, else read with each batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from clipkit.errors import DataError
from clipkit.store import Dataset

TEXTS_LIMIT_BYTES = 256_000_000
VECTORS_LIMIT_BYTES = 2_000_000_000  # a column of features is all that is read of its rows
ROWS_AT_ONCE = 64  # more of large photographs take memory of their own, which is not given back
VIEW_BYTES = 200  # of Python's object for an image, whatever its size

T = TypeVar("T")


class LoadedAside(Generic[T]):
    """A value that a thread loads in the background once somebody has asked for it; None until then."""

    def __init__(self, load: Callable[[], T | None]) -> None:
        self._load = load
        self._thread: threading.Thread | None = None
        self.value: T | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="clipkit-columns", daemon=True)
            self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self.value = self._load()


class SmallColumns:
    """Values of ids, captions and sizes.

    The first batch is read directly, and shows how large the columns are. If they fit, they are then read
    once, and later batches come from memory.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self._dataset = dataset
        self.names = list(names)
        self._limit_bytes = TEXTS_LIMIT_BYTES
        self.when_loaded: Callable[[pa.RecordBatch], None] | None = None
        self._table: LoadedAside[pa.RecordBatch] = LoadedAside(self._load)

    @property
    def in_memory(self) -> bool:
        return self._table.value is not None

    def take(self, rows: np.ndarray) -> pa.RecordBatch:
        """The rows' values, in the order asked for."""
        if self._table.value is not None:
            return self._table.value.take(pa.array(rows))
        values = one_batch(self._dataset.take(rows, self.names))
        if len(rows) and values.nbytes / len(rows) * len(self._dataset) <= self._limit_bytes:
            self._table.start()
        return values

    def close(self) -> None:
        self._table.join()

    def _load(self) -> pa.RecordBatch | None:
        table = self._dataset.read(self.names)
        if table.nbytes > self._limit_bytes:
            return None
        values = one_batch(table)
        if self.when_loaded is not None:
            self.when_loaded(values)
        return values


class ImageColumn:
    """Encoded images of the chosen rows (ascending): read with each batch, or kept in memory where all of them fit."""

    def __init__(self, dataset: Dataset, rows: np.ndarray) -> None:
        self._dataset = dataset
        self._rows = rows
        self._limit_bytes = 0
        self._expected_bytes = 0.0
        self._kept: LoadedAside[list[memoryview]] = LoadedAside(self._load)

    @property
    def in_memory(self) -> bool:
        return self._kept.value is not None

    @property
    def bytes_an_epoch(self) -> float:
        """How much is read for one pass over the rows, estimated from the batches so far."""
        return 0.0 if self.in_memory else self._expected_bytes

    def keep(self, *, limit_bytes: int) -> None:
        """From the next batch on read them all in the background, if they take at most so many bytes."""
        self._limit_bytes = limit_bytes

    def take(self, rows: np.ndarray) -> list[memoryview]:
        """The rows' images, in the order asked for."""
        if (kept := self._kept.value) is not None:
            return [kept[place] for place in np.searchsorted(self._rows, rows).tolist()]
        images = self._dataset.take_images(rows)
        if len(rows):
            self._expected_bytes = _num_bytes(images) / len(rows) * len(self._rows)
            if self._expected_bytes <= self._limit_bytes:
                self._kept.start()
        return images

    def close(self) -> None:
        self._limit_bytes = 0  # which ends a reading under way
        self._kept.join()

    def _load(self) -> list[memoryview] | None:
        kept: list[memoryview] = []
        num_bytes = 0
        for start in range(0, len(self._rows), ROWS_AT_ONCE):
            images = self._dataset.take_images(self._rows[start : start + ROWS_AT_ONCE])
            num_bytes += _num_bytes(images)
            if num_bytes > self._limit_bytes:
                return None
            kept += images
        return kept


def _num_bytes(images: Sequence[memoryview]) -> int:
    return sum(image.nbytes + VIEW_BYTES for image in images)


class VectorColumn:
    """Vectors of a column of fixed-size lists."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset = dataset
        self._name = name
        self._vectors: LoadedAside[np.ndarray] = LoadedAside(self._load)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(B, F), writable."""
        if self._vectors.value is not None:
            return self._vectors.value.take(rows, axis=0)
        vectors = np.array(self._dataset.take_vectors(rows, self._name))
        if len(rows) and vectors.nbytes / len(rows) * len(self._dataset) <= VECTORS_LIMIT_BYTES:
            self._vectors.start()
        return vectors

    def close(self) -> None:
        self._vectors.join()

    def _load(self) -> np.ndarray | None:
        column = self._dataset.read([self._name]).column(0)
        if column.null_count:  # rows without a vector may never be drawn: each batch is read, and reports one that is
            return None
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors: np.ndarray = flat.reshape(len(column), column.type.list_size)
        return vectors


def check_vectors(dataset: Dataset, name: str, setting: str) -> None:
    """Refuse a column that does not hold a vector of the same size a row."""
    check_column(dataset, name, setting)
    found = dataset.schema.field(name).type
    if not (pa.types.is_fixed_size_list(found) and pa.types.is_floating(found.value_type)):
        raise DataError(
            f"the column `{name}` of `{dataset.uri}` is {found}, not vectors of one size",
            f"`{setting}` needs fixed-size lists of floats",
        )


def check_column(dataset: Dataset, name: str, setting: str) -> None:
    names = dataset.schema.names
    if name not in names:
        listed = ", ".join(f"`{name}`" for name in names)
        raise DataError(f"`{dataset.uri}` has no column `{name}`", f"`{setting}` can be one of {listed}")


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table in one piece, which `take` is fast on."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
