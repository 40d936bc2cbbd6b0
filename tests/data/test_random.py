"""Random numbers that are functions of what they are for."""

from __future__ import annotations

import numpy as np

from clipkit.data.random import key, uniforms


def test_random_numbers_are_uniform_and_fixed() -> None:
    numbers = uniforms(key(3, 2), np.arange(2000), np.full(2000, 4), count=8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.1
    again = uniforms(key(3, 2), np.array([17]), np.array([4]), count=8)
    assert np.array_equal(again[0], numbers[17])
    assert not np.array_equal(uniforms(key(3, 2), np.array([17]), np.array([5]), count=8), again)
