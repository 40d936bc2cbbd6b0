"""Small Lance datasets for the loader's tests, written with pylance alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

WriteDataset = Callable[..., str]
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("split", pa.string()),
    ]
)


def encode_jpeg(width: int, height: int, *, seed: int = 0, **options: Any) -> bytes:
    return encode(width, height, "JPEG", seed=seed, quality=95, **options)


def encode(width: int, height: int, kind: str, *, seed: int = 0, **options: Any) -> bytes:
    """A smooth coloured picture, so that compression changes little."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def write_dataset(tmp_path_factory: pytest.TempPathFactory) -> WriteDataset:
    """Write a dataset of images (or of one image many times) with a caption list a row, and more columns."""

    def write(images: Sequence[bytes], captions: Sequence[Sequence[str]] | None = None, **columns: pa.Array) -> str:
        path: Path = tmp_path_factory.mktemp("lance") / "data.lance"
        captions = captions or [[f"picture {i} seen by {who}" for who in "abcde"] for i in range(len(images))]
        table = pa.table(
            {
                "image_id": [f"image-{i}" for i in range(len(images))],
                "image": pa.array(images, pa.large_binary()),
                "captions": pa.array(captions, pa.list_(pa.string())),
                "split": ["train" if i % 4 else "dev" for i in range(len(images))],
            },
            schema=SCHEMA,
        )
        for name, values in columns.items():
            table = table.append_column(name, values)
        lance.write_dataset(table, str(path), data_storage_version="2.2", max_rows_per_file=37)
        return str(path)

    return write


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    return encode_jpeg


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return partial(encode, kind="PNG")


@pytest.fixture(scope="session")
def plain_dataset(write_dataset: WriteDataset) -> str:
    """100 different pictures of 60x40 pixels, five captions each."""
    return write_dataset([encode_jpeg(60, 40, seed=i) for i in range(100)])
