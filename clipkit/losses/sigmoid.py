"""Each pair of an image and a text classified as matching or not (SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from clipkit.config import Sigmoid
from clipkit.distributed import Shares, rotate
from clipkit.losses.base import PairLoss, Temperature
from clipkit.losses.tiles import mean_over_pairs, sum_of_tiles


def sigmoid(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    shares: Shares | None = None,
) -> Tensor:
    """The binary cross entropy of each image with each text, summed over the texts.

    Several ranks pass their texts around in a ring, so each holds the texts of at most one other rank at a time.
    """
    shares = shares or Shares((len(image_BD),))
    matching = scale * (image_BD * text_BD).sum(-1) + bias
    loss = -matching.sum()  # softplus(-x) = softplus(x) - x: below, all pairs count as negatives
    visiting_BD = text_BD
    for step in range(shares.world):
        if step:
            visiting_BD = rotate(visiting_BD, shares, step=step)
        loss = loss + _sum_of_negatives(image_BD, visiting_BD, scale=scale, bias=bias)
    return mean_over_pairs(loss, len(image_BD))


def _sum_of_negatives(image_BD: Tensor, text_MD: Tensor, *, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    def tile(rows: slice) -> Tensor:
        return F.softplus(scale * image_BD[rows] @ text_MD.T + bias).sum()

    return sum_of_tiles(tile, len(image_BD), len(text_MD))


class SigmoidLoss(PairLoss):
    def __init__(self, config: Sigmoid) -> None:
        learn = config.learn_temperature
        super().__init__(
            Temperature(
                config.temperature, learn=learn, minimum=config.min_temperature, bias=config.bias, learn_bias=learn
            )
        )

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        scale, bias = self.temperature.scale(), self.temperature.bias
        return sigmoid(image_BD, text_BD, scale=scale, bias=bias, shares=shares)

    def chance(self, batch_size: int) -> float:
        """The best constant answer is 1 / batch_size."""
        return math.log(batch_size) - (batch_size - 1) * math.log1p(-1 / batch_size)
