"""Tiles of a matrix of logits, and the mean over this rank's pairs.

Shapes: B this rank's pairs, N the pairs of all ranks, D the embedding.

Each rank computes the rows of its own pairs against the pairs of all ranks. The mean of the ranks' losses, weighted by
their pairs, is the loss of the global batch. A large matrix is computed in tiles of rows, and again in the backward
pass, so that the B x N matrix is never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_ELEMENTS = 2**22  # logits in memory at a time: 16 MB of float32


def tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Iterator[Tensor]:
    """`function` of small slices of rows; if there are several, each is computed again in the backward pass."""
    height = max(1, TILE_ELEMENTS // max(1, num_columns))
    if height >= num_rows:
        yield function(slice(0, num_rows))
        return
    for start in range(0, num_rows, height):
        rows = slice(start, min(start + height, num_rows))
        yield checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False)


def sum_of_tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Tensor:
    return torch.stack(list(tiles(function, num_rows, num_columns))).sum()


def mean_over_pairs(summed: Tensor, num_pairs: int) -> Tensor:
    """The mean over this rank's pairs; 0 if it has none."""
    return summed / max(1, num_pairs)
