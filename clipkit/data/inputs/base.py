"""The contract of inputs: from a batch's samples to named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from clipkit.data.samples import DrawnSamples, Samples
from clipkit.store import Dataset


class Input:
    """One thing that a batch holds of each sample. Subclass it and write `read`; the rest is as you need it."""

    columns: Sequence[str] = ()
    """Columns of small values that `read` asks for: they are kept in memory where they fit."""
    stage: str = "read"
    """What `clipkit bench loader` counts the time of `read` as."""

    def check(self, dataset: Dataset) -> None:
        """Raise DataError where a dataset lacks what this input reads."""

    def prepare(self, samples: Samples) -> None:
        """Called once, before the first batch."""

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        """Tensors (B, …) by name, in the order of the samples; in training `find_unusable` names none of them."""
        raise NotImplementedError

    def find_unusable(self, samples: DrawnSamples) -> Mapping[int, str]:
        """Places of samples that cannot be trained on, with the reason: in training another row takes their place."""
        return {}


class Decoding(Protocol):
    """Samples of a batch that are decoded by several threads."""

    tensors: Mapping[str, torch.Tensor]

    def decode(self, start: int, stop: int) -> Mapping[int, str]:
        """Fill in samples `start` to `stop`; gives the places of those that cannot be decoded, with the reason."""
        ...

    def replace(self, place: int, other: Decoding) -> None:
        """Put the only sample of another decoding into a place."""

    def blank(self, place: int) -> None:
        """Leave nothing in a place."""


class DecodedInput(Input):
    """An input whose samples take so long to make that several threads share them."""

    def start(self, samples: DrawnSamples, *, pin_memory: bool) -> Decoding:
        """Read what is to be decoded, and make room for it."""
        raise NotImplementedError

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        decoding = self.start(samples, pin_memory=False)
        decoding.decode(0, len(samples))
        return decoding.tensors
