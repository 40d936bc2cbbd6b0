"""The samples that are trained on: the chosen rows of one or several datasets, and what is stored of them.

Shapes: B samples of a batch, F the width of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa

from clipkit.config import DataConfig
from clipkit.data.captions import choose_captions
from clipkit.data.column_cache import ImageColumn, SmallColumns, VectorColumn
from clipkit.data.order.base import Draw
from clipkit.data.training_rows import TrainingRows
from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.store.dataset import as_captions
from clipkit.store.schema import ORIENTATION

T = TypeVar("T")


class DatasetSamples:
    """The chosen rows of one dataset as samples 0 to n - 1: a sample a row or, with `caption: each`, a caption.

    Refuses to be used in a forked process, where Lance crashes.
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, config: DataConfig, *, seed: int, columns: Sequence[str] = ()
    ) -> None:
        """`columns` are those of small values that inputs read: they are kept in memory where they fit."""
        self.dataset = dataset
        self.rows = rows
        self._choice = config.caption
        self._seed = seed
        self._pid = os.getpid()
        names = [dataset.columns.image_id, *columns]
        names += [ORIENTATION] if ORIENTATION in dataset.schema.names else []
        self.small = SmallColumns(dataset, list(dict.fromkeys(names)))
        self._images = ImageColumn(dataset, rows)
        self._vectors: dict[str, VectorColumn] = {}
        self._first_sample = _caption_offsets(dataset, rows) if config.caption == "each" else None

    def __len__(self) -> int:
        return len(self.rows) if self._first_sample is None else int(self._first_sample[-1])

    @property
    def captions_per_row(self) -> np.ndarray | None:
        """How many samples each chosen row has, with `caption: each`."""
        return None if self._first_sample is None else np.diff(self._first_sample)

    def places_of(self, samples: np.ndarray) -> np.ndarray:
        """Where the samples' rows stand among the chosen ones."""
        if self._first_sample is None:
            return samples
        return np.searchsorted(self._first_sample, samples, side="right") - 1

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Offsets in the dataset of the samples' rows."""
        rows: np.ndarray = self.rows[self.places_of(samples)]
        return rows

    def choose_captions(self, values: pa.RecordBatch, drawn: Draw) -> list[str]:
        """The caption that each sample takes in its epoch, of the samples' small `values`; "" where there is none."""
        captions = as_captions(values.column(self.dataset.columns.captions))
        if self._first_sample is None:
            rows = self.rows_of(drawn.samples)
            return choose_captions(captions, self._choice, seed=self._seed, rows=rows, epochs=drawn.epochs)
        numbers = (drawn.samples - self._first_sample[self.places_of(drawn.samples)]).tolist()
        return [texts[number] if texts else "" for texts, number in zip(captions, numbers, strict=True)]

    def keep_images(self, *, limit_bytes: int) -> None:
        """Keep the encoded images in memory from the next batch on, if they take at most so many bytes."""
        self._images.keep(limit_bytes=limit_bytes)

    @property
    def image_bytes_an_epoch(self) -> float:
        """How much is read for one pass over the images, as far as the batches so far tell."""
        return self._images.bytes_an_epoch

    def take_images(self, rows: np.ndarray) -> list[memoryview]:
        return self._images.take(rows)

    def take_vectors(self, rows: np.ndarray, column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, as they are stored."""
        return self._vectors.setdefault(column, VectorColumn(self.dataset, column)).take(rows)

    def take_pixels(self, rows: np.ndarray, column: str) -> list[np.ndarray | None]:
        """Decoded pixels, flat; None for a row that has none."""
        return self.dataset.take_pixels(rows, column)

    def refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            # In one sentence: a DataLoader passes on the message of a worker's error, and not its hint.
            raise DataError(
                "a Lance dataset cannot be read in a forked process, where it would crash or hang: start the workers "
                "with `multiprocessing_context='forkserver'` (or `spawn`)"
            )

    def close(self) -> None:
        self.small.close()
        self._images.close()
        for vectors in self._vectors.values():
            vectors.close()


class Samples:
    """The samples of several datasets, numbered one dataset after the other."""

    def __init__(self, parts: Sequence[DatasetSamples]) -> None:
        self.parts = tuple(parts)
        self._first_sample = np.cumsum([0, *map(len, parts)])
        self._first_row = np.cumsum([0, *(len(part.dataset) for part in parts)])

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def at(self, drawn: Draw) -> DrawnSamples:
        return DrawnSamples(self, drawn)

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Rows as a batch numbers them: a dataset's after those of the datasets before it."""
        rows = np.empty_like(samples)
        for index, places in self.owners_of(samples):
            rows[places] = self._first_row[index] + self.parts[index].rows_of(self.local(samples[places], index))
        return rows

    def owners_of(self, samples: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(dataset, places of its samples) of each dataset that has some of these samples."""
        owners = np.searchsorted(self._first_sample, samples, side="right") - 1
        return [(index, np.flatnonzero(owners == index)) for index in np.unique(owners).tolist()]

    def local(self, samples: np.ndarray, index: int) -> np.ndarray:
        """The samples of one dataset as that numbers them."""
        local: np.ndarray = samples - self._first_sample[index]
        return local

    def close(self) -> None:
        for part in self.parts:
            part.close()


class DrawnSamples:
    """The samples of a batch; what is stored of them is read when it is asked for, in the order drawn."""

    def __init__(self, samples: Samples, drawn: Draw) -> None:
        self.drawn = drawn
        self._samples = samples
        # Of an empty share, which a rank may have, every column is asked for all the same.
        self._owners = samples.owners_of(drawn.samples) or [(0, np.empty(0, dtype=np.int64))]

    def __len__(self) -> int:
        return len(self.drawn)

    @cached_property
    def rows(self) -> np.ndarray:
        """(B,) int64 rows; those of a second dataset are numbered after the first's."""
        return self._samples.rows_of(self.drawn.samples)

    @cached_property
    def image_ids(self) -> list[str]:
        return self._each_value(lambda part: part.dataset.columns.image_id)

    @property
    def has_captions(self) -> bool:
        """Whether captions are among the columns that are read."""
        return all(part.dataset.columns.captions in part.small.names for part in self._samples.parts)

    @cached_property
    def captions(self) -> list[str]:
        """The caption that each sample takes, "" where it has none."""
        return self._gather(
            [
                self._samples.parts[index].choose_captions(values, local)
                for (index, local), values in zip(self._local, self._small, strict=True)
            ]
        )

    @cached_property
    def orientations(self) -> list[int | None]:
        """EXIF orientations that the datasets hold; None where only the image's file tells."""
        parts = []
        for values in self._small:
            stored = values.column(ORIENTATION).to_pylist() if ORIENTATION in values.schema.names else None
            parts.append([orientation or 1 for orientation in stored] if stored else [None] * len(values))
        return self._gather(parts)

    def values(self, column: str) -> list[object]:
        """Python values of a column that an input names in its `columns`."""
        return self._each_value(lambda part: column)

    def vectors(self, column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, as they are stored."""
        parts = [part.take_vectors(rows, column) for part, rows in self._local_rows()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)[self._order]

    def images(self) -> list[memoryview]:
        """Encoded images; a null one is empty."""
        return self._gather([part.take_images(rows) for part, rows in self._local_rows()])

    def pixels(self, column: str) -> list[np.ndarray | None]:
        """Decoded pixels of a column that caches them, flat; None for a row that has none."""
        return self._gather([part.take_pixels(rows, column) for part, rows in self._local_rows()])

    def _each_value(self, column_of: Callable[[DatasetSamples], str]) -> list[T]:
        columns = [column_of(self._samples.parts[index]) for index, _ in self._local]
        return self._gather(
            [values.column(column).to_pylist() for values, column in zip(self._small, columns, strict=True)]
        )

    @cached_property
    def _local(self) -> list[tuple[int, Draw]]:
        """The samples by dataset, as each numbers them."""
        drawn = self.drawn
        return [
            (index, Draw(self._samples.local(drawn.samples[places], index), drawn.epochs[places]))
            for index, places in self._owners
        ]

    @cached_property
    def _small(self) -> list[pa.RecordBatch]:
        return [part.small.take(rows) for part, rows in self._local_rows()]

    def _local_rows(self) -> Iterator[tuple[DatasetSamples, np.ndarray]]:
        for index, local in self._local:
            part = self._samples.parts[index]
            part.refuse_fork()
            yield part, part.rows_of(local.samples)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(np.concatenate([places for _, places in self._owners]))

    def _gather(self, parts: Sequence[Sequence[T]]) -> list[T]:
        """Values by dataset, in the order drawn."""
        if len(parts) == 1:
            return list(parts[0])
        joined = [value for part in parts for value in part]
        return [joined[place] for place in self._order.tolist()]


def make_samples(training: TrainingRows, config: DataConfig, *, seed: int, columns: Sequence[str] = ()) -> Samples:
    """The samples of the training rows; `columns` are those of small values that inputs read."""
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
