"""Orders that keep certain samples in one batch (groups), or out of it (captions of one image)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from clipkit.data.order import Draw, Permutation, of_epoch
from clipkit.data.random import key


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """Shuffled groups of samples, a group's samples side by side and in one batch.

    Where a group would lie across the end of a batch, groups of the next batch that fill the gap exactly change
    places with it. Only a group that nothing fits in with, or that is larger than a batch, is cut.
    """

    members: np.ndarray  # (n,) int64: samples, a group after the other
    sizes: np.ndarray  # (G,) int64: how many samples each group has
    batch_size: int
    drop_last: bool = True
    seed: int = 0
    shuffle: bool = True

    @property
    def num_samples(self) -> int:
        return len(self.members)

    @cached_property
    def _starts(self) -> np.ndarray:
        starts: np.ndarray = np.cumsum(self.sizes) - self.sizes
        return starts

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        samples = [self._batch(epoch, index) for index in range(start // self.batch_size, -(-stop // self.batch_size))]
        first = start // self.batch_size * self.batch_size
        return of_epoch(np.concatenate(samples)[start - first : stop - first], epoch)

    def _batch(self, epoch: int, index: int) -> np.ndarray:
        """Its own stretch of the layout, less what fills the batch before, and more what fills it up."""
        groups, ends = _layout(self, epoch)
        low, high = index * self.batch_size, min((index + 1) * self.batch_size, self.num_samples)
        given, kept = self._exchange(groups, ends, low)
        taken, pushed = self._exchange(groups, ends, high)
        first, last = np.searchsorted(ends, (low, high - 1), side="right")
        own = [place for place in range(first, last + 1) if place not in given and place != pushed and place != kept]
        if kept is not None:
            own.insert(0, kept)
        own += taken
        pieces = [self._piece(groups, ends, place, low, high, whole=place in taken or place == kept) for place in own]
        return np.concatenate(pieces)

    def _piece(
        self, groups: np.ndarray, ends: np.ndarray, place: int, low: int, high: int, *, whole: bool
    ) -> np.ndarray:
        group = groups[place]
        start = self._starts[group]
        members = self.members[start : start + self.sizes[group]]
        if whole:
            return members
        offset = ends[place] - self.sizes[group]
        piece: np.ndarray = members[max(0, low - offset) : max(0, high - offset)]
        return piece

    def _exchange(self, groups: np.ndarray, ends: np.ndarray, boundary: int) -> tuple[list[int], int | None]:
        """Places of later groups that move before a boundary, and that of the group that makes room for them."""
        if boundary <= 0 or boundary >= self.num_samples:
            return [], None
        across = int(np.searchsorted(ends, boundary, side="right"))
        gap = int(boundary - (ends[across] - self.sizes[groups[across]]))
        if gap == 0 or self.sizes[groups[across]] > self.batch_size:
            return [], None
        # The group that lies across the next boundary moves itself, so it is no filler.
        last = int(np.searchsorted(ends, min(boundary + self.batch_size, self.num_samples), side="right"))
        candidates = range(across + 1, last)
        fillers = _exact_sum([int(self.sizes[groups[place]]) for place in candidates], gap)
        return ([candidates[i] for i in fillers], across) if fillers else ([], None)


@lru_cache(maxsize=2)
def _layout(order: GroupedOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups in the order of an epoch, and where each ends."""
    groups = np.arange(len(order.sizes), dtype=np.int64)
    if order.shuffle:
        groups = Permutation(len(groups), seed=order.seed, epoch=epoch)(groups)
    return groups, np.cumsum(order.sizes[groups])


def _exact_sum(sizes: list[int], target: int) -> list[int]:
    """Indices of sizes that add up to `target`, the earliest that do; none where there are no such."""
    reached: dict[int, list[int]] = {0: []}
    for index, size in enumerate(sizes):
        for total, chosen in list(reached.items()):
            if total + size <= target and total + size not in reached:
                reached[total + size] = [*chosen, index]
        if target in reached:
            return reached[target]
    return []


