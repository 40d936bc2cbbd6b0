"""Folders of images: with Hugging Face's `metadata.csv`, `.jsonl` or `.parquet`, or one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from clipkit.errors import DataError
from clipkit.readers import table
from clipkit.readers.paths import BadPath, Root, folders_in, is_image_name
from clipkit.readers.rows import records
from clipkit.readers.source import Item, ReadOptions, Rejected, split_name
from clipkit.types import Record

METADATA_FILES = ("metadata.parquet", "metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
SPLIT_FOLDERS = frozenset(("train", "test", "dev", "val", "valid", "validation"))


def detect(source: str) -> bool:
    path = Path(source)
    if not path.is_dir():
        return False
    # A table beside a folder of images says more of them than that folder's name.
    return bool(_metadata_files(path)) or (any(_class_folders(path)) and not table.detect(source))


def read(source: str, options: ReadOptions, skip: int = 0) -> Iterator[Item]:
    """Records in the metadata's order, or by class and file name."""
    path = Path(source)
    if not path.is_dir():
        raise DataError(f"`{source}` is no folder of images", "name the folder that holds the metadata or the classes")
    files = _metadata_files(path)
    items = _read_metadata(path, files, options) if files else _read_classes(path, options)
    return islice(items, skip, None)


def _read_metadata(source: Path, files: list[Path], options: ReadOptions) -> Iterator[Item]:
    for file in files:
        root = Root(file.parent, allow_outside=options.allow_outside)
        folder = "" if file.parent == source else f"{file.parent.relative_to(source).as_posix()}/"
        split = _split_of(file.parent) if folder else None
        given = replace(options, image_column=options.image_column or FILE_NAME)
        yield from records(table.open_table([file], given), given, root, prefix=folder, split=split)


def _read_classes(source: Path, options: ReadOptions) -> Iterator[Item]:
    root = Root(source, allow_outside=options.allow_outside)
    for folder in _class_folders(source):
        label = folder.name.replace("_", " ").strip()
        captions = (options.class_template.replace("{}", label),)
        split = _split_of(folder.parent) if folder.parent != source else None
        for name in _images_below(folder):
            image_id = (folder / name).relative_to(source).as_posix()
            try:
                image = root.resolve(image_id)
            except BadPath as error:
                yield Rejected(image_id, image_id, str(error))
                continue
            yield Record(image_id, image, captions, image_id, split, {"label": folder.name})


def _metadata_files(source: Path) -> list[Path]:
    """The folder's metadata file and those of the folders in it, one each."""
    places = (source, *folders_in(source))
    found = (next((p / name for name in METADATA_FILES if (p / name).is_file()), None) for p in places)
    return [file for file in found if file is not None]


def _class_folders(source: Path) -> Iterator[Path]:
    """Folders that images lie in, right below the source or below folders named as splits."""
    for folder in folders_in(source):
        if folder.name.lower() in SPLIT_FOLDERS and not any(_images_in(folder)):
            yield from (below for below in folders_in(folder) if any(_images_below(below)))
        elif any(_images_below(folder)):
            yield folder


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of images relative to the folder, in order."""
    yield from _images_in(folder)
    for below in folders_in(folder):
        yield from (f"{below.name}/{name}" for name in _images_below(below))


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_image_name(entry.name))


def _split_of(folder: Path) -> str | None:
    return split_name(folder.name.lower()) if folder.name.lower() in SPLIT_FOLDERS else None
