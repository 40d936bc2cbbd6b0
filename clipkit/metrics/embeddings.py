"""How spread out embeddings are.

Shapes: N embeddings of dimension D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_cosine(embedding_ND: Tensor) -> Tensor:
    """The mean cosine of two different rows; near 1 if all embeddings are alike."""
    unit_ND = F.normalize(embedding_ND, dim=-1)
    count = len(unit_ND)
    return (unit_ND.sum(0).square().sum() - count) / max(1, count * (count - 1))


def effective_rank(embedding_ND: Tensor) -> Tensor:
    """How many directions the embeddings use: exp of the entropy of their singular values (Roy & Vetterli 2007).

    NaN if an embedding is not finite, as after training has diverged.
    """
    if not embedding_ND.isfinite().all():
        return torch.tensor(math.nan)
    centred_ND = F.normalize(embedding_ND, dim=-1).cpu().double()
    centred_ND = centred_ND - centred_ND.mean(0)
    singular_D = torch.linalg.eigvalsh(centred_ND.T @ centred_ND).clamp(min=0).sqrt()
    share: Tensor = F.normalize(singular_D, p=1, dim=0)
    return torch.exp(torch.special.entr(share).sum())
