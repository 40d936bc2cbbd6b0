"""COCO's caption files (`images`, `annotations`), several as splits, and Karpathy's (`images[].sentences`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.readers.json_stream import elements, first_elements
from clipkit.readers.paths import BadPath, Root, folders_in
from clipkit.readers.search import ImageSearch
from clipkit.readers.source import Item, ReadOptions, Rejected, SourceReport, split_in_name, split_name
from clipkit.readers.table import candidates
from clipkit.readers.values import RESERVED, as_captions, as_scalar, kept_name
from clipkit.store.groups import Groups
from clipkit.types import Record, Scalar

PATTERNS = ("captions*.json", "dataset_*.json", "*.json")
ANNOTATIONS_FOLDER = "annotations"
# Fields of an image that a record has anyway, or that its own columns replace.
OWN_FIELDS = RESERVED | {"id", "cocoid", "file_name", "filename", "filepath", "sentences", "sentids"}


def detect(source: str) -> bool:
    return bool(_caption_files(Path(source)))


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order of the files' `images`."""
    return islice(_read(Path(source), options, report), skip, None)


def _read(source: Path, options: ReadOptions, report: SourceReport) -> Iterator[Item]:
    files = _caption_files(source)
    if not files:
        raise DataError(
            f"`{source}` is not a COCO or Karpathy caption file, or a folder of them",
            "such a file has `images` and `annotations` with captions, or `images` with `sentences`",
        )
    if source.is_dir():
        report.passed_over += [os.path.relpath(file, source) for file in candidates(source) if file not in files]
    for file in files:
        report.files.append(os.path.relpath(file, source) if source.is_dir() else file.name)
        names = _image_names(file)
        root = ImageSearch(_base_of(file), names, options, report)
        read_file = _read_karpathy if _is_karpathy(file) else _read_coco
        yield from read_file(file, root, options)


def _read_coco(file: Path, root: Root, options: ReadOptions) -> Iterator[Item]:
    split = split_in_name(file.stem)
    # A group's first three texts are the image's file, id and columns. Images are added first: theirs is the order.
    groups = Groups()
    for number, image in _objects(file, "images", "id"):
        if str(image["id"]) not in groups:
            name = str(image.get("file_name") or "")
            extra = json.dumps(_extra(image, image["id"], options))
            groups.add(str(image["id"]), number, (name, str(image.get("image_id") or name or image["id"]), extra))
    for number, annotation in _objects(file, "annotations", "image_id"):
        image_id = str(annotation["image_id"])
        if image_id in groups:
            caption = str(annotation.get("caption") or "").strip()
            groups.add(image_id, number, (caption,) if caption else ())
        else:
            yield Rejected(image_id, f"{file.name}:annotations[{number}]", "the image is not listed in `images`")
    for group in groups:
        file_name, image_id, extra, *captions = group.texts
        place = f"{file.name}:images[{group.first}]"
        yield _item(root, image_id, file_name, Record("", b"", tuple(captions), place, split, json.loads(extra)))


def _read_karpathy(file: Path, root: Root, options: ReadOptions) -> Iterator[Item]:
    for number, image in _objects(file, "images", "sentences"):
        captions = tuple(as_captions(image["sentences"]))
        extra = _extra(image, image.get("cocoid"), options)
        place, split = f"{file.name}:images[{number}]", split_name(image.get("split"))
        name = str(image.get("filename") or "")
        relative = os.path.join(image.get("filepath") or "", name)
        if not os.path.isfile(os.path.join(root.folder, relative)):
            relative = name  # the folders that `filepath` names are often missing
        yield _item(root, name, relative, Record("", b"", captions, place, split, extra))


def _extra(image: Mapping[str, Any], number: object, options: ReadOptions) -> dict[str, Scalar]:
    """COCO's number of the image, and the fields to keep."""
    extra: dict[str, Scalar] = {"coco_id": number} if isinstance(number, int) else {}
    others = [name for name in image if name not in OWN_FIELDS] if "*" in options.keep else options.keep
    return {**extra, **{kept_name(name): as_scalar(image[name]) for name in others if name in image}}


def _item(root: Root, image_id: str, file_name: str, draft: Record) -> Item:
    try:
        image = root.locate(file_name, draft.split)
    except BadPath as error:
        return Rejected(image_id, draft.source, str(error))
    if not draft.captions:
        return Rejected(image_id, draft.source, "no caption")
    return Record(image_id, image, draft.captions, draft.source, draft.split, draft.extra)


def _objects(file: Path, array: str, needed: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The array's elements with their numbers; raises DataError for one without the field `needed`."""
    for number, element in enumerate(elements(file, array)):
        if not isinstance(element, dict) or needed not in element:
            raise DataError(f"`{array}[{number}]` of `{file}` has no `{needed}`", "name a file of captions")
        yield number, element


def _image_names(file: Path) -> Iterator[str]:
    for _, image in _objects(file, "images", "sentences" if _is_karpathy(file) else "id"):
        name = str(image.get("file_name") or image.get("filename") or "")
        if folder := image.get("filepath"):
            yield os.path.join(folder, name)
        yield name


def _base_of(file: Path) -> Path:
    """Where images are searched: beside the file, or beside its folder if that is named `annotations`."""
    return file.parent.parent if file.parent.name == ANNOTATIONS_FOLDER else file.parent


def _caption_files(source: Path) -> list[Path]:
    """The file itself, or a folder's caption files, by the first pattern that matches any."""
    if source.is_file():
        return [source] if source.suffix == ".json" and _has_captions(source) else []
    if not source.is_dir():
        return []
    places = [source, *(folder for folder in folders_in(source) if folder.name == ANNOTATIONS_FOLDER)]
    for pattern in PATTERNS:
        files = [file for place in places for file in sorted(place.glob(pattern)) if _has_captions(file)]
        if files:
            return files
    return []


def _has_captions(file: Path) -> bool:
    first = _first_elements(file, file.stat().st_mtime_ns)
    return "sentences" in first.get("images", {}) or "caption" in first.get("annotations", {})


def _is_karpathy(file: Path) -> bool:
    return "sentences" in _first_elements(file, file.stat().st_mtime_ns).get("images", {})


@lru_cache(maxsize=64)
def _first_elements(file: Path, modified_ns: int) -> dict[str, Any]:
    """The first element of `images` and of `annotations` if they are objects."""
    found: dict[str, Any] = {}
    try:
        for key, value in first_elements(file, "images", "annotations"):
            if isinstance(value, dict):
                found[key] = value
            if "sentences" in found.get("images", {}) or "annotations" in found:
                break
    except (DataError, OSError):
        return {}
    return found
