"""The order of training: a permutation that can be sought, the same however it is shared out."""

from __future__ import annotations

import numpy as np
import pytest
from orders import MIXTURES, ORDERS, epoch_of

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

FIRST_OF_A_BILLION = [997372323, 916556090, 286310963, 295094671]
FIRST_OF_A_THOUSAND = [568, 442, 263, 844, 77, 20]


def test_every_small_n_is_permuted() -> None:
    for n in range(1, 600):
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
