"""Several sources, mixed by weight."""

from __future__ import annotations

import numpy as np
import pytest
from orders import MIXTURES, mixed, shuffled_sources

from clipkit.data.order.base import draw, steps_per_epoch
from clipkit.data.order.mixture import MixedOrder
from clipkit.errors import DataError


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


def test_a_source_too_small_for_its_weight_is_refused() -> None:
    with pytest.raises(DataError, match="source 2"):
        mixed(shuffled_sources(1000, 20), weights=(1, 1))
