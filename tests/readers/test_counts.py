"""Every image of a source becomes a record or a rejection, whatever is wrong with it, in every format."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_image

from clipkit import readers as ingest
from clipkit.readers import ReadOptions

Sample = tuple[str, list[str]]  # the image's name and its captions
TEXTS = [
    "a dog", "", " ", "nan", 'a "big" dog', '"quoted"', '"opens', "two\nlines", "a, b; c|d", "tab\there",
    "['x', 'y']", "[]", "\ufeffa", "it's", 'ends"', "größer", "0", "http://example.org/a.jpg",
]  # fmt: skip
NAMES = ["{}.jpg", "sub/{}.png", "./{}.jpg", "x y {}.jpg", "größe {}.jpg", "{}.v2.jpg"]


def make_samples(draw: random.Random) -> list[Sample]:
    count = draw.randrange(1, 40)
    return [
        (draw.choice(NAMES).format(number), [draw.choice(TEXTS) for _ in range(draw.randrange(1, 4))])
        for number in range(count)
    ]


def pairs(samples: list[Sample]) -> list[tuple[str, str]]:
    return [(name, text) for name, texts in samples for text in texts]


def write_images(folder: Path, samples: list[Sample], draw: random.Random) -> None:
    for number, (name, _) in enumerate(samples):
        if number == 0 or draw.random() < 0.8:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(make_image(number))


def write_csv(folder: Path, samples: list[Sample], name: str, delimiter: str, header: list[str]) -> None:
    with open(folder / name, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([header, *pairs(samples)])


def comma(folder: Path, samples: list[Sample]) -> None:
    write_csv(folder, samples, "t.csv", ",", ["path", "caption"])


def tabs(folder: Path, samples: list[Sample]) -> None:
    write_csv(folder, samples, "t.tsv", "\t", ["path", "caption"])


def flickr(folder: Path, samples: list[Sample]) -> None:
    write_csv(folder, samples, "captions.txt", ",", ["image", "caption"])


def metadata(folder: Path, samples: list[Sample]) -> None:
    write_csv(folder, samples, "metadata.csv", ",", ["file_name", "text"])


def json_lines(folder: Path, samples: list[Sample]) -> None:
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"image": n, "captions": t}) for n, t in samples))


def json_mapping(folder: Path, samples: list[Sample]) -> None:
    (folder / "t.json").write_text(json.dumps(dict(samples)))


def parquet(folder: Path, samples: list[Sample]) -> None:
    names, texts = zip(*pairs(samples), strict=True)
    pq.write_table(pa.table({"image": names, "caption": texts}), folder / "t.parquet")


def coco(folder: Path, samples: list[Sample]) -> None:
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(samples)]
    annotations = [{"image_id": n, "caption": text} for n, (_, texts) in enumerate(samples) for text in texts]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def webdataset(folder: Path, samples: list[Sample]) -> None:
    with tarfile.open(folder / "t.tar", "w") as tar:
        for number, (_, texts) in enumerate(samples):
            for suffix, data in ((".jpg", make_image(number)), (".txt", texts[0].encode())):
                entry = tarfile.TarInfo(f"{number:04d}{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


WRITERS = [comma, tabs, flickr, metadata, json_lines, json_mapping, parquet, coco, webdataset]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost(tmp_path: Path, read_all, write: Callable[[Path, list[Sample]], None], seed: int) -> None:
    draw = random.Random(f"{write.__name__} {seed}")
    samples = make_samples(draw)
    write_images(tmp_path, samples, draw)
    write(tmp_path, samples)
    source = next(tmp_path.glob("*.tar"), tmp_path)
    assert len({item.image_id for item in read_all(source)}) == len(samples)


@pytest.mark.parametrize("seed", range(20))
def test_lines_of_any_kind(tmp_path: Path, seed: int) -> None:
    """Lines that nobody quoted: each of them ends up in a caption or is rejected."""
    draw = random.Random(seed)
    marks = [draw.choice(['"', '""', "'", ",", ";", "\t", "plain", 'a "b" c']) for _ in range(30)]
    lines = [f"{number}.jpg,{mark}word{number}" for number, mark in enumerate(marks)]
    write_images(tmp_path, [("0.jpg", [])], draw)
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join(lines))
    items = list(ingest.read(str(tmp_path), ReadOptions()))
    assert [item.image_id for item in items] == [f"{number}.jpg" for number in range(30)]
