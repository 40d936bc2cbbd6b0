"""The rows that a run trains on, selected once from one or several datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipkit.config import DataConfig
from clipkit.errors import DataError
from clipkit.store import Columns, Dataset

ROWS_AT_ONCE = 65_536


def named_columns(config: DataConfig) -> Columns:
    return Columns(config.image_id_column, config.image_column, config.captions_column)


def training_sources(config: DataConfig) -> list[tuple[str, str | None]]:
    """The training datasets, each with the filter that selects its rows."""
    if config.dataset:
        return [(config.dataset, config.train)]
    return [(source.dataset, source.train or config.train) for source in config.sources]


class TrainingRows:
    """The selected rows of `data.dataset`, or of each of `data.sources`."""

    def __init__(self, config: DataConfig, datasets: Sequence[Dataset] | None = None) -> None:
        """`datasets` are those of the config, if they are open already. A filter that selects no row is an error."""
        sources = training_sources(config)
        if datasets is None:
            datasets = [Dataset(uri, columns=named_columns(config)) for uri, _ in sources]
        self.datasets = tuple(datasets)
        self.rows = tuple(
            _select(dataset, where, config.limit) for dataset, (_, where) in zip(datasets, sources, strict=True)
        )

    def captions(self, *, num_rows: int) -> list[str]:
        """The captions of all rows or, for a dataset with more than `num_rows`, of about that many spread over it."""
        found = []
        for dataset, rows in zip(self.datasets, self.rows, strict=True):
            step = -(-len(rows) // num_rows)
            found += [caption for captions in dataset.take_captions(rows[::step]) for caption in captions]
        return found

    def all_captions(self) -> Iterator[str]:
        """Every caption of the rows, and "" for a row that has none."""
        for dataset, rows in self._chunks():
            for captions in dataset.take_captions(rows):
                yield from captions or [""]

    def values(self, column: str) -> Iterator[Any]:
        """The Python value of a column in each row."""
        for dataset, rows in self._chunks():
            yield from dataset.take(rows, [column]).column(0).to_pylist()

    def _chunks(self) -> Iterator[tuple[Dataset, np.ndarray]]:
        for dataset, rows in zip(self.datasets, self.rows, strict=True):
            for start in range(0, len(rows), ROWS_AT_ONCE):
                yield dataset, rows[start : start + ROWS_AT_ONCE]


def _select(dataset: Dataset, where: str | None, limit: int | None) -> np.ndarray:
    rows = dataset.select(where, limit=limit)
    if not len(rows):
        filtered = f"the training filter `{where}` matches no row of `{dataset.uri}`"
        raise DataError(
            f"`{dataset.uri}` has no rows" if where is None else filtered, "`clipkit info` lists its splits and columns"
        )
    return rows
