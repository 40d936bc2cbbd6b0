"""What losses of pairs share: tiles of a matrix of logits, and the mean over this rank's pairs.

Shapes: B this rank's pairs, N the pairs of all ranks, D the embedding.

On several ranks each computes the rows of its own pairs against those of all; weighted by their pairs, the mean of the
ranks' losses is the loss of the global batch. Logits are computed in tiles of rows where there are many, and again in
the backward pass: then no B x N matrix is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_ELEMENTS = 2**22  # logits that are in memory at once: 16 MB of float32


def tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Iterator[Tensor]:
    """`function` of slices of rows, each small enough; several are computed again in the backward pass."""
    height = max(1, TILE_ELEMENTS // max(1, num_columns))
    if height >= num_rows:
        yield function(slice(0, num_rows))
        return
    for start in range(0, num_rows, height):
        rows = slice(start, min(start + height, num_rows))
        yield checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False)


def sum_of_tiles(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Tensor:
    return torch.stack(list(tiles(function, num_rows, num_columns))).sum()


def mean_over_own(summed: Tensor, num_pairs: int) -> Tensor:
    """The mean over this rank's pairs; 0 where it has none."""
    return summed / max(1, num_pairs)
