"""Images that occur in two splits: the same bytes, or the same picture re-encoded, scaled or cropped.

Candidates are pairs with similar perceptual hashes (64 signs of low frequencies). Their 8x8 thumbnails must also
agree, which separates a scene from its copy with two colours swapped.

Shapes: N images, M images of one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np

from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.images.decode import decode_upright
from clipkit.images.header import BadImage
from clipkit.store import Dataset
from clipkit.types import Progress, no_progress

READ_ROWS = 256
HASH_PX, THUMBNAIL_PX = 32, 8
MAX_DISTANCE = 10  # of 64 bits
MAX_MEAN_DIFFERENCE, MAX_DIFFERENCE = 6.0, 40  # of 255, between the thumbnails' values
PAIRS_AT_ONCE = 4_000_000
POWERS_64 = np.uint64(1) << np.arange(64, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Member:
    image_id: str
    split: str


@dataclass(frozen=True, slots=True)
class Near:
    """Two images that look the same, and in how many of 64 bits their hashes differ."""

    images: tuple[Member, Member]
    distance: int


@dataclass(frozen=True, slots=True)
class Leaks:
    exact: Sequence[tuple[Member, ...]]  # images with the same bytes, from two splits or more
    near: Sequence[Near]
    num_unreadable: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Print:
    """What is compared of an image."""

    member: Member
    digest: bytes
    hash: np.uint64
    thumbnail: np.ndarray  # (8 * 8 * 3,) int16


def find_leaks(uri: str, *, version: int | str | None = None, progress: Progress = no_progress) -> Leaks:
    """Compare every image with those of the other splits."""
    dataset = Dataset(uri, version=version)
    if "split" not in dataset.schema.names:
        raise DataError(f"`{uri}` has no column `split`", "`clipkit ingest` makes one with `--val-fraction 0.1`")
    rows = dataset.select("split is not null")
    prints: list[Print] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(rows), READ_ROWS):
            chunk = rows[start : start + READ_ROWS]
            table = dataset.take(chunk, [dataset.columns.image_id, "split"])
            members = map(Member, *(column.to_pylist() for column in table.columns))
            prints += filter(None, pool.map(take_print, members, dataset.take_images(chunk)))
            progress(start + len(chunk), len(rows))
    return Leaks(_find_exact(prints), list(_find_near(prints)), len(rows) - len(prints))


def take_print(member: Member, data: bytes | memoryview) -> Print | None:
    """The digest, hash and thumbnail of an image; None if it cannot be decoded."""
    try:
        pixels = decode_upright(data, at_least=(HASH_PX, HASH_PX))
    except BadImage:
        return None
    small = cv2.resize(pixels, (HASH_PX, HASH_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(grey)[:8, :8].ravel()
    signs = low > np.median(low[1:])
    thumbnail = cv2.resize(small, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).ravel()
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Print(member, digest, np.uint64((signs * POWERS_64).sum()), thumbnail.astype(np.int16))


def _find_exact(prints: Sequence[Print]) -> list[tuple[Member, ...]]:
    by_digest: dict[bytes, list[Member]] = {}
    for image in prints:
        by_digest.setdefault(image.digest, []).append(image.member)
    groups = by_digest.values()
    return [tuple(members) for members in groups if len({member.split for member in members}) > 1]


def _find_near(prints: Sequence[Print]) -> Iterator[Near]:
    """Pairs from different splits; every pair is compared, a block at a time."""
    splits = np.array([image.member.split for image in prints])
    hash_N = np.array([image.hash for image in prints], np.uint64)
    for first, second in combinations(sorted(set(splits.tolist())), 2):
        left_N, right_M = np.flatnonzero(splits == first), np.flatnonzero(splits == second)
        rows_at_once = max(1, PAIRS_AT_ONCE // max(1, len(right_M)))
        for start in range(0, len(left_N), rows_at_once):
            block = left_N[start : start + rows_at_once]
            distances = np.bitwise_count(hash_N[block, None] ^ hash_N[right_M])
            for i, j in np.argwhere(distances <= MAX_DISTANCE):
                one, other = prints[block[i]], prints[right_M[j]]
                if one.digest != other.digest and _look_alike(one.thumbnail, other.thumbnail):
                    yield Near((one.member, other.member), int(distances[i, j]))


def _look_alike(first: np.ndarray, second: np.ndarray) -> bool:
    difference = np.abs(first - second)
    return bool(difference.mean() <= MAX_MEAN_DIFFERENCE and difference.max() <= MAX_DIFFERENCE)
