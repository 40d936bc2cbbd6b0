"""Pixels: an encoded image as the encoder takes it, in training and in evaluation."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_datasets import AUGMENTED, batches_of, encode, jpeg, loader_of

from clipkit.config import DataConfig
from clipkit.data.inputs import Pixels
from clipkit.data.loader import build_loader
from clipkit.errors import ConfigError
from clipkit.images.decode import decode_with_opencv
from clipkit.images.header import BadImage
from clipkit.images.resize import resize_for
from clipkit.types import ImageSpec

UNAUGMENTED = {"kind": "none"}


@pytest.fixture(scope="module")
def photographs(photographs_dir: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photographs_dir.glob("*.jpg"))[:40]]


def rendered(data: bytes, spec: ImageSpec, **config: Any) -> np.ndarray:
    """As in evaluation."""
    out = np.empty((spec.size_px, spec.size_px, 3), np.uint8)
    data_config = DataConfig.model_validate({"dataset": "unused", **config})
    Pixels(data_config, spec, seed=None, jpeg=decode_with_opencv).render(memoryview(data), None, None, out)
    return out.astype(float)


def test_scaled_decoding_changes_little(photographs: list[bytes]) -> None:
    scaled, full = (
        np.array([rendered(data, ImageSpec(112), decode=mode) for data in photographs]) for mode in ("scaled", "full")
    )
    assert np.abs(scaled - full).mean() < 5


@pytest.mark.parametrize("size_px", [224, 128])
def test_decoded_in_full_an_image_is_delivered_as_pillow_resizes_it(photographs: list[bytes], size_px: int) -> None:
    differences = []
    for data in photographs:
        expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
        found = rendered(data, ImageSpec(size_px), decode="full")
        differences.append(np.abs(found - np.asarray(expected, dtype=float)).mean())
    assert np.mean(differences) < 2.5
    assert max(differences) < 6


@pytest.mark.parametrize("interpolation", ["fast", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("decode", ["scaled", "full"])
def test_the_model_decides_how_an_image_becomes_a_square(
    write_dataset: Any, resize: Any, interpolation: Any, decode: str
) -> None:
    """In evaluation, and in training without augmentation; a crop of the augmentation's is squashed instead."""
    encoded = [encode(90, 50, "PNG", seed=i) for i in range(4)]
    path = write_dataset(encoded)
    spec = ImageSpec(32, resize=resize, interpolation=interpolation, mean=(0.1, 0.5, 0.9))

    def pixels(*, seed: int | None, augment: dict[str, Any]) -> np.ndarray:
        config = DataConfig.model_validate(
            {"dataset": path, "image_size": 32, "shuffle": False, "augment": augment, "decode": decode}
        )
        loader = build_loader(config, [Pixels(config, spec, seed=seed)], batch_size=4, seed=5)
        return batches_of(loader, stop=1)[0]["pixels"].numpy()

    expected = np.empty((4, 32, 32, 3), np.uint8)
    for data, out in zip(encoded, expected, strict=True):
        resize_for(np.asarray(Image.open(io.BytesIO(data))), spec, out, exact=decode == "full")
    for found in (
        pixels(seed=None, augment=AUGMENTED),
        pixels(seed=None, augment={"kind": "random_crop", "resize": 40}) if resize != "squash" else expected,
        pixels(seed=5, augment=UNAUGMENTED),
    ):
        assert np.array_equal(found, expected)
    assert np.abs(pixels(seed=5, augment=AUGMENTED).astype(int) - expected).mean() > 5


def test_a_cache_of_squashed_images_is_only_for_models_that_squash() -> None:
    config = DataConfig(dataset="unused", cache=256)
    with pytest.raises(ConfigError, match=r"`data.resize: crop`"):
        Pixels(config, ImageSpec(224, resize="crop"), seed=0)


def test_exif_orientation_is_applied(write_dataset: Any) -> None:
    turned = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.append(jpeg(64, 32, seed=3, exif=exif))
    (batch,) = batches_of(loader_of(write_dataset(turned), batch_size=8, shuffle=False), stop=1)
    for data, pixels in zip(turned, batch["pixels"].numpy(), strict=True):
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((32, 32))
        assert np.abs(np.asarray(expected, float) - pixels).mean() < 6


def huge(mode: str) -> bytes:
    """A JPEG whose header says that it has 60,000 by 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def damaged_avif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "AVIF")
    return buffer.getvalue().replace(b"iloc", b"xxxx")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"junk" * 10, "not an image"),
        (jpeg(60, 40)[:100], None),
        (huge("RGB"), "60000x60000, more than 200,000,000 pixels"),
        (huge("CMYK"), "60000x60000, more than 200,000,000 pixels"),
        (damaged_avif(), "cannot be decoded"),
    ],
    ids=["empty", "junk", "truncated", "huge", "huge CMYK", "damaged AVIF"],
)
def test_what_cannot_be_decoded_is_a_bad_image(data: bytes, reason: str | None) -> None:
    with pytest.raises(BadImage, match=reason):
        rendered(data, ImageSpec(64))
