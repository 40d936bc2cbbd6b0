"""The caption of each sample, as text or as token ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from clipkit.data.inputs.base import Input
from clipkit.data.samples import DrawnSamples
from clipkit.store import Dataset
from clipkit.types import Tokenizer


class Captions(Input):
    """`Batch.captions`, and no tensor. A row without a caption cannot be used."""

    def __init__(self, column: str) -> None:
        self.columns = (column,)

    def check(self, dataset: Dataset) -> None:
        _ = dataset.captions_column  # raises DataError if there is none

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return {}

    def find_unusable(self, samples: DrawnSamples) -> Mapping[int, str]:
        return {place: "it has no caption" for place, caption in enumerate(samples.captions) if not caption}


class Tokens(Captions):
    """`input_ids` and `attention_mask`, (B, T) int64."""

    stage = "tokenize"

    def __init__(self, tokenizer: Tokenizer, *, column: str) -> None:
        super().__init__(column)
        self._tokenizer = tokenizer

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return self._tokenizer(samples.captions)
