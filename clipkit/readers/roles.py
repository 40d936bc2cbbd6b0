"""Which columns of a table mean what: as given, else guessed from their usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.readers.source import ReadOptions
from clipkit.readers.values import RESERVED

IMAGE_NAMES = (
    *("image", "filepath", "file_path", "image_path", "img_path", "path", "file_name", "filename", "file", "img"),
    *("jpg", "png", "webp", "image_bytes", "bytes", "image_file", "image_name", "image_url", "img_url", "url"),
)
CAPTION_NAMES = (
    *("captions", "caption", "texts", "text", "sentences", "sentence", "title", "raw", "alt_text", "alt"),
    *("description", "comment", "comments", "sentence_raw", "sentences_raw"),
)
NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|title|comment)s?[ _.\-]?(\d+)", re.IGNORECASE)
ID_NAMES = ("image_id", "img_id", "imageid", "key", "uid", "id", "file_name", "filename")


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
        return list(dict.fromkeys((self.image, *self.captions, *(name for name in others if name is not None))))


def choose_roles(schema: pa.Schema, options: ReadOptions, *, table: str) -> Roles:
    """Columns as given, else guessed from their usual names; raises DataError that lists those there are."""
    names = schema.names
    for name in (options.image_column, *options.caption_columns, options.id_column, *options.keep):
        if name is not None and name not in ("*", *names):
            _refuse(name, names, table)
    image = options.image_column or _guess(names, IMAGE_NAMES)
    captions = options.caption_columns or _guess_captions(names)
    if image is None or not captions:
        raise DataError(
            f"`{table}` has no column that looks like {'captions' if image else 'images'}; "
            f"its columns are {_listed(names)}",
            f"name it with {'--caption-column' if image else '--image-column'}",
        )
    given_id = options.id_column
    image_id = given_id or _guess([name for name in names if name not in (image, *captions)], ID_NAMES)
    split = _guess([name for name in names if name not in (image, *captions)], ("split",))
    taken = {image, *captions, image_id, split}
    if "*" in options.keep:
        keep = tuple(f.name for f in schema if f.name not in taken | RESERVED and not _is_heavy(f.type))
    else:
        keep = options.keep
    return Roles(image, captions, image_id, given_id or _key(schema, image, image_id), split, keep)


def _key(schema: pa.Schema, image: str, image_id: str | None) -> str | None:
    kind = schema.field(image).type
    if is_text(kind):
        return image
    if image_id is not None:
        return image_id
    return f"{image}.path" if pa.types.is_struct(kind) else None


def _refuse(name: str, names: Sequence[str], table: str) -> NoReturn:
    near = difflib.get_close_matches(name, names, n=1)
    raise DataError(
        f"`{table}` has no column `{name}`; its columns are {_listed(names)}",
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
    return ", ".join(f"`{name}`" for name in names) or "none"


def is_text(data_type: pa.DataType) -> bool:
    """Whether a column's values are strings, in any of Arrow's ways to store them."""
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    types = pa.types
    return bool(types.is_string(data_type) or types.is_large_string(data_type) or types.is_string_view(data_type))


def _is_heavy(data_type: pa.DataType) -> bool:
    """Vectors and bytes, which are no columns to carry along by themselves."""
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_binary_view(data_type)
        or pa.types.is_nested(data_type)
        or isinstance(data_type, pa.BaseExtensionType)
    )
