"""Random numbers as pure functions of integers (a seed, an epoch, a row), the same on every platform."""

from __future__ import annotations

from typing import Any

import numpy as np

U64 = np.ndarray[Any, np.dtype[np.uint64]]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: U64) -> U64:
    """SplitMix64's finalizer: a bijection on 64-bit integers whose output looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """A 64-bit key from several numbers."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = mix(state + GOLDEN + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return np.uint64(state[0])


def uniforms(base: np.uint64, rows: np.ndarray, epochs: np.ndarray, *, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1) for each row in its epoch."""
    state = mix(mix(rows.astype(np.uint64) + base) + GOLDEN * (epochs.astype(np.uint64) + np.uint64(1)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (mix(state[:, None] + steps[None, :]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
