"""The samples that are trained on: the chosen rows of one or several datasets, and what is stored of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipkit.config import DataConfig
from clipkit.data.column_cache import ImageColumn, SmallColumns, VectorColumn, check_vectors
from clipkit.data.random import key, uniforms
from clipkit.data.token_column import token_column
from clipkit.errors import DataError
from clipkit.store import Columns, Dataset
from clipkit.store.dataset import as_captions
from clipkit.store.schema import ORIENTATION
from clipkit.types import Tokenizer

CAPTION_PURPOSE = 1
AHEAD = 256  # captions at a time, so that the batch at hand is not kept waiting


@dataclass(frozen=True, slots=True)
class Texts:
    """Ids, chosen captions and orientations of some rows."""

    image_ids: list[str]
    captions: list[str]
    token_ids: list[np.ndarray] | None  # of the captions, where the dataset keeps them
    orientations: list[int | None]  # EXIF orientations that the dataset holds; None where only the file tells


class Corpus:
    """The chosen rows of one dataset as samples 0 to n - 1: a sample a row or, with `caption: each`, a caption.

    Pickles to the dataset's address and version; refuses to be used in a forked process, where Lance crashes.
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, config: DataConfig, *, seed: int, token_column: str | None = None
    ) -> None:
        self.dataset = dataset
        self.rows = rows
        self.config = config
        self._caption_key = key(seed, CAPTION_PURPOSE)
        self._seed = seed
        self._pid = os.getpid()
        schema = set(dataset.schema.names)
        self._has_orientations = ORIENTATION in schema
        self._token_column = token_column if token_column in schema else None
        self._needs_captions = config.features.text is None
        for role, column in (("image", config.features.image), ("text", config.features.text)):
            if column is not None:
                check_vectors(dataset, column, f"data.features.{role}")
        names = [dataset.columns.image_id]
        if self._needs_captions:
            names.append(dataset.captions_column)
        if self._has_orientations:
            names.append(ORIENTATION)
        if self._token_column is not None:
            names.append(self._token_column)
        self._small = SmallColumns(dataset, names)
        self._images = ImageColumn(dataset, rows)
        self._vectors: dict[str, VectorColumn] = {}
        self._first_sample = _caption_offsets(dataset, rows) if config.caption == "each" else None

    def __len__(self) -> int:
        return len(self.rows) if self._first_sample is None else int(self._first_sample[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.dataset, self.rows, self.config, self._seed, self._token_column)

    @property
    def captions_per_row(self) -> np.ndarray | None:
        """How many samples each chosen row has, with `caption: each`."""
        return None if self._first_sample is None else np.diff(self._first_sample)

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Offsets in the dataset of the samples' rows."""
        rows: np.ndarray = self.rows[self.places_of(samples)]
        return rows

    def places_of(self, samples: np.ndarray) -> np.ndarray:
        """Where the samples' rows stand among the chosen ones."""
        if self._first_sample is None:
            return samples
        return np.searchsorted(self._first_sample, samples, side="right") - 1

    def texts(self, samples: np.ndarray, epochs: np.ndarray) -> Texts:
        """Ids, the caption that each sample takes in its epoch, and orientations."""
        self.refuse_fork()
        places = self.places_of(samples)
        rows = self.rows[places]
        values = self._small.take(rows)
        ids, orientations = values.column(0).to_pylist(), self._orientations(values)
        if not self._needs_captions:
            return Texts(ids, [""] * len(rows), None, orientations)
        captions = as_captions(values.column(1))
        if self._first_sample is not None:
            numbers = (samples - self._first_sample[places]).tolist()
        else:
            draws = uniforms(self._caption_key, rows, epochs, count=1)[:, 0].tolist()
            numbers = [self._choose(texts, draw) for texts, draw in zip(captions, draws, strict=True)]
        chosen = [texts[number] if texts else "" for texts, number in zip(captions, numbers, strict=True)]
        return Texts(ids, chosen, self._token_ids(values, numbers), orientations)

    def tokenize_ahead(self, tokenizer: Tokenizer) -> None:
        """Once the captions are in memory, let the tokenizer see them all, if it can remember so many."""
        if self._token_column is not None or not self._needs_captions:
            return

        def see(values: pa.RecordBatch) -> None:
            captions = [caption for of_row in as_captions(values.column(1)) for caption in of_row]
            if len(captions) <= tokenizer.num_remembered:
                for start in range(0, len(captions), AHEAD):
                    tokenizer.encode(captions[start : start + AHEAD])

        self._small.when_loaded = see

    def keep_images(self, *, limit_bytes: int) -> None:
        """Keep the encoded images in memory from the next batch on, if they take at most so many bytes."""
        self._images.keep(limit_bytes=limit_bytes)

    @property
    def image_bytes_an_epoch(self) -> float:
        """How much is read for one pass over the images, as far as the batches so far tell."""
        return self._images.bytes_an_epoch

    def images(self, rows: np.ndarray) -> list[memoryview]:
        self.refuse_fork()
        return self._images.take(rows)

    def vectors(self, rows: np.ndarray, column: str) -> np.ndarray:
        """(B, F) values of a column of fixed-size lists, as they are stored."""
        self.refuse_fork()
        return self._vectors.setdefault(column, VectorColumn(self.dataset, column)).take(rows)

    def pixels(self, rows: np.ndarray, column: str) -> list[np.ndarray | None]:
        """Decoded pixels, flat; None for a row that has none."""
        self.refuse_fork()
        return self.dataset.take_pixels(rows, column)

    def refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            # In one sentence: a DataLoader passes on the message of a worker's error, and not its hint.
            raise DataError(
                "a Lance dataset cannot be read in a forked process, where it would crash or hang: start the workers "
                "with `multiprocessing_context='forkserver'` (or `spawn`)"
            )

    def close(self) -> None:
        self._small.close()
        self._images.close()
        for vectors in self._vectors.values():
            vectors.close()

    def _choose(self, captions: Sequence[str], draw: float) -> int:
        """Which of its captions a sample takes."""
        if self.config.caption == "longest":
            return max(range(len(captions)), key=lambda number: len(captions[number]), default=0)
        return int(draw * len(captions)) if self.config.caption == "random" else 0

    def _token_ids(self, values: pa.RecordBatch, numbers: Sequence[int]) -> list[np.ndarray] | None:
        if self._token_column is None:
            return None
        stored = values.column(self._token_column)
        if stored.null_count:  # rows that came after the cache was made
            return None
        texts = stored.values
        first, ends = stored.offsets.to_numpy(), texts.offsets.to_numpy()
        ids = texts.values.to_numpy()
        chosen = (first[:-1] + np.array(numbers)).tolist()
        none = ids[:0]  # of a row without captions, which is replaced
        return [
            ids[ends[text] : ends[text + 1]] if text < end else none
            for text, end in zip(chosen, first[1:].tolist(), strict=True)
        ]

    def _orientations(self, values: pa.RecordBatch) -> list[int | None]:
        if not self._has_orientations:
            return [None] * len(values)
        return [orientation or 1 for orientation in values.column(ORIENTATION).to_pylist()]


def named_columns(config: DataConfig) -> Columns:
    return Columns(config.image_id_column, config.image_column, config.captions_column)


def training_sources(config: DataConfig) -> list[tuple[str, str | None]]:
    """The datasets that are trained on, each with the filter that chooses its rows."""
    if config.dataset:
        return [(config.dataset, config.train)]
    return [(source.dataset, source.train or config.train) for source in config.sources]


def open_corpora(
    config: DataConfig,
    *,
    seed: int,
    tokenizer: Tokenizer | None = None,
    datasets: Sequence[Dataset] | None = None,
) -> tuple[Corpus, ...]:
    """The training samples of `data.dataset`, or of each of `data.sources`."""
    chosen = training_sources(config)
    if datasets is None:
        datasets = [Dataset(uri, columns=named_columns(config)) for uri, _ in chosen]
    tokens = token_column(tokenizer) if config.token_cache and tokenizer is not None else None
    corpora = []
    for dataset, (uri, where) in zip(datasets, chosen, strict=True):
        rows = dataset.select(where, limit=config.limit)
        if not len(rows):
            raise DataError(
                f"`{uri}` has no rows" if where is None else f"the training filter `{where}` chooses no row of `{uri}`",
                "`clipkit info` tells its splits and columns",
            )
        corpora.append(Corpus(dataset, rows, config, seed=seed, token_column=tokens))
        if not len(corpora[-1]):
            raise DataError(
                f"none of the {len(rows):,} chosen rows of `{uri}` has a caption",
                "choose others with `data.train`, or another column with `data.captions_column`",
            )
    return tuple(corpora)


def _caption_offsets(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """(n + 1,) number of captions before each of the rows."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(dataset.count_captions()[rows])])


def _rebuild(dataset: Dataset, rows: np.ndarray, config: DataConfig, seed: int, token_column: str | None) -> Corpus:
    return Corpus(dataset, rows, config, seed=seed, token_column=token_column)
