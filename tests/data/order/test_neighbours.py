"""Rows whose embeddings are near each other."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.data.order.neighbours import group_neighbours


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_row_whose_vector_is_near_nothing_comes_once(value: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    vectors[[3, 4, 5, 20, 21, 40]] = value
    members, sizes = group_neighbours(vectors.astype(np.float16), group_size=4, seed=0)
    assert sorted(members.tolist()) == list(range(50))
    assert sizes.sum() == 50
