"""Folders of images: with Hugging Face's `metadata.csv`, `.jsonl` or `.parquet`, or one folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from clipkit.errors import DataError
from clipkit.readers import sidecar, table
from clipkit.readers.paths import BadPath, Root, files_in, folders_in, images_in
from clipkit.readers.rows import image_names, records
from clipkit.readers.search import ImageSearch
from clipkit.readers.source import Item, ReadOptions, Rejected, SourceReport, split_name
from clipkit.types import Record

METADATA_FILES = ("metadata.parquet", "metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
MIN_CLASSES = 2  # folders of images: one is rather a folder of pictures than a class
SPLIT_FOLDERS = frozenset(("train", "test", "dev", "val", "valid", "validation"))


def detect(source: str) -> bool:
    """Whether the folder has metadata, or is one of classes: two or more, and nothing beside them with captions."""
    path = Path(source)
    if not path.is_dir():
        return False
    if _metadata_files(path):
        return True
    classes = {folder.name for folder in islice(_class_folders(path), MIN_CLASSES + 1)}
    has_others = sidecar.detect(source) or table.detect(source) or table.not_understood(path) is not None
    return len(classes) >= MIN_CLASSES and not has_others


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the metadata's order, or by class and file name."""
    path = Path(source)
    if not path.is_dir():
        raise DataError(f"`{source}` is not a folder", "name the folder that holds the metadata or the classes")
    files = _metadata_files(path)
    items = _read_metadata(path, files, options, report) if files else _read_classes(path, options, report)
    return islice(items, skip, None)


def _read_metadata(source: Path, files: list[Path], options: ReadOptions, report: SourceReport) -> Iterator[Item]:
    for file in files:
        folder = "" if file.parent == source else f"{file.parent.relative_to(source).as_posix()}/"
        split = _split_of(file.parent) if folder else None
        metadata = table.open_table([file], options, report)
        if FILE_NAME in metadata.schema.names and options.image_column is None:
            options = replace(options, image_column=FILE_NAME)
        root = ImageSearch(file.parent, image_names(metadata, options, report), options, report)
        report.files.append(f"{folder}{file.name}")
        yield from records(metadata, options, root, prefix=folder, split=split, report=report)


def _read_classes(source: Path, options: ReadOptions, report: SourceReport) -> Iterator[Item]:
    root = Root(source, allow_outside=options.allow_outside)
    example = options.class_template.replace("{}", "…")
    report.note(f"the captions are made of the names of the folders: `{example}` (--class-template changes it)")
    report.passed_over += [file.name for file in files_in(source)]
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
            report.count_image(str(folder))
            yield Record(image_id, image, captions, image_id, split, {"label": folder.name})


def _metadata_files(source: Path) -> list[Path]:
    """The folder's metadata file and those of the folders in it, one each."""
    places = (source, *folders_in(source))
    found = (next((p / name for name in METADATA_FILES if (p / name).is_file()), None) for p in places)
    return [file for file in found if file is not None]


def _class_folders(source: Path) -> Iterator[Path]:
    """Folders that images lie in, right below the source or below folders named as splits."""
    for folder in folders_in(source):
        if folder.name.lower() in SPLIT_FOLDERS and not any(images_in(folder)):
            yield from (below for below in folders_in(folder) if any(_images_below(below)))
        elif any(_images_below(folder)):
            yield folder


def _images_below(folder: Path) -> Iterator[str]:
    """Paths of images relative to the folder, in order."""
    yield from images_in(folder)
    for below in folders_in(folder):
        yield from (f"{below.name}/{name}" for name in _images_below(below))


def _split_of(folder: Path) -> str | None:
    return split_name(folder.name.lower()) if folder.name.lower() in SPLIT_FOLDERS else None
