"""The order of training: a permutation that can be sought, the same however it is shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from clipkit.config import BlockShuffle
from clipkit.data.order.base import (
    BlockOrder,
    Order,
    Permutation,
    Share,
    ShuffledOrder,
    StoredOrder,
    draw,
    steps_per_epoch,
)
from clipkit.data.order.captions import CaptionOrder
from clipkit.data.order.groups import GroupedOrder, group_by_value
from clipkit.data.order.mixture import MixedOrder, Turns
from clipkit.errors import DataError

FIRST_OF_A_BILLION = [997372323, 916556090, 286310963, 295094671]
FIRST_OF_A_THOUSAND = [568, 442, 263, 844, 77, 20]


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray:
    steps = steps_per_epoch(order)
    return np.concatenate([draw(order, step).samples for step in range(epoch * steps, (epoch + 1) * steps)])


def test_every_small_n_is_permuted() -> None:
    for n in range(1, 2001):
        placed = Permutation(n, seed=n, epoch=n % 7)(np.arange(n))
        assert np.array_equal(np.sort(placed), np.arange(n)), n


def test_a_billion_positions_are_permuted() -> None:
    n = 10**9
    positions = np.unique(np.random.default_rng(0).integers(0, n, 200_000))
    placed = Permutation(n, seed=3, epoch=1)(positions)
    assert len(np.unique(placed)) == len(positions)
    assert placed.min() >= 0
    assert placed.max() < n
    counts, _ = np.histogram(placed, bins=100, range=(0, n))
    expected = len(positions) / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # 99 degrees of freedom: a chance of 1 in 10,000


@pytest.mark.parametrize("n", [20, 33])
def test_positions_and_neighbours_look_uniform(n: int) -> None:
    epochs = 3000
    places, steps = np.zeros((n, n)), np.zeros(n)
    for epoch in range(epochs):
        placed = Permutation(n, seed=11, epoch=epoch)(np.arange(n))
        places[np.arange(n), placed] += 1
        steps += np.bincount(np.diff(placed) % n, minlength=n)
    expected = epochs / n
    freedom = (n - 1) ** 2
    assert ((places - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
    assert ((steps[1:] - epochs) ** 2 / epochs).sum() < (n - 2) + 6 * np.sqrt(2 * (n - 2))


def test_the_order_is_the_same_on_every_platform() -> None:
    assert Permutation(10**9, seed=0, epoch=0)(np.arange(4)).tolist() == FIRST_OF_A_BILLION
    assert Permutation(1000, seed=7, epoch=2)(np.arange(6)).tolist() == FIRST_OF_A_THOUSAND


def test_neighbours_in_a_batch_come_from_anywhere() -> None:
    samples = epoch_of(ShuffledOrder(100_000, 100))
    apart = np.abs(np.diff(samples)).mean() / (100_000 / 3)  # a third of n for two at random
    assert apart == pytest.approx(1.0, abs=0.02)


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


@pytest.mark.parametrize("order", [*ORDERS, *MIXTURES], ids=lambda order: type(order).__name__)
@pytest.mark.parametrize("world", [1, 2, 8])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(order: Order, world: int) -> None:
    steps = steps_per_epoch(order)
    for step in (0, 1, steps - 1, steps, 3 * steps + 2):
        whole = draw(order, step)
        shares = [whole.at(Share(rank, world).positions(len(whole))) for rank in range(world)]
        assert np.array_equal(np.concatenate([share.samples for share in shares]), whole.samples)
        assert np.array_equal(np.concatenate([share.epochs for share in shares]), whole.epochs)
        assert len(np.unique(order.images_of(whole.samples))) == len(whole)


@pytest.mark.parametrize("size", [64, 41])
def test_a_piece_holds_the_same_samples_for_any_number_of_ranks(size: int) -> None:
    order = StoredOrder(size, 64, drop_last=False)
    whole = draw(order, 0).samples
    shares = [whole[Share(rank, 2, pieces=4).positions(len(whole))] for rank in (0, 1)]
    assert sorted(np.concatenate(shares)) == list(range(size))
    if size == 64:
        pieces = [sorted(np.concatenate([share[8 * piece :][:8] for share in shares])) for piece in range(4)]
        assert pieces == [list(range(16 * piece, 16 * piece + 16)) for piece in range(4)]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_an_epoch_has_each_sample_once(order: Order) -> None:
    samples = epoch_of(order, epoch=2)
    expected = order.num_samples
    if order.drop_last:
        expected -= expected % order.batch_size
    assert len(samples) == len(np.unique(samples)) == expected
    assert samples.max() < order.num_samples


@pytest.mark.parametrize("order", [*ORDERS[1:], *MIXTURES[:2]], ids=lambda order: type(order).__name__)
def test_epochs_differ(order: Order) -> None:
    assert not np.array_equal(epoch_of(order, 0), epoch_of(order, 1))


def test_a_batch_of_blocks_is_a_few_runs_of_neighbours() -> None:
    order = BlockOrder(100_000, 64, block=1024, seed=0)
    samples = draw(order, 5).samples
    assert (np.diff(np.sort(samples)) > 1).sum() + 1 <= 16
    assert len(np.unique(samples // 1024)) >= 4


@pytest.mark.parametrize(
    ("values", "batch_size", "share_kept"),
    [
        (np.arange(3000) // 2, 64, 1.0),
        (np.concatenate([np.arange(1500) // 2, 10_000 + np.arange(1500)]), 63, 1.0),
        # Few groups of one: now and then nothing fills a gap.
        (np.random.default_rng(0).integers(0, 900, 3000), 64, 0.99),
        (np.concatenate([np.arange(900) // 3, np.full(100, -1)]), 50, 0.99),
    ],
)
def test_rows_that_share_a_value_share_a_batch(values: np.ndarray, batch_size: int, share_kept: float) -> None:
    order = GroupedOrder(*group_by_value(values), batch_size, drop_last=False, seed=4)
    batches: dict[int, set[int]] = {}
    for step in range(steps_per_epoch(order)):
        for sample in draw(order, step).samples.tolist():
            if values[sample] >= 0:
                batches.setdefault(int(values[sample]), set()).add(step)
    assert np.mean([len(steps) == 1 for steps in batches.values()]) >= share_kept
    assert sorted(epoch_of(order).tolist()) == list(range(len(values)))


def test_a_group_larger_than_a_batch_is_cut_and_nothing_is_lost() -> None:
    order = GroupedOrder(*group_by_value(np.repeat([0, 1], 50)), 16, drop_last=False)
    assert sorted(epoch_of(order).tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [
        (np.full(100, 5), 16),
        (np.random.default_rng(0).integers(1, 6, 100), 16),
        (np.full(30, 5), 13),
        (np.full(30, 2), 29),
        (np.full(100, 5), 64),
    ],
)
def test_captions_of_an_image_stay_out_of_each_others_batch(counts: np.ndarray, batch_size: int) -> None:
    order = CaptionOrder(counts, batch_size, drop_last=False, seed=2)
    for step in range(steps_per_epoch(order)):
        images = order.images_of(draw(order, step).samples)
        assert len(np.unique(images)) == len(images)
    assert sorted(epoch_of(order).tolist()) == list(range(int(counts.sum())))


def test_sources_are_mixed_by_weight_and_each_row_comes_once_a_round() -> None:
    order = mixed(shuffled_sources(1000, 300), weights=(1, 1))
    drawn = [draw(order, step) for step in range(4 * steps_per_epoch(order))]
    samples = np.concatenate([batch.samples for batch in drawn])
    epochs = np.concatenate([batch.epochs for batch in drawn])
    assert all((batch.samples < 1000).sum() == 32 for batch in drawn)
    second = samples >= 1000
    for round_ in range(3):
        assert sorted(samples[second & (epochs == round_)].tolist()) == list(range(1000, 1300))


@pytest.mark.parametrize("order", MIXTURES, ids=lambda order: type(order.sources[0]).__name__)
def test_no_image_comes_twice_in_a_batch_where_a_source_begins_anew(order: MixedOrder) -> None:
    for step in range(5 * steps_per_epoch(order)):
        samples = draw(order, step).samples
        assert len(np.unique(order.images_of(samples))) == len(samples)


def test_weights_are_kept_however_small() -> None:
    order = mixed(shuffled_sources(1000, 1000, 1000), weights=(1000, 1, 10))
    drawn = np.concatenate([draw(order, step).samples for step in range(320)])
    shares = np.bincount(drawn // 1000) / len(drawn)
    assert shares == pytest.approx(np.array([1000, 1, 10]) / 1011, abs=2e-4)


def test_groups_of_a_source_share_a_batch() -> None:
    """But for those at the end of a round, which may be cut."""
    values = np.concatenate([np.arange(300) // 3, 1000 + np.arange(200)])
    order = mixed(
        lambda number, share: GroupedOrder(*group_by_value(values), share, seed=number, is_endless=True),
        weights=(3, 1),
    )
    batches: dict[tuple[int, int, int], set[int]] = {}
    for step in range(6 * steps_per_epoch(order)):
        drawn = draw(order, step)
        for sample, round_ in zip(drawn.samples.tolist(), drawn.epochs.tolist(), strict=True):
            if sample % 500 < 300:
                batches.setdefault((sample // 500, sample % 500 // 3, round_), set()).add(step)
    assert np.mean([len(steps) == 1 for steps in batches.values()]) >= 0.97


def test_a_source_too_small_for_its_weight_is_refused() -> None:
    with pytest.raises(DataError, match="source 2"):
        mixed(shuffled_sources(1000, 20), weights=(1, 1))
