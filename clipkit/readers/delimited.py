"""Text with one row a line and a separator between the fields: CSV, TSV, and what people write instead of them."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from clipkit.errors import DataError
from clipkit.readers.paths import looks_like_image
from clipkit.readers.roles import usual_role
from clipkit.readers.source import ReadOptions
from clipkit.readers.values import as_bytes, unquote

NUM_SNIFFED_BYTES = 1 << 16
NUM_SNIFFED_LINES = 5
MAX_QUOTED_LINES = 50  # a quote that is not closed by then is a stray one
MAX_FIELD_CHARS = 1 << 28
SEPARATORS = ",\t;|"
# The name of an image at the start of a line, and what separates it from the caption.
NAME = r"\.(?:jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic)(?:\.\d+)?"
NAMED_LINE = re.compile(rf'"?[^,|\t":;]+{NAME}(?:"?\s*([,|\t;])|#\d+\s*([\t,]))', re.IGNORECASE)
SPACED_LINE = re.compile(rf"\S+{NAME}\s+\S", re.IGNORECASE)
NUMBERED = re.compile(r"\s*(\d+)\s*[|,\t]?(.*)", re.DOTALL)
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
IMAGE, IMAGE_ID, NUMBER, CAPTION = "image", "image_id", "comment_number", "caption"


class Layout(NamedTuple):
    """How a file's lines are divided into columns."""

    separator: str
    columns: tuple[str, ...]
    has_header: bool
    open_column: int | None  # the caption that separators may stand in, as there is no other free text

    @property
    def is_numbered(self) -> bool:
        """Whether a caption's number stands between the image and the caption, as Flickr30k has it."""
        return len(self.columns) == 3 and self.open_column == 2


def open_text(file: Path, encoding: str | None = None) -> IO[str]:
    """A text file, also a gzipped one; bytes that are not of its encoding become surrogates."""
    opener: Callable[..., IO[Any]] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as stream:
        head = stream.read(NUM_SNIFFED_BYTES)
    newline = "\r" if b"\r" in head and b"\n" not in head else "\n"
    name = encoding or sniff_encoding(head)
    errors = "replace" if name.startswith("utf-16") else "surrogateescape"  # which UTF-16 has no use for
    return opener(file, "rt", encoding=name, errors=errors, newline=newline)


def sniff_encoding(head: bytes) -> str:
    """UTF-16 where the first bytes say so, else UTF-8; a mark at the beginning is no part of the text."""
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return name
    even, odd = (head[start:200:2].count(0) for start in (0, 1))
    if max(even, odd) > len(head[:200]) / 4:  # every other byte of ASCII in UTF-16 is a zero
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def check_encoding(name: str) -> None:
    """Raise DataError where there is no such encoding."""
    try:
        codecs.lookup(name)
    except LookupError as error:
        raise DataError(
            f"there is no encoding `{name}`", "--encoding takes names such as utf-8, latin-1, cp1252 or utf-16"
        ) from error


def sniff(file: Path, options: ReadOptions) -> Layout:
    """The layout of a file by its first lines; raises DataError where they have no header and no usual order."""
    with open_text(file, options.encoding) as stream:
        lines = [line for line in islice((line.strip("\r\n\ufeff") for line in stream), 100) if line.strip()]
    first, *others = lines[:NUM_SNIFFED_LINES] or [""]
    separator = _separator(first, is_tab=".tsv" in file.suffixes)
    fields = parse_line(first, separator)
    if options.columns:
        has_header = [field.strip() for field in fields] == list(options.columns)
        return _layout(separator, options.columns, has_header=has_header)
    given = {options.image_column, options.id_column, *options.caption_columns}
    if any(usual_role(field) or field.strip() in given for field in fields):
        return _layout(separator, _unique(fields), has_header=True)
    images = [number for number, field in enumerate(fields) if looks_like_image(field)]
    if len(fields) == 2 and not images and as_bytes(fields[1]) is not None:
        return _layout(separator, (IMAGE_ID, IMAGE), has_header=False)
    if not images:
        image = next((n for n in range(2) if _is_alike(parse_line(first, separator), others, separator, n)), None)
        if len(fields) != 2 or image is None:
            return _layout(separator, _unique(fields), has_header=True)
        images = [image]
    if len(fields) == 2 and len(images) == 1:
        return _layout(separator, (IMAGE, CAPTION) if images == [0] else (CAPTION, IMAGE), has_header=False)
    if images == [0] and NUMBERED.fullmatch(fields[1]) and (len(fields) == 3 or separator == "|"):
        return _layout(separator, (IMAGE, NUMBER, CAPTION), has_header=False)
    if images == [0] and separator in ", ":  # a caption with commas or spaces in it
        return _layout(separator, (IMAGE, CAPTION), has_header=False)
    raise DataError(
        f"`{file}` has no header line: its first line is `{first[:200]}`",
        f"name its {len(fields)} columns in order: --columns image,caption"
        + "".join(f",other{number}" for number in range(1, len(fields) - 1)),
    )


