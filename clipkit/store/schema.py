"""The columns that clipkit writes, and how it recognises them in a dataset that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from clipkit.errors import DataError

# Upserts by several writers at once need a declared key, or Lance lets them insert an id twice.
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
# Lance packs bytes with FSST unless told not to. An encoded image becomes 3 % smaller and three times slower to read.
UNCOMPRESSED = {"lance-encoding:compression": "none"}
PROVENANCE_KEY = "clipkit"  # schema metadata: JSON of source, format, options, clipkit version, counts
ORIENTATION = "orientation"  # the EXIF orientation that the loader applies; only where some image has one


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that hold an image's id, its encoded bytes and its captions."""

    image_id: str = "image_id"
    image: str = "image"
    captions: str = "captions"


OWN = Columns()  # as clipkit itself writes them


def is_blob(field: pa.Field) -> bool:
    """Whether a field is one of Lance's blob columns, which `take` gives as descriptors and not as bytes."""
    if getattr(field.type, "extension_name", "") == "lance.blob.v2":
        return True
    metadata = field.metadata or {}
    return metadata.get(b"lance-encoding:blob") == b"true" or metadata.get(b"ARROW:extension:name") == b"lance.blob.v2"


def is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def is_list(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(data_type) or pa.types.is_large_list(data_type))


def check_id(schema: pa.Schema, name: str, *, uri: str) -> None:
    """Raise DataError unless the dataset has a string id under this name."""
    found = _find(schema, "image id", name, uri=uri).type
    if not is_text(found):
        raise DataError(
            f"the id column `{name}` of `{uri}` is {found}, not text",
            f"name another column with `data.image_id_column`, or make a copy: `clipkit ingest {uri} NEW.lance`",
        )


def check_image(schema: pa.Schema, name: str, *, uri: str) -> None:
    """Raise DataError unless the dataset has binary images under this name."""
    field = _find(schema, "image", name, uri=uri)
    if not (is_blob(field) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)):
        raise DataError(
            f"the image column `{name}` of `{uri}` is {field.type}, not binary",
            "name another column with `data.image_column`",
        )


def check_captions(schema: pa.Schema, name: str, *, uri: str) -> None:
    """Raise DataError unless the dataset has captions (a string, or a list of strings) under this name."""
    found = _find(schema, "captions", name, uri=uri).type
    if not is_text(found) and not (is_list(found) and is_text(found.value_type)):
        raise DataError(
            f"the captions column `{name}` of `{uri}` is {found}, not text or a list of texts",
            "name another column with `data.captions_column`",
        )


def _find(schema: pa.Schema, role: str, name: str, *, uri: str) -> pa.Field:
    if name not in schema.names:
        raise DataError(
            f"`{uri}` has no {role} column `{name}`; its columns are {', '.join(f'`{n}`' for n in schema.names)}",
            f"name the right one with `data.{role.replace(' ', '_')}_column`, or rename it with `clipkit ingest`",
        )
    return schema.field(name)
