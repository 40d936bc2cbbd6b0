"""Small Lance datasets written with pylance alone, and batches from them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from clipkit.config import DataConfig
from clipkit.data.inputs import Captions, Input, Pixels, Vectors
from clipkit.data.loader import Loader, build_loader
from clipkit.data.order.base import Share
from clipkit.types import Batch, ImageSpec

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("split", pa.string()),
    ]
)
AUGMENTED = {
    "kind": "random_resized_crop",
    "scale": (0.3, 1.0),
    "flip": True,
    "color_jitter": 0.3,
    "random_erasing": 0.5,
}


def encode(width: int, height: int, kind: str, *, seed: int = 0, **options: Any) -> bytes:
    """A smooth coloured picture, so that compression changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int, height: int, *, seed: int = 0, **options: Any) -> bytes:
    return encode(width, height, "JPEG", seed=seed, quality=95, **options)


def vector_column(values: np.ndarray) -> pa.Array:
    """(N, F) as a column of fixed-size lists of float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])


def write_dataset(
    path: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]] | None = None, **columns: pa.Array
) -> str:
    """Write a dataset of images with a list of captions each, and more columns."""
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


def loader_of(
    path: str,
    *more: Input,
    size: int = 32,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    **data: Any,
) -> Loader:
    """A loader of pixels and captions, or of what `features` store of them, and of `more`."""
    config = DataConfig.model_validate({"dataset": path, "image_size": size, **data})
    features = config.features
    inputs: list[Input] = [
        Vectors("image_features", features.image, setting="data.features.image")
        if features.image
        else Pixels(config, ImageSpec(size), seed=5),
        Vectors("text_features", features.text, setting="data.features.text")
        if features.text
        else Captions(config.captions_column),
    ]
    return build_loader(config, [*inputs, *more], batch_size=batch_size, seed=5, share=Share(rank, world))


def batches_of(loader: Loader, start: int = 0, stop: int = 6) -> list[Batch]:
    with closing(loader), closing(loader.iterate(start, stop)) as batches:
        return list(batches)


def same(one: Batch, other: Batch) -> bool:
    return (
        one.step == other.step
        and one.image_ids == other.image_ids
        and one.captions == other.captions
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other[name]) for name, tensor in one.tensors.items())
    )
