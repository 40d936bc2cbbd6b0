"""An order with one sample per caption, which keeps captions of the same image in different batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from clipkit.config import BlockShuffle
from clipkit.data.order.base import Draw, of_epoch, plain_order, postpone_repeats
from clipkit.data.random import key


@dataclass(frozen=True, eq=False)
class CaptionOrder:
    """Every caption is a sample, and the captions of an image are as far apart as possible.

    An epoch is a sequence of passes. A pass normally has at most one caption of an image, in the order that `shuffle`
    gives, and the passes with an image are evenly spaced. Where a batch spans two passes, images of the first are
    postponed in the second. If a pass has only a few batches, all passes keep the order of the first instead.
    """

    counts: np.ndarray  # (images,) captions of each image; its samples have consecutive numbers
    batch_size: int
    drop_last: bool = True
    seed: int = 0
    shuffle: bool | BlockShuffle = True

    @cached_property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        if self._is_small:
            return of_epoch(self._rotate(_spread(self, epoch)[start:stop], epoch), epoch)
        ends = self._pass_ends
        parts = []
        for index in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            offset = int(ends[index - 1]) if index else 0
            if offset >= stop:
                break
            parts.append(self._in_pass(epoch, index, max(start - offset, 0), min(stop, int(ends[index])) - offset))
        return of_epoch(self._rotate(np.concatenate(parts), epoch), epoch)

    def images_of(self, samples: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_samples, samples, side="right") - 1

    @cached_property
    def first_samples(self) -> np.ndarray:
        first: np.ndarray = np.cumsum(self.counts) - self.counts
        return first

    @cached_property
    def num_passes(self) -> int:
        """As many as the largest number of captions of an image, but no pass is shorter than a batch."""
        return max(1, min(int(self.counts.max()), self.num_samples // self.batch_size))

    @cached_property
    def _pass_ends(self) -> np.ndarray:
        sizes = [len(_members(self, index)) for index in range(self.num_passes)]
        return np.cumsum(sizes)

    @cached_property
    def _is_small(self) -> bool:
        """Whether a pass may be too short to postpone the images at the end of the pass before."""
        return bool(np.diff(self._pass_ends, prepend=0).min() < 3 * self.batch_size)

    def _in_pass(self, epoch: int, index: int, start: int, stop: int) -> np.ndarray:
        head = _head(self, epoch, index) if index else np.empty(0, dtype=np.int64)
        if stop <= len(head):
            return head[start:stop]
        return np.concatenate([head[start:], self.shuffled(epoch, index, max(start, len(head)), stop)])

    def shuffled(self, epoch: int, index: int, start: int, stop: int) -> np.ndarray:
        """The samples at these positions of a pass, with none postponed."""
        members = _members(self, index)
        seed = int(key(self.seed, index))
        order = plain_order(len(members), self.batch_size, shuffle=self.shuffle, seed=seed)
        samples: np.ndarray = members[order.slice(epoch, start, stop).samples]
        return samples

    def _rotate(self, samples: np.ndarray, epoch: int) -> np.ndarray:
        """Rotate each image's captions, so that a pass has different captions in each epoch."""
        if not self.shuffle:
            return samples
        images = self.images_of(samples)
        first, counts = self.first_samples[images], self.counts[images]
        turn = np.uint64(key(self.seed, epoch)) % counts.astype(np.uint64)
        turned: np.ndarray = first + (samples - first + turn.astype(np.int64)) % counts
        return turned


@lru_cache(maxsize=16)
def _head(order: CaptionOrder, epoch: int, index: int) -> np.ndarray:
    """The first samples of a pass, with images at the end of the pass before postponed."""
    head = order.shuffled(epoch, index, 0, 2 * order.batch_size)
    size = len(_members(order, index - 1))
    return postpone_repeats(order, head, order.shuffled(epoch, index - 1, size - order.batch_size, size))


@lru_cache(maxsize=2)
def _spread(order: CaptionOrder, epoch: int) -> np.ndarray:
    """All samples of an epoch: an image's captions evenly spaced, starting where `shuffle` puts the image."""
    num_images = len(order.counts)
    shuffled = plain_order(num_images, order.batch_size, shuffle=order.shuffle, seed=order.seed)
    first_at = np.empty(num_images)
    first_at[shuffled.slice(epoch, 0, num_images).samples] = np.arange(num_images) / num_images
    images = np.repeat(np.arange(num_images), order.counts)
    numbers = np.arange(order.num_samples) - order.first_samples[images]
    spread: np.ndarray = np.argsort((numbers + first_at[images]) / order.counts[images], kind="stable")
    return spread


@lru_cache(maxsize=4)
def _members(order: CaptionOrder, index: int) -> np.ndarray:
    """Samples of a pass in stored order."""
    if order.num_passes == order.counts.min() == order.counts.max():
        return order.first_samples + index
    low, high = _bounds(order, index)
    sizes = high - low
    samples = np.repeat(order.first_samples + low, sizes)
    samples += np.arange(len(samples)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return samples


def _bounds(order: CaptionOrder, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of captions that each image has in a pass.

    They are those with floor((i + shift) * passes / n) equal to the pass's number; the shift, from 0 to 1, spreads the
    captions of images with few captions over the passes.
    """
    images = np.arange(len(order.counts), dtype=np.uint64)
    shift = (images * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)) * 2.0**-53
    low, high = (
        np.clip(np.ceil(number * order.counts / order.num_passes - shift), 0, order.counts).astype(np.int64)
        for number in (index, index + 1)
    )
    return low, high
