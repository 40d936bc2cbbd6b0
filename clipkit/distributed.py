"""Ranks, and collectives with gradients. Without a process group there is one rank.

By convention each rank computes a loss, and the mean of these losses is optimized. So the backward pass of a collective
sums the ranks' gradients, and averaging the parameters' gradients over ranks (as DDP does) gives the gradient of the
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported inside a process group, it would keep the group alive
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this rank writes files, logs and shows progress."""
    return rank() == 0


@dataclass(frozen=True, slots=True)
class Shares:
    """How many rows of a global batch each rank has, and which rank this is."""

    sizes: tuple[int, ...]
    rank: int = 0

    @property
    def world(self) -> int:
        return len(self.sizes)

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def offset(self) -> int:
        """The position of this rank's first row in the global batch."""
        return sum(self.sizes[: self.rank])

    @property
    def rows(self) -> slice:
        return slice(self.offset, self.offset + self.sizes[self.rank])


def shares(num_rows: int, *, even: bool = True, device: torch.device | None = None) -> Shares:
    """The shares of all ranks; this rank has `num_rows`. Unless they are `even`, this takes a round trip."""
    if even or world() == 1:
        return Shares((num_rows,) * world(), rank())
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([num_rows], device=device))
    return Shares(tuple(int(count) for count in counts), rank())


def gather(rows: Tensor, of: Shares) -> Tensor:
    """The rows (B, ...) of all ranks, in the order of ranks, with gradient."""
    return rows if of.world == 1 else _Gather.apply(rows, of)


def total(value: Tensor, of: Shares) -> Tensor:
    """The sum of the values of all ranks, with gradient."""
    return value if of.world == 1 else dist.nn.functional.all_reduce(value)  # type: ignore[no-untyped-call]


def rotate(rows: Tensor, of: Shares, *, step: int) -> Tensor:
    """Send rows to the next rank and receive those of the previous rank, with gradient.

    `step` counts from 1: at step s a rank receives the rows that belong to the rank s before it.
    """
    return _Rotate.apply(rows, of, step)  # type: ignore[no-any-return]


def gather_arrays(rows: Tensor) -> list[Tensor]:
    """The rows (N, ...) of each rank, in any number, without gradient: for evaluation."""
    of = shares(len(rows), even=False, device=rows.device)
    with torch.no_grad():
        return list(torch.split(gather(rows, of), list(of.sizes)))


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, of: Shares) -> Tensor:
        ctx.of = of
        largest = max(of.sizes)
        padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, largest - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in of.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, of.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.of.rows], None


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, of: Shares, step: int) -> Tensor:
        ctx.of, ctx.num_rows = of, len(rows)
        return _send(rows, of, num_rows=of.sizes[(of.rank - step) % of.world], by=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _send(gradients[0], ctx.of, num_rows=ctx.num_rows, by=-1), None, None


def _send(rows: Tensor, of: Shares, *, num_rows: int, by: int) -> Tensor:
    """Send rows to the rank `by` places later in the ring, and receive `num_rows` from the rank as far before."""
    received = rows.new_empty((num_rows, *rows.shape[1:]))
    transfers: Sequence[dist.P2POp] = [
        dist.P2POp(dist.isend, rows.contiguous(), (of.rank + by) % of.world),
        dist.P2POp(dist.irecv, received, (of.rank - by) % of.world),
    ]
    for work in dist.batch_isend_irecv(list(transfers)):
        work.wait()
    return received


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one (a collective: every rank must call it); any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
