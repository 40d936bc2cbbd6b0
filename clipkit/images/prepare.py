"""What ingest does with an image: its header is checked, and where that is asked for it is resized and encoded again.

`prepare` may run in many threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2

from clipkit.images.decode import MAX_PIXELS, Pixels, decode, divisor_for, turn_upright
from clipkit.images.header import BadImage, Data, parse_header

ResizeMode = Literal["shorter", "longer", "squash", "crop"]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How ingest checks and changes images. Sizes are in pixels."""

    resize: int | None = None
    resize_mode: ResizeMode = "shorter"
    quality: int = 90
    min_size: int = 0  # images with a shorter side are rejected
    max_pixels: int = MAX_PIXELS  # larger images are rejected, before anything is decoded
    verify: bool = False  # decode every image


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """Bytes to store; `width` and `height` are theirs, before `orientation` (EXIF, 1 to 8) is applied."""

    data: Data
    width: int
    height: int
    orientation: int


def prepare(data: Data, options: ImageOptions) -> PreparedImage:
    """The image as it is stored: unchanged, or resized and encoded again. Raises BadImage."""
    info = parse_header(data)
    if info.width * info.height > options.max_pixels:
        raise BadImage(f"{info.width}x{info.height} is more than {options.max_pixels} pixels (--max-pixels)")
    if min(info.width, info.height) < options.min_size:
        raise BadImage(f"{info.width}x{info.height} has a side below {options.min_size} pixels (--min-size)")
    scaled, cropped = target_size(info.width, info.height, options)
    if cropped == (info.width, info.height):
        if options.verify:
            decode(data, info, max_pixels=options.max_pixels)
        return PreparedImage(data, info.width, info.height, info.orientation)
    pixels = decode(data, info, divisor=divisor_for(info, scaled), max_pixels=options.max_pixels)
    if info.format != "jpeg":  # some decoders turn the image upright themselves
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


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if (pixels.shape[1], pixels.shape[0]) != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels


def _crop(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    left, top = (pixels.shape[1] - size[0]) // 2, (pixels.shape[0] - size[1]) // 2
    return pixels[top : top + size[1], left : left + size[0]]


def _encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not done:
        raise BadImage("cannot be encoded as JPEG")
    return bytes(encoded)
