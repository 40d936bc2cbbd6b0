"""The samples that are trained on: the chosen rows of one or several datasets, and the values stored for them.

Shapes: B samples of a batch, F the width of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa

from clipkit.config import DataConfig
from clipkit.data.column_cache import ImageColumn, SmallColumns, VectorColumn
from clipkit.data.order.base import Draw
from clipkit.data.random import key, uniforms
from clipkit.data.training_rows import TrainingRows
from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.store.dataset import as_captions
from clipkit.store.schema import ORIENTATION

CAPTION_PURPOSE = 1

T = TypeVar("T")


class DatasetSamples:
    """The chosen rows of one dataset as samples 0 to n - 1: one per row or, with `caption: each`, one per caption."""

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, config: DataConfig, *, seed: int, columns: Sequence[str] = ()
    ) -> None:
        """`columns` are the columns of small values that inputs read: they are kept in memory if they fit."""
        self.dataset = dataset
        self.rows = rows
        self._choice = config.caption
        self._seed = seed
        self._pid = os.getpid()
        names = [dataset.columns.image_id, *columns]
        names += [ORIENTATION] if ORIENTATION in dataset.schema.names else []
        self.small = SmallColumns(dataset, list(dict.fromkeys(names)))
        self.images = ImageColumn(dataset, rows)
        self._vectors: dict[str, VectorColumn] = {}
        self._first_sample = _caption_offsets(dataset, rows) if config.caption == "each" else None

    def __len__(self) -> int:
        return len(self.rows) if self._first_sample is None else int(self._first_sample[-1])

    @property
    def captions_per_row(self) -> np.ndarray | None:
        """How many samples each chosen row has, with `caption: each`."""
        return None if self._first_sample is None else np.diff(self._first_sample)

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Offsets of the samples' rows in the dataset."""
        rows: np.ndarray = self.rows[self._positions(samples)]
        return rows

    def _positions(self, samples: np.ndarray) -> np.ndarray:
        """Positions of the samples' rows among the chosen rows."""
        if self._first_sample is None:
            return samples
        return np.searchsorted(self._first_sample, samples, side="right") - 1

    def choose_captions(self, values: pa.RecordBatch, drawn: Draw) -> list[str]:
        """The caption that each sample uses in its epoch, from the samples' small `values`; "" if there is none."""
        captions = as_captions(values.column(self.dataset.columns.captions))
        if self._choice == "longest":
            return [max(texts, key=len, default="") for texts in captions]
        numbers = [0] * len(captions)
        if self._choice == "random":
            draws = uniforms(key(self._seed, CAPTION_PURPOSE), self.rows_of(drawn.samples), drawn.epochs, count=1)[:, 0]
            numbers = [int(draw * len(texts)) for texts, draw in zip(captions, draws.tolist(), strict=True)]
        elif self._first_sample is not None:
            numbers = (drawn.samples - self._first_sample[self._positions(drawn.samples)]).tolist()
        return [texts[number] if texts else "" for texts, number in zip(captions, numbers, strict=True)]

    def take_vectors(self, rows: np.ndarray, column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, as stored."""
        return self._vectors.setdefault(column, VectorColumn(self.dataset, column)).take(rows)

    def refuse_fork(self) -> None:
        """Raise DataError in a forked process, where Lance crashes."""
        if os.getpid() != self._pid:
            # Without a hint: a DataLoader passes on only the message of a worker's error.
            raise DataError(
                "a Lance dataset cannot be read in a forked process, where it would crash or hang: start the workers "
                "with `multiprocessing_context='forkserver'` (or `spawn`)"
            )

    def close(self) -> None:
        self.small.close()
        self.images.close()
        for vectors in self._vectors.values():
            vectors.close()


@dataclass(frozen=True, slots=True)
class _Part:
    """The samples of a batch that come from one dataset, and where they stand in the batch."""

    owner: DatasetSamples
    places: np.ndarray
    drawn: Draw  # as the dataset numbers them
    first_row: int  # the number of the dataset's first row in a batch

    @property
    def rows(self) -> np.ndarray:
        return self.owner.rows_of(self.drawn.samples)


class Samples:
    """The samples of several datasets, numbered one dataset after the other."""

    def __init__(self, parts: Sequence[DatasetSamples]) -> None:
        self.parts = tuple(parts)
        self._first_sample = np.cumsum([0, *map(len, parts)])
        self._first_row = np.cumsum([0, *(len(part.dataset) for part in parts)])

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def at(self, drawn: Draw) -> DrawnSamples:
        owners = np.searchsorted(self._first_sample, drawn.samples, side="right") - 1
        found = []
        # A rank's share may be empty. Its columns are read all the same, for their types and shapes.
        for index in np.unique(owners).tolist() or [0]:
            places = np.flatnonzero(owners == index)
            local = Draw(drawn.samples[places] - self._first_sample[index], drawn.epochs[places])
            found.append(_Part(self.parts[index], places, local, int(self._first_row[index])))
        return DrawnSamples(drawn, found)

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """The samples' rows as `DrawnSamples.rows` numbers them."""
        return self.at(Draw(samples, np.zeros_like(samples))).rows

    def close(self) -> None:
        for part in self.parts:
            part.close()


class DrawnSamples:
    """The samples of a batch; what is stored for them is read on first use, in the order drawn."""

    def __init__(self, drawn: Draw, parts: Sequence[_Part]) -> None:
        self.drawn = drawn
        self._parts = parts

    def __len__(self) -> int:
        return len(self.drawn)

    @cached_property
    def rows(self) -> np.ndarray:
        """(B,) int64 rows; those of a second dataset are numbered after the first's."""
        rows = np.empty(len(self), dtype=np.int64)
        for part in self._parts:
            rows[part.places] = part.first_row + part.rows
        return rows

    @cached_property
    def image_ids(self) -> list[str]:
        return self._gather(
            values.column(part.owner.dataset.columns.image_id).to_pylist()
            for part, values in zip(self._parts, self._small, strict=True)
        )

    @property
    def has_captions(self) -> bool:
        """Whether an input reads the captions."""
        return all(part.owner.dataset.columns.captions in part.owner.small.names for part in self._parts)

    @cached_property
    def captions(self) -> list[str]:
        """The caption that each sample uses, "" if it has none."""
        return self._gather(
            part.owner.choose_captions(values, part.drawn)
            for part, values in zip(self._parts, self._small, strict=True)
        )

    @cached_property
    def orientations(self) -> list[int | None]:
        """EXIF orientations that the datasets store; None if only the image file has it."""
        return self._gather(
            [orientation or 1 for orientation in values.column(ORIENTATION).to_pylist()]
            if ORIENTATION in values.schema.names
            else [None] * len(values)
            for values in self._small
        )

    def values(self, column: str) -> list[object]:
        """Python values of a column that an input lists in its `columns`."""
        return self._gather(values.column(column).to_pylist() for values in self._small)

    def vectors(self, column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, as stored."""
        parts = self._read(lambda owner, rows: owner.take_vectors(rows, column))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)[self._order]

    def images(self) -> list[memoryview]:
        """Encoded images; a null one is empty."""
        return self._gather(self._read(lambda owner, rows: owner.images.take(rows)))

    def pixels(self, column: str) -> list[np.ndarray | None]:
        """Decoded pixels of a pixel cache's column, flat; None for a row that has none."""
        return self._gather(self._read(lambda owner, rows: owner.dataset.take_pixels(rows, column)))

    @cached_property
    def _small(self) -> list[pa.RecordBatch]:
        return self._read(lambda owner, rows: owner.small.take(rows))

    def _read(self, take: Callable[[DatasetSamples, np.ndarray], T]) -> list[T]:
        for part in self._parts:
            part.owner.refuse_fork()
        return [take(part.owner, part.rows) for part in self._parts]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(np.concatenate([part.places for part in self._parts]))

    def _gather(self, parts: Iterable[Sequence[T]]) -> list[T]:
        """Values by dataset, in the order drawn."""
        joined = [value for part in parts for value in part]
        return joined if len(self._parts) == 1 else [joined[place] for place in self._order.tolist()]


def make_samples(training: TrainingRows, config: DataConfig, *, seed: int, columns: Sequence[str] = ()) -> Samples:
    """The samples of the training rows; `columns` are the columns of small values that inputs read."""
    parts = []
    for dataset, rows in zip(training.datasets, training.rows, strict=True):
        parts.append(DatasetSamples(dataset, rows, config, seed=seed, columns=columns))
        if not len(parts[-1]):
            raise DataError(
                f"none of the {len(rows):,} chosen rows of `{dataset.uri}` has a caption",
                "choose others with `data.train`, or another column with `data.captions_column`",
            )
    return Samples(parts)


def _caption_offsets(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """(n + 1,) number of captions before each of the rows."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(dataset.count_captions()[rows])])
