"""Every command of docs/corpora.md, run as it stands there."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import lance
import pyarrow as pa
import pytest
import webdataset
from corpora import make_captions, make_image

DOCUMENT = Path(__file__).parent.parent / "docs" / "corpora.md"
COUNT = 30


def write_images(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(make_image(number))


def make_flickr(folder: Path) -> None:
    write_images(folder / "flickr8k" / "Images", range(COUNT))
    rows = [(f"{number}.jpg", caption) for number in range(COUNT) for caption in make_captions(number)]
    with open(folder / "flickr8k" / "captions.txt", "w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *rows])
    names = "\n".join(f"{number}.jpg" for number in range(20))
    (folder / "flickr8k" / "Flickr_8k.trainImages.txt").write_text(names)


def make_coco(folder: Path) -> None:
    (folder / "coco" / "annotations").mkdir(parents=True)
    for name, numbers in (("train2014", range(20)), ("val2014", range(20, COUNT))):
        write_images(folder / "coco" / name, numbers)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in numbers]
        annotations = [{"image_id": n, "id": n, "caption": make_captions(n)[0]} for n in numbers]
        content = {"images": images, "annotations": annotations}
        (folder / "coco" / "annotations" / f"captions_{name}.json").write_text(json.dumps(content))


def make_table(folder: Path) -> None:
    write_images(folder / "photos", range(COUNT))
    rows = [(f"sku{number}", f"{number}.jpg", make_captions(number)[0], "red") for number in range(COUNT)]
    with open(folder / "products.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("sku", "photo", "title", "colour"), *rows])


def make_webdataset(folder: Path) -> None:
    (folder / "shards").mkdir()
    pattern = str(folder / "shards" / "part-%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=COUNT // 2, verbose=0) as writer:
        for number in range(COUNT):
            writer.write({"__key__": f"{number:09d}", "jpg": make_image(number), "txt": make_captions(number)[0]})


def make_imagefolder(folder: Path) -> None:
    write_images(folder / "animals" / "train" / "polar_bear", range(20))
    write_images(folder / "animals" / "test" / "cat", range(20, COUNT))


def make_sidecar(folder: Path) -> None:
    write_images(folder / "pairs" / "train", range(COUNT))
    for number in range(COUNT):
        (folder / "pairs" / "train" / f"{number}.txt").write_text("\n".join(make_captions(number)))


def make_hf(folder: Path) -> None:
    columns = {"image": [{"bytes": make_image(n), "path": None} for n in range(COUNT)]}
    columns["text"] = [make_captions(number)[0] for number in range(COUNT)]
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(folder / "saved")


def make_lance(folder: Path) -> None:
    columns = {"picture": [make_image(n) for n in range(COUNT)], "words": [make_captions(n) for n in range(COUNT)]}
    names = [f"n{number}" for number in range(COUNT)]
    lance.write_dataset(pa.table({"name": names, **columns}), str(folder / "other.lance"))


def make_several(folder: Path) -> None:
    make_flickr(folder)
    write_images(folder / "more", range(25, COUNT + 5))
    lines = ["path,caption", *(f"{number}.jpg,another" for number in range(25, COUNT + 5))]
    (folder / "more.csv").write_text("\n".join(lines))


def make_dataset(folder: Path) -> None:
    make_flickr(folder)
    subprocess.run([sys.executable, "-m", "clipkit", "ingest", "flickr8k", "flickr8k.lance"], cwd=folder, check=True)


CORPORA: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "flickr": (make_flickr, "flickr8k.lance", COUNT),
    "coco": (make_coco, "coco.lance", COUNT),
    "table": (make_table, "products.lance", COUNT),
    "sidecar": (make_sidecar, "pairs.lance", COUNT),
    "webdataset": (make_webdataset, "web.lance", COUNT),
    "imagefolder": (make_imagefolder, "animals.lance", COUNT),
    "hf": (make_hf, "saved.lance", COUNT),
    "lance": (make_lance, "mine.lance", COUNT),
    "Several sources, splits, sizes": (make_several, "all.lance", COUNT + 5),
    "Back into files": (make_dataset, "flickr8k.lance", COUNT),
}


def examples() -> dict[str, str]:
    sections = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    blocks = {
        title: re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for title, text in zip(*[iter(sections)] * 2, strict=True)
    }
    return {title: found[0] for title, found in blocks.items() if found}


def test_every_section_has_an_example() -> None:
    assert set(examples()) == set(CORPORA)


@pytest.mark.parametrize("title", CORPORA)
def test_example(title: str, tmp_path: Path) -> None:
    make, out, num_rows = CORPORA[title]
    make(tmp_path)
    clipkit = f'clipkit() {{ "{sys.executable}" -m clipkit "$@"; }}\nset -e\n'
    done = subprocess.run(
        ["bash", "-c", clipkit + examples()[title]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = lance.dataset(str(tmp_path / out)).to_table().to_pylist()
    assert len(rows) == num_rows
    assert all(row["captions"] and row["image"] for row in rows)
    assert not os.path.exists(tmp_path / "rejected.jsonl")
