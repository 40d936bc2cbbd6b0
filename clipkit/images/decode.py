"""An encoded image to RGB pixels, at the smallest scale that is still large enough.

JPEGs go through simplejpeg where it is installed (the extra `fast`), else through OpenCV; what is not a plain JPEG
goes the way that ingestion checked it. libjpeg decodes at a half, quarter or eighth for less than the full price.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import cv2
import numpy as np

from clipkit.images.codec import MAX_PIXELS
from clipkit.images.codec import decode as decode_any
from clipkit.images.header import BadImage, ImageInfo

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3), RGB
DIVISORS = (8, 4, 2)
SCRATCH_BYTES = 8_000_000
CV2_FLAGS = {
    divisor: reduced | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    for divisor, reduced in {
        1: 0,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }.items()
}


class JpegDecoder(Protocol):
    def __call__(self, data: memoryview, info: ImageInfo, divisor: int) -> Pixels:
        """RGB pixels, which may lie where this thread's next ones will. Raises BadImage."""
        ...


class Scratch(threading.local):
    """Memory that a thread decodes into again and again: warm in its cache, a sixth faster than fresh memory."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> np.ndarray | None:
        """Room for so many bytes; none for images so large that fresh memory costs nothing beside decoding them."""
        if num_bytes > SCRATCH_BYTES:
            return None
        if num_bytes > len(self._memory):
            self._memory = np.empty(num_bytes, np.uint8)
        return self._memory


_scratch = Scratch()


def decode_with_opencv(data: memoryview, info: ImageInfo, divisor: int) -> Pixels:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS[divisor])
    except cv2.error as error:
        raise BadImage(f"cannot be decoded: {error.err}") from error
    if pixels is None:
        raise BadImage("cannot be decoded")
    return pixels


def decode_with_simplejpeg(data: memoryview, info: ImageInfo, divisor: int) -> Pixels:
    import simplejpeg

    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=True,
            fastupsample=divisor > 1,  # at full size it would show in the colours
            min_height=-(-info.height // divisor) if divisor > 1 else 0,
            min_width=-(-info.width // divisor) if divisor > 1 else 0,
            min_factor=divisor,
            buffer=_scratch.take(3 * info.width * info.height),
            strict=False,
        )
    except ValueError as error:
        raise BadImage(f"cannot be decoded: {error}") from error
    return pixels


def fastest_decoder() -> JpegDecoder:
    """The fastest JPEG decoder that is installed."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return decode_with_opencv
    return decode_with_simplejpeg


def choose_divisor(width: float, height: float, size_px: int) -> int:
    """The largest of 8, 4, 2, 1 that leaves a region of `width` x `height` at least `size_px` on both sides."""
    shorter = min(width, height)
    for divisor in DIVISORS:
        if shorter >= size_px * divisor:
            return divisor
    return 1


def decode(data: memoryview, info: ImageInfo, *, divisor: int = 1, jpeg: JpegDecoder = decode_with_opencv) -> Pixels:
    """RGB pixels as stored, before the EXIF orientation is applied; a JPEG's only until this thread decodes another.

    Raises BadImage, also for a size that only a damaged header can have: it could take all the memory there is.
    """
    if info.width * info.height > MAX_PIXELS:
        raise BadImage(f"the header says {info.width}x{info.height}, more than {MAX_PIXELS:,} pixels")
    if info.format == "jpeg" and not info.is_cmyk:
        return jpeg(data, info, divisor)
    pixels: Pixels = cv2.cvtColor(decode_any(data, info), cv2.COLOR_BGR2RGB)
    return pixels
