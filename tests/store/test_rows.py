from __future__ import annotations

from pathlib import Path

import lance
import pytest

from clipkit.store.locks import exclusive
from clipkit.store.rows import DatasetRow
from clipkit.store.staging import IngestPlan, Position, Staging
from clipkit.store.writer import DatasetWriter, ShardLimits
from clipkit.types import Scalar


def make_row(number: int, **extra: Scalar) -> DatasetRow:
    return DatasetRow(f"i{number}", b"image %d" % number, ["caption"], width=4, height=3, extra=extra)


def write(out: Path, rows: list[DatasetRow], limits: ShardLimits) -> lance.LanceDataset:
    with exclusive(str(out)) as folder:
        staging = Staging(folder)
        staging.begin(IngestPlan("id", "replace", "", {}))
        writer = DatasetWriter(str(out), staging, limits=limits)
        for number, row in enumerate(rows):
            writer.add(row)
            writer.advance(Position(0, number + 1, row.image_id))
        writer.finish_shard()
        writer.commit({"rows": len(rows)})
    return lance.dataset(str(out))


def test_columns_that_come_late_are_null_before(tmp_path: Path) -> None:
    rows = [make_row(number, score=number) for number in range(2000)]
    rows[1900] = make_row(1900, score=1900, late="here")
    table = write(tmp_path / "o.lance", rows, ShardLimits(rows=500)).to_table().to_pylist()
    assert [row["image_id"] for row in table] == [f"i{number}" for number in range(2000)]
    assert [row["score"] for row in table] == list(range(2000))
    assert [row["late"] for row in table if row["late"]] == ["here"]
    assert table[1900]["late"] == "here"


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [(1, 2.5, None), (1.5, 2, 2.0), ("a", 3, "3"), (1, "no number", None), (True, False, False)],
)
def test_values_of_another_type(tmp_path: Path, first: Scalar, later: Scalar, expected: Scalar) -> None:
    rows = [make_row(number, value=first if number < 1500 else later) for number in range(1600)]
    values = write(tmp_path / "o.lance", rows, ShardLimits()).to_table().column("value").to_pylist()
    assert values[1599] == expected
    assert values[0] == first


def test_types_within_the_first_batch_are_widened(tmp_path: Path) -> None:
    rows = [make_row(0, a=1, b=1), make_row(1, a=2.5, b="x")]
    table = write(tmp_path / "o.lance", rows, ShardLimits()).to_table().to_pylist()
    assert [(row["a"], row["b"]) for row in table] == [(1.0, "1"), (2.5, "x")]


def test_shards_are_fragments_and_keep_their_order(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(3000)]
    dataset = write(tmp_path / "o.lance", rows, ShardLimits(rows=700))
    sizes = [fragment.count_rows() for fragment in dataset.get_fragments()]
    assert sizes == [1024, 768, 768, 440]  # batches are not split: one of 1,024 rows, then of 256
    assert dataset.to_table().column("image_id").to_pylist() == [row.image_id for row in rows]
