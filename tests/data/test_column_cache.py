"""Columns that are kept in memory where they fit, and read with each batch where they do not."""

from __future__ import annotations

import numpy as np

from clipkit.data.column_cache import ImageColumn, KeptValues, SmallColumns
from clipkit.store import Dataset


def test_small_columns_are_the_same_from_memory(plain_dataset: str) -> None:
    rows = np.arange(5, 15)[::-1]
    for limit_bytes in (10, 1_000_000):
        columns = SmallColumns(Dataset(plain_dataset), ["image_id", "captions"])
        columns._limit_bytes = limit_bytes
        first = columns.take(rows)
        columns.close()
        assert columns.in_memory == (limit_bytes == 1_000_000)
        assert columns.take(rows).equals(first)
        assert first.column("image_id").to_pylist() == [f"image-{row}" for row in rows]


def test_images_are_kept_in_memory_where_they_fit(plain_dataset: str) -> None:
    chosen = np.arange(3, 90, 2)
    column = ImageColumn(Dataset(plain_dataset), chosen)
    asked = chosen[[4, 0, 9]]
    read = [bytes(image) for image in column.take(asked)]
    for limit_bytes in (1000, 1_000_000):
        column.keep(limit_bytes=limit_bytes)
        column.take(asked)
        KeptValues.close(column)  # waits; `column.close` would stop the loading
        assert column.in_memory == (limit_bytes == 1_000_000)
        assert bool(column.bytes_per_epoch) == (limit_bytes == 1000)
        assert [bytes(image) for image in column.take(asked)] == read
