"""Tables in text: CSV and TSV with and without a header, and JSON in the forms that people write; each also gzipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.readers.delimited import (
    CAPTION,
    IMAGE,
    NUM_SNIFFED_BYTES,
    NUM_SNIFFED_LINES,
    name_shape,
    open_text,
    rows_of,
    sniff,
)
from clipkit.readers.json_stream import elements, first_elements, items, members
from clipkit.readers.paths import looks_like_image
from clipkit.readers.roles import usual_role
from clipkit.readers.rows import TableRow
from clipkit.readers.source import ReadOptions, SourceReport
from clipkit.readers.values import is_unicode

INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})")  # 007 is a name, and so is what no int64 holds
NUM_SAMPLED_OBJECTS = 1000
ARRAY_START = re.compile(r"\s*\[\s*\{")


def file_suffix(path: Path) -> str:
    """What a table's file ends in, `.gz` left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _schema(file: Path, types: Mapping[str, pa.DataType]) -> pa.Schema:
    if not all(map(is_unicode, types)):
        raise DataError(f"the first line of `{file}` is not UTF-8", "say what it is: --encoding latin-1, or cp1252")
    return pa.schema(list(types.items()))


# --- CSV, TSV ----------------------------------------------------------------------------------------


class DelimitedTable:
    """Columns are strings, but for those to keep that hold nothing but numbers."""

    def __init__(self, files: Sequence[Path], options: ReadOptions, report: SourceReport) -> None:
        self.name = str(files[0])
        self._files = files
        self._options = options
        self._report = report
        self._layouts = {file: sniff(file, options) for file in files}
        columns = self._layouts[files[0]].columns
        self._kinds: dict[str, type] = {}
        if options.keep:
            self._kinds = self._infer(columns if "*" in options.keep else [*options.keep])
        arrow_types = {int: pa.int64(), float: pa.float64()}
        self.schema = _schema(
            files[0], {name: arrow_types.get(self._kinds.get(name, str), pa.string()) for name in columns}
        )

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        kinds = [self._kinds.get(column, str) for column in columns]
        if all(kind is str for kind in kinds):
            yield from self._strings(columns, start)
            return
        for row in self._strings(columns, start):
            if row.values is not None:
                values = [_convert(value, kind) for value, kind in zip(row.values, kinds, strict=True)]
                row = row._replace(values=values)
            yield row

    def _strings(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        number = 0
        for file, layout in self._layouts.items():
            label = file.name
            indices = [layout.columns.index(name) if name in layout.columns else None for name in columns]
            is_whole = indices == list(range(len(layout.columns)))

            def note(text: str, label: str = label) -> None:
                self._report.note(f"{label}, {text}")

            with open_text(file, self._options.encoding) as stream:
                for line, fields, problem in rows_of(stream, layout, note):
                    if number >= start:
                        if fields is not None and not is_whole:
                            fields = [None if i is None else fields[i] for i in indices]
                        yield TableRow(number, f"{label}:{line}", fields, problem)
                    number += 1

    def _infer(self, columns: Sequence[str]) -> dict[str, type]:
        """int, float or str for each column, over all of its values."""
        kinds: dict[str, type] = dict.fromkeys(columns, int)
        for row in self._strings(columns):
            for name, value in zip(columns, row.values or (), strict=False):
                if value and kinds[name] is int and not INTEGER.fullmatch(value):
                    kinds[name] = float
                if value and kinds[name] is float and not _is_float(value):
                    kinds[name] = str
        return kinds


def _convert(value: str | None, kind: type) -> Any:
    if kind is str:
        return value
    return kind(value) if value else None


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text[:1] != "0" or text[:2] in ("0", "0.")  # 007 is no number


# --- JSON --------------------------------------------------------------------------------------------


class JsonTable:
    """An object a line, an array of objects, or one object of them; columns are the keys of the first ones.

    One object is read where it holds an array of objects with images and captions (`data` of TextCaps), arrays of
    one length (SBU's `image_urls` and `captions`), or captions by the images' names.
    """

    def __init__(self, files: Sequence[Path], options: ReadOptions, report: SourceReport) -> None:
        self.name = str(files[0])
        self._files = files
        self._encoding = options.encoding
        objects = (item for _, item in islice(self._objects(), NUM_SAMPLED_OBJECTS) if isinstance(item, dict))
        names = dict.fromkeys(key for item in objects for key in item)
        self.schema = _schema(files[0], {name: pa.string() for name in (*names, *options.keep) if name != "*"})

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        for number, (place, item) in enumerate(self._objects()):
            if number < start:
                continue
            if isinstance(item, dict):
                yield TableRow(number, place, [item.get(column) for column in columns])
            else:
                yield TableRow(number, place, None, "it is not a JSON object")

    def _objects(self) -> Iterator[tuple[str, Any]]:
        for file in self._files:
            yield from JsonFile(file, self._encoding).objects()


class JsonFile:
    """A file of JSON, and the form in which it holds its objects."""

    def __init__(self, file: Path, encoding: str | None = None) -> None:
        self._file = file
        self._encoding = encoding

    @property
    def is_table(self) -> bool:
        """Whether it holds objects, or arrays, that name images and captions; raises OSError."""
        return self._form != "other"

    def objects(self) -> Iterator[tuple[str, Any]]:
        """Each object with its place."""
        label = self._file.name
        if self._form == "mapping":
            for name, value in members(self._file):
                fields = value if isinstance(value, dict) else {CAPTION: value}
                yield f"{label}:{name}", {IMAGE: name, **fields}
        elif self._form == "columns":
            names = self._columns
            arrays = [elements(self._file, name) for name in names]
            for number, values in enumerate(zip(*arrays, strict=True)):
                yield f"{label}:[{number}]", dict(zip(names.values(), values, strict=True))
        elif self._form == "member":
            for number, item in enumerate(elements(self._file, self._member or "")):
                yield f"{label}:{self._member}[{number}]", item
        else:
            with open_text(self._file, self._encoding) as stream:
                if self._form == "array":
                    yield from ((f"{label}:[{number}]", item) for number, item in enumerate(items(stream, self._file)))
                else:
                    yield from _json_lines(stream, label)

    @cached_property
    def _form(self) -> str:
        """`array`, `lines`, `mapping`, `member`, `columns` or `other`."""
        with open_text(self._file, self._encoding) as stream:
            start = stream.read(NUM_SNIFFED_BYTES).lstrip("\ufeff")
        if ARRAY_START.match(start):
            return "array"
        lines = [line.strip() for line in start.splitlines() if line.strip()]
        if file_suffix(self._file) != ".json" or (len(lines) > 1 and all(map(_is_whole_object, lines[:2]))):
            return "lines"
        if not start.lstrip().startswith("{"):
            return "other"
        try:
            if self._is_mapping():
                return "mapping"
            return "member" if self._member else "columns" if self._columns else "other"
        except DataError:  # it is not whole JSON
            return "other"

    def _is_mapping(self) -> bool:
        """Whether the keys name images, and the values hold captions."""
        first = list(islice(members(self._file), NUM_SNIFFED_LINES))
        if not first:
            return False
        shapes = {name_shape(name) for name, _ in first}
        if not all(looks_like_image(name) for name, _ in first) and (len(shapes) > 1 or shapes == {""}):
            return False
        value = first[0][1]
        if isinstance(value, dict):
            return "caption" in map(usual_role, value)
        return isinstance(value[0] if value and isinstance(value, list) else value, str)

    @cached_property
    def _first(self) -> dict[str, Any]:
        return dict(islice(first_elements(self._file), 20))

    @property
    def _member(self) -> str | None:
        """The key of an array of objects that name images and captions."""
        for name, first in self._first.items():
            roles = [usual_role(key) for key in first] if isinstance(first, dict) else []
            if "caption" in roles and ("image" in roles or "id" in roles):
                return name
        return None

    @property
    def _columns(self) -> dict[str, str]:
        """The keys of arrays that are columns, with the columns' names (`image_urls` is `image_url`)."""
        names = [name for name, first in self._first.items() if isinstance(first, str)]
        columns = {name: name if usual_role(name) else name.removesuffix("s") for name in names}
        roles = [usual_role(column) for column in columns.values()]
        return columns if "image" in roles and "caption" in roles else {}


def _is_whole_object(line: str) -> bool:
    return line.startswith("{") and line.endswith("}")


def _json_lines(stream: IO[str], label: str) -> Iterator[tuple[str, Any]]:
    """Each line's place and value, None for one that is not JSON."""
    decode = json.JSONDecoder().raw_decode  # half the time of `json.loads` goes into what stands around this
    for number, line in enumerate(stream, 1):
        if not (text := line.strip().lstrip("\ufeff")):
            continue
        try:
            value, end = decode(text)
        except ValueError:
            value, end = None, len(text)
        yield f"{label}:{number}", value if end == len(text) else None
