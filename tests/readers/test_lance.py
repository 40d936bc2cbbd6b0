from __future__ import annotations

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from corpora import NUM_ROWS, check_records, make_captions, make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions


@pytest.mark.parametrize("storage", ["binary", "blob"])
def test_renamed_columns(tmp_path: Path, read_all, storage: str) -> None:
    images = [make_image(number) for number in range(NUM_ROWS)]
    is_blob = storage == "blob"
    columns = {
        "name": pa.array([f"n{number}" for number in range(NUM_ROWS)]),
        "picture": lance.blob_array(images) if is_blob else pa.array(images),
        "words": pa.array([make_captions(number) for number in range(NUM_ROWS)]),
        "split": pa.array(["train", "test"] * (NUM_ROWS // 2)),
        "score": pa.array([number / 2 for number in range(NUM_ROWS)]),
        "vector": pa.array([[0.0, 1.0]] * NUM_ROWS, pa.list_(pa.float32(), 2)),
    }
    field = lance.blob_field("picture") if is_blob else pa.field("picture", pa.binary())
    schema = pa.schema([field if name == "picture" else pa.field(name, array.type) for name, array in columns.items()])
    path = tmp_path / "other.lance"
    lance.write_dataset(pa.Table.from_arrays(list(columns.values()), schema=schema), str(path), max_rows_per_file=500)
    assert ingest.detect(str(path)) == "lance"
    options = ReadOptions(image_column="picture", caption_columns=("words",), id_column="name", keep=("*",))
    items = read_all(path, options)
    check_records(items)
    assert (items[3].image_id, items[3].split, items[3].extra) == ("n3", "test", {"score": 1.5})


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened as a Lance dataset"):
        list(ingest.read(str(tmp_path / "gone.lance"), ReadOptions()))
