"""Orders of every kind, and what a whole epoch of one holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clipkit.config import BlockShuffle
from clipkit.data.order.base import BlockOrder, Order, ShuffledOrder, StoredOrder, draw, steps_per_epoch
from clipkit.data.order.captions import CaptionOrder
from clipkit.data.order.groups import GroupedOrder, group_by_value
from clipkit.data.order.mixture import MixedOrder, Turns


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray:
    steps = steps_per_epoch(order)
    return np.concatenate([draw(order, step).samples for step in range(epoch * steps, (epoch + 1) * steps)])


def mixed(
    make_source: Callable[[int, int], Order], *, weights: Sequence[float], batch_size: int = 64, drop_last: bool = True
) -> MixedOrder:
    """Sources made by number and by their largest share of a batch."""
    turns = Turns(weights, batch_size)
    sources = [make_source(number, share) for number, share in enumerate(turns.largest)]
    return MixedOrder(tuple(sources), turns, batch_size, drop_last)


def shuffled_sources(*lengths: int) -> Callable[[int, int], Order]:
    return lambda number, share: ShuffledOrder(lengths[number], share, seed=number)


ORDERS: list[Order] = [
    StoredOrder(1003, 64),
    ShuffledOrder(1003, 64, seed=1),
    ShuffledOrder(9001, 64, drop_last=False, seed=1),
    BlockOrder(1003, 64, block=32, drop_last=False, seed=1),
    BlockOrder(997, 64, block=1000, seed=1),
    GroupedOrder(*group_by_value(np.arange(1000) // 2), 64, seed=1),
    CaptionOrder(np.full(200, 5), 64, seed=1),
    CaptionOrder(np.full(200, 5), 64, seed=1, shuffle=BlockShuffle(block=16)),
    CaptionOrder(np.arange(300) % 5 + 1, 64, drop_last=False, seed=1),
]
MIXTURES: list[MixedOrder] = [
    mixed(shuffled_sources(1000, 200), weights=(3, 1)),
    mixed(shuffled_sources(1000, 40, 300), weights=(7, 0.01, 2), drop_last=False),
    mixed(lambda number, share: StoredOrder(500, share), weights=(3, 1)),
    mixed(lambda number, share: BlockOrder(700, share, block=32, seed=number), weights=(3, 2)),
    mixed(lambda number, share: CaptionOrder(np.arange(200) % 4 + 1, share, seed=number), weights=(1, 2)),
    mixed(
        lambda number, share: GroupedOrder(*group_by_value(np.arange(500) // 3), share, seed=number, is_endless=True),
        weights=(3, 1),
    ),
]
