"""How spread out embeddings are, against brute force and cases that are known."""

import math

import pytest
import torch
from torch.nn import functional as F

from clipkit.metrics.embeddings import effective_rank, mean_cosine


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    cosine = F.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    expected = (cosine.sum() - 30) / (30 * 29)
    torch.testing.assert_close(mean_cosine(vectors), expected)


def test_effective_rank_counts_directions() -> None:
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(corners).item() == pytest.approx(6)
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert effective_rank(line).item() == pytest.approx(1)
    assert math.isfinite(effective_rank(torch.ones(5, 3)).item())
    assert math.isnan(effective_rank(torch.full((5, 3), math.nan)).item())
