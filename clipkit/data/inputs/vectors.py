"""Stored vectors: encoder outputs, or other vectors of a fixed size, from a column of the dataset."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from clipkit.data.column_cache import check_vectors
from clipkit.data.inputs.base import Input
from clipkit.data.samples import DrawnSamples
from clipkit.store import Dataset


class Vectors(Input):
    """The values of a column of fixed-size lists as the tensor `name`, (B, F), as stored."""

    def __init__(self, name: str, column: str, *, setting: str) -> None:
        """`setting` is the config's key that names the column, for errors."""
        self._name = name
        self._column = column
        self._setting = setting

    def check(self, dataset: Dataset) -> None:
        check_vectors(dataset, self._column, self._setting)

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        return {self._name: torch.from_numpy(samples.vectors(self._column))}
