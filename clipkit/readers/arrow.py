"""Tables of Arrow record batches: Parquet files, saved `datasets` folders, Lance datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from clipkit.readers.rows import TableRow

BATCH_ROWS = 64  # of images of any size, so that a batch stays small


def batch_rows(batch: pa.RecordBatch, columns: Sequence[str], number: int, name: str) -> Iterator[TableRow]:
    """The batch's rows, the first of which is the source's `number`th."""
    values = [_column(batch, column) for column in columns]
    for offset in range(batch.num_rows):
        place = f"{name}:{number + offset}"
        yield TableRow(number + offset, place, [column[offset] for column in values])


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    if name in batch.schema.names:
        column = batch.column(name)
    else:
        base, _, field = name.rpartition(".")
        column = batch.column(base).field(field)
    values: list[Any] = column.to_pylist()
    return values
