"""The Flickr8k and Flickr30k family: one text file of captions beside a folder of images.

Kaggle            image,caption                     (header or not, CSV quotes or not, commas in captions)
Flickr8k.token    name.jpg#0<TAB>caption
results.csv       image| number| comment
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from clipkit.errors import DataError
from clipkit.readers.paths import BadPath, Root, find_image_folder, folders_in
from clipkit.readers.source import Item, ReadOptions, Rejected
from clipkit.readers.splits import read_split_lists, split_lists_in
from clipkit.readers.values import NOT_UTF8, as_scalar, is_unicode, kept_name, printable, unquote
from clipkit.store.groups import Groups
from clipkit.types import Record, Scalar

CAPTION_FILES = ("captions.txt", "captions.csv", "results.csv", "results*.token", "*.token.txt", "*.token")
ATTRIBUTES_FILE = "attributes.csv"
HEADER = re.compile(
    r'"?(?:image|image_name|img|file|file_?name)"?\s*(?:[,|\t]\s*"?(?:number|comment_number|caption_number)"?\s*)?'
    r'[,|\t]\s*"?(?:captions?|comments?|text)"?',
    re.IGNORECASE,
)
IMAGE_SUFFIX = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)"
FIRST_LINE = re.compile(rf'"?[^,|\t":]+{IMAGE_SUFFIX}(?:\.\d+)?(?:"?\s*[,|\t]|#\d+\s*[\t,])', re.IGNORECASE)
QUOTED_START = re.compile(r'\s*"((?:[^"]|"")*)"\s*,')
NUMBERED = re.compile(r"\s*\d+\s*[|,\t]?(.*)", re.DOTALL)

MAX_QUOTED_LINES = 50  # a quote that is not closed by then is a stray one

Line = tuple[int, str, str]  # number, image, caption


def detect(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        return any(_looks_right(file) for file in _caption_files(path))
    return path.is_file() and _looks_right(path)


def read(source: str, options: ReadOptions, skip: int = 0) -> Iterator[Item]:
    """Records in the order in which their images first stand in the captions file."""
    return islice(_read(Path(source), options), skip, None)


def _read(source: Path, options: ReadOptions) -> Iterator[Item]:
    file = _find_captions(source)
    label = file.name
    groups = Groups()
    for number, name, caption in parse_captions(file):
        if not name:
            yield Rejected(caption[:80], f"{label}:{number}", "the line has no image and caption")
        elif not is_unicode(name + caption):
            yield Rejected(printable(name), f"{label}:{number}", NOT_UTF8)
        else:
            groups.add(name, number, (caption,) if caption else ())
    base = source if source.is_dir() else file.parent
    folder = options.image_dir or find_image_folder(
        base, (group.key for group in groups), allow_outside=options.allow_outside
    )
    root = Root(folder, allow_outside=options.allow_outside)
    split_of = read_split_lists(split_lists_in(file.parent))
    attributes = Attributes(file.parent / ATTRIBUTES_FILE)
    for group in groups:
        place = f"{label}:{group.first}"
        try:
            image = root.resolve(group.key)
        except BadPath as error:
            yield Rejected(group.key, place, str(error))
            continue
        if not group.texts:
            yield Rejected(group.key, place, "no caption")
            continue
        split, extra = split_of(group.key), attributes.of(group.key)
        yield Record(group.key, image, group.texts, place, split, extra)


def parse_captions(file: Path) -> Iterator[Line]:
    """Lines of a captions file as (number, image, caption); image is empty where a line has no such parts."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
        first = next(lines, None)
        if first is None:
            return
        has_header = HEADER.fullmatch(first[1].strip()) is not None
        delimiter, is_numbered = _sniff(first[1], has_header)
        if not has_header:
            yield from _split([first], delimiter, is_numbered)
        yield from _split(_whole_rows(lines) if delimiter == "," else lines, delimiter, is_numbered)


def _sniff(first: str, has_header: bool) -> tuple[str, bool]:
    """The delimiter, and whether a caption's number stands between the image and the caption."""
    delimiter = next((char for char in "\t|" if char in first), ",")
    if has_header:
        return delimiter, first.count(delimiter) == 2
    return delimiter, delimiter == "|"


def _split(lines: Iterable[tuple[int, str]], delimiter: str, is_numbered: bool) -> Iterator[Line]:
    for number, line in lines:
        quoted = QUOTED_START.match(line) if delimiter == "," and '"' in line else None
        if quoted:
            name, text = quoted[1].replace('""', '"'), line[quoted.end() :]
        else:
            name, found, text = line.partition(delimiter)
            if not found:
                yield number, "", line.strip()
                continue
        if is_numbered and (match := NUMBERED.fullmatch(text)):  # some lines lack the second delimiter
            text = match[1]
        if "#" in name:
            stem, _, index = name.rpartition("#")
            name = stem if index.strip().isdigit() else name
        yield number, name.strip(), unquote(text.strip())


def _whole_rows(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Joins the lines of a quoted caption that has line breaks in it."""
    waiting: deque[tuple[int, str]] = deque()
    while (item := waiting.popleft() if waiting else next(lines, None)) is not None:
        number, line = item
        if '"' not in line:
            yield item
            continue
        whole = line
        taken: list[tuple[int, str]] = []
        starts_quoted = '"' in (line.strip()[:1], line.partition(",")[2].strip()[:1])
        while starts_quoted and whole.count('"') % 2 == 1 and len(taken) < MAX_QUOTED_LINES:
            more = waiting.popleft() if waiting else next(lines, None)
            if more is None:
                break
            taken.append(more)
            if FIRST_LINE.match(more[1]):  # a stray quote, and the next image already
                break
            whole += more[1]
        if starts_quoted and whole.count('"') % 2 == 1:
            waiting.extendleft(reversed(taken))
            whole = line
        yield number, whole


def _caption_files(folder: Path) -> Iterator[Path]:
    """Files named like captions, the likeliest first, in the folder and then in those right below."""
    for place in (folder, *folders_in(folder)):
        for pattern in CAPTION_FILES:
            yield from sorted(path for path in place.glob(pattern) if "lemma" not in path.name)


def _looks_right(file: Path) -> bool:
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            first = next((line for line in stream if line.strip()), "")
            if not HEADER.fullmatch(first.strip()):
                return FIRST_LINE.match(first) is not None
            second = next((line for line in stream if line.strip()), "")
    except OSError:
        return False
    return "://" not in second.partition(",")[0]  # URLs are the table reader's


def _find_captions(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"there is no file or folder `{source}`", "name a captions file, or the folder it is in")
    for file in _caption_files(source):
        if _looks_right(file):
            return file
    raise DataError(
        f"`{source}` has no captions file of the Flickr8k or Flickr30k kind",
        f"looked for {', '.join(CAPTION_FILES)}; name the file itself if it is called otherwise",
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
