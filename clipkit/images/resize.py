"""RGB pixels of any size to the square that a model takes."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from clipkit.images.decode import Pixels
from clipkit.types import ImageSpec


def resize_for(pixels: Pixels, spec: ImageSpec, out: Pixels, *, exact: bool = False) -> None:
    """Fill `out`, (size, size, 3) uint8, with the image as the spec wants it.

    `exact` is for the interpolation `fast`, as in `resize_fast`. Sizes are rounded and crops placed as torchvision
    does it.
    """
    height, width = pixels.shape[:2]
    if spec.resize == "crop":
        shortest_px, short = spec.shortest_px or spec.size_px, min(width, height)
        if spec.interpolation == "fast":  # only what is kept is resized
            side = max(1, round(spec.size_px * short / shortest_px))
            resize_fast(_centre(pixels, side, side), out, exact=exact)
        else:
            size = shortest_px * width // short, shortest_px * height // short
            out[...] = _centre(resize_antialiased(pixels, size, spec.interpolation), *out.shape[1::-1])
        return
    if spec.resize == "pad":
        scale = spec.size_px / max(width, height)
        out[...] = np.round(255 * np.array(spec.mean))
        out = _centre(out, max(1, round(width * scale)), max(1, round(height * scale)))
    if spec.interpolation == "fast":
        resize_fast(pixels, out, exact=exact)
    else:
        out[...] = resize_antialiased(pixels, (out.shape[1], out.shape[0]), spec.interpolation)


def resize_fast(pixels: Pixels, out: Pixels, *, exact: bool = False) -> None:
    """Fill `out` by OpenCV.

    All pixels that become one are averaged where they are two or more a side, or `exact` is asked for: of fewer it
    costs as much as decoding them.
    """
    (height, width), (new_height, new_width) = pixels.shape[:2], out.shape[:2]
    if pixels.shape == out.shape:
        out[...] = pixels
        return
    factor = 1 if exact else 2
    averages = height >= factor * new_height and width >= factor * new_width
    interpolation = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
    cv2.resize(pixels, (new_width, new_height), dst=out, interpolation=interpolation)


def resize_antialiased(pixels: Pixels, size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]) -> Pixels:
    """The image at `size` (width, height) as Pillow resizes it, to within rounding."""
    import torch  # ingest resizes without it

    image_HWC = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    image_1CHW = image_HWC.permute(2, 0, 1)[None]
    resized_1CHW = torch.nn.functional.interpolate(
        image_1CHW, (size[1], size[0]), mode=interpolation, antialias=True, align_corners=False
    )
    resized: Pixels = resized_1CHW[0].permute(1, 2, 0).numpy()
    return resized


def _centre(pixels: Pixels, width: int, height: int) -> Pixels:
    """A view of the middle of the image, at most `width` x `height`."""
    top, left = max(0, (pixels.shape[0] - height) // 2), max(0, (pixels.shape[1] - width) // 2)
    return pixels[top : top + height, left : left + width]
