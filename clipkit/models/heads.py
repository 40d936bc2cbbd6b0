"""Projection heads: from an encoder's width to the embedding's, and the learned temperature.

Shapes: B rows, F the encoder's width, D the embedding's.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import Head, Identity, InfoNCE, LinearHead, Loss, NoHead, ResidualHead, Sigmoid
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


def build_head(config: Head, *, in_dim: int, out_dim: int, side: str) -> nn.Module:
    match config:
        case ResidualHead():
            return Residual(in_dim, out_dim, dropout=config.dropout)
        case LinearHead():
            return nn.Linear(in_dim, out_dim, bias=config.bias)
        case NoHead():
            if in_dim != out_dim:
                raise ModelError(
                    f"the {side} encoder gives {in_dim} values, and without a head they are the embedding, "
                    f"which is to have {out_dim}",
                    f"set `model.embedding_dim: {in_dim}`, or give `model.{side}_head` a kind",
                )
            return nn.Identity()


class Temperature(nn.Module):
    """The scale of the logits, 1 / temperature, and SigLIP's bias; parameters where the loss learns them.

    The scale is kept as its logarithm: then a step changes it by a share of itself.
    """

    log_scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.is_learned = isinstance(config, InfoNCE | Sigmoid) and config.learn_temperature
        self.max_log_scale = math.log(1 / config.min_temperature) if isinstance(config, InfoNCE | Sigmoid) else math.inf
        temperature = 1.0 if isinstance(config, Identity) else config.temperature
        self._keep("log_scale", math.log(1 / temperature), learn=self.is_learned)
        bias = config.bias if isinstance(config, Sigmoid) else 0.0
        self._keep("bias", bias, learn=self.is_learned and isinstance(config, Sigmoid))

    def _keep(self, name: str, value: float, *, learn: bool) -> None:
        tensor = torch.tensor(value)
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor, persistent=False)

    def scale(self) -> torch.Tensor:
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the temperature at or above its minimum."""
        if self.is_learned:
            self.log_scale.clamp_(max=self.max_log_scale)
