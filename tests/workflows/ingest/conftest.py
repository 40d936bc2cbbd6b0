from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from small_corpus import write_corpus

MakeCorpus = Callable[..., Path]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """A function that writes a corpus of numbered images."""

    def make(numbers: Iterable[int] = range(40), *, name: str = "corpus", caption: str = "caption of") -> Path:
        return write_corpus(tmp_path / name, numbers, caption=caption)

    return make
