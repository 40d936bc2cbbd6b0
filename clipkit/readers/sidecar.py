"""Folders of images with a text file each, as img2dataset, kohya and DALL-E write them: `0.png` and `0.txt`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.readers.delimited import sniff_encoding
from clipkit.readers.paths import BadPath, Root, is_hidden, is_image_name
from clipkit.readers.roles import CAPTION_NAMES
from clipkit.readers.source import Item, ReadOptions, Rejected, SourceReport, split_name, split_of_folder
from clipkit.readers.table import NOT_CAPTIONS
from clipkit.readers.values import NOT_UTF8, RESERVED, as_captions, as_scalar, is_unicode, kept_name, printable
from clipkit.types import Record

TEXT_SUFFIXES = (".txt", ".caption")
JSON_SUFFIX = ".json"
MAX_DEPTH = 5
NUM_SEARCHED = 20_000  # images and texts among which pairs are looked for
NUM_SAMPLES = 20  # texts that are looked at to tell captions from boxes and other numbers
LETTERS = re.compile(r"[^\W\d_]{2}")


def detect(source: str) -> bool:
    path = Path(source)
    if not path.is_dir():
        return False
    samples = islice(_samples(path), NUM_SEARCHED)
    pairs = ((folder, files) for folder, _, files in samples if len(files) > 1)
    return any(LETTERS.search(_first_text(folder, files)) for folder, files in islice(pairs, NUM_SAMPLES))


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order of folders and names; each line of a text is a caption."""
    path = Path(source)
    if not path.is_dir():
        raise DataError(f"`{source}` is not a folder", "name the folder that holds the images and their texts")
    root = Root(path, allow_outside=options.allow_outside)
    for folder, name, files in islice(_samples(path), skip, None):
        yield _item(path, folder, name, files, root, options, report)


def _item(
    source: Path, folder: Path, name: str, files: list[str], root: Root, options: ReadOptions, report: SourceReport
) -> Item:
    below = folder.relative_to(source).as_posix()
    prefix = "" if below == "." else f"{below}/"
    images = [file for file in files if is_image_name(file)]
    for _ in images:
        report.count_image(str(folder))
    place = printable(prefix + (images[0] if images else files[0]))
    if len(images) != 1:
        return Rejected(place, place, f"{len(images)} images have this name" if images else "no image for this text")
    try:
        image = root.resolve(place)
        captions, fields = _read_texts(folder, files, options)
    except BadPath as error:
        return Rejected(place, place, str(error))
    except UnicodeDecodeError:
        return Rejected(place, place, NOT_UTF8)
    except ValueError as error:
        return Rejected(place, place, f"its JSON cannot be parsed: {error}")
    if not captions:
        return Rejected(place, place, "no caption")
    if not all(map(is_unicode, captions)):
        return Rejected(place, place, NOT_UTF8)
    if len(captions) > 1 and JSON_SUFFIX not in (os.path.splitext(file)[1] for file in files):
        report.note(f"the text of `{place}` has several lines, each of which is a caption")
    split = split_name(str(fields.get("split") or "")) or split_of_folder(below)
    names = [key for key in fields if key not in RESERVED] if "*" in options.keep else options.keep
    extra = {kept_name(key): as_scalar(fields.get(key)) for key in names}
    return Record(str(fields.get(options.id_column or "", place)), image, tuple(captions), place, split, extra)


def _read_texts(folder: Path, files: list[str], options: ReadOptions) -> tuple[list[str], dict[str, Any]]:
    """The captions, from the columns asked for, the text or the usual fields of the JSON; and the JSON's fields."""
    fields: dict[str, Any] = {}
    lines: list[str] = []
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        if suffix == JSON_SUFFIX:
            loaded = json.loads((folder / file).read_text(encoding="utf-8-sig"))
            fields = loaded if isinstance(loaded, dict) else {}
        elif suffix in TEXT_SUFFIXES:
            data = (folder / file).read_bytes()
            lines += data.decode(options.encoding or sniff_encoding(data)).splitlines()
    if isinstance(fields.get("captions"), list):
        return as_captions(fields["captions"]), fields
    if options.caption_columns:
        return as_captions([fields.get(name) for name in options.caption_columns]), fields
    if captions := as_captions(lines):
        return captions, fields
    return as_captions([next((fields[name] for name in CAPTION_NAMES if fields.get(name)), None)]), fields


def _first_text(folder: Path, files: list[str]) -> str:
    for file in files:
        if os.path.splitext(file)[1].lower() in (*TEXT_SUFFIXES, JSON_SUFFIX):
            text = (folder / file).read_bytes()[:2000].decode("utf-8", "replace")
            if file.endswith(JSON_SUFFIX) and not any(f'"{name}"' in text for name in CAPTION_NAMES):
                continue
            return text
    return ""


def _samples(source: Path, depth: int = 0) -> Iterator[tuple[Path, str, list[str]]]:
    """Folder, name without extension and files of each image and each text, in folders that hold images."""
    by_name: dict[str, list[str]] = {}
    folders: list[str] = []
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            stem, suffix = os.path.splitext(entry.name)
            if NOT_CAPTIONS.fullmatch(entry.name):
                continue
            if is_image_name(entry.name) or suffix.lower() in (*TEXT_SUFFIXES, JSON_SUFFIX):
                by_name.setdefault(stem, []).append(entry.name)
    has_images = any(is_image_name(file) for files in by_name.values() for file in files)
    for name, files in by_name.items() if has_images else ():
        if not all(file.endswith(JSON_SUFFIX) for file in files):
            yield source, name, files
    if depth < MAX_DEPTH:
        for folder in folders:
            yield from _samples(source / folder, depth + 1)
