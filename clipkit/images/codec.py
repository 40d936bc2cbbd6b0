"""From an image file's bytes to the bytes that are stored: checked, and re-encoded where that is asked for.

Pure functions, safe to call from many threads at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from clipkit.images.header import BadImage, Data, ImageInfo, parse_header

__all__ = ["BadImage", "ImageInfo", "ImageOptions", "PreparedImage", "decode", "decode_upright", "prepare"]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3), in OpenCV's order of colours: blue, green, red
ResizeMode = Literal["shorter", "longer", "squash", "crop"]
MAX_PIXELS = 200_000_000
REDUCED_FLAGS: dict[int, int] = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What is done to images on the way in. Sizes are in pixels."""

    resize: int | None = None
    resize_mode: ResizeMode = "shorter"
    quality: int = 90
    min_size: int = 0  # images with a side below this are turned away
    max_pixels: int = MAX_PIXELS  # and so are larger ones than this, before anything is decoded
    verify: bool = False  # decode every image


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """Bytes to store; `width` and `height` are theirs, before `orientation` (EXIF, 1 to 8) is applied."""

    data: Data
    width: int
    height: int
    orientation: int


def prepare(data: Data, options: ImageOptions) -> PreparedImage:
    """The image as it is to be stored: as found, or resized and encoded again. Raises BadImage."""
    info = parse_header(data)
    if info.width * info.height > options.max_pixels:
        raise BadImage(f"{info.width}x{info.height} is more than {options.max_pixels} pixels (--max-pixels)")
    if min(info.width, info.height) < options.min_size:
        raise BadImage(f"{info.width}x{info.height} has a side below {options.min_size} pixels (--min-size)")
    scaled, cropped = target_size(info.width, info.height, options)
    if cropped == (info.width, info.height):
        if options.verify:
            decode(data, info)
        return PreparedImage(data, info.width, info.height, info.orientation)
    pixels = decode(data, info, at_least=scaled)
    if info.format != "jpeg":  # decoded whole, and some formats' decoders turn the image
        scaled, cropped = target_size(pixels.shape[1], pixels.shape[0], options)
    pixels = turn_upright(_crop(_resize(pixels, scaled), cropped), info.orientation)
    height, width = pixels.shape[:2]
    return PreparedImage(_encode_jpeg(pixels, options.quality), width, height, 1)


def target_size(width: int, height: int, options: ImageOptions) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) to scale to and then to cut out; never larger than the image."""
    size = options.resize
    if size is None:
        return (width, height), (width, height)
    if options.resize_mode == "squash":
        scaled = min(width, size), min(height, size)
        return scaled, scaled
    side = max(width, height) if options.resize_mode == "longer" else min(width, height)
    factor = min(1.0, size / side)
    scaled = max(1, round(width * factor)), max(1, round(height * factor))
    if options.resize_mode == "crop":
        return scaled, (min(scaled[0], size), min(scaled[1], size))
    return scaled, scaled


def decode(data: Data, info: ImageInfo, *, at_least: tuple[int, int] = (0, 0)) -> Pixels:
    """8-bit colours, alpha on white, EXIF orientation not applied; raises BadImage.

    A JPEG is decoded at a half, quarter or eighth where that is still twice `at_least` (width, height): the
    last halving is left to a filter that averages, as after a full decode.
    """
    flags = cv2.IMREAD_COLOR
    if info.has_alpha or info.is_cmyk:
        flags = cv2.IMREAD_UNCHANGED
    elif info.format == "jpeg" and min(at_least) > 0:
        flags = _reduced_flag(min(info.width / at_least[0], info.height / at_least[1]))
    try:
        pixels = None
        if not _is_for_pillow(info):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadImage(f"cannot be decoded: {error.err}") from error
    return _decode_with_pillow(data, info) if pixels is None else _flatten(pixels)


def _reduced_flag(factor: float) -> int:
    return next((flag for divisor, flag in REDUCED_FLAGS.items() if factor >= 2 * divisor), int(cv2.IMREAD_COLOR))


def decode_upright(data: Data, *, at_least: tuple[int, int] = (0, 0)) -> Pixels:
    """The image as it is looked at: decoded, with its EXIF orientation applied; raises BadImage."""
    info = parse_header(data)
    return turn_upright(decode(data, info, at_least=at_least), info.orientation)


def _is_for_pillow(info: ImageInfo) -> bool:
    """What OpenCV does not read, or reads otherwise: a GIF's transparency, a TIFF's premultiplied."""
    return info.is_cmyk or info.format in ("gif", "heic") or (info.format == "tiff" and info.has_alpha)


def _decode_with_pillow(data: Data, info: ImageInfo) -> Pixels:
    from PIL import Image

    if info.format == "heic":
        _register_heif()
    try:
        with Image.open(io.BytesIO(data)) as file:
            image: Image.Image = file
            if info.has_alpha:
                image = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file.convert("RGBA"))
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be decoded: {error}") from error
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise BadImage("HEIC images need the package pillow-heif (pip install 'clipkit-train[heic]')") from error
    register_heif_opener()


def _flatten(pixels: np.ndarray[Any, Any]) -> Pixels:
    """Any of OpenCV's results as 8-bit BGR, its alpha on white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:].astype(np.uint16)
    color = pixels[:, :, :3].astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if (pixels.shape[1], pixels.shape[0]) != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels


def _crop(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    left, top = (pixels.shape[1] - size[0]) // 2, (pixels.shape[0] - size[1]) // 2
    return pixels[top : top + size[1], left : left + size[0]]


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """The image upright: EXIF orientations 2 to 8 are mirrorings and quarter turns."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    if orientation in (2, 3, 6, 7):
        pixels = cv2.flip(pixels, 1)
    if orientation in (3, 4, 7, 8):
        pixels = cv2.flip(pixels, 0)
    return pixels


def _encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    done, encoded = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not done:
        raise BadImage("cannot be encoded as JPEG")
    return bytes(encoded)
