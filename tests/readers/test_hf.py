from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from corpora import NUM_ROWS, check_records, make_captions, make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions


def make_dataset(numbers: range) -> datasets.Dataset:
    columns: dict[str, Any] = {
        "image": [{"bytes": make_image(number), "path": None} for number in numbers],
        "caption": [make_captions(number) for number in numbers],
        "sentids": [[number] for number in numbers],
        "img_id": [str(number) for number in numbers],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
            "sentids": datasets.List(datasets.Value("int64")),
            "img_id": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_saved_dataset(tmp_path: Path, read_all) -> None:
    make_dataset(range(NUM_ROWS)).save_to_disk(tmp_path / "saved", num_shards=3)
    assert ingest.detect(str(tmp_path / "saved")) == "hf"
    items = read_all(tmp_path / "saved", ReadOptions(keep=("sentids",)))
    check_records(items)
    assert (items[7].image_id, items[7].extra) == ("7", {"sentids": "[7]"})


def test_saved_splits(tmp_path: Path, read_all) -> None:
    parts = {"train": make_dataset(range(900)), "validation": make_dataset(range(900, NUM_ROWS))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    items = read_all(tmp_path / "saved")
    check_records(items)
    assert Counter(item.split for item in items) == {"train": 900, "dev": 300}


def test_image_files_are_found_by_their_names(tmp_path: Path, image_folder: Path, read_all) -> None:
    names = [str(image_folder / f"{number:06d}.jpg") for number in range(20)]
    columns = {"image": names, "text": [make_captions(number)[0] for number in range(20)]}
    saved = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "saved")
    items = read_all(tmp_path / "saved", ReadOptions(image_dir=image_folder))
    assert [item.captions for item in items] == [(make_captions(number)[0],) for number in range(20)]
    assert len({item.image_id for item in items}) == 20


def test_incomplete_folder(tmp_path: Path) -> None:
    make_dataset(range(5)).save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match="not a dataset saved by"):
        list(ingest.read(str(tmp_path / "saved"), ReadOptions()))


def test_truncated_file(tmp_path: Path) -> None:
    make_dataset(range(300)).save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-20_000])
    with pytest.raises(DataError, match="cannot be read any further"):
        list(ingest.read(str(tmp_path / "saved"), ReadOptions()))
