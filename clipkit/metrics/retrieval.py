"""Exact retrieval metrics, which resolve doubt against the model.

Shapes: N images, M captions, Q queries, D the embedding, P pairs.

Similarities that differ by less than rounding errors are ties, and ties count against the model, as does NaN. So a
model whose embeddings are all alike has recall 0, not k / N by chance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
TIE = 1e-6  # for embeddings of length 1: a few rounding errors of a float32 dot product
TILE_ELEMENTS = 2**23  # similarities in memory at a time: 32 MB of float32


def retrieval(image_ND: Tensor, text_MD: Tensor, owner_M: Tensor) -> dict[str, dict[str, float]]:
    """Recall and ranks in both directions; `owner_M` is each caption's image, as a position in `image_ND`."""
    return {
        "text_to_image": summarize(text_to_image_ranks(text_MD, image_ND, owner_M)),
        "image_to_text": summarize(image_to_text_ranks(image_ND, text_MD, owner_M)),
    }


def text_to_image_ranks(text_QD: Tensor, image_ND: Tensor, owner_Q: Tensor) -> Tensor:
    """(Q,) from 1: the rank of each caption's image among all images."""
    tie = TIE * _length(text_QD) * _length(image_ND)
    ranks = [owner_Q[:0]]  # for no queries
    for rows in _tiles(len(text_QD), len(image_ND)):
        similarity_QN = _similarity(text_QD[rows], image_ND)
        own_Q1 = similarity_QN.gather(1, owner_Q[rows, None])
        ranks.append((~(similarity_QN < own_Q1 - tie)).sum(1))  # the caption's own image counts too
    return torch.cat(ranks)


def image_to_text_ranks(image_ND: Tensor, text_MD: Tensor, owner_M: Tensor) -> Tensor:
    """(Q,) from 1: the rank of the best of each image's captions among the captions of all other images.

    Images without a caption are left out.
    """
    positions = torch.arange(len(image_ND), device=image_ND.device)
    position_Q = positions[torch.isin(positions, owner_M)]
    image_QD = image_ND[position_Q]
    tie = TIE * _length(image_QD) * _length(text_MD)
    ranks = [owner_M[:0]]  # for no queries
    for rows in _tiles(len(image_QD), len(text_MD)):
        similarity_QM = _similarity(image_QD[rows], text_MD)
        is_own_QM = owner_M == position_Q[rows, None]
        best_Q1 = similarity_QM.masked_fill(~is_own_QM, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + (~(similarity_QM < best_Q1 - tie) & ~is_own_QM).sum(1))
    return torch.cat(ranks)


def summarize(ranks: Tensor) -> dict[str, float]:
    """Recalls (0 to 1), and the median and mean of ranks that count from 1."""
    if not len(ranks):
        raise ValueError("no query has an answer")
    ordered = ranks.cpu().double().sort().values  # not every device has float64
    count = len(ordered)
    recalls = {f"recall@{k}": (ordered <= k).double().mean().item() for k in RECALLS}
    median = (ordered[(count - 1) // 2] + ordered[count // 2]).item() / 2
    return recalls | {"median_rank": median, "mean_rank": ordered.mean().item()}


def pair_accuracy(image_ND: Tensor, text_MD: Tensor, owner_M: Tensor, pairs_P2: Tensor) -> float:
    """The share of captions of paired images that are closer to their own image than to the other one."""
    tie = TIE * _length(image_ND) * _length(text_MD)
    right = total = 0
    for own, other in torch.cat([pairs_P2, pairs_P2.flip(1)]).tolist():
        to_own, to_other = _similarity(text_MD[owner_M == own], image_ND[[own, other]]).unbind(1)
        right += int((to_own > to_other + tie).sum())
        total += len(to_own)
    return right / max(1, total)


def _similarity(query_QD: Tensor, target_ND: Tensor) -> Tensor:
    """Dot products in full float32, even under autocast or TF32, which would make ties."""
    was_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(query_QD.device.type, enabled=False):
            return query_QD @ target_ND.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = was_tf32


def _length(vectors: Tensor) -> Tensor:
    """The length of the longest vector, to which rounding errors are proportional."""
    return torch.nan_to_num(vectors).norm(dim=-1).amax() if len(vectors) else vectors.new_ones(())


def _tiles(num_rows: int, num_columns: int) -> Iterator[slice]:
    height = max(1, TILE_ELEMENTS // max(1, num_columns))
    for start in range(0, num_rows, height):
        yield slice(start, start + height)
