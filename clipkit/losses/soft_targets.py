"""The loss of the Lance and Keras examples, whose targets are the similarities within the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.config import SoftTargets
from clipkit.distributed import Shares, gather
from clipkit.losses.base import PairLoss, Temperature
from clipkit.losses.tiles import mean_over_pairs, sum_of_tiles, tiles


def soft_targets(
    image_BD: Tensor, text_BD: Tensor, *, temperature: float = 1.0, shares: Shares | None = None
) -> Tensor:
    """Cross entropy against the similarities within the batch, as in the Lance and Keras examples.

    With logits = T I' / t and targets = softmax over rows of (I I' + T T') / 2 * t, the texts' loss is the cross
    entropy of the rows, and the images' that of both transposed. The targets have a gradient, as in the examples.
    Identical embeddings are nearly a minimum, so without normalisation training collapses easily.
    """
    shares = shares or Shares((len(image_BD),))
    image_ND, text_ND = gather(image_BD, shares), gather(text_BD, shares)

    def similarity(rows: slice) -> Tensor:  # a symmetric matrix
        return (image_BD[rows] @ image_ND.T + text_BD[rows] @ text_ND.T) / 2 * temperature

    def normalizer(rows: slice) -> Tensor:
        return similarity(rows).logsumexp(-1)

    normalizer_B = torch.cat(list(tiles(normalizer, len(image_BD), shares.total)))
    normalizer_N = gather(normalizer_B, shares)

    def tile(rows: slice) -> Tensor:
        similar_BN = similarity(rows)
        text_target_BN = (similar_BN - normalizer_B[rows, None]).exp()
        image_target_BN = (similar_BN - normalizer_N).exp()  # the same matrix, transposed
        text_logits_BN = text_BD[rows] @ image_ND.T / temperature
        image_logits_BN = image_BD[rows] @ text_ND.T / temperature
        text_loss = -(text_target_BN * text_logits_BN.log_softmax(-1)).sum()
        image_loss = -(image_target_BN * image_logits_BN.log_softmax(-1)).sum()
        return (text_loss + image_loss) / 2

    return mean_over_pairs(sum_of_tiles(tile, len(image_BD), shares.total), len(image_BD))


class SoftTargetsLoss(PairLoss):
    collapse_cause = "`soft_targets` rewards it; use `loss.kind: infonce`, or `model.normalize: true`"

    def __init__(self, config: SoftTargets) -> None:
        super().__init__(Temperature(config.temperature))
        self._temperature = config.temperature

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        return soft_targets(image_BD, text_BD, temperature=self._temperature, shares=shares)
