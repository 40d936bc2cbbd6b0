"""What a dataset holds: rows, splits, columns, captions, images, provenance and versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.images.header import BadImage, parse_header
from clipkit.store import Dataset
from clipkit.store.dataset import as_captions
from clipkit.store.provenance import provenances
from clipkit.store.schema import ORIENTATION

BATCH_ROWS = 4096
NUM_SAMPLED_IMAGES = 1000
READ_BINARY = """import lance
dataset = lance.dataset({uri!r})
data = dataset.take([0], columns=[{column!r}])[{column!r}][0].as_py()  # the encoded image"""
READ_BLOB = """import lance
dataset = lance.dataset({uri!r})
data = dataset.read_blobs({column!r}, indices=[0])[0][1]  # the encoded image (`take` returns a descriptor)"""


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a number over the rows."""

    min: float
    median: float
    mean: float
    max: float

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Spread | None:
        """From the count of each value; None where there are no values."""
        if not counts:
            return None
        values = np.array(sorted(counts))
        weights = np.array([counts[int(value)] for value in values])
        total = np.cumsum(weights)
        median = values[np.searchsorted(total, (total[-1] + 1) / 2)]
        mean = float((values * weights).sum() / total[-1])
        return cls(float(values[0]), float(median), round(mean, 2), float(values[-1]))


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Version:
    version: int
    created: str
    rows: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Images:
    """How images are stored, and their sizes (from the columns, or from up to 1,000 images)."""

    storage: str  # binary or blob
    how_to_read: str
    formats: Mapping[str, int]  # of the sampled images
    num_sampled: int
    bytes: Spread | None  # of the sampled images
    width: Spread | None
    height: Spread | None
    num_rotated: int  # images that are rotated by their EXIF orientation when read


@dataclass(frozen=True, slots=True)
class Info:
    dataset: str
    version: int
    rows: int
    splits: Mapping[str, int]
    num_without_split: int
    columns: Sequence[Column]
    captions: int
    captions_per_image: Spread | None
    caption_words: Spread | None
    caption_chars: Spread | None
    images: Images | None
    total_bytes: int
    num_fragments: int
    storage_version: str
    indices: Sequence[str]
    versions: Sequence[Version]
    provenance: Sequence[Mapping[str, Any]]  # of each ingest, newest first

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(uri: str, *, version: int | str | None = None) -> Info:
    """Describe a dataset; reads the small columns once, and a sample of the images."""
    dataset = Dataset(uri, version=version)
    counts = _count(dataset)
    versions = _versions(dataset)
    current = next(found for found in dataset.lance.versions() if found["version"] == dataset.version)
    return Info(
        dataset=uri,
        version=dataset.version,
        rows=len(dataset),
        splits=dict(sorted((name, rows) for name, rows in counts.splits.items() if name is not None)),
        num_without_split=counts.splits[None],
        columns=[Column(field.name, _type_name(field.type)) for field in dataset.schema],
        captions=sum(number * rows for number, rows in counts.per_image.items()),
        captions_per_image=Spread.of(counts.per_image),
        caption_words=Spread.of(counts.words),
        caption_chars=Spread.of(counts.chars),
        images=_describe_images(dataset, counts),
        total_bytes=int(current["metadata"].get("total_files_size", 0)) + _bytes_of_blobs(dataset),
        num_fragments=len(dataset.lance.get_fragments()),
        storage_version=str(dataset.lance.data_storage_version),
        indices=[str(index.name) for index in dataset.lance.describe_indices()],
        versions=versions,
        provenance=provenances(uri),
    )


def _bytes_of_blobs(dataset: Dataset) -> int:
    """Bytes of a local dataset's blob files, which Lance does not count."""
    files = [file.path for fragment in dataset.lance.get_fragments() for file in fragment.metadata.files]
    folders = [Path(dataset.uri) / "data" / Path(path).stem for path in files]
    return sum(blob.stat().st_size for folder in folders if folder.is_dir() for blob in folder.iterdir())


class _Counts:
    """How often each value occurs in the dataset."""

    def __init__(self) -> None:
        self.splits: Counter[str | None] = Counter()
        self.per_image: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self.chars: Counter[int] = Counter()
        self.width: Counter[int] = Counter()
        self.height: Counter[int] = Counter()
        self.orientation: Counter[int] = Counter()


def _count(dataset: Dataset) -> _Counts:
    counts = _Counts()
    plain: dict[str, Counter[Any]] = {
        "split": counts.splits,
        "width": counts.width,
        "height": counts.height,
        ORIENTATION: counts.orientation,
    }
    there = [name for name in plain if name in dataset.schema.names]
    captions_column = [dataset.captions_column] if dataset.columns.captions in dataset.schema.names else []
    columns = captions_column + there
    scanner = dataset.lance.scanner(columns=columns, batch_size=BATCH_ROWS)
    for batch in scanner.to_batches() if columns else ():
        for name in there:
            for found in pc.value_counts(batch.column(name)).to_pylist():
                plain[name][found["values"]] += found["counts"]
        for name in captions_column:
            for captions in as_captions(pa.chunked_array([batch.column(name)])):
                counts.per_image[len(captions)] += 1
                counts.words.update(len(caption.split()) for caption in captions)
                counts.chars.update(map(len, captions))
    if "split" not in there:
        counts.splits[None] = len(dataset)
    return counts


def _describe_images(dataset: Dataset, counts: _Counts) -> Images | None:
    if dataset.columns.image not in dataset.schema.names:
        return None
    num_rows = len(dataset)
    rows = np.unique(np.linspace(0, max(0, num_rows - 1), min(num_rows, NUM_SAMPLED_IMAGES)).astype(np.int64))
    formats: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    width, height = counts.width, counts.height
    has_columns = bool(width)
    for start in range(0, len(rows), 64):
        for data in dataset.take_images(rows[start : start + 64]):
            sizes[len(data)] += 1
            try:
                info = parse_header(data)
            except BadImage:
                formats["unreadable"] += 1
                continue
            formats[info.format] += 1
            if not has_columns:
                width[info.width] += 1
                height[info.height] += 1
    template = READ_BLOB if dataset.image_is_blob else READ_BINARY
    return Images(
        storage="blob" if dataset.image_is_blob else "binary",
        how_to_read=template.format(uri=dataset.uri, column=dataset.columns.image),
        formats=dict(formats.most_common()),
        num_sampled=len(rows),
        bytes=Spread.of(sizes),
        width=Spread.of(_without_null(width)),
        height=Spread.of(_without_null(height)),
        num_rotated=sum(rows for value, rows in counts.orientation.items() if value not in (None, 1)),
    )


def _without_null(counts: Mapping[Any, int]) -> dict[int, int]:
    return {int(value): rows for value, rows in counts.items() if value is not None}


def _versions(dataset: Dataset) -> list[Version]:
    tags: dict[int, list[str]] = {}
    for name, tag in dataset.lance.tags.list().items():
        tags.setdefault(int(tag["version"]), []).append(name)
    return [
        Version(
            version=int(found["version"]),
            created=found["timestamp"].isoformat(timespec="seconds"),
            rows=int(found["metadata"].get("total_rows", 0)),
            tags=tuple(sorted(tags.get(int(found["version"]), ()))),
        )
        for found in dataset.lance.versions()
    ]


def _type_name(data_type: pa.DataType) -> str:
    name = getattr(data_type, "extension_name", None)
    return str(name or data_type)
