"""Image files of every format, written by Pillow, and what Pillow makes of them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

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
