"""The pixel cache, and the command that measures and makes it."""

from __future__ import annotations

import json
from typing import Any

import lance
import numpy as np
import pytest
import torch
from small_datasets import AUGMENTED, batches_of, jpeg, loader_of, same

from clipkit.config import DataConfig
from clipkit.data.pixel_cache import fill_missing
from clipkit.errors import DataError
from clipkit.store import Dataset


def test_training_from_cached_pixels(write_dataset: Any, run_cli: Any) -> None:
    path = write_dataset([jpeg(60, 40, seed=i) for i in range(40)])
    with pytest.raises(DataError, match="no pixel cache of 48 px"):
        loader_of(path, cache=48)
    dry = run_cli("cache", path, "--size", 48, "--dry-run")
    assert dry.returncode == 0
    assert "276.5 KB on disk" in dry.stderr
    assert "pixels_48" not in lance.dataset(path).schema.names
    done = run_cli("cache", path, "--size", 48, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["bytes"], result["written"]) == (40, 40 * 48 * 48 * 3, True)
    assert json.loads(run_cli("cache", path, "--size", 48, "--json").stdout)["written"] is False
    for plain, cached in zip(batches_of(loader_of(path)), batches_of(loader_of(path, cache=48)), strict=True):
        assert plain.image_ids == cached.image_ids
        assert (plain["pixels"].float() - cached["pixels"].float()).abs().mean() < 4
    augmented = batches_of(loader_of(path, cache=48, augment=AUGMENTED), stop=4)
    assert all(map(same, augmented[2:], batches_of(loader_of(path, cache=48, augment=AUGMENTED), 2, 4)))
    assert not torch.equal(augmented[0]["pixels"], batches_of(loader_of(path, cache=48), stop=1)[0]["pixels"])


def test_an_image_that_cannot_be_decoded_stays_out_of_the_cache(write_dataset: Any, run_cli: Any) -> None:
    path = write_dataset([jpeg(60, 40, seed=i) for i in range(11)] + [b"no image"])
    done = run_cli("cache", path, "--size", 32, "--json")
    assert done.returncode == 0
    assert "`image-11`" in done.stderr
    assert json.loads(done.stdout)["undecodable"] == 1
    batches = batches_of(loader_of(path, cache=32, batch_size=10), stop=4)
    assert all("image-11" not in batch.image_ids for batch in batches)
    assert sum(batch.num_replaced for batch in batches) > 0


def test_what_is_missing_is_made_before_training(write_dataset: Any) -> None:
    path = write_dataset([jpeg(60, 40, seed=i) for i in range(10)])
    config = DataConfig(dataset=path, image_size=32, cache=32)
    (filled,) = fill_missing([Dataset(path)], config)
    assert filled.version > 1
    assert fill_missing([filled], config)[0].version == filled.version
    lance.write_dataset(lance.dataset(path).to_table(["image_id", "image", "captions", "split"]), path, mode="append")
    (filled,) = fill_missing([Dataset(path)], config)
    found = filled.take_pixels(np.arange(20), "pixels_32")
    assert all(pixels is not None and np.array_equal(pixels, found[i % 10]) for i, pixels in enumerate(found))


def test_a_dataset_without_rows_is_refused(write_dataset: Any, run_cli: Any) -> None:
    path = write_dataset([jpeg(20, 20)])
    lance.dataset(path).delete("true")
    done = run_cli("cache", path)
    assert done.returncode == 1
    assert "has no rows" in done.stderr