def rows_of(lines: Iterable[str], layout: Layout, note: Callable[[str], None]) -> Iterator[tuple[int, Any, str]]:
    """Each row's first line, counted from 1, its fields, and what is wrong with it where the fields are None.

    A quote that opens a field and is closed, on this line or a later one, quotes it; others are read as they are.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    separator, width = layout.separator, len(layout.columns)
    limit = width - 1 if layout.open_column == width - 1 else -1
    numbered = enumerate(lines, 1)
    waiting: deque[tuple[int, str]] = deque()  # lines that were looked at to find the end of a quote
    if layout.has_header:
        next((line for _, line in numbered if line.strip("\r\n\ufeff ")), None)
    spaced = f"{separator} "
    while (item := waiting.popleft() if waiting else next(numbered, None)) is not None:
        number, line = item
        line = line.rstrip("\r\n")
        if '"' in line:
            fields = _quoted(item, layout, numbered, waiting, note)
        else:
            fields = line.split(separator, limit)
            if spaced in line and layout.open_column != 0:
                fields = [field.lstrip(" ") for field in fields]
        if len(fields) == width:
            yield number, fields, ""
        elif line.strip(" \ufeff"):
            fields = _mended(fields, layout)
            if len(fields) == width:
                yield number, fields, ""
            else:
                yield number, None, f"the line has {len(fields)} field{'s' * (len(fields) != 1)}, not {width}"


def parse_line(line: str, separator: str) -> list[str]:
    """The fields of one line."""
    return _strict(line, separator)[0] or _literal(line, separator, -1)


def _mended(fields: list[str], layout: Layout) -> list[str]:
    """The fields of a line with separators in a caption that comes first, or without Flickr30k's second one."""
    if layout.open_column == 0 and (surplus := len(fields) - len(layout.columns)) > 0:
        return [layout.separator.join(fields[: surplus + 1]), *fields[surplus + 1 :]]
    if len(fields) == 2 and layout.is_numbered and (match := NUMBERED.fullmatch(fields[1])):
        return [fields[0], match[1], match[2]]
    return fields


def _quoted(
    item: tuple[int, str],
    layout: Layout,
    numbered: Iterator[tuple[int, str]],
    waiting: deque[tuple[int, str]],
    note: Callable[[str], None],
) -> list[str]:
    """The fields of a line with quotes, and of the lines after it that belong to it."""
    number, line = item[0], item[1].rstrip("\r\n")
    separator, width = layout.separator, len(layout.columns)
    fields, is_open = _strict(line, separator)
    if is_open:
        taken: list[tuple[int, str]] = []
        fields = _joined(line, layout, chain([*waiting], numbered), taken)
        for _ in range(min(len(waiting), len(taken))):
            waiting.popleft()
        if fields is None:
            waiting.extendleft(reversed(taken))
            note(f"line {number}: a quote opens and never closes; it is read as part of the text")
    if fields is None or len(fields) != width:
        fields = _literal(line, separator, width - 1 if layout.open_column == width - 1 else -1)
    return fields


