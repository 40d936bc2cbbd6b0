"""Projection heads: from an encoder's width to the embedding's.

Shapes: B rows, F the encoder's width, D the embedding's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import LinearHead, NoHead, ResidualHead, Section, builder_of
from clipkit.errors import ModelError


class Residual(nn.Module):
    """p = linear(x); LayerNorm(dropout(linear(GELU(p))) + p), as in the Lance and Keras examples."""

    def __init__(self, in_dim: int, out_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim, out_dim)
        self.linear = nn.Linear(out_dim, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        projected_BD = self.projection(features_BF)
        mixed_BD = self.dropout(self.linear(F.gelu(projected_BD)))
        return self.norm(mixed_BD + projected_BD)  # type: ignore[no-any-return]


def build_head(section: Section, *, in_dim: int, out_dim: int, side: str) -> nn.Module:
    """The head that a section describes; `side` names it in errors."""
    head: nn.Module = builder_of(section)(section, in_dim=in_dim, out_dim=out_dim, side=side)
    return head


def build_residual(section: ResidualHead, *, in_dim: int, out_dim: int, side: str) -> nn.Module:
    return Residual(in_dim, out_dim, dropout=section.dropout)


def build_linear(section: LinearHead, *, in_dim: int, out_dim: int, side: str) -> nn.Module:
    return nn.Linear(in_dim, out_dim, bias=section.bias)


def build_none(section: NoHead, *, in_dim: int, out_dim: int, side: str) -> nn.Module:
    if in_dim != out_dim:
        raise ModelError(
            f"without a head the {side} encoder's {in_dim} values are the embedding, which must have {out_dim}",
            f"set `model.embedding_dim: {in_dim}`, or give `model.{side}_head` a kind",
        )
    return nn.Identity()
