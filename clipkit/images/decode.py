"""An encoded image to RGB pixels.

Plain JPEGs go through simplejpeg where it is installed (the extra `fast`), else through OpenCV, at a half, a quarter
or an eighth of their size where that is large enough: libjpeg then does less work. Pillow decodes what OpenCV cannot,
or reads differently. All functions may run in many threads at once.
"""

from __future__ import annotations

import io
import threading
from typing import Any, Protocol

import cv2
import numpy as np

from clipkit.images.header import BadImage, Data, ImageInfo, parse_header

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3), RGB
MAX_PIXELS = 200_000_000
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
    def __call__(self, data: Data, info: ImageInfo, divisor: int) -> Pixels:
        """RGB pixels, in memory that this thread's next call may overwrite. Raises BadImage."""
        ...


class Scratch(threading.local):
    """Memory that a thread decodes into again and again: warm in its cache, a sixth faster than fresh memory."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> np.ndarray | None:
        """At least this many bytes; None for large images, where fresh memory costs little beside decoding."""
        if num_bytes > SCRATCH_BYTES:
            return None
        if num_bytes > len(self._memory):
            self._memory = np.empty(num_bytes, np.uint8)
        return self._memory


_scratch = Scratch()


def decode_with_opencv(data: Data, info: ImageInfo, divisor: int) -> Pixels:
    pixels = _imdecode(data, CV2_FLAGS[divisor])
    if pixels is None:
        raise BadImage("cannot be decoded")
    return pixels


def decode_with_simplejpeg(data: Data, info: ImageInfo, divisor: int) -> Pixels:
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


def decode(
    data: Data,
    info: ImageInfo,
    *,
    divisor: int = 1,
    jpeg: JpegDecoder = decode_with_opencv,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """8-bit RGB pixels, transparency on white, before the EXIF orientation is applied; raises BadImage.

    Pixels from `jpeg` are valid until this thread decodes another image. `divisor` is for plain JPEGs alone.
    """
    if info.width * info.height > max_pixels:  # a damaged header could ask for all the memory there is
        raise BadImage(f"the header says {info.width}x{info.height}, more than {max_pixels:,} pixels")
    if info.format == "jpeg" and not info.is_cmyk:
        return jpeg(data, info, divisor)
    if info.is_cmyk or info.format in ("gif", "heic") or (info.format == "tiff" and info.has_alpha):
        return _decode_with_pillow(data, info)  # a TIFF's alpha is premultiplied
    flags = cv2.IMREAD_UNCHANGED if info.has_alpha else cv2.IMREAD_COLOR
    pixels = _imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    return _decode_with_pillow(data, info) if pixels is None else _to_rgb(pixels)


def decode_upright(data: Data, *, at_least: tuple[int, int] = (0, 0)) -> Pixels:
    """The image as people see it: decoded, with its EXIF orientation applied; raises BadImage.

    A JPEG may come at a half, quarter or eighth, twice `at_least` (width, height) or larger: the last halving is left
    to a filter that averages.
    """
    info = parse_header(data)
    return turn_upright(decode(data, info, divisor=divisor_for(info, at_least)), info.orientation)


def divisor_for(info: ImageInfo, at_least: tuple[int, int]) -> int:
    """The largest divisor that leaves twice `at_least` (width, height); 1 where that is 0."""
    width, height = at_least
    return choose_divisor(info.width / width, info.height / height, 2) if min(at_least) > 0 else 1


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """The image upright: EXIF orientations 2 to 8 are mirrorings and quarter turns."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    if orientation in (2, 3, 6, 7):
        pixels = cv2.flip(pixels, 1)
    if orientation in (3, 4, 7, 8):
        pixels = cv2.flip(pixels, 0)
    return pixels


def _imdecode(data: Data, flags: int) -> np.ndarray[Any, Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadImage(f"cannot be decoded: {error.err}") from error


def _to_rgb(pixels: np.ndarray[Any, Any]) -> Pixels:
    """What OpenCV gives for a file with or without alpha (grey, BGR or BGRA; 8 or 16 bits) as 8-bit RGB on white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    rgb: Pixels = cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_BGR2RGB)
    if pixels.shape[2] == 3:
        return rgb
    alpha = pixels[:, :, 3:].astype(np.uint16)
    on_white: Pixels = ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return on_white


def _decode_with_pillow(data: Data, info: ImageInfo) -> Pixels:
    from PIL import Image

    if info.format == "heic":
        _register_heif()
    try:
        with Image.open(io.BytesIO(data)) as file:
            image: Image.Image = file
            if info.has_alpha:
                image = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file.convert("RGBA"))
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be decoded: {error}") from error


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise BadImage("HEIC images need the package pillow-heif (pip install pillow-heif)") from error
    register_heif_opener()