def _joined(
    line: str, layout: Layout, following: Iterator[tuple[int, str]], taken: list[tuple[int, str]]
) -> list[str] | None:
    """The fields of a row whose quoted field has line breaks; None where its quote is a stray one."""
    text = line
    for item in islice(following, MAX_QUOTED_LINES):
        taken.append(item)
        if _is_row_like(item[1], line, layout.separator):
            return None
        text += "\n" + item[1].rstrip("\r\n")
        if '"' in item[1]:
            fields, is_open = _strict(text, layout.separator)
            if not is_open:
                return fields if fields is not None and len(fields) == len(layout.columns) else None
    return None


def _is_row_like(line: str, other: str, separator: str) -> bool:
    """Whether a line begins a row as another one does: images in one place, or a first field of the same digits."""
    fields, others = line.split(separator), other.split(separator)
    if len(fields) > 1 and len(others) > 1 and name_shape(fields[0]) == name_shape(others[0]) != "":
        return True
    return any(looks_like_image(a) and looks_like_image(b) for a, b in zip(fields, others, strict=False))


def name_shape(field: str) -> str:
    """A name with its digits made equal; empty where it has none."""
    shape = re.sub(r"\d+", "0", field.strip().strip('"'))
    return shape if "0" in shape and " " not in shape else ""


def _is_alike(first: list[str], others: list[str], separator: str, column: int) -> bool:
    """Whether a column of the first line continues in the others, so that the first is not a header."""
    if column >= len(first) or not others:
        return False
    rows = [parse_line(line, separator) for line in others]
    shape = name_shape(first[column])
    return shape != "" and all(len(row) > column and name_shape(row[column]) == shape for row in rows)


def _strict(line: str, separator: str) -> tuple[list[str] | None, bool]:
    """The fields as CSV has them, None where the quotes are not CSV's; and whether the line ends within quotes."""
    try:
        return next(csv.reader((line,), delimiter=separator, skipinitialspace=True, strict=True), None), False
    except csv.Error as error:
        return None, "unexpected end" in str(error)


@cache
def _field(separator: str) -> re.Pattern[str]:
    """A field in quotes up to the next separator, or all up to it."""
    end = re.escape(separator)
    return re.compile(rf' *(?:"([^"]*(?:""[^"]*)*)" *(?={end}|\Z)|([^{end}]*))')


def _literal(line: str, separator: str, limit: int) -> list[str]:
    """The fields where only those that are quoted as a whole lose their quotes; the one after `limit` is the rest."""
    fields: list[str] = []
    position = 0
    while limit < 0 or len(fields) < limit:
        match = _field(separator).match(line, position)
        assert match is not None  # it may be empty
        fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        if match.end() >= len(line):
            return fields
        position = match.end() + 1
    return [*fields, unquote(line[position:].strip())]


def _separator(first: str, *, is_tab: bool) -> str:
    if is_tab:
        return "\t"
    if match := NAMED_LINE.match(first):
        return match[1] or match[2]
    bare = re.sub(r'"[^"]*"', "", first)  # a quoted name may have any character in it
    if any(map(looks_like_image, bare.split("\t"))) and "\t" in bare:
        return "\t"
    if SPACED_LINE.match(first):
        return " "
    return max(SEPARATORS, key=bare.count)


def _layout(separator: str, columns: tuple[str, ...], *, has_header: bool) -> Layout:
    return Layout(separator, columns, has_header, _open_column(columns))


def _open_column(columns: tuple[str, ...]) -> int | None:
    """The caption of a file that holds nothing else but an image, and the caption's number between the two."""
    usual = [usual_role(name) for name in columns]
    if len(columns) == 2 and "image" in usual and "caption" in usual:
        return usual.index("caption")
    numbers = ("number", "comment_number", "caption_number")
    if len(columns) == 3 and usual[0] == "image" and usual[2] == "caption" and columns[1].strip().lower() in numbers:
        return 2
    return None


def _unique(fields: list[str]) -> tuple[str, ...]:
    """Names of columns, with a number after one that was there before, as pandas writes it."""
    names: list[str] = []
    for field in fields:
        name = field.strip().strip("\ufeff")
        count = 1
        while (numbered := f"{name}.{count}" if count > 1 or name in names else name) in names:
            count += 1
        names.append(numbered)
    return tuple(names)
