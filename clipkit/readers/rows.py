"""From the rows of a table, whatever it is stored in, to records.

A table may have a row an image or a row a caption. It is read twice: first the ids and captions alone, to
gather an image's captions, then the rows in which an image first stands, with everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from clipkit.readers.paths import BadPath, Root
from clipkit.readers.roles import Roles, choose_roles
from clipkit.readers.source import Item, ReadOptions, Rejected, split_in_name, split_name
from clipkit.readers.values import NOT_UTF8, as_captions, as_scalar, is_unicode, kept_name, printable
from clipkit.store.groups import Group, Groups
from clipkit.types import Record, Url


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
    roles = choose_roles(table.schema, options, table=table.name)
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
    roles = choose_roles(table.schema, options, table=table.name)
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
