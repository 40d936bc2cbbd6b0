"""A map-style torch Dataset over Lance, for any DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from clipkit.config import DataConfig
from clipkit.data.batch_maker import BatchMaker
from clipkit.data.inputs import Captions, Input, Pixels, Tokens, Vectors
from clipkit.data.order.base import Draw, StoredOrder
from clipkit.data.samples import make_samples
from clipkit.data.training_rows import TrainingRows, named_columns, training_sources
from clipkit.store import Dataset
from clipkit.types import ImageSpec, Tokenizer

Sample = dict[str, Any]


class ImageTextDataset(TorchDataset[Sample]):
    """Samples by number: `image` (uint8 tensor, H x W x 3), `caption`, `image_id`, `row`, and with a tokenizer
    `input_ids` and `attention_mask`.

    A batch is read at once (`__getitems__`), and its tokens are padded to its longest caption. Crops and captions are
    functions of (seed, epoch, row): call `set_epoch` before each epoch. It can be pickled. Reading fails in a forked
    worker, so pass `multiprocessing_context="forkserver"` to the DataLoader.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        versions: Sequence[int | None] | None = None,
    ) -> None:
        """`versions` are the datasets' versions; default: the newest."""
        uris = [uri for uri, _ in training_sources(config)]
        columns = named_columns(config)
        datasets = [
            Dataset(uri, version=version, columns=columns)
            for uri, version in zip(uris, versions or [None] * len(uris), strict=True)
        ]
        self._arguments = (config, tokenizer, seed, [dataset.version for dataset in datasets])
        # Shared, so that persistent worker processes see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        inputs = _inputs(config, tokenizer, seed)
        small = [column for input_ in inputs for column in input_.columns]
        self._samples = make_samples(TrainingRows(config, datasets), config, seed=seed, columns=small)
        order = StoredOrder(len(self._samples), batch_size=1)
        self._maker = BatchMaker(self._samples, order, inputs, config, seed=seed)
        self._maker.pins_memory = False  # the DataLoader does it, in the parent process

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (*self._arguments, self._epoch)

    def __len__(self) -> int:
        return len(self._samples)

    def set_epoch(self, epoch: int) -> None:
        """Call it before you iterate the DataLoader; persistent workers see it too."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of a dataset of {len(self)}")
        samples = np.array(indices, dtype=np.int64) % len(self)
        batch = self._maker.make(Draw(samples, np.full(len(samples), int(self._epoch), dtype=np.int64)))
        tensors = {"image" if name == "pixels" else name: values for name, values in batch.tensors.items()}
        return [
            {
                **{name: values[i] for name, values in tensors.items()},
                "caption": batch.captions[i],
                "image_id": batch.image_ids[i],
                "row": int(batch.rows[i]),
            }
            for i in range(len(batch))
        ]


def _inputs(config: DataConfig, tokenizer: Tokenizer | None, seed: int) -> list[Input]:
    features = config.features
    inputs: list[Input] = []
    if features.image is not None:
        inputs.append(Vectors("image_features", features.image, setting="data.features.image"))
    else:
        inputs.append(Pixels(config, ImageSpec(config.image_size), seed=seed))
    if features.text is not None:
        inputs.append(Vectors("text_features", features.text, setting="data.features.text"))
    elif tokenizer is not None:
        inputs.append(Tokens(tokenizer, column=config.captions_column))
    else:
        inputs.append(Captions(config.captions_column))
    return inputs


def _reopen(
    config: DataConfig, tokenizer: Tokenizer | None, seed: int, versions: list[int], epoch: torch.Tensor
) -> ImageTextDataset:
    dataset = ImageTextDataset(config, tokenizer=tokenizer, seed=seed, versions=versions)
    dataset._epoch = epoch
    return dataset
