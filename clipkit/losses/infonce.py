"""Each caption against the images of the batch, and each image against its captions (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import InfoNCE
from clipkit.distributed import Shares, gather
from clipkit.losses.base import PairLoss, Temperature
from clipkit.losses.tiles import mean_over_pairs, sum_of_tiles


def infonce(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    label_smoothing: float = 0.0,
    shares: Shares | None = None,
) -> Tensor:
    """The mean of two cross entropies: each image against all texts, and each text against all images."""
    shares = shares or Shares((len(image_BD),))
    image_ND, text_ND = gather(image_BD, shares), gather(text_BD, shares)
    own_B = torch.arange(len(image_BD), device=image_BD.device) + shares.offset

    def tile(rows: slice) -> Tensor:
        sums = [
            F.cross_entropy(
                scale * query_BD[rows] @ target_ND.T,
                own_B[rows],
                label_smoothing=label_smoothing,
                reduction="sum",
            )
            for query_BD, target_ND in ((image_BD, text_ND), (text_BD, image_ND))
        ]
        return (sums[0] + sums[1]) / 2

    return mean_over_pairs(sum_of_tiles(tile, len(image_BD), shares.total), len(image_BD))


class InfoNCELoss(PairLoss):
    def __init__(self, config: InfoNCE) -> None:
        super().__init__(
            Temperature(config.temperature, learn=config.learn_temperature, minimum=config.min_temperature)
        )
        self._label_smoothing = config.label_smoothing

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        scale = self.temperature.scale()
        return infonce(image_BD, text_BD, scale=scale, label_smoothing=self._label_smoothing, shares=shares)

    def chance(self, batch_size: int) -> float:
        return math.log(batch_size)
