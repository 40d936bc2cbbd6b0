"""Projection heads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import LinearHead, NoHead, ResidualHead
from clipkit.errors import ModelError
from clipkit.models.heads import build_head


def test_residual_head_is_the_tutorials() -> None:
    head = build_head(ResidualHead(dropout=0.3), in_dim=20, out_dim=6, side="image").eval()
    projection, linear, norm = (part for part in head.children() if not isinstance(part, nn.Dropout))
    x = torch.randn(4, 20)
    p = projection(x)
    expected = F.layer_norm(linear(F.gelu(p)) + p, (6,), norm.weight, norm.bias)
    torch.testing.assert_close(head(x), expected)
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.3]


def test_heads_by_kind() -> None:
    assert isinstance(build_head(NoHead(), in_dim=6, out_dim=6, side="text"), nn.Identity)
    assert build_head(LinearHead(bias=True), in_dim=5, out_dim=6, side="text").bias.shape == (6,)
    with pytest.raises(ModelError, match="text encoder's 5 values") as caught:
        build_head(NoHead(), in_dim=5, out_dim=6, side="text")
    assert "embedding_dim: 5" in caught.value.hint
