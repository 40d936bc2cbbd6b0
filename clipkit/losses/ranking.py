"""Softmax cross entropy of the cosine similarities in one direction."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import Ranking
from clipkit.distributed import Shares, gather
from clipkit.losses.base import PairLoss, Temperature
from clipkit.losses.tiles import mean_over_pairs, sum_of_tiles


def ranking(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text",
    temperature: float = 1.0,
    shares: Shares | None = None,
) -> Tensor:
    """Minus the mean of the diagonal of the log-softmax of the cosine matrix, in one direction."""
    shares = shares or Shares((len(image_BD),))
    query_BD, target_BD = (image_BD, text_BD) if direction == "image_to_text" else (text_BD, image_BD)
    query_BD = F.normalize(query_BD, dim=-1)
    target_ND = gather(F.normalize(target_BD, dim=-1), shares)
    own_B = torch.arange(len(image_BD), device=image_BD.device) + shares.offset

    def tile(rows: slice) -> Tensor:
        return F.cross_entropy(query_BD[rows] @ target_ND.T / temperature, own_B[rows], reduction="sum")

    return mean_over_pairs(sum_of_tiles(tile, len(image_BD), shares.total), len(image_BD))


class RankingLoss(PairLoss):
    def __init__(self, config: Ranking) -> None:
        super().__init__(Temperature(config.temperature))
        self._config = config

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        direction, temperature = self._config.direction, self._config.temperature
        return ranking(image_BD, text_BD, direction=direction, temperature=temperature, shares=shares)

    def chance(self, batch_size: int) -> float:
        return math.log(batch_size)
