"""Several datasets mixed by weight; each starts over when it runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from clipkit.data.order.base import Draw, Order, postpone_repeats
from clipkit.errors import DataError

PATTERN = 4096  # approximate length of the pattern in which sources take turns: longer keeps weights more exactly
SMALL = 4  # batches


class Turns:
    """Which source provides the sample at each position: sources are evenly spread, in proportion to their weights.

    The pattern repeats after a whole number of batches, so a source whose share of a batch is a whole number has
    exactly that share in every batch.
    """

    def __init__(self, weights: Sequence[float], batch_size: int) -> None:
        period = batch_size * max(1, PATTERN // batch_size)
        shares = np.array(weights) / sum(weights) * period
        counts = np.maximum(1, np.floor(shares + 1e-6)).astype(np.int64)
        counts[np.argsort(counts - shares, kind="stable")[: max(0, period - counts.sum())]] += 1
        counts[np.argmax(counts)] += period - counts.sum()
        owners = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        spread = np.argsort((ranks + 0.5) / counts[owners], kind="stable")
        self._owners = owners[spread]
        before = [np.cumsum(self._owners == source) for source in range(len(counts))]
        self._before = np.concatenate([np.zeros((len(counts), 1), dtype=np.int64), np.stack(before)], axis=1)
        later = np.concatenate([self._before, self._before[:, 1:] + self._before[:, -1:]], axis=1)[:, batch_size:]
        in_a_batch = later[:, : period + 1] - self._before  # by source, for a batch that starts at any position
        self.largest: list[int] = in_a_batch.max(axis=1).tolist()
        self.are_whole = bool((in_a_batch[:, ::batch_size] == in_a_batch[:, :1]).all())  # the same in every batch

    def owners(self, start: int, stop: int) -> np.ndarray:
        """The source at each of these positions."""
        owners: np.ndarray = self._owners[np.arange(start, stop) % len(self._owners)]
        return owners

    def before(self, place: int) -> list[int]:
        """How many turns each source has before this position."""
        cycles, slot = divmod(place, len(self._owners))
        counts: list[int] = (cycles * self._before[:, -1] + self._before[:, slot]).tolist()
        return counts


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """The orders of several sources; the samples of a source are numbered after those of the sources before it.

    A source follows its own order, one epoch (here: a round) after another. An epoch of the mixture has as many samples
    as all sources together, so a source with a large weight repeats samples within it.
    """

    sources: tuple[Order, ...]  # the `batch_size` of each is the most that a batch takes from it
    turns: Turns
    batch_size: int
    drop_last: bool = True

    def __post_init__(self) -> None:
        for number, order in enumerate(self.sources, start=1):
            if order.batch_size > order.num_samples:
                raise DataError(
                    f"source {number} of `data.sources` has {order.num_samples:,} samples, but its weight asks for up "
                    f"to {order.batch_size:,} in each batch of {self.batch_size:,}",
                    "lower its weight or `train.batch_size`: a batch cannot hold a sample twice",
                )

    @property
    def num_samples(self) -> int:
        return sum(order.num_samples for order in self.sources)

    @cached_property
    def _offsets(self) -> list[int]:
        offsets: list[int] = np.cumsum([0, *(order.num_samples for order in self.sources)]).tolist()
        return offsets

    def slice(self, epoch: int, start: int, stop: int) -> Draw:
        first = epoch * (self.num_samples // self.batch_size * self.batch_size if self.drop_last else self.num_samples)
        owners = self.turns.owners(first + start, first + stop)
        drawn = Draw(np.empty(stop - start, dtype=np.int64), np.empty(stop - start, dtype=np.int64))
        bounds = zip(self.turns.before(first + start), self.turns.before(first + stop), strict=True)
        for source, (low, high) in enumerate(bounds):
            if low == high:
                continue
            mine = owners == source
            samples, drawn.epochs[mine] = self._draw(source, low, high)
            drawn.samples[mine] = samples + self._offsets[source]
        return drawn

    def images_of(self, samples: np.ndarray) -> np.ndarray:
        images = samples.copy()
        for order, offset in zip(self.sources, self._offsets, strict=False):
            mine = (samples >= offset) & (samples < offset + order.num_samples)
            images[mine] = offset + order.images_of(samples[mine] - offset)
        return images

    def _draw(self, source: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """A source's samples from turn `low` up to turn `high`, and the round of each."""
        length = self.sources[source].num_samples
        samples = []
        for round_ in range(low // length, -(-high // length)):
            first = round_ * length
            samples.append(self._draw_of_round(source, round_, max(low - first, 0), min(high - first, length)))
        return np.concatenate(samples), np.arange(low, high) // length

    def _draw_of_round(self, source: int, round_: int, start: int, stop: int) -> np.ndarray:
        order = self.sources[source]
        # A source that lasts for only a few batches keeps its order, which keeps repeats as far apart as possible.
        if order.num_samples < SMALL * order.batch_size:
            return order.slice(0, start, stop).samples
        head = _head(order, round_) if round_ else np.empty(0, dtype=np.int64)
        if stop <= len(head):
            return head[start:stop]
        rest = order.slice(round_, max(start, len(head)), stop).samples
        return np.concatenate([head[start:], rest])


@lru_cache(maxsize=64)
def _head(order: Order, round_: int) -> np.ndarray:
    """The first samples of a round, without repeats of the last of the round before: a batch may span both."""
    share, length = order.batch_size, order.num_samples
    head = order.slice(round_, 0, 2 * share).samples
    return postpone_repeats(order, head, order.slice(round_ - 1, length - share, length).samples)
