"""The captions that the samples take, as token ids or as they are."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import torch

from clipkit.data.inputs.base import Input
from clipkit.data.samples import DrawnSamples, Samples
from clipkit.store import Dataset
from clipkit.store.dataset import as_captions
from clipkit.types import Tokenizer

AHEAD = 256  # captions at a time, so that the batch at hand is not kept waiting


class Captions(Input):
    """Nothing but `Batch.captions`. A row without a caption cannot be used."""

    def __init__(self, column: str) -> None:
        self.columns = (column,)

    def check(self, dataset: Dataset) -> None:
        _ = dataset.captions_column  # raises where it is missing

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
        """Once captions are in memory, let the tokenizer see them all, if it can remember so many."""

        def see(values: pa.RecordBatch) -> None:
            captions = [caption for of_row in as_captions(values.column(self.columns[0])) for caption in of_row]
            if len(captions) <= self._tokenizer.num_remembered:
                for start in range(0, len(captions), AHEAD):
                    self._tokenizer.encode(captions[start : start + AHEAD])

        for part in samples.parts:
            part.small.when_loaded = see

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return self._tokenizer(samples.captions)
