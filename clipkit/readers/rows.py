"""From the rows of a table, whatever it is stored in, to records.

A table may have a row an image or a row a caption. First the ids and captions alone are read, to gather an image's
captions; then, where records need more than these, the rows in which an image first stands, with everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from clipkit.readers.paths import BadPath, Root, image_name, looks_like_image
from clipkit.readers.roles import Roles, choose_roles, is_name
from clipkit.readers.source import (
    Item,
    ReadOptions,
    Rejected,
    SourceReport,
    split_in_name,
    split_name,
    split_of_folder,
)
from clipkit.readers.values import NOT_UTF8, as_bytes, as_captions, as_scalar, is_unicode, kept_name, printable
from clipkit.store.groups import Group, Groups
from clipkit.types import Record, Url

NUM_SAMPLED_ROWS = 1000
SEVERAL = re.compile(r"\s*[,;|]\s*")  # between the images of an item


class TableRow(NamedTuple):
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
    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]: ...


def records(
    table: Table,
    options: ReadOptions,
    root: Root,
    *,
    skip: int = 0,
    prefix: str = "",
    split: str | None = None,
    report: SourceReport | None = None,
) -> Iterator[Item]:
    """The table's records; `prefix` goes before file names in ids, `split` is theirs if they name none."""
    table, roles = _prepare(table, options, report or SourceReport())
    builder = _Builder(roles, root, prefix, split)
    gathered = _gather(table, roles) if roles.key else None
    if gathered is None:
        for row in table.rows(roles.all, skip):
            yield builder.build(row, None)
        return
    yield from islice(gathered.unreadable, skip, None)
    remaining = islice(gathered.groups, max(0, skip - len(gathered.unreadable)), None)
    if gathered.places is not None:
        places = islice(gathered.places, max(0, skip - len(gathered.unreadable)), None)
        for group, place in zip(remaining, places, strict=True):
            name = None if group.key.startswith("\0") else group.key
            yield builder.build(TableRow(group.first, place, [name, *[None] * len(roles.captions)]), group)
        return
    waiting = next(remaining, None)
    for row in table.rows(roles.all, waiting.first) if waiting else ():
        if waiting is None:
            return
        if row.number == waiting.first:
            yield builder.build(row, waiting)
            waiting = next(remaining, None)


def num_records(table: Table, options: ReadOptions) -> int:
    """How many items `records` gives of the whole table."""
    table, roles = _prepare(table, options, SourceReport())
    gathered = _gather(table, roles) if roles.key else None
    if gathered is None:
        return sum(1 for _ in table.rows(roles.captions))
    return len(gathered.groups) + len(gathered.unreadable)


def image_names(table: Table, options: ReadOptions, report: SourceReport) -> Iterator[str]:
    """The images that the table names as files, in the order of its rows; none where it holds their bytes."""
    table, roles = _prepare(table, options, report)
    for row in table.rows([roles.image]):
        value = row.values[0] if row.values else None
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (bytes, list)) or _is_base64(value):
            return
        if value is not None and value != "":
            yield str(value)


