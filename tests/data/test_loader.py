"""Batches from real Lance datasets: what is in them, and that nothing changes it."""

from __future__ import annotations

import io
import logging
import threading
from contextlib import closing
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from small_datasets import AUGMENTED, batches_of, jpeg, loader_of, same

from clipkit.config import DataConfig
from clipkit.data.inputs import Pixels
from clipkit.data.loader import iterate_rows
from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.types import ImageSpec


def test_batches_hold_what_the_dataset_holds(plain_dataset: str) -> None:
    batches = batches_of(loader_of(plain_dataset, train="split = 'train'"), stop=4)
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(np.unique(rows)) == 64
    assert all(row % 4 for row in rows)
    for batch in batches:
        assert batch["pixels"].shape == (16, 32, 32, 3)
        assert batch["pixels"].dtype == torch.uint8
        assert batch.image_ids == [f"image-{row}" for row in batch.rows]
        assert all(f"picture {row} seen" in text for row, text in zip(batch.rows, batch.captions, strict=True))
        expected = Image.open(io.BytesIO(jpeg(60, 40, seed=int(batch.rows[0])))).resize((32, 32))
        assert np.abs(np.asarray(expected, float) - batch["pixels"][0].numpy()).mean() < 6


@pytest.mark.parametrize("changed", [{"workers": 1}, {"workers": 5, "prefetch": 1}])
def test_workers_do_not_change_a_batch(plain_dataset: str, changed: dict[str, Any]) -> None:
    plain = batches_of(loader_of(plain_dataset, augment=AUGMENTED))
    other = batches_of(loader_of(plain_dataset, augment=AUGMENTED, **changed))
    assert len(plain) == len(other) == 6
    assert all(map(same, plain, other))


def test_starting_at_a_step_is_a_seek(plain_dataset: str) -> None:
    whole = batches_of(loader_of(plain_dataset, augment=AUGMENTED), 0, 20)
    assert [batch.epoch for batch in whole] == [step // 6 for step in range(20)]
    assert all(map(same, whole[13:], batches_of(loader_of(plain_dataset, augment=AUGMENTED), 13, 20)))


def test_ranks_share_the_global_batch(plain_dataset: str) -> None:
    (whole,) = batches_of(loader_of(plain_dataset, augment=AUGMENTED), 7, 8)
    parts = [batches_of(loader_of(plain_dataset, augment=AUGMENTED, rank=r, world=2), 7, 8)[0] for r in (0, 1)]
    assert torch.equal(torch.cat([part["pixels"] for part in parts]), whole["pixels"])
    assert [*parts[0].captions, *parts[1].captions] == whole.captions


def test_a_smaller_last_batch_is_kept_where_asked(plain_dataset: str) -> None:
    loader = loader_of(plain_dataset, drop_last=False)
    assert loader.steps_per_epoch == 7
    assert [len(batch) for batch in batches_of(loader, 5, 9)] == [16, 4, 16, 16]


def test_a_rank_may_have_nothing_of_a_small_batch(plain_dataset: str) -> None:
    parts = [batches_of(loader_of(plain_dataset, drop_last=False, rank=rank, world=8), 6, 8) for rank in range(8)]
    assert [len(part) for part, _ in parts] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert all(len(part) == 2 for _, part in parts)


def test_limit(plain_dataset: str) -> None:
    limited = loader_of(plain_dataset, limit=20, drop_last=False)
    assert {int(row) for batch in batches_of(limited, stop=2) for row in batch.rows} == set(range(20))


def test_too_few_rows_for_a_batch(plain_dataset: str) -> None:
    with pytest.raises(DataError, match="do not fill one batch of 200"):
        loader_of(plain_dataset, batch_size=200)
    with pytest.raises(DataError, match="matches no row"):
        loader_of(plain_dataset, train="split = 'nowhere'")


def test_an_id_column_of_another_type_is_refused(write_dataset: Any) -> None:
    path = write_dataset([jpeg(20, 20)] * 20, None, number=pa.array(range(20)))
    with pytest.raises(DataError, match=r"the id column `number` .* is int64, not text"):
        loader_of(path, image_id_column="number")


def test_a_dataset_that_changes_meanwhile_is_read_as_it_was(write_dataset: Any) -> None:
    path = write_dataset([jpeg(20, 20)] * 40)
    expected = [batch.image_ids for batch in batches_of(loader_of(path), stop=10)]
    loader = loader_of(path)
    with closing(loader), closing(loader.iterate(0, 10)) as batches:
        found = [next(batches).image_ids]
        changed = lance.dataset(path)
        lance.write_dataset(changed.to_table(), path, mode="append")
        lance.dataset(path).delete("image_id = 'image-3'")
        found += [batch.image_ids for batch in batches]
    assert found == expected


def test_closing_early_ends_the_threads(plain_dataset: str) -> None:
    before = threading.active_count()
    loader = loader_of(plain_dataset)
    with closing(loader), closing(loader.iterate()) as batches:
        next(batches)
    assert threading.active_count() == before


def test_a_stall_is_reported(plain_dataset: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    held = threading.Event()
    take_images = Dataset.take_images

    def slow(self: Dataset, rows: Any) -> Any:
        held.wait(1.0)
        return take_images(self, rows)

    monkeypatch.setattr(Dataset, "take_images", slow)  # a disk that does not answer
    with caplog.at_level(logging.WARNING, logger="clipkit"):
        batches_of(loader_of(plain_dataset, stall_timeout_s=0.2), stop=1)
    assert "reading step 0" in caplog.text


def test_evaluation_reads_each_row_once_in_order_without_augmentation(damaged_dataset: str) -> None:
    rows = np.array([5, 7, 11, 30, 31])
    config = DataConfig.model_validate({"dataset": damaged_dataset, "image_size": 32, "augment": AUGMENTED})
    pixels = Pixels(config, ImageSpec(32), seed=None)
    batches = list(iterate_rows(Dataset(damaged_dataset), rows, [pixels], config, batch_size=2))
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    assert [batch.num_replaced for batch in batches] == [1, 0, 0]
    assert not batches[0]["pixels"][1].any()  # row 7 cannot be decoded: it is left black
    plain = config.model_copy(update={"augment": DataConfig(dataset="unused").augment})
    unaugmented = Pixels(plain, ImageSpec(32), seed=5)
    for batch, other in zip(
        batches, iterate_rows(Dataset(damaged_dataset), rows, [unaugmented], plain, batch_size=2), strict=True
    ):
        assert same(batch, other)
