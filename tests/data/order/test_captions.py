"""Every caption a sample."""

from __future__ import annotations

import numpy as np
import pytest
from orders import epoch_of

from clipkit.data.order.base import draw, steps_per_epoch
from clipkit.data.order.captions import CaptionOrder


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
