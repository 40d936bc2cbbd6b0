from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from corpora import NUM_ROWS, check_records, make_captions, make_image

from clipkit import readers as ingest
from clipkit.readers import ReadOptions, Rejected
from clipkit.types import Record


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata(tmp_path: Path, image_folder: Path, read_all, kind: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(image_folder, folder / "sub")
    rows = [(f"sub/{n:06d}.jpg", text, n) for n in range(NUM_ROWS) for text in make_captions(n)]
    if kind == "csv":
        with open(folder / "metadata.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([("file_name", "text", "n"), *rows])
    else:
        lines = [json.dumps({"file_name": name, "text": text, "n": n}) for name, text, n in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert ingest.detect(str(folder)) == "imagefolder"
    items = read_all(folder, ReadOptions(keep=("n",)))
    check_records(items)
    assert (items[9].image_id, items[9].extra) == ("sub/000009.jpg", {"n": 9})


def test_datasets_reads_the_same(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        lines = []
        for number in range(5):
            (tmp_path / split / f"{number}.jpg").write_bytes(make_image(number))
            lines.append(json.dumps({"file_name": f"{number}.jpg", "text": f"{split} {number}"}))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    items = [item for item in ingest.read(str(tmp_path), ReadOptions()) if isinstance(item, Record)]
    assert sorted(item.captions[0] for item in items) == sorted(
        [*theirs["train"]["text"], *theirs["validation"]["text"]]
    )
    assert {(item.image_id.split("/")[0], item.split) for item in items} == {("train", "train"), ("validation", "dev")}


def test_class_folders(tmp_path: Path, image_folder: Path, read_all) -> None:
    for split, numbers in (("train", range(800)), ("test", range(800, NUM_ROWS))):
        for number in numbers:
            folder = tmp_path / split / ("polar_bear", "cat")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image_folder / f"{number:06d}.jpg", folder)
    assert ingest.detect(str(tmp_path)) == "imagefolder"
    items = read_all(tmp_path)
    assert len(items) == NUM_ROWS
    assert [item.image_id for item in items[:2]] == ["test/cat/000801.jpg", "test/cat/000803.jpg"]
    assert {(item.captions, item.split, item.extra["label"]) for item in items} == {
        ((f"a photo of a {name}",), split, label)
        for name, label in (("polar bear", "polar_bear"), ("cat", "cat"))
        for split in ("train", "test")
    }
    [first, *_] = ingest.read(str(tmp_path), ReadOptions(class_template="ein Bild: {}"))
    assert isinstance(first, Record)
    assert first.captions == ("ein Bild: cat",)


def test_links_that_lead_out_are_rejected(tmp_path: Path, image_folder: Path) -> None:
    folder = tmp_path / "classes"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.jpg").symlink_to(image_folder / "000001.jpg")
    (folder / "cat" / "2.jpg").write_bytes(b"x")
    (folder / "cat" / "3.jpg").symlink_to(folder / "cat" / "2.jpg")
    options = ReadOptions(format="imagefolder")  # one folder is not a class by itself
    rejected = [item.image_id for item in ingest.read(str(folder), options) if isinstance(item, Rejected)]
    assert rejected == ["cat/1.jpg"]
    allowed = ingest.read(str(folder), replace(options, allow_outside=True))
    assert all(isinstance(item, Record) for item in allowed)
