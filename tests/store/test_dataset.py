"""Opening datasets that lack a column, or have it under another name or type."""

from __future__ import annotations

import pickle
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from clipkit.errors import DataError
from clipkit.store import Columns, Dataset


def write(path: Path, **columns: pa.Array) -> str:
    lance.write_dataset(pa.table(columns), str(path))
    return str(path)


def test_a_dataset_of_vectors_opens_and_says_what_it_lacks_when_asked(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    uri = write(tmp_path / "vectors.lance", image_id=pa.array(["a", "b"]), vector=vectors)
    dataset = pickle.loads(pickle.dumps(Dataset(uri)))
    assert dataset.take_vectors([1], "vector").tolist() == [[3, 4]]
    with pytest.raises(DataError, match="has no image column `image`; its columns are `image_id`, `vector`"):
        dataset.take_images([0])
    for read in (lambda: dataset.take_captions([0]), dataset.count_captions, lambda: dataset.captions_column):
        with pytest.raises(DataError, match="has no captions column `captions`"):
            read()


def test_columns_of_a_type_that_is_no_use_are_named(tmp_path: Path) -> None:
    numbers = pa.array([1, 2])
    uri = write(tmp_path / "numbers.lance", image_id=pa.array(["a", "b"]), image=numbers, captions=numbers)
    with pytest.raises(DataError, match=r"the image column `image` of .* is int64, not binary"):
        Dataset(uri).take_images([0])
    with pytest.raises(DataError, match=r"the captions column `captions` of .* is int64, not text or a list of texts"):
        Dataset(uri).take_captions([0])
    with pytest.raises(DataError, match=r"the id column `image` of .* is int64, not text"):
        Dataset(uri, columns=Columns(image_id="image"))
    with pytest.raises(DataError, match="has no image id column `name`") as raised:
        Dataset(uri, columns=Columns(image_id="name"))
    assert "data.image_id_column" in str(raised.value.hint)


def test_text_without_quotes_in_a_filter_is_noticed(tmp_path: Path) -> None:
    dataset = Dataset(write(tmp_path / "d.lance", image_id=pa.array(["a", "b"]), split=pa.array(["dev", "test"])))
    with pytest.raises(DataError, match="the filter `split = test` does not work") as caught:
        dataset.select("split = test")
    assert "`split = 'test'`" in caught.value.hint
    assert dataset.select("split = 'test'").tolist() == [1]
