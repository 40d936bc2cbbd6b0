"""The contract between encoders and the models that use them.

Shapes: B rows of a batch, F an encoder's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.config import DataConfig
from clipkit.data.inputs import Input
from clipkit.data.training_rows import TrainingRows
from clipkit.types import ImageSpec, Tokenizer


@dataclass(frozen=True, slots=True)
class EncoderContext:
    """What the builder of an encoder gets besides its section."""

    data: DataConfig
    training: TrainingRows | None = None  # the training rows; None when a trained model is opened
    checkpoint: Path | None = None  # the encoder is built as in this checkpoint, whose weights are loaded later
    saved: Any = None  # the encoder's `architecture` in that checkpoint


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder and its inputs."""

    module: nn.Module  # is called with the batch's tensors named in `reads`; returns (B, F)
    dim: int  # F
    reads: tuple[str, ...]
    inputs: Callable[[int | None], Sequence[Input]]  # for a seed; without one nothing is augmented
    architecture: Any = None  # JSON from which it can be rebuilt without a download
    pixels: ImageSpec | None = None  # if the first tensor is pixels, how they are normalised
    tokenizer: Tokenizer | None = None


class NormalizePixels(nn.Module):
    """Pixels (B, H, W, 3) uint8 to (B, 3, H, W) float, normalised, in `channels_last` memory."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)  # a view, whose memory is already `channels_last`
        return torch.addcmul(self.shift, images_BCHW.to(self.scale.dtype), self.scale)


def encode(
    encoder: nn.Module,
    reads: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    normalize_pixels: nn.Module | None = None,
) -> torch.Tensor:
    """(B, F) output of an encoder for the tensors that it reads."""
    arguments = [tensors[name] for name in reads]
    if normalize_pixels is not None:
        arguments[0] = normalize_pixels(arguments[0])
    features_BF: torch.Tensor = encoder(*arguments)
    return features_BF.flatten(1)
