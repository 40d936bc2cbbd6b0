from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpora import NUM_ROWS, check_records, image_bytes, make_captions, make_image

from clipkit import readers as ingest
from clipkit.errors import DataError
from clipkit.readers import ReadOptions, Rejected
from clipkit.types import Record


def coco_object(numbers: range, *, annotations_first: bool = False) -> dict[str, Any]:
    """COCO's own layout, with annotations in no order, as there."""
    images = [
        {
            "license": 5,
            "file_name": f"{n:06d}.jpg",
            "height": 12,
            "width": 16,
            "id": 9_000 + n,
            "flickr_url": "http://x",
        }
        for n in numbers
    ]
    annotations = [
        {"image_id": 9_000 + n, "id": n * 10 + i, "caption": caption}
        for n in numbers
        for i, caption in enumerate(make_captions(n))
    ]
    order = list(range(len(annotations)))
    random.Random(0).shuffle(order)
    positions = {id(annotations[i]): p for p, i in enumerate(order)}
    annotations.sort(key=lambda a: (a["id"] % 10, positions[id(a)]))  # each image's own captions stay in order
    parts = [("images", images), ("annotations", annotations)]
    return {"info": {"year": 2014}, **dict(parts[::-1] if annotations_first else parts), "licenses": [{"id": 1}]}


@pytest.mark.parametrize("annotations_first", [False, True])
def test_coco_file(tmp_path: Path, image_folder: Path, read_all, annotations_first: bool) -> None:
    file = tmp_path / "captions_train2014.json"
    file.write_text(json.dumps(coco_object(range(NUM_ROWS), annotations_first=annotations_first)))
    assert ingest.detect(str(file)) == "coco"
    items = read_all(file, ReadOptions(image_dir=image_folder, keep=("*",)))
    check_records(items)
    assert {item.split for item in items} == {"train"}
    assert items[7].image_id == "000007.jpg"
    assert items[7].extra == {"coco_id": 9_007, "license": 5, "flickr_url": "http://x"}


def test_pycocotools_agrees(tmp_path: Path, image_folder: Path) -> None:
    from pycocotools.coco import COCO

    file = tmp_path / "captions.json"
    file.write_text(json.dumps(coco_object(range(NUM_ROWS))))
    coco = COCO(str(file))
    expected = {
        image["file_name"]: sorted(a["caption"] for a in coco.imgToAnns[image["id"]])
        for image in coco.loadImgs(coco.getImgIds())
    }
    items = ingest.read(str(file), ReadOptions(image_dir=image_folder))
    assert {item.image_id: sorted(item.captions) for item in items if isinstance(item, Record)} == expected


def test_splits_of_a_coco_folder(tmp_path: Path, read_all) -> None:
    (tmp_path / "annotations").mkdir()
    for name, numbers in (("train2014", range(600)), ("val2014", range(600, NUM_ROWS))):
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"{number:06d}.jpg").write_bytes(make_image(number))
        (tmp_path / "annotations" / f"captions_{name}.json").write_text(json.dumps(coco_object(numbers)))
    (tmp_path / "annotations" / "instances_val2014.json").write_text('{"images": [], "annotations": [{"bbox": []}]}')
    items = read_all(tmp_path)
    check_records(items)
    assert Counter(item.split for item in items) == {"train": 600, "dev": 600}


def test_karpathy(tmp_path: Path, read_all) -> None:
    images = []
    for number in range(NUM_ROWS):
        folder = ("train2014", "val2014")[number % 2]
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{number:06d}.jpg").write_bytes(make_image(number))
        sentences = [{"tokens": [], "raw": caption, "sentid": i} for i, caption in enumerate(make_captions(number))]
        split = ("train", "val", "test", "restval")[number % 4]
        images.append(
            {
                "filepath": folder,
                "filename": f"{number:06d}.jpg",
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert ingest.detect(str(tmp_path)) == "coco"
    items = read_all(tmp_path)
    check_records(items)
    assert Counter(item.split for item in items) == {"train": 300, "dev": 300, "test": 300, "restval": 300}
    assert items[5].extra == {"coco_id": 5}


def test_karpathy_with_flat_folder(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images" / "a.jpg").write_bytes(make_image(1))
    image = {"filename": "a.jpg", "filepath": "gone", "imgid": 0, "split": "val", "sentences": [{"raw": " A . "}]}
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": [image], "dataset": "flickr8k"}))
    [record] = ingest.read(str(tmp_path), ReadOptions())
    assert isinstance(record, Record)
    assert (record.captions, record.split, image_bytes(record)) == (("A .",), "dev", make_image(1))


def test_what_does_not_join_is_rejected(tmp_path: Path, image_folder: Path) -> None:
    value = coco_object(range(3))
    value["annotations"].append({"image_id": 77, "id": 1, "caption": "of nothing"})
    value["images"].append({"id": 5, "file_name": "000005.jpg"})
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(value))
    items = list(ingest.read(str(file), ReadOptions(image_dir=image_folder)))
    rejected = {(item.image_id, item.reason) for item in items if isinstance(item, Rejected)}
    assert rejected == {("77", "the image is not listed in `images`"), ("000005.jpg", "no caption")}


def test_the_folder_of_annotations_alone(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "1.jpg").write_bytes(make_image(1))
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "c"}]}
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    [record] = ingest.read(str(tmp_path / "annotations"), ReadOptions())
    assert isinstance(record, Record)
    assert image_bytes(record) == make_image(1)


def test_images_without_a_name(tmp_path: Path, image_folder: Path) -> None:
    annotations = [{"image_id": number, "caption": "c"} for number in (1, 2, 3)]
    images = [{"id": 1, "file_name": "000001.jpg"}, {"id": 2, "file_name": None}, {"id": 3}]
    (tmp_path / "captions_x.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    items = list(ingest.read(str(tmp_path / "captions_x.json"), ReadOptions(image_dir=image_folder)))
    rejected = [(item.image_id, item.reason) for item in items if isinstance(item, Rejected)]
    assert rejected == [("2", "no image file is named"), ("3", "no image file is named")]


def test_truncated_json(tmp_path: Path, image_folder: Path) -> None:
    file = tmp_path / "captions.json"
    text = json.dumps(coco_object(range(NUM_ROWS)))
    file.write_text(text[: len(text) * 2 // 3])
    with pytest.raises(DataError, match="no valid JSON"):
        list(ingest.read(str(file), ReadOptions(image_dir=image_folder)))
