"""The Flickr8k and Flickr30k family: one text file of captions beside a folder of images.

Kaggle            image,caption                     (header or not, CSV quotes or not, commas in captions)
Flickr8k.token    name.jpg#0<TAB>caption
results.csv       image| number| comment
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from clipkit.errors import DataError
from clipkit.readers.delimited import NAMED_LINE, SPACED_LINE, open_text
from clipkit.readers.paths import files_in, folders_in
from clipkit.readers.source import Item, ReadOptions, SourceReport
from clipkit.readers.table import read_files
from clipkit.readers.values import as_scalar, kept_name
from clipkit.types import Record, Scalar

CAPTION_FILES = ("captions.txt", "captions.csv", "results.csv", "results*.token", "*.token.txt", "*.token")
ATTRIBUTES_FILE = "attributes.csv"
HEADER = re.compile(
    r'"?(?:image|image_name|img|file|file_?name)"?\s*(?:[,|\t]\s*"?(?:number|comment_number|caption_number)"?\s*)?'
    r'[,|\t]\s*"?(?:captions?|comments?|text)"?',
    re.IGNORECASE,
)


def detect(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        return any(_is_captions_file(file) for file in _caption_files(path))
    return path.is_file() and _is_captions_file(path)


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order in which their images first stand in the captions file."""
    path = Path(source)
    file = _find_captions(path)
    attributes = Attributes(file.parent / ATTRIBUTES_FILE)
    for item in read_files([file], path if path.is_dir() else file.parent, options, skip, report):
        extra = attributes.of(item.image_id)
        yield replace(item, extra={**item.extra, **extra}) if extra and isinstance(item, Record) else item


def _caption_files(folder: Path) -> Iterator[Path]:
    """Files named like captions, the likeliest first, in the folder and then in those right below."""
    for place in (folder, *folders_in(folder)):
        files = [file for file in files_in(place) if "lemma" not in file.name]
        for pattern in CAPTION_FILES:
            yield from (file for file in files if file.match(pattern))


def _is_captions_file(file: Path) -> bool:
    try:
        with open_text(file) as stream:
            lines = (line.strip("\r\n\ufeff") for line in stream)
            first = next((line for line in lines if line.strip()), "")
            if not HEADER.fullmatch(first.strip()):
                is_named = NAMED_LINE.match(first) or (file.match("*caption*") and SPACED_LINE.match(first))
                return bool(is_named) and "://" not in first.partition(",")[0]
            second = next((line for line in lines if line.strip()), "")
    except (OSError, EOFError):
        return False
    return "://" not in second.partition(",")[0]  # the table reader reads URLs


def _find_captions(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"there is no file or folder `{source}`", "name a captions file, or the folder it is in")
    for file in _caption_files(source):
        if _is_captions_file(file):
            return file
    raise DataError(
        f"`{source}` has no captions file of the Flickr8k or Flickr30k kind",
        f"looked for {', '.join(CAPTION_FILES)}; if it has another name, name the file itself",
    )


class Attributes:
    """The columns of an `attributes.csv` beside the captions, by image; its first column names the image."""

    def __init__(self, file: Path) -> None:
        self._table: pa.Table | None = None
        self._rows: dict[str, int] = {}
        if not file.is_file():
            return
        convert = arrow_csv.ConvertOptions(strings_can_be_null=True, null_values=[""])
        try:
            table = arrow_csv.read_csv(file, convert_options=convert)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"`{file}` cannot be read: {error}", "it is a CSV file with the image in its first column"
            ) from error
        self._rows = {str(name): row for row, name in enumerate(table.column(0).to_pylist())}
        self._table = table.drop_columns(table.column_names[:1])

    def of(self, image_id: str) -> dict[str, Scalar]:
        row = self._rows.get(image_id)
        if self._table is None or row is None:
            return {}
        return {
            kept_name(name): as_scalar(column[row].as_py())
            for name, column in zip(self._table.column_names, self._table.columns, strict=True)
        }
