"""A map-style torch Dataset over Lance, for any DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from clipkit.config import DataConfig
from clipkit.data.batch_maker import BatchMaker
from clipkit.data.order.base import Draw, StoredOrder
from clipkit.data.samples import Corpus, open_corpora
from clipkit.types import Tokenizer

Sample = dict[str, Any]


class ImageTextDataset(TorchDataset[Sample]):
    """Samples by number: `image` (uint8 tensor, H x W x 3), `caption`, `image_id`, `row`, and with a tokenizer
    `input_ids` and `attention_mask`.

    A batch is read at once (`__getitems__`), and pads its tokens to its own longest. Crops and captions are
    functions of (seed, epoch, row): call `set_epoch` before each epoch. Pickles; in a forked worker it refuses to
    read, so give the DataLoader `multiprocessing_context="forkserver"`.
    """

    def __init__(self, config: DataConfig, *, tokenizer: Tokenizer | None = None, seed: int = 0) -> None:
        self._corpora: tuple[Corpus, ...] = open_corpora(config, seed=seed, tokenizer=tokenizer)
        # Shared, so that worker processes that stay see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._maker = BatchMaker(
            self._corpora,
            StoredOrder(sum(map(len, self._corpora)), batch_size=1),
            config,
            size_px=config.image_size,
            tokenizer=tokenizer,
            seed=seed,
        )
        self._maker.pins_memory = False  # that is the DataLoader's to do, in the parent

    def __len__(self) -> int:
        return sum(map(len, self._corpora))

    def set_epoch(self, epoch: int) -> None:
        """Call it before iterating the DataLoader; persistent workers heed it too."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        for corpus in self._corpora:
            corpus.refuse_fork()
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of a dataset of {len(self)}")
        samples = np.array(indices, dtype=np.int64) % len(self)
        batch = self._maker.make_samples(Draw(samples, np.full(len(samples), int(self._epoch), dtype=np.int64)))
        parts: dict[str, torch.Tensor | None] = {
            "image": batch.images,
            "input_ids": batch.tokens.input_ids if batch.tokens else None,
            "attention_mask": batch.tokens.attention_mask if batch.tokens else None,
            "image_features": batch.image_features,
            "text_features": batch.text_features,
        }
        present = {name: values for name, values in parts.items() if values is not None}
        return [
            {
                **{name: values[i] for name, values in present.items()},
                "caption": batch.captions[i],
                "image_id": batch.image_ids[i],
                "row": int(batch.rows[i]),
            }
            for i in range(len(batch))
        ]
