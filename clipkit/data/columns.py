"""Small columns of a dataset (ids, captions, sizes): from memory where they are small, else read with each batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipkit.store import Dataset

MEMORY_LIMIT_BYTES = 256_000_000


class SmallColumns:
    """Values of some columns by row.

    The first batch is read as it is asked for, and tells how large the columns are. If they fit, a thread then reads
    them once, and later batches come from memory.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], *, limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._dataset = dataset
        self._names = list(names)
        self._limit_bytes = limit_bytes
        self._table: pa.RecordBatch | None = None
        self._measured = False
        self._loading: threading.Thread | None = None

    def take(self, rows: np.ndarray) -> pa.RecordBatch:
        """The rows' values, in the order asked for."""
        if self._table is not None:
            return self._table.take(pa.array(rows))
        values = one_batch(self._dataset.take(rows, self._names))
        if not self._measured and len(rows):
            self._measured = True
            if values.nbytes / len(rows) * len(self._dataset) <= self._limit_bytes:
                self._loading = threading.Thread(target=self._load, name="clipkit-columns", daemon=True)
                self._loading.start()
        return values

    def close(self) -> None:
        if self._loading is not None:
            self._loading.join()

    def _load(self) -> None:
        table = self._dataset.lance.scanner(columns=self._names, scan_in_order=True).to_table()
        if table.nbytes <= self._limit_bytes:
            self._table = one_batch(table)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table in one piece, which `take` is fast on."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
