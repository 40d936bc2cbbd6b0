"""From the rows of a table, whatever it is stored in, to records.

A table may have a row an image or a row a caption. It is read twice: first the ids and captions alone, to
gather an image's captions, then the rows in which an image first stands, with everything.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.ingest.grouping import Group, Groups
from clipkit.ingest.paths import BadPath, Root
from clipkit.ingest.source import (
    NOT_UTF8,
    RESERVED,
    Item,
    ReadOptions,
    Rejected,
    is_unicode,
    kept_name,
    printable,
    split_in_name,
    split_name,
)
from clipkit.types import Record, Scalar, Url

IMAGE_NAMES = (
    *(
        "image",
        "filepath",
        "file_path",
        "image_path",
        "img_path",
        "path",
        "file_name",
        "filename",
        "file",
        "img",
    ),
    *(
        "jpg",
        "png",
        "webp",
        "image_bytes",
        "bytes",
        "image_file",
        "image_name",
        "image_url",
        "img_url",
        "url",
    ),
)
CAPTION_NAMES = (
    *("captions", "caption", "texts", "text", "sentences", "sentence", "title", "raw", "alt_text", "alt"),
    *("description", "comment", "comments", "sentence_raw", "sentences_raw"),
)
NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|title|comment)s?[ _.\-]?(\d+)", re.IGNORECASE)
ID_NAMES = ("image_id", "img_id", "imageid", "key", "uid", "id", "file_name", "filename")


class Row(NamedTuple):
    number: int  # among all rows of the source, from 0
    place: str
    values: Sequence[Any] | None  # of the columns asked for; None where the row cannot be read
    problem: str = ""


class Table(Protocol):
    """Rows in an order that never changes. `column.path` means the field of a struct column."""

    @property
    def name(self) -> str: ...
    @property
    def schema(self) -> pa.Schema: ...
    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns mean what, and which one tells the images apart (None: every row is an image)."""

    image: str
    captions: tuple[str, ...]
    image_id: str | None
    key: str | None
    split: str | None
    keep: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        others = (self.image_id, self.split, *self.keep)
        return list(dict.fromkeys((self.image, *self.captions, *(name for name in others if name))))


def records(
    table: Table,
    options: ReadOptions,
    root: Root,
    *,
    skip: int = 0,
    prefix: str = "",
    split: str | None = None,
) -> Iterator[Item]:
    """The table's records; `prefix` goes before file names in ids, `split` is theirs if they name none."""
    roles = choose_roles(table, options)
    builder = _Builder(roles, root, prefix, split)
    gathered = _gather(table, roles) if roles.key else None
    if gathered is None:
        for row in table.rows(roles.all, skip):
            yield builder.build(row, None)
        return
    yield from islice(gathered.unreadable, skip, None)
    remaining = islice(gathered.groups, max(0, skip - len(gathered.unreadable)), None)
    group = next(remaining, None)
    if group is None:
        return
    for row in table.rows(roles.all, group.first):
        if row.number == group.first:
            yield builder.build(row, group)
            group = next(remaining, None)
            if group is None:
                return


def num_records(table: Table, options: ReadOptions) -> int:
    """How many items `records` gives of the whole table."""
    roles = choose_roles(table, options)
    gathered = _gather(table, roles) if roles.key else None
    if gathered is None:
        return sum(1 for _ in table.rows(roles.captions))
    return len(gathered.groups) + len(gathered.unreadable)


@dataclass(frozen=True, slots=True)
class _Gathered:
    groups: Groups
    unreadable: list[Rejected]


def _gather(table: Table, roles: Roles) -> _Gathered | None:
    """An image's captions together; None where a struct's path turns out not to tell images apart."""
    groups, unreadable = Groups(), []
    is_name_in_struct = roles.key == f"{roles.image}.path"
    for row in table.rows([roles.key or "", *roles.captions]):
        if row.values is None:
            unreadable.append(Rejected("", row.place, row.problem))
            continue
        key, *captions = row.values
        if is_name_in_struct and (not key or key in groups):
            return None
        # A row without a key is rejected in its turn, by itself.
        name = str(key).strip() if key is not None and key != "" else f"\0{row.number}"
        if not is_unicode(name):
            unreadable.append(Rejected(printable(name), row.place, NOT_UTF8))
            continue
        groups.add(name, row.number, as_captions(captions))
    return _Gathered(groups, unreadable)


@cache
def _split_of_file(name: str) -> str | None:
    return split_in_name(name)


