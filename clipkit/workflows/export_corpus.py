"""Exports a dataset to files: WebDataset shards, an image folder with metadata, or COCO captions."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.images.header import BadImage, parse_header
from clipkit.store import Dataset
from clipkit.types import Progress, Scalar, no_progress

READ_ROWS = 128
SHARD_ROWS = 1000
SUFFIXES = {"jpeg": ".jpg", "tiff": ".tif"}  # of formats whose suffix is not their name
SAFE_NAME = re.compile(r"[^/\\\0-\x1f<>:\"|?*]{1,200}")
OWN_COLUMNS = ("width", "height", "orientation")  # readers measure these again


@dataclass(frozen=True, slots=True)
class Sample:
    """A row to export; `name` is the path of its image in the corpus, without the suffix."""

    row: int
    image_id: str
    name: str
    suffix: str
    data: memoryview
    captions: list[str]
    split: str | None
    size: tuple[int, int]
    extra: Mapping[str, Scalar] = field(default_factory=dict)


class Writer(AbstractContextManager["Writer"], Protocol):
    def write(self, sample: Sample) -> None: ...


def export_corpus(
    uri: str,
    out: Path,
    *,
    format: str,
    where: str | None = None,
    version: int | str | None = None,
    progress: Progress = no_progress,
) -> int:
    """Write the chosen rows into a new folder, and return their number."""
    dataset = Dataset(uri, version=version)
    rows = dataset.select(where)
    if not len(rows):
        what = f"`{where}` matches no rows of `{uri}`" if where else f"`{uri}` has no rows"
        raise DataError(what, "`clipkit info` lists its splits and columns")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"`{out}` already exists and is not empty", "name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            partial.chmod(0o755)
            with WRITERS[format](partial) as writer:
                for start in range(0, len(rows), READ_ROWS):
                    chunk = rows[start : start + READ_ROWS]
                    for sample in _samples(dataset, chunk):
                        writer.write(sample)
                    progress(start + len(chunk), len(rows))
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"`{out}` cannot be written: {error.strerror or error}", "free some space, or name another folder"
        ) from error
    return len(rows)


def _samples(dataset: Dataset, rows: Any) -> Iterator[Sample]:
    names = dataset.columns
    extra = [f.name for f in dataset.schema if _is_plain(f.type) and f.name not in (names.image_id, *OWN_COLUMNS)]
    extra = [name for name in extra if name != names.captions]
    table = dataset.take(rows, [names.image_id, *extra])
    captions, images = dataset.take_captions(rows), dataset.take_images(rows)
    for row, values, texts, data in zip(rows.tolist(), table.to_pylist(), captions, images, strict=True):
        image_id = values.pop(names.image_id)
        try:
            info = parse_header(data)
        except BadImage:  # exported as it is
            suffix, size = ".bin", (0, 0)
        else:
            suffix, size = SUFFIXES.get(info.format, f".{info.format}"), (info.width, info.height)
        split = values.pop("split", None)
        yield Sample(row, image_id, _file_stem(image_id, suffix, row), suffix, data, texts, split, size, values)


def _is_plain(data_type: pa.DataType) -> bool:
    tests = ("is_string", "is_large_string", "is_integer", "is_floating", "is_boolean")
    return any(getattr(pa.types, test)(data_type) for test in tests)


def _file_stem(image_id: str, suffix: str, row: int) -> str:
    """The id as a relative path if it is a safe one, else the number of the row."""
    stem, found = os.path.splitext(image_id)
    name = stem if found.lower() in (suffix, ".jpeg" if suffix == ".jpg" else suffix) else image_id
    parts = name.split("/")
    is_safe = all(SAFE_NAME.fullmatch(part) and part.strip(". ") == part for part in parts)
    return name if is_safe else f"{row:08d}"


class WebDatasetWriter(ExitStack):
    """Shards of a thousand samples for each split: image, first caption, and JSON with all fields."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._shards: dict[str, tarfile.TarFile] = {}
        self._num_written: dict[str, int] = {}
        self._names: dict[str, set[str]] = {}  # in the current shard of each split

    def write(self, sample: Sample) -> None:
        split = sample.split or "data"
        number = self._num_written.get(split, 0)
        if number % SHARD_ROWS == 0:
            if split in self._shards:
                self._shards[split].close()
            path = self._folder / f"{split}-{number // SHARD_ROWS:06d}.tar"
            self._shards[split] = self.enter_context(tarfile.open(path, "w"))  # noqa: SIM115 (the stack closes it)
            self._names[split] = set()
        self._num_written[split] = number + 1
        fields = {**sample.extra, "image_id": sample.image_id, "captions": sample.captions, "split": sample.split}
        name = sample.name
        if "." in name or name in self._names[split]:  # a sample's name ends at its first dot
            name = f"{name.replace('.', '_')}-{sample.row}"
        self._names[split].add(name)
        _add(self._shards[split], f"{name}{sample.suffix}", sample.data)
        _add(self._shards[split], f"{name}.txt", sample.captions[0].encode() if sample.captions else b"")
        _add(self._shards[split], f"{name}.json", json.dumps(fields, ensure_ascii=False).encode())


def _add(shard: tarfile.TarFile, name: str, data: bytes | memoryview) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    shard.addfile(entry, io.BytesIO(data))


class ImageFolderWriter(ExitStack):
    """A folder for each split, with images and a `metadata.jsonl` as Hugging Face's `imagefolder` reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._metadata: dict[Path, IO[str]] = {}

    def write(self, sample: Sample) -> None:
        folder = self._folder / (sample.split or "data")
        file_name = _write_image(folder, sample)
        if folder not in self._metadata:
            stream = open(folder / "metadata.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (the stack closes it)
            self._metadata[folder] = self.enter_context(stream)
        line = {"file_name": file_name, "image_id": sample.image_id, "captions": sample.captions, **sample.extra}
        self._metadata[folder].write(json.dumps(line, ensure_ascii=False) + "\n")


class CocoWriter(ExitStack):
    """For each split a folder of images and a file `annotations/captions_SPLIT.json`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._annotations: dict[str, list[dict[str, Any]]] = {}

    def write(self, sample: Sample) -> None:
        split = sample.split or "data"
        images, annotations = self._images.setdefault(split, []), self._annotations.setdefault(split, [])
        file_name = _write_image(self._folder / split, sample)
        number, (width, height) = len(images) + 1, sample.size
        image = {"id": number, "file_name": file_name, "width": width, "height": height, "image_id": sample.image_id}
        images.append({**sample.extra, **image})
        for caption in sample.captions:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": caption})

    def __exit__(self, *exception: Any) -> bool:
        for split, images in self._images.items():
            path = self._folder / "annotations" / f"captions_{split}.json"
            path.parent.mkdir(exist_ok=True)
            content = {
                "info": {"description": "exported by clipkit"},
                "images": images,
                "annotations": self._annotations[split],
            }
            with path.open("w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False)
        return bool(super().__exit__(*exception))


def _write_image(folder: Path, sample: Sample) -> str:
    """Write the image, and return its path in the folder."""
    file_name = f"{sample.name}{sample.suffix}"
    if (folder / file_name).exists():  # ids that differ only in their suffix
        file_name = f"{sample.name}-{sample.row}{sample.suffix}"
    path = folder / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample.data)
    return file_name


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "webdataset": WebDatasetWriter,
    "imagefolder": ImageFolderWriter,
    "coco": CocoWriter,
}
