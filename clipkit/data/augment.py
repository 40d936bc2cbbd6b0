"""Augmentation: random crops, flips, colours and erasing.

The random numbers are a function of the row and the epoch, so threads, ranks and resuming do not change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from clipkit.config import NoAugment, RandomCrop, RandomResizedCrop
from clipkit.images.decode import Pixels

CROP_TRIES = 4
# What each of a sample's uniform random numbers decides.
FLIP, ERASE, COLOR, CROP = 0, 1, 6, 9
NUM_UNIFORMS = CROP + 4 * CROP_TRIES

Augmentation = NoAugment | RandomResizedCrop | RandomCrop


class Box(NamedTuple):
    """A region of an image, in pixels of the upright image."""

    left: float
    top: float
    width: float
    height: float


def crop_box(width: int, height: int, size_px: int, augment: Augmentation, uniforms: Sequence[float] | None) -> Box:
    """The region that becomes the sample; without `uniforms`, the region for evaluation."""
    if isinstance(augment, RandomCrop):
        side = min(width, height) * size_px / augment.resize
        across, down = (uniforms[CROP], uniforms[CROP + 1]) if uniforms else (0.5, 0.5)
        return Box((width - side) * across, (height - side) * down, side, side)
    if isinstance(augment, RandomResizedCrop) and uniforms:
        return _random_resized_box(width, height, augment, uniforms)
    return Box(0, 0, width, height)


def _random_resized_box(width: int, height: int, augment: RandomResizedCrop, uniforms: Sequence[float]) -> Box:
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for start in range(CROP, NUM_UNIFORMS, 4):
        area, shape, across, down = uniforms[start : start + 4]
        target = width * height * (augment.scale[0] + area * (augment.scale[1] - augment.scale[0]))
        ratio = math.exp(low + shape * (high - low))
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(across * (width - box_width + 1)), int(down * (height - box_height + 1))
            return Box(left, top, box_width, box_height)
    # No try fits, as happens in very wide or tall images: use the largest centred region with an allowed ratio.
    box_width = min(width, round(height * augment.ratio[1]))
    box_height = min(height, round(width / augment.ratio[0]))
    return Box((width - box_width) / 2, (height - box_height) / 2, box_width, box_height)


def cut(pixels: Pixels, box: Box, scale: float) -> Pixels:
    """A view of the region, after its coordinates are multiplied by `scale`."""
    height, width = pixels.shape[:2]
    if not box.left and not box.top and box.width * scale >= width and box.height * scale >= height:
        return pixels
    left = min(max(0, round(box.left * scale)), width - 1)
    top = min(max(0, round(box.top * scale)), height - 1)
    right = max(left + 1, min(width, round((box.left + box.width) * scale)))
    bottom = max(top + 1, min(height, round((box.top + box.height) * scale)))
    return pixels[top:bottom, left:right]


def augment_pixels(out: Pixels, augment: Augmentation, uniforms: Sequence[float]) -> None:
    """Flip, colour jitter and random erasing, in place."""
    if isinstance(augment, NoAugment):
        return
    if augment.flip and uniforms[FLIP] < 0.5:
        cv2.flip(out, 1, dst=out)
    if augment.color_jitter:
        _jitter(out, augment.color_jitter, uniforms[COLOR : COLOR + 3])
    if augment.random_erasing and uniforms[ERASE] < augment.random_erasing:
        _erase(out, uniforms[ERASE + 1 : ERASE + 5])


def _jitter(out: Pixels, strength: float, uniforms: Sequence[float]) -> None:
    """Brightness, contrast and saturation, each by a factor in 1 ± strength, as one linear map of colours."""
    brightness, contrast, saturation = (1 + strength * (2 * value - 1) for value in uniforms)
    luma = np.array([0.299, 0.587, 0.114])
    mean_luma = float(cv2.mean(out)[:3] @ luma) * brightness
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * np.tile(luma, (3, 1)))
    shift = np.full((3, 1), (1 - contrast) * mean_luma)
    cv2.transform(out, np.hstack([matrix, shift]), dst=out)


def _erase(out: Pixels, uniforms: Sequence[float]) -> None:
    """Fill a rectangle of 2 % to 33 % of the image with its mean colour."""
    area, shape, across, down = uniforms
    size_px = out.shape[0]
    target = size_px * size_px * (0.02 + area * 0.31)
    ratio = math.exp(math.log(0.3) * (1 - 2 * shape))
    width = max(1, min(size_px, round(math.sqrt(target * ratio))))
    height = max(1, min(size_px, round(math.sqrt(target / ratio))))
    left, top = int(across * (size_px - width + 1)), int(down * (size_px - height + 1))
    out[top : top + height, left : left + width] = np.asarray(cv2.mean(out)[:3]).round().astype(np.uint8)