def group_by_value(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples sorted by their value, and the sizes of the groups of equal ones; a value below 0 stands alone."""
    alone = values < 0
    labels = np.where(alone, values.max(initial=0) + 1 + np.arange(len(values)), values)
    members = np.argsort(labels, kind="stable")
    _, sizes = np.unique(labels, return_counts=True)
    return members.astype(np.int64), sizes.astype(np.int64)


@dataclass(frozen=True, eq=False)
class CaptionOrder:
    """Every caption a sample, and an image's captions as far apart as can be.

    An epoch is a row of passes. An image is in as many of them as it has captions, at even distances, with one
    caption each; within a pass the images are shuffled. Where a batch spans two passes, images of the one are put
    off in the other.
    """

    counts: np.ndarray  # (images,) captions of each image; its samples stand side by side
    batch_size: int
    drop_last: bool = True
    seed: int = 0

    @cached_property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        ends = self._pass_ends
        parts = []
        for index in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            offset = int(ends[index - 1]) if index else 0
            if offset >= stop:
                break
            positions = np.arange(max(start, offset), min(stop, int(ends[index]))) - offset
            parts.append(_caption_pass(self, epoch, index)[positions])
        return of_epoch(np.concatenate(parts), epoch)

    @cached_property
    def first_samples(self) -> np.ndarray:
        first: np.ndarray = np.cumsum(self.counts) - self.counts
        return first

    @cached_property
    def num_passes(self) -> int:
        """As many as the image with the most captions has, but none shorter than a batch."""
        return max(1, min(int(self.counts.max()), self.num_samples // self.batch_size))

    @cached_property
    def _by_pass(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples sorted by their pass, and the pass of each."""
        images = np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)
        numbers = np.arange(self.num_samples, dtype=np.int64) - self.first_samples[images]
        shift = (images.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)) * 2.0**-53
        passes = ((numbers + shift) * (self.num_passes / self.counts[images])).astype(np.int64)
        by_pass = np.argsort(passes, kind="stable").astype(np.int64)
        return by_pass, passes[by_pass]

    @cached_property
    def _pass_ends(self) -> np.ndarray:
        return np.searchsorted(self._by_pass[1], np.arange(self.num_passes), side="right")

    def members(self, index: int) -> np.ndarray:
        """Samples of a pass, not shuffled."""
        ends = self._pass_ends
        samples: np.ndarray = self._by_pass[0][int(ends[index - 1]) if index else 0 : int(ends[index])]
        return samples

    def images_of(self, samples: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_samples, samples, side="right") - 1


@lru_cache(maxsize=4)
def _caption_pass(order: CaptionOrder, epoch: int, index: int) -> np.ndarray:
    """The samples of a pass in the order of an epoch, which also turns over each image's captions."""
    samples = _shuffled(order, epoch, index)
    if index:
        before = _shuffled(order, epoch, index - 1)
        late = before[-2 * order.batch_size :]  # however that pass was itself rearranged, its end is among these
        window = samples[: 2 * order.batch_size]
        again = np.isin(order.images_of(window), order.images_of(late))
        samples = np.concatenate([window[~again], window[again], samples[len(window) :]])
    images = order.images_of(samples)
    first, counts = order.first_samples[images], order.counts[images]
    turn = np.uint64(key(order.seed, epoch)) % counts.astype(np.uint64)
    turned: np.ndarray = first + (samples - first + turn.astype(np.int64)) % counts
    return turned


def _shuffled(order: CaptionOrder, epoch: int, index: int) -> np.ndarray:
    members = order.members(index)
    shuffle = Permutation(len(members), seed=int(key(order.seed, index)), epoch=epoch)
    shuffled: np.ndarray = members[shuffle(np.arange(len(members), dtype=np.int64))]
    return shuffled
