"""Tables in text: CSV and TSV, and JSON as an object a line or an array of objects; each also gzipped."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.readers.json_stream import items
from clipkit.readers.rows import Row
from clipkit.readers.source import ReadOptions
from clipkit.readers.values import is_unicode, unquote

DELIMITERS = ",\t;|"
MAX_FIELD_CHARS = 1 << 24
INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})")  # 007 is a name, and so is what no int64 holds
NUM_SAMPLED_OBJECTS = 1000
NUM_SNIFFED_CHARS = 4096
ARRAY_START = re.compile(r"\s*\[\s*\{")


def file_suffix(path: Path) -> str:
    """What a table's file ends in, `.gz` left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _open_text(file: Path) -> IO[str]:
    opener: Callable[..., IO[str]] = gzip.open if file.suffix == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _schema(file: Path, types: Mapping[str, pa.DataType]) -> pa.Schema:
    if not all(map(is_unicode, types)):
        raise DataError(f"`{file}` is not UTF-8", "convert it, with `iconv -f UTF-16 -t UTF-8` or the like")
    return pa.schema(list(types.items()))


# --- CSV, TSV ----------------------------------------------------------------------------------------


class CsvTable:
    """Columns are strings, but for those to keep that hold nothing but numbers."""

    def __init__(self, files: Sequence[Path], options: ReadOptions) -> None:
        self.name = str(files[0])
        self._files = files
        csv.field_size_limit(MAX_FIELD_CHARS)
        with _open_text(files[0]) as stream:
            header: list[str] = next(self._reader(files[0], stream), [])
        self._kinds: dict[str, type] = {}
        if options.keep:
            self._kinds = self._infer(header if "*" in options.keep else [*options.keep])
        arrow_types = {int: pa.int64(), float: pa.float64()}
        types = {name: arrow_types.get(self._kinds.get(name, str), pa.string()) for name in header}
        self.schema = _schema(files[0], types)

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[Row]:
        kinds = [self._kinds.get(column, str) for column in columns]
        is_plain = all(kind is str for kind in kinds)
        for row in self._strings(columns):
            if row.number < start:
                continue
            if row.values is None or is_plain:
                yield row
            else:
                values = [_convert(value, kind) for value, kind in zip(row.values, kinds, strict=True)]
                yield row._replace(values=values)

    def _strings(self, columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        for file in self._files:
            label = file.name
            with _open_text(file) as stream:
                reader = self._reader(file, stream)
                header: list[str] = next(reader, [])
                indices = [header.index(column) if column in header else None for column in columns]
                for fields, problem in _fields(reader):
                    if not fields and not problem:
                        continue  # an empty line
                    place = f"{label}:{reader.line_num}"
                    if not problem and len(fields) != len(header):
                        problem = f"{len(fields)} fields where the header has {len(header)}"
                    values = None if problem else [None if i is None else fields[i] for i in indices]
                    yield Row(number, place, values, problem)
                    number += 1

    def _reader(self, file: Path, stream: IO[str]) -> Any:
        first = stream.readline()
        stream.seek(0)
        # A quoted name may have any character in it; what separates names stands outside.
        bare = re.sub(r'"[^"]*"', "", first)
        delimiter = "\t" if file_suffix(file) == ".tsv" else max(DELIMITERS, key=bare.count)
        if delimiter == "\t":
            return _TabReader(stream)
        return csv.reader(stream, delimiter=delimiter, skipinitialspace=True)

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


class _TabReader:
    """A row a line, whatever quotes are in it: few that write tabs mean CSV's by them."""

    def __init__(self, stream: IO[str]) -> None:
        self._reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)

    @property
    def line_num(self) -> int:
        return self._reader.line_num

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[str]:
        return [unquote(field) for field in next(self._reader)]


def _fields(reader: Any) -> Iterator[tuple[list[str], str]]:
    """Each row's fields, or what is wrong with it."""
    while True:
        try:
            yield next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            yield [], str(error)


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


def holds_array(file: Path) -> bool:
    """Whether a file of JSON is an array of objects; raises OSError."""
    with _open_text(file) as stream:
        return ARRAY_START.match(stream.read(NUM_SNIFFED_CHARS)) is not None


class JsonTable:
    """An object a line, or an array of objects; its columns are the keys of the first ones."""

    def __init__(self, files: Sequence[Path], options: ReadOptions) -> None:
        self.name = str(files[0])
        self._files = files
        objects = (item for _, item in islice(self._objects(), NUM_SAMPLED_OBJECTS) if isinstance(item, dict))
        names = dict.fromkeys(key for item in objects for key in item)
        self.schema = _schema(files[0], {name: pa.string() for name in (*names, *options.keep) if name != "*"})

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[Row]:
        for number, (place, item) in enumerate(self._objects()):
            if number < start:
                continue
            if isinstance(item, dict):
                yield Row(number, place, [item.get(column) for column in columns])
            else:
                yield Row(number, place, None, "it is no JSON object")

    def _objects(self) -> Iterator[tuple[str, Any]]:
        for file in self._files:
            is_array = holds_array(file)
            with _open_text(file) as stream:
                if is_array:
                    yield from ((f"{file.name}:[{number}]", item) for number, item in enumerate(items(stream, file)))
                else:
                    yield from _json_lines(stream, file.name)


def _json_lines(stream: IO[str], label: str) -> Iterator[tuple[str, Any]]:
    """Each line's place and value, None for one that is no JSON."""
    decode = json.JSONDecoder().raw_decode  # of `json.loads` half the time goes into what stands around this
    for number, line in enumerate(stream, 1):
        if not (text := line.strip()):
            continue
        try:
            value, end = decode(text)
        except ValueError:
            value, end = None, len(text)
        yield f"{label}:{number}", value if end == len(text) else None
