"""A folder of images, and a way to read a source that checks what every reader promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import NUM_ROWS, make_image

from clipkit import readers as ingest
from clipkit.readers import Item, ReadOptions


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 1,200 small JPEGs, `000000.jpg` and so on."""
    folder = tmp_path_factory.mktemp("images") / "pictures"
    folder.mkdir()
    for number in range(NUM_ROWS):
        (folder / f"{number:06d}.jpg").write_bytes(make_image(number))
    return folder


@pytest.fixture
def read_all() -> Callable[..., list[Item]]:
    """Read a source to its end, and again from two places in it, which must give the same."""

    def read(source: Path | str, options: ReadOptions | None = None) -> list[Item]:
        options = options or ReadOptions()
        items = list(ingest.read(str(source), options))
        for skip in (1, len(items) * 2 // 3, len(items)):
            assert list(ingest.read(str(source), options, skip=skip)) == items[skip:]
        return items

    return read
