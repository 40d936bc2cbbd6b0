"""Images as ingest stores them, of every format, against what Pillow makes of them."""

from __future__ import annotations

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import FILES, decoded, encoded, expected, photo, sixteen_bit
from PIL import Image

from clipkit.images.decode import decode, divisor_for
from clipkit.images.header import BadImage, parse_header
from clipkit.images.prepare import ImageOptions, prepare


@pytest.mark.parametrize("name", FILES)
def test_every_format(name: str) -> None:
    data = FILES[name]()
    info = parse_header(data)
    assert (info.format, info.width, info.height) == (name.split()[0], 96, 64)
    pixels = decode(data, info).astype(float)
    assert np.abs(pixels - expected(data, (96, 64))).mean() < 3
    image = prepare(data, ImageOptions(resize=32))
    assert (image.width, image.height, image.orientation) == (48, 32, 1)
    assert decoded(image.data).shape == (32, 48, 3)
    kept = prepare(data, ImageOptions(resize=64))
    assert kept.data is data


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_sixteen_bit_png(mode: str) -> None:
    grey = np.asarray(sixteen_bit())
    pixels = grey if mode == "I;16" else np.stack([grey, grey // 2, grey // 4], axis=2)
    data = bytes(cv2.imencode(".png", pixels)[1])
    image = prepare(data, ImageOptions(resize=32, quality=98))
    as_rgb = pixels[:, :, ::-1] if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)
    reference = Image.fromarray((as_rgb >> 8).astype(np.uint8)).resize((48, 32), Image.Resampling.BOX)
    assert np.abs(decoded(image.data) - np.asarray(reference)).mean() < 3


@pytest.mark.parametrize("name", ["avif", "heic"])
def test_truncated_heif(name: str) -> None:
    data = FILES[name]()
    with pytest.raises(BadImage):
        prepare(data[: len(data) // 2], ImageOptions(verify=True))


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x00" * 1000, b"<html></html>", b"\xff\xd8\xff", b"BM"])
def test_no_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        prepare(data, ImageOptions())


def test_verify_decodes() -> None:
    data = bytearray(FILES["png"]())
    start = data.index(b"IDAT") + 4
    data[start : start + 40] = b"\xff" * 40
    assert prepare(bytes(data), ImageOptions()).width == 96
    with pytest.raises(BadImage, match="cannot be decoded"):
        prepare(bytes(data), ImageOptions(verify=True))


def test_a_decompression_bomb_costs_nothing() -> None:
    data = bytearray(FILES["png"]())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    started = time.process_time()
    with pytest.raises(BadImage, match="60000x60000 is more than 200000000 pixels"):
        prepare(bytes(data), ImageOptions(resize=64, verify=True))
    assert time.process_time() - started < 0.05


def test_min_size() -> None:
    prepare(FILES["png"](), ImageOptions(min_size=64))
    with pytest.raises(BadImage, match="96x64 has a side below 65"):
        prepare(FILES["png"](), ImageOptions(min_size=65))


@pytest.mark.parametrize(
    ("mode", "size", "expected_size"),
    [
        ("shorter", 32, (48, 32)), ("longer", 48, (48, 32)), ("squash", 32, (32, 32)), ("crop", 32, (32, 32)),
        ("shorter", 64, None), ("longer", 96, None), ("squash", 96, None), ("crop", 96, None),
        ("squash", 80, (80, 64)), ("crop", 80, (80, 64)), ("longer", 1, (1, 1)), ("shorter", 500, None),
    ],
)  # fmt: skip
def test_modes_never_enlarge(mode: str, size: int, expected_size: tuple[int, int] | None) -> None:
    data = FILES["jpeg"]()
    image = prepare(data, ImageOptions(resize=size, resize_mode=mode))
    if expected_size is None:
        assert image.data is data
    else:
        assert (image.width, image.height) == expected_size == Image.open(io.BytesIO(image.data)).size


def test_crop_is_of_the_centre() -> None:
    image = prepare(encoded(photo(), "PNG"), ImageOptions(resize=32, resize_mode="crop", quality=98))
    reference = expected(encoded(photo(), "PNG"), (48, 32))[:, 8:40]
    assert np.abs(decoded(image.data) - reference).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("WEBP", "RGB"),
        ("AVIF", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "CMYK"),
    ],
)
def test_exif_orientation(orientation: int, format: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo().convert(mode), format, exif=exif)
    kept = prepare(data, ImageOptions())
    if format == "TIFF":  # which decoders turn by themselves
        assert (kept.width, kept.height, kept.orientation) == ((96, 64, 1) if orientation < 5 else (64, 96, 1))
    else:
        assert (kept.data, kept.width, kept.height, kept.orientation) == (data, 96, 64, orientation)
    turned = prepare(data, ImageOptions(resize=32, quality=98))
    size = (48, 32) if orientation < 5 else (32, 48)
    assert (turned.width, turned.height, turned.orientation) == (*size, 1)
    assert np.abs(decoded(turned.data) - expected(data, size)).mean() < 3


def test_scaled_decoding_costs_less_than_encoding(photographs_dir: Path) -> None:
    differences = []
    for path in sorted(photographs_dir.iterdir())[:40]:
        data = path.read_bytes()
        info = parse_header(data)
        size = info.width * 64 // info.height, 64
        scaled, full = (decode(data, info, divisor=divisor) for divisor in (divisor_for(info, size), 1))
        scaled, full = (cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(float) for image in (scaled, full))
        encoded_full = cv2.imdecode(cv2.imencode(".jpg", full, (cv2.IMWRITE_JPEG_QUALITY, 90))[1], cv2.IMREAD_COLOR)
        differences.append((np.abs(scaled - full).mean(), np.abs(encoded_full - full).mean()))
    by_scaling, by_encoding = np.mean(differences, axis=0)
    assert by_scaling < 0.5 * by_encoding


def test_threads_agree() -> None:
    options = ImageOptions(resize=40)
    files = [make() for make in FILES.values()] * 8
    with ThreadPoolExecutor(8) as pool:
        in_threads = list(pool.map(lambda data: prepare(data, options), files))
    assert in_threads == [prepare(data, options) for data in files]
