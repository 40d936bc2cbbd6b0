"""The caption of each sample, as text or as token ids."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import torch

from clipkit.data.inputs.base import Input
from clipkit.data.samples import DrawnSamples, Samples
from clipkit.store import Dataset
from clipkit.store.dataset import as_captions
from clipkit.types import Tokenizer

AHEAD = 256  # captions at a time, so that the next batch does not wait


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

    def prepare(self, samples: Samples) -> None:
        """Tokenize all captions in the background once they are in memory, if the tokenizer can remember them."""
        for part in samples.parts:
            part.small.when_loaded.append(self._tokenize_all)

    def _tokenize_all(self, values: pa.RecordBatch) -> None:
        captions = [caption for texts in as_captions(values.column(self.columns[0])) for caption in texts]
        if len(captions) <= self._tokenizer.num_remembered:
            for start in range(0, len(captions), AHEAD):
                self._tokenizer.encode(captions[start : start + AHEAD])

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return self._tokenizer(samples.captions)
