"""Images of every format, written by Pillow, against what Pillow makes of them."""

from __future__ import annotations

import io
import random
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from clipkit.images.codec import BadImage, ImageOptions, decode, prepare
from clipkit.images.header import parse_header

pillow_heif.register_heif_opener()


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth colours with an edge, so that it survives lossy formats and no two corners are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(6 * x * y)], axis=2)
    pixels[: height // 4, : width // 4] = (250, 20, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def transparent() -> Image.Image:
    image = photo().convert("RGBA")
    ramp = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(ramp))
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)


def palette_with_transparency() -> bytes:
    image = photo().quantize(32)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


def animation() -> bytes:
    others = [Image.new("RGB", (96, 64), color) for color in ("green", "blue")]
    return encoded(photo(), "GIF", save_all=True, append_images=others)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(photo(), "JPEG", quality=95),
    "jpeg progressive": lambda: encoded(photo(), "JPEG", quality=95, progressive=True),
    "jpeg grey": lambda: encoded(photo().convert("L"), "JPEG", quality=95),
    "jpeg cmyk": lambda: encoded(photo().convert("CMYK"), "JPEG", quality=95),
    "png": lambda: encoded(photo(), "PNG"),
    "png 1 bit": lambda: encoded(photo().convert("1"), "PNG"),
    "png palette": lambda: encoded(photo().quantize(64), "PNG"),
    "png palette with transparency": palette_with_transparency,
    "png alpha": lambda: encoded(transparent(), "PNG"),
    "png grey alpha": lambda: encoded(transparent().convert("LA"), "PNG"),
    "webp": lambda: encoded(photo(), "WEBP", quality=95),
    "webp lossless alpha": lambda: encoded(transparent(), "WEBP", lossless=True),
    "webp alpha": lambda: encoded(transparent(), "WEBP", quality=95),
    "bmp": lambda: encoded(photo(), "BMP"),
    "bmp palette": lambda: encoded(photo().quantize(64), "BMP"),
    "tiff": lambda: encoded(photo(), "TIFF"),
    "tiff lzw": lambda: encoded(photo(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": lambda: encoded(photo().convert("CMYK"), "TIFF"),
    "tiff alpha": lambda: encoded(transparent(), "TIFF"),
    "gif": lambda: encoded(photo(), "GIF"),
    "gif animation": animation,
    "avif": lambda: encoded(photo(), "AVIF", quality=90),
    "heic": lambda: encoded(photo(), "HEIF", quality=90),
}


def expected(data: bytes, size: tuple[int, int]) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return np.asarray(image.resize(size, Image.Resampling.BOX)).astype(float)


def decoded(data: bytes | memoryview) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("name", FILES)
def test_every_format(name: str) -> None:
    data = FILES[name]()
    info = parse_header(data)
    assert (info.format, info.width, info.height) == (name.split()[0], 96, 64)
    pixels = decode(data, info)[:, :, ::-1].astype(float)
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


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("avif", "heic")])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files_are_told_by_their_structure(name: str, share: float) -> None:
    data = FILES[name]()
    cut = data[: int(len(data) * share)]
    with pytest.raises(BadImage, match=r"^(empty file|truncated|no image)"):
        parse_header(cut)


@pytest.mark.parametrize("name", ["avif", "heic"])
def test_truncated_heif(name: str) -> None:
    data = FILES[name]()
    with pytest.raises(BadImage):
        prepare(data[: len(data) // 2], ImageOptions(verify=True))


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x00" * 1000, b"<html></html>", b"\xff\xd8\xff", b"BM"])
def test_no_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        prepare(data, ImageOptions())


def test_bytes_behind_the_end_do_no_harm() -> None:
    for name in ("jpeg", "png", "webp", "gif"):
        assert parse_header(FILES[name]() + b"\0" * 10).width == 96


def test_a_thumbnails_end_marker_is_not_the_images() -> None:
    data = encoded(photo(400, 300), "JPEG", exif=Image.Exif().tobytes() + FILES["jpeg"]())
    assert data.index(b"\xff\xd9") < len(data) // 2
    with pytest.raises(BadImage, match="no JPEG end marker"):
        parse_header(data[: len(data) // 2])


def test_damaged_headers_raise_nothing_else() -> None:
    draw = random.Random(0)
    for name, make in FILES.items():
        data = make()
        for _ in range(60):
            damaged = bytearray(data[: draw.randrange(1, len(data) + 1)])
            for _ in range(draw.randrange(1, 6)):
                damaged[draw.randrange(min(len(damaged), 200))] = draw.randrange(256)
            try:
                info = parse_header(bytes(damaged))
            except BadImage:
                continue
            assert info.width > 0, name


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
        scaled, full = (
            cv2.resize(decode(data, info, at_least=least), size, interpolation=cv2.INTER_AREA).astype(float)
            for least in (size, (0, 0))
        )
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
