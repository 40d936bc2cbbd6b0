"""The order of training: which samples make up the global batch of a step.

It is a pure function of (seed, epoch, step). A shuffle is a keyed bijection of [0, n), so looking up a position needs
no table and no pass over the rows. A batch is a slice of positions, whatever the threads, ranks and accumulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from clipkit.config import BlockShuffle
from clipkit.data.random import key, mix

ROUNDS = 8  # with fewer, a chi-square test over small n shows the difference from random
STRETCH = 4096
MIXED_BLOCKS = 8


class Permutation:
    """A keyed bijection of [0, n): a Feistel network over an even number of bits, with cycle walking.

    The network permutes [0, 4^k) with 4^k < 4n and is applied until the value is below n: under four times on average.
    """

    def __init__(self, n: int, *, seed: int, epoch: int) -> None:
        self.n = n
        self._half_bits = np.uint64(max(1, ((max(n, 2) - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = [key(seed, epoch, round_) for round_ in range(ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The values at these positions (int64, each in [0, n))."""
        values = self._network(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self.n)
        while len(outside):
            walked = self._network(values[outside])
            values[outside] = walked
            outside = outside[walked >= self.n]
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._mask
        for round_key in self._keys:
            left, right = right, left ^ (mix(right + round_key) & self._mask)
        return (left << self._half_bits) | right


@dataclass(frozen=True, slots=True)
class Draw:
    """Samples of a batch, each with the epoch that its random crop and caption belong to."""

    samples: np.ndarray  # (B,) int64 in [0, num_samples)
    epochs: np.ndarray  # (B,) int64

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, positions: np.ndarray) -> Draw:
        return Draw(self.samples[positions], self.epochs[positions])


class Order(Protocol):
    """The sequence of samples over any number of epochs."""

    @property
    def num_samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def drop_last(self) -> bool: ...
    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        """The samples at positions start to stop of an epoch."""
        ...

    def __hash__(self) -> int: ...

    def images_of(self, samples: np.ndarray) -> np.ndarray:
        """Numbers that are equal for samples of the same image, which must not share a batch."""
        ...


class OneSamplePerImage:
    def images_of(self, samples: np.ndarray) -> np.ndarray:
        return samples


def steps_per_epoch(order: Order) -> int:
    whole, rest = divmod(order.num_samples, order.batch_size)
    return whole if order.drop_last or not rest else whole + 1


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of a global batch: a contiguous part of each of the `pieces` (gradient accumulation).

    A piece then holds the same samples, over all ranks, as it does in a single process.
    """

    rank: int = 0
    world: int = 1
    pieces: int = 1

    def positions(self, size: int) -> np.ndarray:
        """Positions of the rank's samples in a global batch of this size."""
        parts = []
        for piece in range(self.pieces):
            first, last = size * piece // self.pieces, size * (piece + 1) // self.pieces
            bounds = ((last - first) * rank // self.world for rank in (self.rank, self.rank + 1))
            parts.append(first + np.arange(*bounds))
        return np.concatenate(parts)

    def limit(self, size: int) -> int:
        """The largest number of samples that the rank has in a global batch of at most this size."""
        largest_piece = math.ceil(size / self.pieces)
        return self.pieces * math.ceil(largest_piece / self.world)


WHOLE = Share()


def draw(order: Order, step: int) -> Draw:
    """The global batch of a step; it does not depend on the number of ranks."""
    epoch, index = divmod(step, steps_per_epoch(order))
    start = index * order.batch_size
    size = min(order.batch_size, order.num_samples - start)
    return order.slice(epoch, start, start + size)


@dataclass(frozen=True)
class StoredOrder(OneSamplePerImage):
    """Samples in stored order, the same each epoch."""

    num_samples: int
    batch_size: int
    drop_last: bool = True

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        return of_epoch(np.arange(start, stop, dtype=np.int64), epoch)


@dataclass(frozen=True)
class ShuffledOrder(OneSamplePerImage):
    """A new shuffle of all samples each epoch."""

    num_samples: int
    batch_size: int
    drop_last: bool = True
    seed: int = 0

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        stretches = range(start // STRETCH, -(-stop // STRETCH))
        samples = np.concatenate([_stretch(self, epoch, index) for index in stretches])
        first = start // STRETCH * STRETCH
        return of_epoch(samples[start - first : stop - first], epoch)


@lru_cache(maxsize=16)
def _stretch(order: ShuffledOrder, epoch: int, index: int) -> np.ndarray:
    """The samples at `STRETCH` positions: computing a few batches costs hardly more than one."""
    permutation = Permutation(order.num_samples, seed=order.seed, epoch=epoch)
    return permutation(np.arange(index * STRETCH, min((index + 1) * STRETCH, order.num_samples), dtype=np.int64))


@dataclass(frozen=True)
class BlockOrder(OneSamplePerImage):
    """Blocks of neighbouring samples in shuffled order; a batch has a run of neighbours from each of several blocks.

    It is then read with a few requests, which is fast on an object store.
    """

    num_samples: int
    batch_size: int
    block: int
    drop_last: bool = True
    seed: int = 0

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        window = MIXED_BLOCKS * self.block
        parts = []
        for index in range(start // window, -(-stop // window)):
            offset = index * window
            parts.append(_window(self, epoch, index)[max(0, start - offset) : stop - offset])
        return of_epoch(np.concatenate(parts), epoch)


@lru_cache(maxsize=16)
def _window(order: BlockOrder, epoch: int, index: int) -> np.ndarray:
    """The samples of the `index`-th window of `MIXED_BLOCKS` blocks; the shorter last block stays last."""
    num_whole = order.num_samples // order.block
    num_blocks = -(-order.num_samples // order.block)
    shuffle = Permutation(num_whole, seed=order.seed, epoch=epoch)
    places = np.arange(index * MIXED_BLOCKS, min((index + 1) * MIXED_BLOCKS, num_blocks), dtype=np.int64)
    whole = places[places < num_whole]
    blocks = np.concatenate([shuffle(whole), places[places >= num_whole]])
    run = max(1, order.batch_size // MIXED_BLOCKS)
    samples, turns = [], []
    for turn, block in enumerate(blocks.tolist()):
        first = block * order.block
        size = min(order.block, order.num_samples - first)
        rotation = int(key(order.seed, epoch, block)) % size  # so that runs do not start at the same rows each epoch
        samples.append(first + (np.arange(size) + rotation) % size)
        turns.append(np.arange(size) // run * MIXED_BLOCKS + turn)
    return np.concatenate(samples)[np.argsort(np.concatenate(turns), kind="stable")]


def plain_order(
    num_samples: int, batch_size: int, *, shuffle: bool | BlockShuffle, drop_last: bool = True, seed: int = 0
) -> Order:
    """Samples in stored order, shuffled, or shuffled in blocks."""
    if isinstance(shuffle, BlockShuffle):
        return BlockOrder(num_samples, batch_size, shuffle.block, drop_last, seed)
    if shuffle:
        return ShuffledOrder(num_samples, batch_size, drop_last, seed)
    return StoredOrder(num_samples, batch_size, drop_last)


def postpone_repeats(order: Order, samples: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The samples, with those of images that also occur in `before` moved to the end."""
    again = np.isin(order.images_of(samples), order.images_of(before))
    return np.concatenate([samples[~again], samples[again]])


def of_epoch(samples: np.ndarray, epoch: int) -> Draw:
    return Draw(samples, np.full(len(samples), epoch, dtype=np.int64))
