"""Rows that cannot be used: which rows take their place, on one rank and on several."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from small_datasets import batches_of, jpeg, loader_of, vector_column

from clipkit.data.inputs import Tokens
from clipkit.data.tokenizer import train_tokenizer
from clipkit.errors import DataError


def test_a_bad_row_is_replaced_and_counted(damaged_dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipkit"):
        loader = loader_of(damaged_dataset, batch_size=10)
        batches = batches_of(loader, stop=8)
    rows = [batch.rows.tolist() for batch in batches]
    assert not {7, 21} & {row for of_batch in rows for row in of_batch}
    assert all(len(set(of_batch)) == 10 for of_batch in rows)
    assert loader.stats().num_replaced == sum(batch.num_replaced for batch in batches) == 4
    assert "`image-7` (row 7)" in caplog.text
    for batch in batches:
        assert batch.image_ids == [f"image-{row}" for row in batch.rows]
        assert all(f"picture {row} " in text for row, text in zip(batch.rows, batch.captions, strict=True))
    again = batches_of(loader_of(damaged_dataset, batch_size=10, workers=1), stop=8)
    assert [batch.rows.tolist() for batch in again] == rows


def test_a_null_image_in_a_blob_column_is_a_bad_row(tmp_path: Path) -> None:
    """A column that somebody else wrote; clipkit writes no nulls."""
    blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    schema = pa.schema([pa.field("image_id", pa.string()), blob, pa.field("captions", pa.string())])
    images = [jpeg(20, 20) if i != 4 else None for i in range(10)]
    columns = {"image_id": [f"image-{i}" for i in range(10)], "image": images, "captions": ["a"] * 10}
    lance.write_dataset(pa.table(columns, schema=schema), str(tmp_path / "data.lance"), data_storage_version="2.0")
    (batch,) = batches_of(loader_of(str(tmp_path / "data.lance"), batch_size=9, shuffle=False), stop=1)
    assert batch.rows.tolist() == [0, 1, 2, 3, 9, 5, 6, 7, 8]


def test_ranks_replace_a_bad_row_as_one_process_does(damaged_dataset: str) -> None:
    """Also where a batch has nearly every row: then a stand-in may come twice."""
    for batch_size in (10, 38):
        whole = batches_of(loader_of(damaged_dataset, batch_size=batch_size), stop=12)
        shares = [
            batches_of(loader_of(damaged_dataset, batch_size=batch_size, rank=rank, world=4), stop=12)
            for rank in range(4)
        ]
        for step, batch in enumerate(whole):
            assert batch_size == 38 or len(set(batch.rows.tolist()) - {7, 21}) == batch_size
            assert [row for share in shares for row in share[step].rows] == batch.rows.tolist()


def test_stand_ins_of_a_damaged_stretch_differ(write_dataset: Any) -> None:
    path = write_dataset([b"damaged" if 40 <= i < 60 else jpeg(20, 20, seed=i) for i in range(240)])
    for batch in batches_of(loader_of(path, shuffle=False, batch_size=24), stop=20):
        assert len({*batch.rows.tolist(), *range(40, 60)}) == 24 + 20


def test_a_row_comes_twice_before_the_run_stops(damaged_dataset: str) -> None:
    (batch,) = batches_of(loader_of(damaged_dataset, batch_size=40), stop=1)
    assert set(batch.rows.tolist()) == set(range(40)) - {7, 21}


def test_a_bad_row_stops_the_run_where_asked(damaged_dataset: str) -> None:
    with pytest.raises(DataError, match=r"`image-(7|21)` \(row (7|21)\)"):
        batches_of(loader_of(damaged_dataset, bad_rows="stop", batch_size=10), stop=4)


def test_only_bad_rows_are_an_error(write_dataset: Any) -> None:
    with pytest.raises(DataError, match="too many rows cannot be used"):
        batches_of(loader_of(write_dataset([b"x"] * 20), batch_size=10), stop=1)


@pytest.mark.parametrize("features", [{}, {"image": "emb"}], ids=["pixels", "features"])
def test_a_row_without_captions_is_replaced(write_dataset: Any, features: dict[str, str]) -> None:
    captions = [[f"caption {i}"] if i not in (3, 9) else [["", ""], None][i == 9] for i in range(20)]
    vectors = vector_column(np.arange(40).reshape(20, 2))
    path = write_dataset([jpeg(20, 20, seed=i) for i in range(20)], captions, emb=vectors)
    texts = [f"caption {i}" for i in range(20)]
    tokenizer = train_tokenizer(texts, vocab_size=100, lowercase=True, max_tokens=8, padding="max")
    loader = loader_of(path, Tokens(tokenizer, column="captions"), features=features, batch_size=10)
    batches = batches_of(loader, stop=2)
    assert sum(batch.num_replaced for batch in batches) == 2
    for batch in batches:
        assert len({*batch.rows.tolist(), 3, 9}) == 12
        assert batch.captions == [f"caption {row}" for row in batch.rows]
        assert torch.equal(batch["input_ids"], tokenizer(batch.captions)["input_ids"])
        if features:
            assert batch["image_features"][:, 0].tolist() == (2 * batch.rows).tolist()
    with pytest.raises(DataError, match=r"`image-(3|9)` \(row (3|9)\) cannot be used: it has no caption"):
        batches_of(loader_of(path, bad_rows="stop", features=features), stop=1)
    with pytest.raises(DataError, match="none of the 2 chosen rows"):
        loader_of(path, caption="each", train="image_id IN ('image-3', 'image-9')")
