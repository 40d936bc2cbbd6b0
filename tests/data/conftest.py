"""Small Lance datasets for the loader's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import small_datasets

WriteDataset = Callable[..., str]


@pytest.fixture(scope="session")
def write_dataset(tmp_path_factory: pytest.TempPathFactory) -> WriteDataset:
    """Write a dataset of images into a new folder; see `small_datasets.write_dataset`."""

    def write(images: Sequence[bytes], captions: Sequence[Sequence[str]] | None = None, **columns: Any) -> str:
        path = tmp_path_factory.mktemp("lance") / "data.lance"
        return small_datasets.write_dataset(path, images, captions, **columns)

    return write


@pytest.fixture(scope="session")
def plain_dataset(write_dataset: WriteDataset) -> str:
    """100 different pictures of 60x40 pixels, five captions each."""
    return write_dataset([small_datasets.jpeg(60, 40, seed=i) for i in range(100)])


@pytest.fixture(scope="session")
def damaged_dataset(write_dataset: WriteDataset) -> str:
    """40 pictures, of which the 7th and the 21st cannot be decoded."""
    images = [small_datasets.jpeg(60, 40, seed=i) for i in range(40)]
    images[7], images[21] = b"not an image", images[21][:40]
    return write_dataset(images)
