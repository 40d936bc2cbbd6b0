"""Which columns of a table mean what: as given, else guessed from their usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from clipkit.errors import DataError
from clipkit.readers.paths import join_listed
from clipkit.readers.source import ReadOptions
from clipkit.readers.values import RESERVED

IMAGE_NAMES = (
    *("image", "filepath", "file_path", "image_path", "img_path", "path", "file_name", "filename", "file", "img"),
    *(
        "jpg",
        "png",
        "webp",
        "image_bytes",
        "bytes",
        "image_file",
        "image_name",
        "images",
        "image_url",
        "img_url",
        "url",
    ),
)
CAPTION_NAMES = (
    *("captions", "caption", "texts", "text", "sentences", "sentence", "title", "raw", "alt_text", "alt"),
    *("description", "comment", "comments", "sentence_raw", "sentences_raw", "caption_str", "image_caption", "prompt"),
)
NUMBERED_CAPTION = re.compile(r"(caption|text|sentence|title|comment|description)s?(?:[ _.\-]?(\d+))?", re.IGNORECASE)
STRAY_TITLES = ("title", "description", "comment")  # captions only where they are numbered or nothing else is
ID_NAMES = ("image_id", "img_id", "imageid", "key", "uid", "id", "file_name", "filename")


def usual_role(name: str) -> str | None:
    """`image`, `caption` or `id` for a column's name that usually means one."""
    name = name.strip().strip("\ufeff").lower()
    if name in IMAGE_NAMES:
        return "image"
    if name in CAPTION_NAMES or NUMBERED_CAPTION.fullmatch(name):
        return "caption"
    return "id" if name in ID_NAMES else None


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
    """Columns as given, else guessed from their usual names; raises DataError that lists the table's."""
    names = schema.names
    for name in (options.image_column, *options.caption_columns, options.id_column, *options.keep):
        if name is not None and name not in ("*", *names):
            _refuse(name, names, table)
    captions = options.caption_columns or _guess_captions(names)
    others = [name for name in names if name not in captions]
    image = options.image_column or _guess(others, IMAGE_NAMES) or _guess(others, ID_NAMES)
    if image is None or not captions:
        raise DataError(
            f"`{table}` has no column that looks like {'captions' if image else 'images'}; "
            f"its columns are {join_listed(names, limit=40)}",
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
    if is_name(kind):
        return image
    if image_id is not None:
        return image_id
    return f"{image}.path" if pa.types.is_struct(kind) else None


def _refuse(name: str, names: Sequence[str], table: str) -> NoReturn:
    near = difflib.get_close_matches(name, names, n=1)
    raise DataError(
        f"`{table}` has no column `{name}`; its columns are {join_listed(names, limit=40)}",
        f"did you mean `{near[0]}`?" if near else "",
    )


def _guess(names: Sequence[str], usual: Sequence[str]) -> str | None:
    by_lower = {name.lower().strip(): name for name in reversed(names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _guess_captions(names: Sequence[str]) -> tuple[str, ...]:
    """`caption_0`, `caption_1`, … and what is called alike without a number, else the likeliest one."""
    matches = [(name, match) for name in names if (match := NUMBERED_CAPTION.fullmatch(name.strip()))]
    numbered = {match[1].lower() for _, match in matches if match[2]}
    if numbered:
        stems = [match[1].lower() for _, match in matches]
        chosen = [
            (stems.index(stem), int(match[2] or -1), position, name)
            for position, (stem, (name, match)) in enumerate(zip(stems, matches, strict=True))
            if stem in numbered or stem not in STRAY_TITLES
        ]
        return tuple(name for *_, name in sorted(chosen))
    guess = _guess(names, CAPTION_NAMES)
    return (guess,) if guess else ()


def is_text(data_type: pa.DataType) -> bool:
    """Whether a column's values are strings, in any of Arrow's ways to store them."""
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    types = pa.types
    return bool(types.is_string(data_type) or types.is_large_string(data_type) or types.is_string_view(data_type))


def is_name(data_type: pa.DataType) -> bool:
    """Whether a column's values can name images: strings, or numbers that stand for them."""
    return is_text(data_type) or bool(pa.types.is_integer(data_type))


def _is_heavy(data_type: pa.DataType) -> bool:
    """Whether values are vectors or bytes, which `--keep '*'` leaves out."""
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_binary_view(data_type)
        or pa.types.is_nested(data_type)
        or isinstance(data_type, pa.BaseExtensionType)
    )
