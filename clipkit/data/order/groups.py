"""An order that keeps groups of samples in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from clipkit.data.order.base import Draw, OneSamplePerImage, Permutation, of_epoch


@dataclass(frozen=True, eq=False)
class GroupedOrder(OneSamplePerImage):
    """Shuffled groups of samples; a group's samples are consecutive and in one batch.

    A group that would cross the end of a batch changes places with groups of the next batch that fill the gap exactly.
    It is split only if there are no such groups, or if it is larger than a batch.
    """

    members: np.ndarray  # (n,) int64: samples, one group after the other
    sizes: np.ndarray  # (G,) int64: how many samples each group has
    batch_size: int
    drop_last: bool = True
    seed: int = 0
    shuffle: bool = True
    is_endless: bool = False  # whether batches continue from one epoch into the next, as those of a source do

    @property
    def num_samples(self) -> int:
        return len(self.members)

    @cached_property
    def _starts(self) -> np.ndarray:
        starts: np.ndarray = np.cumsum(self.sizes) - self.sizes
        return starts

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        begun = epoch * self.num_samples % self.batch_size if self.is_endless else 0  # part of the batch before
        samples = []
        for index in range((start + begun) // self.batch_size, -(-(stop + begun) // self.batch_size)):
            low = max(0, index * self.batch_size - begun)
            high = min((index + 1) * self.batch_size - begun, self.num_samples)
            samples.append(self._batch(epoch, low, high)[max(start - low, 0) : stop - low])
        return of_epoch(np.concatenate(samples), epoch)

    def _batch(self, epoch: int, low: int, high: int) -> np.ndarray:
        """The batch's own part of the layout, without groups moved to the batch before, with those moved into it."""
        groups, ends = _layout(self, epoch)
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
        """Places of the later groups that move before a boundary, and of the group that moves after it."""
        if boundary <= 0 or boundary >= self.num_samples:
            return [], None
        across = int(np.searchsorted(ends, boundary, side="right"))
        gap = int(boundary - (ends[across] - self.sizes[groups[across]]))
        if gap == 0 or self.sizes[groups[across]] > self.batch_size:
            return [], None
        # The group that crosses the next boundary may move itself, so it cannot fill the gap.
        last = int(np.searchsorted(ends, min(boundary + self.batch_size, self.num_samples), side="right"))
        candidates = range(across + 1, last)
        fillers = _exact_sum([int(self.sizes[groups[place]]) for place in candidates], gap)
        return ([candidates[i] for i in fillers], across) if fillers else ([], None)


@lru_cache(maxsize=2)
def _layout(order: GroupedOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups in the order of an epoch, and the position where each ends."""
    groups = np.arange(len(order.sizes), dtype=np.int64)
    if order.shuffle:
        groups = Permutation(len(groups), seed=order.seed, epoch=epoch)(groups)
    return groups, np.cumsum(order.sizes[groups])


def _exact_sum(sizes: list[int], target: int) -> list[int]:
    """Indices of the earliest sizes that add up to `target`; empty if there are none."""
    reached: dict[int, list[int]] = {0: []}
    for index, size in enumerate(sizes):
        for total, chosen in list(reached.items()):
            if total + size <= target and total + size not in reached:
                reached[total + size] = [*chosen, index]
        if target in reached:
            return reached[target]
    return []


def group_by_value(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples sorted by value, and the sizes of groups of equal values; each value below 0 is a group of its own."""
    alone = values < 0
    labels = np.where(alone, values.max(initial=0) + 1 + np.arange(len(values)), values)
    members = np.argsort(labels, kind="stable")
    _, sizes = np.unique(labels, return_counts=True)
    return members.astype(np.int64), sizes.astype(np.int64)
