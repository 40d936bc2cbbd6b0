"""Groups of rows that share a batch."""

from __future__ import annotations

import numpy as np
import pytest
from orders import epoch_of, mixed

from clipkit.data.order.base import draw, steps_per_epoch
from clipkit.data.order.groups import GroupedOrder, group_by_value


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