class _Builder:
    """Makes a record, or a rejection, of a row with all its columns."""

    def __init__(self, roles: Roles, root: Root, prefix: str, split: str | None) -> None:
        self._roles = roles
        self._root = root
        self._prefix = prefix
        self._split = split
        self._columns = roles.all

    def build(self, row: Row, group: Group | None) -> Item:
        if row.values is None:
            return Rejected("", row.place, row.problem)
        values = dict(zip(self._columns, row.values, strict=True))
        image_id = self._image_id(row, values, group)
        captions = group.texts if group else tuple(as_captions([values[name] for name in self._roles.captions]))
        try:
            image = self._image(values[self._roles.image])
        except BadPath as error:
            return Rejected(image_id, row.place, str(error))
        if not all(map(is_unicode, (image_id, *captions))):
            return Rejected(printable(image_id), row.place, NOT_UTF8)
        if not captions:
            return Rejected(image_id, row.place, "no caption")
        split = split_name(str(values[self._roles.split] or "")) if self._roles.split else None
        extra = {kept_name(name): as_scalar(values[name]) for name in self._roles.keep}
        split = split or self._split or _split_of_file(row.place.rpartition(":")[0])
        return Record(image_id, image, captions, row.place, split, extra)

    def _image_id(self, row: Row, values: dict[str, Any], group: Group | None) -> str:
        named = values[self._roles.image_id] if self._roles.image_id else None
        if named is not None and named != "":
            return str(named)
        if group is not None and not group.key.startswith("\0"):
            return self._prefix + group.key
        stem = row.place.rpartition(":")[0].rpartition(".")[0] or row.place
        return f"{self._prefix}{stem}-{row.number:08d}"

    def _image(self, value: Any) -> Path | bytes | Url:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not value:
            raise BadPath("no image")
        return self._root.locate(str(value).strip())


def choose_roles(table: Table, options: ReadOptions) -> Roles:
    """Columns as given, else guessed from their usual names; raises DataError that lists those there are."""
    schema = table.schema
    names = schema.names
    image = _given(options.image_column, table) or _guess(names, IMAGE_NAMES)
    captions = tuple(_given(name, table) or "" for name in options.caption_columns) or _guess_captions(names)
    if image is None or not captions:
        raise DataError(
            f"`{table.name}` has no column that looks like {'captions' if image else 'images'}; "
            f"its columns are {_listed(names)}",
            f"name it with {'--caption-column' if image else '--image-column'}",
        )
    given_id = _given(options.id_column, table)
    image_id = given_id or _guess([name for name in names if name not in (image, *captions)], ID_NAMES)
    split = _guess([name for name in names if name not in (image, *captions)], ("split",))
    taken = {image, *captions, image_id, split}
    if "*" in options.keep:
        keep = tuple(f.name for f in schema if f.name not in taken | RESERVED and not _is_heavy(f.type))
    else:
        keep = tuple(_given(name, table) or "" for name in options.keep)
    return Roles(image, captions, image_id, given_id or _key(schema, image, image_id), split, keep)


def _key(schema: pa.Schema, image: str, image_id: str | None) -> str | None:
    kind = schema.field(image).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return image
    if image_id is not None:
        return image_id
    return f"{image}.path" if pa.types.is_struct(kind) else None


def _given(name: str | None, table: Table) -> str | None:
    if name is None or name in table.schema.names:
        return name
    near = difflib.get_close_matches(name, table.schema.names, n=1)
    raise DataError(
        f"`{table.name}` has no column `{name}`; its columns are {_listed(table.schema.names)}",
        f"did you mean `{near[0]}`?" if near else "",
    )


def _guess(names: Sequence[str], usual: Sequence[str]) -> str | None:
    by_lower = {name.lower().strip(): name for name in reversed(names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _guess_captions(names: Sequence[str]) -> tuple[str, ...]:
    numbered = [(int(match[1]), name) for name in names if (match := NUMBERED_CAPTION.fullmatch(name.strip()))]
    if numbered:
        return tuple(name for _, name in sorted(numbered))
    guess = _guess(names, CAPTION_NAMES)
    return (guess,) if guess else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _is_heavy(data_type: pa.DataType) -> bool:
    """Vectors and bytes, which are no columns to carry along by themselves."""
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_nested(data_type)
        or isinstance(data_type, pa.BaseExtensionType)
    )


def as_captions(values: Sequence[Any]) -> list[str]:
    """Captions from strings, lists of them, or a list as JSON; outer white space and empty ones go."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            text = value.strip()
            if text[:2] in ('["', "[]") and (parsed := _json_list(text)) is not None:
                captions.extend(as_captions(parsed))
            elif text:
                captions.append(text)
        elif isinstance(value, (list, tuple)):
            captions.extend(as_captions(value))
        elif isinstance(value, dict):
            captions.extend(as_captions([value.get("raw") or value.get("caption") or value.get("text")]))
        elif value is not None and value == value:  # not NaN, which pandas writes for nothing
            captions.append(str(value))
    return captions


def _json_list(text: str) -> list[Any] | None:
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def as_scalar(value: Any) -> Scalar:
    """A value for a column of its own: a number or a string as it is, all else as text."""
    if isinstance(value, str):
        return value if is_unicode(value) else printable(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    return str(value)
