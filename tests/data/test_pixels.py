"""Decoding and transforms: right colours, right regions, and what scaling costs."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.config import DataConfig, RandomCrop, RandomResizedCrop
from clipkit.data.augment import FLIP, NUM_UNIFORMS, augment_pixels, crop_box, cut_and_resize
from clipkit.data.inputs.pixels import EncodedImages
from clipkit.data.random import key, uniforms
from clipkit.images.decode import choose_divisor, decode, decode_with_opencv, decode_with_simplejpeg
from clipkit.images.header import BadImage, parse_header

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


def test_scaled_decoding_changes_little(photographs: list[memoryview]) -> None:
    differences = []
    for data in photographs:
        pair = []
        for mode in ("scaled", "full"):
            config = DataConfig.model_validate({"dataset": "unused", "decode": mode})
            out = np.empty((112, 112, 3), np.uint8)
            EncodedImages(config, decode_with_opencv).render(data, None, None, out)
            pair.append(out.astype(float))
        differences.append(np.abs(pair[0] - pair[1]).mean())
    assert np.mean(differences) < 5


@pytest.mark.parametrize("size_px", [224, 128])
def test_decoded_in_full_an_image_is_delivered_as_pillow_resizes_it(
    photographs: list[memoryview], jpeg_decoder: Callable[..., np.ndarray], size_px: int
) -> None:
    images = EncodedImages(DataConfig(dataset="unused", decode="full"), jpeg_decoder)  # type: ignore[arg-type]
    differences = []
    for data in photographs:
        expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
        out = np.empty((size_px, size_px, 3), np.uint8)
        images.render(data, None, None, out)
        differences.append(np.abs(out - np.asarray(expected, dtype=float)).mean())
    assert np.mean(differences) < 2.5
    assert max(differences) < 6


def test_a_truncated_image_is_bad(photographs: list[memoryview]) -> None:
    config = DataConfig(dataset="unused")
    out = np.empty((64, 64, 3), np.uint8)
    for data in (memoryview(b""), memoryview(b"junk" * 10), photographs[0][:100]):
        with pytest.raises(BadImage):
            EncodedImages(config, decode_with_opencv).render(data, None, None, out)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_header_of_a_huge_size_is_bad(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "JPEG")
    frame = buffer.getvalue().index(b"\xff\xc0") + 5
    data = bytearray(buffer.getvalue())
    data[frame : frame + 4] = struct.pack(">HH", 60_000, 60_000)
    out = np.empty((64, 64, 3), np.uint8)
    with pytest.raises(BadImage, match="60000x60000, more than 200,000,000 pixels"):
        EncodedImages(DataConfig(dataset="unused"), decode_with_opencv).render(memoryview(data), None, None, out)


def test_a_damaged_avif_is_bad() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "AVIF")
    data = buffer.getvalue().replace(b"iloc", b"xxxx")
    out = np.empty((32, 32, 3), np.uint8)
    with pytest.raises(BadImage, match="cannot be decoded"):
        EncodedImages(DataConfig(dataset="unused"), decode_with_opencv).render(memoryview(data), None, None, out)


def test_crops_cover_what_was_asked() -> None:
    augment = RandomResizedCrop(scale=(0.25, 0.5), ratio=(0.8, 1.25))
    numbers = uniforms(key(1), np.arange(500), np.zeros(500, dtype=np.int64), count=NUM_UNIFORMS)
    for row in numbers.tolist():
        box = crop_box(200, 150, 64, augment, row)
        assert 0.24 < box.width * box.height / 30_000 < 0.51
        assert 0.78 < box.width / box.height < 1.28
        assert box.left >= 0
        assert box.left + box.width <= 200
        assert box.top >= 0
        assert box.top + box.height <= 150


def test_a_random_crop_is_square_and_validation_takes_the_middle() -> None:
    augment = RandomCrop(resize=40)
    box = crop_box(200, 100, 20, augment, None)
    assert (box.left, box.top, box.width, box.height) == (75, 25, 50, 50)
    image = np.arange(100 * 200 * 3, dtype=np.uint8).reshape(100, 200, 3)
    out = np.empty((50, 50, 3), np.uint8)
    cut_and_resize(image, box, 1.0, out)
    assert np.array_equal(out, image[25:75, 75:125])


def test_flip_and_jitter_and_erasing() -> None:
    image = np.random.default_rng(0).integers(60, 180, (32, 32, 3), dtype=np.uint8)
    numbers = [0.5] * NUM_UNIFORMS
    out = image.copy()
    augment_pixels(out, RandomResizedCrop(flip=True), [*numbers[:FLIP], 0.1, *numbers[FLIP + 1 :]])
    assert np.array_equal(out, image[:, ::-1])
    out = image.copy()
    augment_pixels(out, RandomResizedCrop(color_jitter=0.4), numbers)  # the middle of each range changes nothing
    assert np.abs(out.astype(int) - image).max() <= 1
    augment_pixels(out, RandomResizedCrop(color_jitter=0.4), [0.9] * NUM_UNIFORMS)
    assert np.abs(out.astype(int) - image).mean() > 5
    out = image.copy()
    augment_pixels(out, RandomResizedCrop(random_erasing=1.0), numbers)
    erased = (out != image).any(2).mean()
    assert 0.02 < erased < 0.4


def test_random_numbers_are_uniform_and_fixed() -> None:
    numbers = uniforms(key(3, 2), np.arange(2000), np.full(2000, 4), count=8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.1
    again = uniforms(key(3, 2), np.array([17]), np.array([4]), count=8)
    assert np.array_equal(again[0], numbers[17])
    assert not np.array_equal(uniforms(key(3, 2), np.array([17]), np.array([5]), count=8), again)
