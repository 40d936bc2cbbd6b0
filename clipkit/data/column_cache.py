"""Columns of a dataset by row: kept in memory if they are small, otherwise read with each batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.store.dataset import fixed_size_values

TEXTS_LIMIT_BYTES = 256_000_000
VECTORS_LIMIT_BYTES = 2_000_000_000  # a column of features is all that is read of its rows
ROWS_AT_ONCE = 64  # with more large photographs at once, memory grows and is not released
VIEW_BYTES = 200  # of Python's object for an image, whatever its size

T = TypeVar("T")


class KeptValues(Generic[T]):
    """Values that are read directly until a thread has loaded all of them into memory."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._kept: T | None = None
        self._thread: threading.Thread | None = None

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def keep_all(self) -> None:
        """Start to load in the background, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="clipkit-columns", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self._kept = self._load()

    def _load(self) -> T | None:
        """All values, or None if they cannot be kept."""
        raise NotImplementedError


class SmallColumns(KeptValues[pa.RecordBatch]):
    """Values of ids, captions and sizes.

    The first batch is read directly, and shows how large the columns are. If they fit into memory, they are then read
    once, and later batches come from memory.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        super().__init__(dataset)
        self.names = list(names)
        self.when_loaded: list[Callable[[pa.RecordBatch], None]] = []  # called in the loading thread
        self._limit_bytes = TEXTS_LIMIT_BYTES

    def take(self, rows: np.ndarray) -> pa.RecordBatch:
        """The rows' values, in the order of `rows`."""
        if self._kept is not None:
            return self._kept.take(pa.array(rows))
        values = _one_batch(self._dataset.take(rows, self.names))
        if len(rows) and values.nbytes / len(rows) * len(self._dataset) <= self._limit_bytes:
            self.keep_all()
        return values

    def _load(self) -> pa.RecordBatch | None:
        table = self._dataset.read(self.names)
        if table.nbytes > self._limit_bytes:
            return None
        values = _one_batch(table)
        for use in self.when_loaded:
            use(values)
        return values


class ImageColumn(KeptValues[list[memoryview]]):
    """Encoded images of the chosen rows (ascending): kept in memory if all of them fit, otherwise read each time."""

    def __init__(self, dataset: Dataset, rows: np.ndarray) -> None:
        super().__init__(dataset)
        self._rows = rows
        self._limit_bytes = 0
        self._expected_bytes = 0.0

    @property
    def bytes_per_epoch(self) -> float:
        """How much one pass over the rows reads, estimated from the last batch."""
        return 0.0 if self.in_memory else self._expected_bytes

    def keep(self, *, limit_bytes: int) -> None:
        """From the next batch on, load all images in the background if they take at most this much memory."""
        self._limit_bytes = limit_bytes

    def take(self, rows: np.ndarray) -> list[memoryview]:
        """The rows' images, in the order of `rows`."""
        if self._kept is not None:
            return [self._kept[place] for place in np.searchsorted(self._rows, rows).tolist()]
        images = self._dataset.take_images(rows)
        if len(rows):
            self._expected_bytes = _num_bytes(images) / len(rows) * len(self._rows)
            if self._expected_bytes <= self._limit_bytes:
                self.keep_all()
        return images

    def close(self) -> None:
        self._limit_bytes = 0  # this stops a load in progress
        super().close()

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


class VectorColumn(KeptValues[np.ndarray]):
    """Vectors of a column of fixed-size lists."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        super().__init__(dataset)
        self._name = name

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(B, F), writable."""
        if self._kept is not None:
            return self._kept.take(rows, axis=0)
        vectors = np.array(self._dataset.take_vectors(rows, self._name))
        if len(rows) and vectors.nbytes / len(rows) * len(self._dataset) <= VECTORS_LIMIT_BYTES:
            self.keep_all()
        return vectors

    def _load(self) -> np.ndarray | None:
        column = self._dataset.read([self._name]).column(0)
        if column.null_count:  # rows without a vector may never be drawn: then reading a batch reports it
            return None
        return fixed_size_values(column.combine_chunks())


def check_vectors(dataset: Dataset, name: str, setting: str) -> None:
    """Raise DataError unless the column holds a vector of the same size in each row."""
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


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """The table in one piece, from which `take` is fast."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
