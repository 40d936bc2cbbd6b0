"""The contract of inputs: from the samples of a batch to named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from clipkit.data.samples import DrawnSamples, Samples
from clipkit.store import Dataset


class Input:
    """One thing that a batch holds for each sample. Subclass it and write `read`; the other methods are optional."""

    columns: Sequence[str] = ()
    """Columns of small values that `read` uses: they are kept in memory if they fit."""
    stage: str = "read"
    """The stage of `clipkit bench loader` that the time of `read` belongs to."""

    def check(self, dataset: Dataset) -> None:
        """Raise DataError if the dataset lacks what this input reads."""

    def prepare(self, samples: Samples) -> None:
        """Called once, before the first batch."""

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        """Tensors (B, …) by name, in the order of the samples; in training without those of `find_unusable`."""
        raise NotImplementedError

    def find_unusable(self, samples: DrawnSamples) -> Mapping[int, str]:
        """Places of samples that cannot be trained on, with the reason; in training other rows replace them."""
        return {}


class Decoding(Protocol):
    """The samples of a batch while several threads decode them."""

    tensors: Mapping[str, torch.Tensor]

    def decode(self, start: int, stop: int) -> Mapping[int, str]:
        """Decode samples `start` to `stop`; gives the places of those that cannot be decoded, with the reason."""
        ...

    def replace(self, place: int, other: Decoding) -> None:
        """Put the only sample of another decoding into a place."""

    def blank(self, place: int) -> None:
        """Fill a place with zeros."""


class DecodedInput(Input):
    """An input whose samples take so long to decode that several threads share the work."""

    def start(self, samples: DrawnSamples, *, pin_memory: bool) -> Decoding:
        """Read the encoded samples, and allocate the tensors."""
        raise NotImplementedError

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        decoding = self.start(samples, pin_memory=False)
        decoding.decode(0, len(samples))
        return decoding.tensors
