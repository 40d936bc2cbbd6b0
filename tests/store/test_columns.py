"""Columns that are added later: filled where they are null, a fragment at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from clipkit.errors import DataError
from clipkit.store import Dataset, Rows
from clipkit.store.columns import count_missing, fill_column

NUMBER = pa.field("number", pa.int64())
VECTOR = pa.field("vector", pa.list_(pa.float16(), 3))
LENGTHS = pa.field("lengths", pa.list_(pa.int32()))


def make_table(numbers: range) -> pa.Table:
    captions = [["x" * (number % 7), "y"] for number in numbers]
    images = pa.array([str(number).encode() for number in numbers], pa.large_binary())
    return pa.table({"image_id": [f"i{number}" for number in numbers], "image": images, "captions": captions})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """1,000 rows in four fragments, some of them deleted."""
    uri = str(tmp_path / "d.lance")
    lance.write_dataset(make_table(range(1000)), uri, max_rows_per_file=300, data_storage_version="2.2")
    lance.dataset(uri).delete("image_id in ('i5', 'i299', 'i300', 'i777')")
    return Dataset(uri)


def numbers(dataset: Dataset, rows: Rows) -> pa.Array:
    return pa.array([int(bytes(image)) for image in dataset.take_images(rows)], pa.int64())


def vectors(dataset: Dataset, rows: Rows) -> pa.Array:
    values = np.repeat(numbers(dataset, rows).to_numpy(), 3).astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), 3)


def lengths(dataset: Dataset, rows: Rows) -> pa.Array:
    return pa.array([[len(text) for text in texts] for texts in dataset.take_captions(rows)], pa.list_(pa.int32()))


def test_values_stand_with_their_rows(dataset: Dataset) -> None:
    for field, compute in ((NUMBER, numbers), (VECTOR, vectors), (LENGTHS, lengths)):
        filled = fill_column(dataset, field, compute, batch_rows=64)
        assert count_missing(filled, field.name) == 0
    rows = filled.lance.to_table().to_pylist()
    assert len(rows) == 996
    for row in rows:
        number = int(row["image_id"][1:])
        assert row["number"] == number
        assert row["vector"] == [np.float16(number)] * 3
        assert row["lengths"] == [len(text) for text in row["captions"] if text]


def test_an_interrupted_fill_goes_on_where_it_was(dataset: Dataset) -> None:
    asked: list[int] = []

    def fails(current: Dataset, rows: Rows) -> pa.Array:
        asked.extend(rows.tolist())
        if len(asked) > 700:
            raise RuntimeError("power cut")
        return numbers(current, rows)

    with pytest.raises(RuntimeError):
        fill_column(dataset, NUMBER, fails, batch_rows=50)
    left = count_missing(Dataset(dataset.uri), "number")
    assert 0 < left < 996
    data = Path(dataset.uri) / "data"
    num_files = sum(len(fragment.data_files()) for fragment in lance.dataset(dataset.uri).get_fragments())
    assert len(list(data.iterdir())) == num_files, "a file that nothing refers to was left behind"
    done: list[int] = []
    filled = fill_column(dataset, NUMBER, numbers, advance=done.append)
    assert sum(done) == left
    assert filled.take([0, 500], ["number"]).column(0).to_pylist() == [0, 503]


def test_a_killed_fill_goes_on_where_it_was(dataset: Dataset) -> None:
    script = f"""
import os, signal, pyarrow as pa
from clipkit.store import Dataset
from clipkit.store.columns import fill_column
def compute(dataset, rows):
    if rows[-1] > 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.array([int(bytes(image)) for image in dataset.take_images(rows)], pa.int64())
fill_column(Dataset({dataset.uri!r}), pa.field("number", pa.int64()), compute, batch_rows=50)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert 300 <= count_missing(Dataset(dataset.uri), "number") <= 600
    filled = fill_column(dataset, NUMBER, numbers)
    ids, values = (filled.lance.to_table().column(name).to_pylist() for name in ("image_id", "number"))
    assert [f"i{value}" for value in values] == ids


def test_appended_rows_are_found_and_others_left_alone(dataset: Dataset) -> None:
    version = fill_column(dataset, NUMBER, numbers).version
    assert fill_column(dataset, NUMBER, numbers).version == version
    lance.write_dataset(make_table(range(1000, 1100)), dataset.uri, mode="append")
    assert count_missing(Dataset(dataset.uri), "number") == 100
    done: list[int] = []
    filled = fill_column(dataset, NUMBER, numbers, advance=done.append)
    assert (sum(done), filled.version) == (100, version + 2)
    assert filled.select("number = 1050").tolist() == [1046]


def test_rows_without_a_value_stay_null(dataset: Dataset) -> None:
    def odd(current: Dataset, rows: Rows) -> pa.Array:
        return pa.array([n if n % 2 else None for n in numbers(current, rows).to_pylist()], pa.int64())

    filled = fill_column(dataset, NUMBER, odd)
    assert count_missing(filled, "number") == 499
    assert fill_column(dataset, NUMBER, odd).version == filled.version
    whole = fill_column(dataset, NUMBER, numbers)
    assert count_missing(whole, "number") == 0
    assert all(f"i{row['number']}" == row["image_id"] for row in whole.lance.to_table().to_pylist())


def test_an_append_at_the_same_time(dataset: Dataset) -> None:
    def compute(current: Dataset, rows: Rows) -> pa.Array:
        if rows[0] == 0:
            lance.write_dataset(make_table(range(1000, 1010)), dataset.uri, mode="append")
        return numbers(current, rows)

    filled = fill_column(dataset, NUMBER, compute)
    assert len(filled) == 1006
    assert count_missing(filled, "number") == 10


def test_a_column_of_another_type_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="is large_binary, not int64"):
        fill_column(dataset, pa.field("image", pa.int64()), numbers)
    with pytest.raises(ValueError, match="1 returned"):
        fill_column(dataset, NUMBER, lambda current, rows: pa.array([1]))
