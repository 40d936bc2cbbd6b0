"""Several datasets drawn by weight, each shuffled anew as often as it runs out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from clipkit.data.order import Draw, Permutation
from clipkit.data.random import key
from clipkit.errors import DataError

PATTERN = 4096  # places of the pattern in which the sources take turns; weights are kept to one part in so many
SMALL = 4


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """Samples of source i are numbered after those of the sources before it.

    The sources take turns in a fixed pattern that holds each in proportion to its weight, evenly spread. An epoch is
    as many samples as all sources have; those of a source with more than its share of weight come more than once
    in it.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    drop_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for index, length in enumerate(self.lengths):
            if self.largest_share(index) > length:
                raise DataError(
                    f"source {index + 1} of `data.sources` has {length:,} samples, and its weight asks for up to "
                    f"{self.largest_share(index):,} in each batch of {self.batch_size:,}",
                    "lower its weight or `train.batch_size`: a batch holds no sample twice",
                )

    @property
    def num_samples(self) -> int:
        return sum(self.lengths)

    def largest_share(self, source: int) -> int:
        """How many samples of a source a batch may hold; the pattern is even to within two."""
        return min(self.batch_size, math.ceil(self.weights[source] / sum(self.weights) * self.batch_size) + 2)

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        first = epoch * (self.num_samples // self.batch_size * self.batch_size if self.drop_last else self.num_samples)
        cycles, slots = np.divmod(np.arange(first + start, first + stop, dtype=np.int64), PATTERN)
        owners, ranks = self._pattern
        samples = np.empty(len(slots), dtype=np.int64)
        epochs = np.empty(len(slots), dtype=np.int64)
        offset = 0
        for source, length in enumerate(self.lengths):
            mine = np.flatnonzero(owners[slots] == source)
            positions = cycles[mine] * int((owners == source).sum()) + ranks[slots[mine]]
            rounds, places = np.divmod(positions, length)
            for round_ in np.unique(rounds).tolist():
                here = rounds == round_
                samples[mine[here]] = offset + _round(self, source, round_, places[here])
            epochs[mine] = rounds
            offset += length
        return Draw(samples, epochs)

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place of the pattern, and how often it came before in it."""
        shares = np.array(self.weights) / sum(self.weights) * PATTERN
        counts = np.maximum(1, np.floor(shares)).astype(np.int64)
        counts[np.argsort(counts - shares, kind="stable")[: PATTERN - counts.sum()]] += 1
        counts[np.argmax(counts)] += PATTERN - counts.sum()
        owners = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        spread = np.argsort((ranks + 0.5) / counts[owners], kind="stable")
        return owners[spread], ranks[spread]


def _round(order: MixedOrder, source: int, round_: int, places: np.ndarray) -> np.ndarray:
    """The source's own samples at these places of its n-th round."""
    length = order.lengths[source]
    head = _head(order, source, round_)
    # A source that a few batches use up keeps its order: then its repeats are as far apart as they can be.
    epoch = 0 if length < SMALL * order.largest_share(source) else round_
    shuffle = Permutation(length, seed=int(key(order.seed, source)), epoch=epoch)
    samples: np.ndarray = shuffle(places)
    early = places < len(head)
    samples[early] = head[places[early]]
    return samples


@lru_cache(maxsize=64)
def _head(order: MixedOrder, source: int, round_: int) -> np.ndarray:
    """The first samples of a round, those that ended the round before put off: a batch may span both."""
    length, share = order.lengths[source], order.largest_share(source)
    if round_ == 0 or length < SMALL * share:
        return np.empty(0, dtype=np.int64)
    seed = int(key(order.seed, source))
    head = Permutation(length, seed=seed, epoch=round_)(np.arange(2 * share, dtype=np.int64))
    late = Permutation(length, seed=seed, epoch=round_ - 1)(np.arange(length - share, length, dtype=np.int64))
    again = np.isin(head, late)
    return np.concatenate([head[~again], head[again]])
