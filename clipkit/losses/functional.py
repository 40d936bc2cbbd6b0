"""Losses of paired embeddings: pure functions, alike on one rank and on several.

Shapes: B this rank's pairs, N the pairs of all ranks, D the embedding.

On several ranks each computes the rows of its own pairs against those of all, and the mean of the ranks' losses is
the loss of the global batch. Logits are computed in tiles of rows where there are many, and again in the backward
pass: then no B x N matrix is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipkit.config import InfoNCE, Loss, Ranking, Sigmoid
from clipkit.distributed import Shares, gather, rotate, total

TILE_ELEMENTS = 2**22  # logits that are in memory at once: 16 MB of float32


def infonce(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    label_smoothing: float = 0.0,
    shares: Shares | None = None,
) -> Tensor:
    """The mean of two cross entropies: image among all texts, text among all images (CLIP, arXiv 2103.00020)."""
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

    return _share_of_mean(_sum_of_tiles(tile, len(image_BD), shares.total), shares)


def sigmoid(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    shares: Shares | None = None,
) -> Tensor:
    """A yes or no for each image and text, summed over the texts (SigLIP, arXiv 2303.15343).

    On several ranks the texts go round in a ring: none holds more than one rank's texts beside its own.
    """
    shares = shares or Shares((len(image_BD),))
    matching = scale * (image_BD * text_BD).sum(-1) + bias
    loss = -matching.sum()  # softplus(-x) = softplus(x) - x turns the pairs' `no` below into a `yes`
    visiting_BD = text_BD
    for step in range(shares.world):
        if step:
            visiting_BD = rotate(visiting_BD, shares, step=step)
        loss = loss + _sum_of_no(image_BD, visiting_BD, scale=scale, bias=bias)
    return _share_of_mean(loss, shares)


def _sum_of_no(image_BD: Tensor, text_MD: Tensor, *, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    def tile(rows: slice) -> Tensor:
        return F.softplus(scale * image_BD[rows] @ text_MD.T + bias).sum()

    return _sum_of_tiles(tile, len(image_BD), len(text_MD))


def soft_targets(
    image_BD: Tensor, text_BD: Tensor, *, temperature: float = 1.0, shares: Shares | None = None
) -> Tensor:
    """Cross entropy against the batch's own similarities, as in the Lance and Keras examples.

    With logits = T I' / t and targets = softmax over rows of (I I' + T T') / 2 * t, the texts' loss is that of the
    rows and the images' that of both transposed. The targets carry gradient, as they do there: a batch whose
    embeddings are all alike is a minimum of sorts, so this collapses easily without normalisation.
    """
    shares = shares or Shares((len(image_BD),))
    image_ND, text_ND = gather(image_BD, shares), gather(text_BD, shares)

    def similarity(rows: slice) -> Tensor:  # a symmetric matrix: its columns are its rows
        return (image_BD[rows] @ image_ND.T + text_BD[rows] @ text_ND.T) / 2 * temperature

    def normalizer(rows: slice) -> Tensor:
        return similarity(rows).logsumexp(-1)

    normalizer_B = torch.cat(list(_tiles(normalizer, len(image_BD), shares.total)))
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

    return _share_of_mean(_sum_of_tiles(tile, len(image_BD), shares.total), shares)


def ranking(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text",
    temperature: float = 1.0,
    shares: Shares | None = None,
) -> Tensor:
    """-mean of the diagonal of log-softmax of the cosine matrix, one way."""
    shares = shares or Shares((len(image_BD),))
    query_BD, target_BD = (image_BD, text_BD) if direction == "image_to_text" else (text_BD, image_BD)
    query_BD = F.normalize(query_BD, dim=-1)
    target_ND = gather(F.normalize(target_BD, dim=-1), shares)
    own_B = torch.arange(len(image_BD), device=image_BD.device) + shares.offset

    def tile(rows: slice) -> Tensor:
        return F.cross_entropy(query_BD[rows] @ target_ND.T / temperature, own_B[rows], reduction="sum")

    return _share_of_mean(_sum_of_tiles(tile, len(image_BD), shares.total), shares)


def identity(image_BD: Tensor, text_BD: Tensor, *, shares: Shares | None = None) -> Tensor:
    """Frobenius distance of the cosine matrix C = I T' from the identity.

    |C - 1|^2 = <I'I, T'T> - 2 tr C + N: two D x D matrices that sum over ranks, and never C itself.
    """
    shares = shares or Shares((len(image_BD),))
    image_BD, text_BD = F.normalize(image_BD, dim=-1), F.normalize(text_BD, dim=-1)
    image_gram_DD = total(image_BD.T @ image_BD, shares)
    text_gram_DD = total(text_BD.T @ text_BD, shares)
    trace = total((image_BD * text_BD).sum(), shares)
    squared = (image_gram_DD * text_gram_DD).sum() - 2 * trace + shares.total
    return squared.clamp(min=1e-12).sqrt()  # rounding can take a perfect match below zero


def chance_level(config: Loss, *, batch_size: int) -> float | None:
    """The loss of embeddings that tell nothing apart, where a loss has such a level."""
    match config:
        case InfoNCE() | Ranking():
            return math.log(batch_size)
        case Sigmoid():  # the best constant answer is 1 / batch_size
            return math.log(batch_size) - (batch_size - 1) * math.log1p(-1 / batch_size)
        case _:
            return None


def _share_of_mean(summed: Tensor, shares: Shares) -> Tensor:
    """A rank's part of a mean over all pairs, scaled so that the mean over ranks is that mean."""
    return summed * (shares.world / shares.total)


def _tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Iterator[Tensor]:
    """`function` of slices of rows, each small enough; several are computed again in the backward pass."""
    height = max(1, TILE_ELEMENTS // max(1, num_columns))
    if height >= num_rows:
        yield function(slice(0, num_rows))
        return
    for start in range(0, num_rows, height):
        rows = slice(start, min(start + height, num_rows))
        yield checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False)


def _sum_of_tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Tensor:
    return torch.stack(list(_tiles(function, num_rows, num_columns))).sum()
