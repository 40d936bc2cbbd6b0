"""For every format: the rows that an ingest stores and those that it rejects are what the source had, each with its own
captions."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_image
from small_corpus import read_rows

from clipkit.readers import FORMATS
from clipkit.workflows.ingest import IngestOptions, ingest

NUM_SAMPLES = 60
TEXTS = ("a dog", 'it says "stop"', "commas, and; more", "đứng – 立", "two  blanks", "1", "it's", "a | b", "#1")


@dataclass(frozen=True)
class Sample:
    """What a corpus has of one image; None for what is missing."""

    name: str
    image: bytes | None
    captions: Sequence[str]

    @property
    def is_good(self) -> bool:
        return self.image is not None and self.image != b"damaged" and bool(self.captions)


def draw_samples(seed: int) -> list[Sample]:
    draw = random.Random(seed)
    samples = []
    for number in range(NUM_SAMPLES):
        image = draw.choice([make_image(number)] * 6 + [None, b"damaged"])
        texts = {f"{draw.choice(TEXTS)} {number}": None for _ in range(draw.randrange(4) if number else 2)}
        samples.append(Sample(f"{number:03d}.jpg", image, list(texts)))
    return samples


def write_images(folder: Path, samples: Sequence[Sample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        if sample.image is not None:
            (folder / sample.name).write_bytes(sample.image)


def write_csv(folder: Path, samples: Sequence[Sample], *, name: str = "table.csv", separator: str = ",") -> Path:
    """A row a caption; an image without one has a row with an empty caption."""
    write_images(folder / "images", samples)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["image", "caption"])
        writer.writerows((sample.name, caption) for sample in samples for caption in sample.captions or [""])
    return folder


def write_tsv(folder: Path, samples: Sequence[Sample]) -> Path:
    return write_csv(folder, samples, name="table.tsv", separator="\t")


def write_flickr(folder: Path, samples: Sequence[Sample]) -> Path:
    return write_csv(folder, samples, name="captions.txt")


def write_jsonl(folder: Path, samples: Sequence[Sample]) -> Path:
    write_images(folder / "images", samples)
    lines = [json.dumps({"image": sample.name, "captions": list(sample.captions)}) for sample in samples]
    (folder / "table.jsonl").write_text("\n".join(lines))
    return folder


def write_json(folder: Path, samples: Sequence[Sample]) -> Path:
    write_images(folder / "images", samples)
    (folder / "captions.json").write_text(json.dumps({sample.name: list(sample.captions) for sample in samples}))
    return folder


def table_of(samples: Sequence[Sample]) -> pa.Table:
    return pa.table(
        {
            "image_id": [sample.name for sample in samples],
            "image": pa.array([sample.image for sample in samples], pa.binary()),
            "captions": pa.array([list(sample.captions) for sample in samples], pa.list_(pa.string())),
        }
    )


def write_parquet(folder: Path, samples: Sequence[Sample]) -> Path:
    folder.mkdir()
    pq.write_table(table_of(samples), folder / "table.parquet", row_group_size=7)
    return folder


def write_lance(folder: Path, samples: Sequence[Sample]) -> Path:
    folder.mkdir()
    lance.write_dataset(table_of(samples), folder / "source.lance", max_rows_per_file=13)
    return folder / "source.lance"


def write_hf(folder: Path, samples: Sequence[Sample]) -> Path:
    datasets.Dataset(table_of(samples)).save_to_disk(folder, num_shards=3)
    return folder


def write_coco(folder: Path, samples: Sequence[Sample]) -> Path:
    write_images(folder / "train2017", samples)
    images = [{"id": number, "file_name": sample.name} for number, sample in enumerate(samples)]
    annotations = [
        {"image_id": number, "caption": caption} for number, sample in enumerate(samples) for caption in sample.captions
    ]
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations or [{"image_id": 0, "caption": ""}]}
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return folder


def write_karpathy(folder: Path, samples: Sequence[Sample]) -> Path:
    write_images(folder / "images", samples)
    images = [
        {"filename": sample.name, "split": "train", "sentences": [{"raw": caption} for caption in sample.captions]}
        for sample in samples
    ]
    (folder / "dataset_x.json").write_text(json.dumps({"images": images}))
    return folder


def write_sidecar(folder: Path, samples: Sequence[Sample]) -> Path:
    """Images and texts in one folder; a sample without either is not there at all."""
    write_images(folder, samples)
    for sample in samples:
        if sample.captions:
            (folder / sample.name).with_suffix(".txt").write_text("\n".join(sample.captions), encoding="utf-8")
    return folder


def write_shards(folder: Path, samples: Sequence[Sample], *, suffix: str = "") -> Path:
    """Two shards whose members are in no order; a sample without image and captions is not there at all."""
    folder.mkdir()
    members = []
    for number, sample in enumerate(samples):
        stem = sample.name.removesuffix(".jpg") + (".v2" if number % 5 == 0 else "")
        if sample.image is not None:
            members.append((number % 2, f"{stem}.jpg", sample.image))
        if sample.captions:
            members.append((number % 2, f"{stem}.json", json.dumps({"captions": list(sample.captions)}).encode()))
    random.Random(0).shuffle(members)
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar{suffix}", f"w:{suffix[1:]}") as tar:
            for _, name, data in (member for member in members if member[0] == shard):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def write_packed_shards(folder: Path, samples: Sequence[Sample]) -> Path:
    return write_shards(folder, samples, suffix=".gz")


Write = Callable[[Path, Sequence[Sample]], Path]
WRITERS: list[tuple[str, Write]] = [
    ("table", write_csv),
    ("table", write_tsv),
    ("table", write_jsonl),
    ("table", write_json),
    ("table", write_parquet),
    ("flickr", write_flickr),
    ("lance", write_lance),
    ("hf", write_hf),
    ("coco", write_coco),
    ("coco", write_karpathy),
    ("sidecar", write_sidecar),
    ("webdataset", write_shards),
    ("webdataset", write_packed_shards),
]
ONLY_WHAT_IS_THERE = (write_sidecar, write_shards, write_packed_shards)  # files, with no list of what ought to be there


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("format", "write"), WRITERS)
def test_every_sample_is_stored_or_rejected(tmp_path: Path, format: str, write: Write, seed: int) -> None:
    samples = draw_samples(seed)
    if write in ONLY_WHAT_IS_THERE:
        samples = [sample for sample in samples if sample.image is not None or sample.captions]
    source = write(tmp_path / "corpus", samples)
    summary = ingest([str(source)], str(tmp_path / "o.lance"), IngestOptions())
    assert summary.sources[0]["reader"] == format
    rows = read_rows(tmp_path / "o.lance")
    assert summary.counts.rows == len(rows)
    assert summary.counts.rows + summary.rejected == len(samples)
    stored = {row["image"]: tuple(row["captions"]) for row in rows}
    assert stored == {sample.image: tuple(sample.captions) for sample in samples if sample.is_good}
    assert summary.without_caption == 0


def test_every_image_of_a_class_is_stored_or_rejected(tmp_path: Path) -> None:
    samples = [sample for sample in draw_samples(0) if sample.image is not None]
    for number, label in enumerate(("cats", "dogs")):
        write_images(tmp_path / "corpus" / label, samples[number::2])
    summary = ingest([str(tmp_path / "corpus")], str(tmp_path / "o.lance"), IngestOptions())
    assert summary.sources[0]["reader"] == "imagefolder"
    assert summary.counts.rows == sum(sample.image != b"damaged" for sample in samples)
    assert summary.counts.rows + summary.rejected == len(samples)


def test_every_format_is_tested() -> None:
    assert {format for format, _ in WRITERS} | {"imagefolder"} == set(FORMATS)


def test_images_that_no_caption_names_are_counted(tmp_path: Path) -> None:
    samples = [Sample(f"{number}.jpg", make_image(number), ["a caption"]) for number in range(9)]
    source = write_csv(tmp_path / "corpus", samples[:5])
    write_images(source / "images", samples)
    summary = ingest([str(source)], str(tmp_path / "o.lance"), IngestOptions())
    assert (summary.counts.rows, summary.rejected, summary.without_caption) == (5, 0, 4)
