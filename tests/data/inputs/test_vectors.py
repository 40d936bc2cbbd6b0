"""Stored vectors in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_datasets import batches_of, loader_of, vector_column

from clipkit.errors import DataError


def test_stored_features_take_the_place_of_pixels(write_dataset: Any) -> None:
    vectors = np.arange(40 * 6, dtype=np.float32).reshape(40, 6)
    path = write_dataset([b"never decoded"] * 40, None, emb=vector_column(vectors))
    (batch,) = batches_of(loader_of(path, features={"image": "emb"}), stop=1)
    assert list(batch.tensors) == ["image_features"]
    assert np.array_equal(batch["image_features"].numpy(), vectors[batch.rows])


def test_other_columns_are_refused(plain_dataset: str) -> None:
    with pytest.raises(DataError, match="not vectors of one size"):
        loader_of(plain_dataset, features={"image": "captions"})
    with pytest.raises(DataError, match="no column `nowhere`"):
        loader_of(plain_dataset, features={"text": "nowhere"})
