"""Rows to evaluate on: every image once and every one of its captions, in order, without augmentation."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch

from clipkit.config import DataConfig
from clipkit.data.batch_maker import BatchMaker
from clipkit.data.loader import Loader
from clipkit.data.order.base import StoredOrder
from clipkit.data.samples import Corpus
from clipkit.errors import ModelError
from clipkit.store import Dataset
from clipkit.types import Batch, ImageSpec, Tokenizer, Tokens


class Gallery:
    """Fulfils `types.Gallery`. Each rank gets a contiguous share of the images, and of the captions."""

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, *, spec: ImageSpec, tokenizer: Tokenizer | None, config: DataConfig
    ) -> None:
        self.rows = np.sort(rows)
        self._dataset = dataset
        self._spec = spec
        self._tokenizer = tokenizer
        self._config = config.model_copy(update={"caption": "first"})
        if config.features.text is not None:  # a stored vector a row stands for its captions
            self._captions: list[str] = []
            per_image = np.ones(len(rows), dtype=np.int64)
        else:
            captions = dataset.take_captions(self.rows)
            self._captions = [caption for of_image in captions for caption in of_image]
            per_image = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
        self.caption_to_image = np.repeat(np.arange(len(rows), dtype=np.int64), per_image)

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @property
    def num_captions(self) -> int:
        return len(self.caption_to_image)

    def image_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """Images alone; one that cannot be decoded is left black and counted as replaced."""
        rows = self.rows[self.num_images * rank // world : self.num_images * (rank + 1) // world]
        if not len(rows):
            return
        corpus = Corpus(self._dataset, rows, self._config, seed=0)
        maker = BatchMaker(
            [corpus],
            StoredOrder(len(rows), batch_size, drop_last=False),
            self._config,
            size_px=self._spec.size_px,
            tokenizer=None,
            seed=None,
        )
        with closing(Loader(maker)) as loader, closing(loader.iterate(0, loader.steps_per_epoch)) as batches:
            yield from batches

    def text_batches(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[np.ndarray, Tokens | torch.Tensor]]:
        start, end = (self.num_captions * part // world for part in (rank, rank + 1))
        for first in range(start, end, batch_size):
            places = np.arange(first, min(first + batch_size, end), dtype=np.int64)
            yield places, self._texts(places)

    def _texts(self, places: np.ndarray) -> Tokens | torch.Tensor:
        column = self._config.features.text
        if column is not None:
            return torch.from_numpy(self._dataset.take_vectors(self.rows[places], column).copy())
        if self._tokenizer is None:
            raise ModelError("captions cannot be evaluated without a tokenizer")
        return self._tokenizer([self._captions[place] for place in places.tolist()])