def _prepare(table: Table, options: ReadOptions, report: SourceReport) -> tuple[Table, Roles]:
    """The table with one image a row, and its roles after a look at its first rows."""
    roles = choose_roles(table.schema, options, table=table.name)
    kind = table.schema.field(roles.image).type
    if not (is_name(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return table, roles
    given_id = roles.image_id is not None and roles.image_id == options.id_column
    columns = [roles.image, roles.image_id or roles.image]
    samples = (row.values for row in islice(table.rows(columns), NUM_SAMPLED_ROWS) if row.values and row.values[0])
    first = next(samples, None)
    image: Any = first[0] if first else None
    if (several := _several_images(image)) is not None:
        image = several
        table = _OneImageARow(table, roles.image)
        value_kind = table.schema.field(roles.image).type
        is_struct = pa.types.is_struct(value_kind) or isinstance(image[0], dict)
        key = f"{roles.image}.path" if is_struct else roles.image if isinstance(image[0], str) else None
        roles = replace(roles, key=key)
        is_shared = roles.image_id is not None
    else:
        if _is_base64(image):
            roles = replace(roles, key=roles.image_id)
        is_guess = roles.image_id is not None and not given_id and roles.key == roles.image
        is_shared = is_guess and first is not None and _is_shared([first, *samples])
    if is_shared and roles.image_id is not None:
        report.note(f"the column `{roles.image_id}` names several images: ids are the images' names, and it is kept")
        keep = dict.fromkeys((*roles.keep, roles.image_id))
        roles = replace(roles, image_id=None, keep=tuple(keep))
    return table, roles


def _is_shared(samples: Sequence[Sequence[Any]]) -> bool:
    """Whether an id stands with two images among rows of (image, id)."""
    image_of: dict[str, str] = {}
    return any(
        image_of.setdefault(str(image_id), image_name(str(image))) != image_name(str(image))
        for image, image_id in samples
        if image_id not in (None, "") and image
    )


def _several_images(value: Any) -> list[Any] | None:
    """The images of an item that has a list of them, also as text; None for a single one."""
    if isinstance(value, list):
        return value if value and isinstance(value[0], (str, dict, bytes)) else None
    if not isinstance(value, str) or not SEVERAL.search(value):
        return None
    names = as_captions([value]) if value.strip().startswith("[") else SEVERAL.split(value.strip())
    return names if len(names) > 1 and all(map(looks_like_image, names)) else None


def _is_base64(value: Any) -> bool:
    return isinstance(value, str) and as_bytes(value) is not None


class _OneImageARow:
    """A table whose image column holds lists, with a row for each image."""

    def __init__(self, table: Table, column: str) -> None:
        self.name = table.name
        self._table = table
        self._column = column
        place = table.schema.get_field_index(column)
        kind = table.schema.field(place).type
        value_type = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        self.schema = table.schema.set(place, pa.field(column, value_type))

    def rows(self, columns: Sequence[str], start: int = 0) -> Iterator[TableRow]:
        path = f"{self._column}.path"
        read = list(dict.fromkeys((self._column, *(name for name in columns if name != path))))
        number = 0
        for row in self._table.rows(read):
            values = dict(zip(read, row.values, strict=True)) if row.values is not None else {}
            images = _several_images(values.get(self._column))
            for image in images or [values.get(self._column) or None]:
                if number >= start:
                    values[self._column] = image
                    values[path] = image.get("path") if isinstance(image, dict) else None
                    fields = None if row.values is None else [values[name] for name in columns]
                    yield TableRow(number, row.place, fields, row.problem)
                number += 1


@dataclass(frozen=True, slots=True)
class _Gathered:
    groups: Groups
    unreadable: list[Rejected]
    places: list[str] | None  # of each group's first row, where keys and captions are all that records need


def _gather(table: Table, roles: Roles) -> _Gathered | None:
    """An image's captions together; None where a struct's path turns out not to tell images apart."""
    groups, unreadable = Groups(), []
    places: list[str] = []
    is_name_in_struct = roles.key == f"{roles.image}.path"
    is_file = roles.key == roles.image
    last_key: Any = None
    last_name = ""
    for row in table.rows([roles.key or "", *roles.captions]):
        if row.values is None:
            unreadable.append(Rejected(row.place, row.place, row.problem))
            continue
        key, *captions = row.values
        if is_name_in_struct and (not key or key in groups):
            return None
        if key != last_key:  # the captions of an image often follow each other
            last_key = key
            last_name = "" if key is None else image_name(str(key)) if is_file else str(key).strip()
        # A row without a key is rejected in its turn, by itself.
        name = last_name or f"\0{row.number}"
        if not is_unicode(name):
            unreadable.append(Rejected(printable(name), row.place, NOT_UTF8))
            continue
        if groups.add(name, row.number, as_captions(captions)):
            places.append(row.place)
    is_all = is_file and set(roles.all) == {roles.image, *roles.captions} and not groups.on_disk
    return _Gathered(groups, unreadable, places if is_all else None)


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
        self._split_of_folder: dict[str, str | None] = {}

    def build(self, row: TableRow, group: Group | None) -> Item:
        if row.values is None:
            return Rejected(row.place, row.place, row.problem)
        values = dict(zip(self._columns, row.values, strict=True))
        image_id = self._image_id(row, values, group)
        captions = group.texts if group else tuple(as_captions([values[name] for name in self._roles.captions]))
        split = split_name(str(values[self._roles.split] or "")) if self._roles.split else None
        split = split or self._split or _split_of_file(row.place.rpartition(":")[0])
        try:
            image = self._image(values[self._roles.image], split)
        except BadPath as error:
            return Rejected(printable(image_id), row.place, str(error))
        if not all(map(is_unicode, (image_id, *captions))):
            return Rejected(printable(image_id), row.place, NOT_UTF8)
        if not captions:
            return Rejected(image_id, row.place, "no caption")
        if split is None and isinstance(image, Path):
            split = self._folder_split(str(image).rpartition("/")[0])
        extra = {kept_name(name): as_scalar(values[name]) for name in self._roles.keep}
        return Record(image_id, image, captions, row.place, split, extra)

    def _folder_split(self, folder: str) -> str | None:
        """The split that the image's folder is named after, below the corpus's own."""
        if folder not in self._split_of_folder:
            below = folder.removeprefix(self._root.folder) if folder.startswith(self._root.folder) else ""
            self._split_of_folder[folder] = split_of_folder(below)
        return self._split_of_folder[folder]

    def _image_id(self, row: TableRow, values: dict[str, Any], group: Group | None) -> str:
        named = values[self._roles.image_id] if self._roles.image_id else None
        if named is not None and named != "":
            return str(named)
        if group is not None and not group.key.startswith("\0"):
            return self._prefix + group.key
        stem = row.place.rpartition(":")[0].rpartition(".")[0] or row.place
        return f"{self._prefix}{stem}-{row.number:08d}"

    def _image(self, value: Any, split: str | None) -> Path | bytes | Url:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, list) and value and isinstance(value[0], int):
            return bytes(value)
        if value is None or value == "":
            raise BadPath("no image")
        text = str(value).strip()
        return as_bytes(text) or self._root.locate(text, split)
