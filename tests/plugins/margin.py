"""A loss of one's own for the contrastive task: InfoNCE with a margin.

Shapes: B this rank's pairs, N the pairs of all ranks, D the embedding.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import Section, register
from clipkit.distributed import Shares, gather
from clipkit.losses import PairLoss, Temperature


class Margin(Section):
    kind: Literal["margin"] = "margin"
    """Each image against the batch's captions; its own must win by a margin."""
    margin: float = 0.1
    """What is subtracted from the similarity of a pair."""


class MarginLoss(PairLoss):
    def __init__(self, margin: float) -> None:
        super().__init__(Temperature(0.07, learn=True, minimum=0.01))
        self._margin = margin

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        text_ND = gather(text_BD, shares)  # the captions of all ranks, with gradient
        own_B = torch.arange(len(image_BD), device=image_BD.device) + shares.offset
        similarity_BN = image_BD @ text_ND.T - self._margin * F.one_hot(own_B, len(text_ND))
        return F.cross_entropy(self.temperature.scale() * similarity_BN, own_B)


def build_loss(section: Margin) -> MarginLoss:
    return MarginLoss(section.margin)


register("contrastive_loss", Margin, "margin:build_loss")
