"""Which of an image's captions a sample uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipkit.data.random import key, uniforms

CAPTION_PURPOSE = 1

Choice = Literal["random", "longest", "first", "each"]


def choose_captions(
    captions: Sequence[Sequence[str]], choice: Choice, *, seed: int, rows: np.ndarray, epochs: np.ndarray
) -> list[str]:
    """One caption per row, "" for a row that has none; a random one is a function of (seed, row, epoch)."""
    if choice == "longest":
        return [max(texts, key=len, default="") for texts in captions]
    if choice == "random":
        draws = uniforms(key(seed, CAPTION_PURPOSE), rows, epochs, count=1)[:, 0].tolist()
        return [texts[int(draw * len(texts))] if texts else "" for texts, draw in zip(captions, draws, strict=True)]
    return [texts[0] if texts else "" for texts in captions]
