"""Decoding: right colours, whatever the format, and at least the size needed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.images.decode import choose_divisor, decode, decode_with_opencv, decode_with_simplejpeg
from clipkit.images.header import parse_header

DECODERS = [decode_with_opencv, pytest.param(decode_with_simplejpeg, id="decode_with_simplejpeg")]


@pytest.fixture(params=DECODERS)
def jpeg_decoder(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    if request.param is decode_with_simplejpeg:
        pytest.importorskip("simplejpeg")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def photographs(photographs_dir: Path) -> list[memoryview]:
    return [memoryview(path.read_bytes()) for path in sorted(photographs_dir.glob("*.jpg"))[:40]]


def test_colours_are_those_of_pillow(photographs: list[memoryview], jpeg_decoder: Callable[..., np.ndarray]) -> None:
    for data in photographs:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)
        found = decode(data, parse_header(data), jpeg=jpeg_decoder)  # type: ignore[arg-type]
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 3


def test_colours_of_subsampled_jpegs_are_those_of_pillow(
    flickr8k_dir: Path, jpeg_decoder: Callable[..., np.ndarray]
) -> None:
    for path in sorted((flickr8k_dir / "Images").glob("*.jpg"))[:100]:
        data = memoryview(path.read_bytes())
        expected = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        found = decode(data, parse_header(data), jpeg=jpeg_decoder)  # type: ignore[arg-type]
        assert np.abs(found - expected).mean() < 2, path.name


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded(kind: str) -> None:
    image = Image.fromarray(np.full((24, 36, 3), (200, 40, 90), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = memoryview(buffer.getvalue())
    found = decode(data, parse_header(data))
    assert found.shape == (24, 36, 3)
    assert np.abs(found.mean((0, 1)) - (200, 40, 90)).max() < 4


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_unusual_jpegs_are_decoded(mode: str) -> None:
    image = Image.new("RGB", (40, 30), (180, 180, 180)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    data = memoryview(buffer.getvalue())
    found = decode(data, parse_header(data))
    assert found.shape == (30, 40, 3)
    assert np.abs(found.astype(int) - 180).max() < 6


def test_scaled_decoding_is_at_least_the_size_needed(
    photographs: list[memoryview], jpeg_decoder: Callable[..., np.ndarray]
) -> None:
    for data in photographs[:10]:
        info = parse_header(data)
        for size_px in (32, 64, 112, 224):
            divisor = choose_divisor(info.width, info.height, size_px)
            pixels = decode(data, info, divisor=divisor, jpeg=jpeg_decoder)  # type: ignore[arg-type]
            assert min(pixels.shape[:2]) >= min(size_px, info.width, info.height)
            assert divisor == 1 or min(info.width, info.height) < 2 * divisor * size_px or divisor == 8
