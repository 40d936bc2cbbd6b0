"""From the config to the order of real datasets: groups, hard negatives and sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import batches_of, jpeg, loader_of, same, vector_column

from clipkit.errors import ConfigError, DataError
from clipkit.types import Batch


def test_groups_share_a_batch(write_dataset: Any) -> None:
    scenes = pa.array([f"scene {i // 2}" if i < 40 else None for i in range(60)])
    path = write_dataset([jpeg(20, 20)] * 60, None, scene=scenes)
    for batch in batches_of(loader_of(path, group_by="scene", drop_last=False, batch_size=15), stop=8):
        rows = set(batch.rows.tolist())
        assert all(row ^ 1 in rows for row in rows if row < 40)
    with pytest.raises(DataError, match="no column `place`"):
        loader_of(path, group_by="place")
    with pytest.raises(DataError, match="rows cannot be grouped by that"):
        loader_of(path, group_by="captions")


def test_near_neighbours_share_a_batch(write_dataset: Any) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 8))
    vectors = np.repeat(centres, 4, axis=0) + rng.normal(scale=0.01, size=(80, 8))
    path = write_dataset([jpeg(20, 20)] * 80, None, emb=vector_column(vectors), ragged=pa.array([[1.0]] * 80))
    hard = {"column": "emb", "group_size": 4}
    for batch in batches_of(loader_of(path, hard_negatives=hard, batch_size=8), stop=10):
        assert sorted(np.unique(batch.rows // 4, return_counts=True)[1].tolist()) == [4, 4]
    with pytest.raises(DataError, match="not vectors of one size"):
        loader_of(path, hard_negatives={"column": "ragged"})


@pytest.mark.parametrize(
    "wish",
    [
        {"shuffle": False},
        {"shuffle": {"block": 8}},
        {"caption": "each"},
        {"caption": "each", "shuffle": {"block": 8}},
        {"group_by": "scene"},
    ],
    ids=str,
)
def test_sources_are_mixed_by_weight_in_every_order(write_dataset: Any, wish: dict[str, Any]) -> None:
    paths = [
        write_dataset([jpeg(20, 20)] * 60, [[f"{name}{i} one", f"{name}{i} two"] for i in range(60)], scene=scenes)
        for name, scenes in (("a", pa.array([f"{i // 4}" for i in range(60)])), ("b", pa.array(["x", None] * 30)))
    ]
    sources = [{"dataset": paths[0], "weight": 3}, {"dataset": paths[1]}]

    def batches(start: int, stop: int) -> list[Batch]:
        return batches_of(loader_of("", dataset=None, sources=sources, **wish), start, stop)

    drawn = batches(0, 20)
    for batch in drawn:
        assert len(set(batch.rows.tolist())) == 16
        assert (batch.rows < 60).sum() == 12
        assert all(
            text.startswith(f"{'ab'[row // 60]}{row % 60} ")
            for row, text in zip(batch.rows, batch.captions, strict=True)
        )
    assert all(map(same, drawn[9:], batches(9, 20)))


def test_groups_in_sources_need_whole_shares(plain_dataset: str) -> None:
    sources = [{"dataset": plain_dataset, "weight": 2}, {"dataset": plain_dataset}]
    with pytest.raises(ConfigError, match="whole number of a batch's 16 samples"):
        loader_of("", dataset=None, sources=sources, group_by="split")
