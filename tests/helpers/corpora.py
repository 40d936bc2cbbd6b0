"""Images and captions that tell which row they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from clipkit.readers import Item
from clipkit.types import Record

NUM_ROWS = 1200


def make_image(number: int, *, width: int = 16, height: int = 12, suffix: str = ".jpg") -> bytes:
    """An image that differs from every other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def make_captions(number: int) -> list[str]:
    """One to three captions with commas, quotes, accents and repeats."""
    return [f"photo {number}, a “đứng”", f'it says "{number}"', f"photo {number}, a “đứng”"][: 1 + number % 3]


def image_bytes(record: Record) -> bytes:
    assert isinstance(record.image, (Path, bytes))
    return record.image.read_bytes() if isinstance(record.image, Path) else record.image


def check_records(items: list[Item], *, numbers: Iterable[int] = range(NUM_ROWS)) -> None:
    """Every image of the corpus is there with its own bytes and captions, in order."""
    records = [item for item in items if isinstance(item, Record)]
    assert len(records) == len(items)
    for number, record in zip(numbers, records, strict=True):
        assert image_bytes(record) == make_image(number), number
        assert list(record.captions) == make_captions(number)
