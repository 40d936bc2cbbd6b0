"""Augmentation: the right regions, and what each change does."""

from __future__ import annotations

import numpy as np

from clipkit.config import RandomCrop, RandomResizedCrop
from clipkit.data.augment import FLIP, NUM_UNIFORMS, augment_pixels, crop_box, cut
from clipkit.data.random import key, uniforms


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


def test_a_random_crop_is_square_and_evaluation_takes_the_middle() -> None:
    augment = RandomCrop(resize=40)
    box = crop_box(200, 100, 20, augment, None)
    assert (box.left, box.top, box.width, box.height) == (75, 25, 50, 50)
    image = np.arange(100 * 200 * 3, dtype=np.uint8).reshape(100, 200, 3)
    assert np.array_equal(cut(image, box, 1.0), image[25:75, 75:125])


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
