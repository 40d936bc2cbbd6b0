"""Images that occur in two splits: the same bytes, or the same picture re-encoded, scaled or cropped.

Candidates are pairs with similar perceptual hashes (64 signs of low frequencies). Their 8x8 thumbnails must also
agree, which separates a scene from its copy with two colours swapped.

Shapes: N images, M images of one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
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
    """What images are compared by."""

    digest: bytes
    hash: np.uint64
    thumbnail: np.ndarray  # (8, 8, 3) uint8


@dataclass(frozen=True, slots=True)
class Prints:
    members: Sequence[Member]
    digests: Sequence[bytes]
    hash_N: np.ndarray  # uint64
    thumbnail_N: np.ndarray  # (N, 8 * 8 * 3) int16
    num_unreadable: int


def find_leaks(uri: str, *, version: int | str | None = None, progress: Callable[[int], object] | None = None) -> Leaks:
    """Compare every image with those of the other splits; `progress` gets the number of images just read."""
    dataset = Dataset(uri, version=version)
    if "split" not in dataset.schema.names:
        raise DataError(f"`{uri}` has no column `split`", "`clipkit ingest` makes one with `--val-fraction 0.1`")
    prints = _take_prints(dataset, progress)
    return Leaks(_find_exact(prints), list(_find_near(prints)), prints.num_unreadable)


def take_print(data: bytes | memoryview) -> Print | None:
    """An image's digest, hash and thumbnail; None if it cannot be decoded."""
    try:
        pixels = decode_upright(data, at_least=(HASH_PX, HASH_PX))
    except BadImage:
        return None
    small = cv2.resize(pixels, (HASH_PX, HASH_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(grey)[:8, :8].ravel()
    signs = low > np.median(low[1:])
    thumbnail = cv2.resize(small, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return Print(hashlib.blake2b(data, digest_size=16).digest(), np.uint64((signs * POWERS_64).sum()), thumbnail)


def _take_prints(dataset: Dataset, progress: Callable[[int], object] | None) -> Prints:
    rows = dataset.select("split is not null")
    members: list[Member] = []
    prints: list[Print] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(rows), READ_ROWS):
            chunk = rows[start : start + READ_ROWS]
            table = dataset.take(chunk, [dataset.columns.image_id, "split"])
            found = pool.map(take_print, dataset.take_images(chunk))
            for image_id, split, taken in zip(*(column.to_pylist() for column in table.columns), found, strict=True):
                if taken is not None:
                    members.append(Member(image_id, split))
                    prints.append(taken)
            if progress is not None:
                progress(len(chunk))
    return Prints(
        members=members,
        digests=[taken.digest for taken in prints],
        hash_N=np.array([taken.hash for taken in prints], np.uint64),
        thumbnail_N=np.array([taken.thumbnail.ravel() for taken in prints], np.int16).reshape(-1, THUMBNAIL_PX**2 * 3),
        num_unreadable=len(rows) - len(prints),
    )


def _find_exact(prints: Prints) -> list[tuple[Member, ...]]:
    by_digest: dict[bytes, list[Member]] = {}
    for digest, member in zip(prints.digests, prints.members, strict=True):
        by_digest.setdefault(digest, []).append(member)
    groups = by_digest.values()
    return [tuple(members) for members in groups if len({member.split for member in members}) > 1]


def _find_near(prints: Prints) -> Iterator[Near]:
    """Similar pairs from different splits; compares every pair, a block at a time."""
    splits = np.array([member.split for member in prints.members])
    for first, second in combinations(sorted(set(splits.tolist())), 2):
        left_N, right_M = np.flatnonzero(splits == first), np.flatnonzero(splits == second)
        rows_at_once = max(1, PAIRS_AT_ONCE // max(1, len(right_M)))
        for start in range(0, len(left_N), rows_at_once):
            block = left_N[start : start + rows_at_once]
            distances = np.bitwise_count(prints.hash_N[block, None] ^ prints.hash_N[right_M])
            for i, j in np.argwhere(distances <= MAX_DISTANCE):
                a, b = int(block[i]), int(right_M[j])
                if prints.digests[a] != prints.digests[b] and _look_alike(prints.thumbnail_N[a], prints.thumbnail_N[b]):
                    yield Near((prints.members[a], prints.members[b]), int(distances[i, j]))


def _look_alike(first: np.ndarray, second: np.ndarray) -> bool:
    difference = np.abs(first - second)
    return bool(difference.mean() <= MAX_MEAN_DIFFERENCE and difference.max() <= MAX_DIFFERENCE)
