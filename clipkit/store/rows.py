"""Rows to be written, as batches of a schema that grows with the columns that the corpus has."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lance
import pyarrow as pa

from clipkit.store.schema import ORIENTATION, OWN, PRIMARY_KEY, UNCOMPRESSED, is_blob
from clipkit.types import Scalar

log = logging.getLogger(__name__)

TYPES: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """An image with its captions, checked and ready to be stored."""

    image_id: str
    image: bytes | bytearray | memoryview
    captions: Sequence[str]
    width: int
    height: int
    orientation: int = 1  # EXIF, 1 to 8
    split: str | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)


def base_schema(*, image_is_blob: bool) -> pa.Schema:
    """The columns of every dataset that clipkit makes."""
    image = pa.field(OWN.image, pa.large_binary(), metadata=UNCOMPRESSED)
    if image_is_blob:
        image = lance.blob_field(OWN.image)
    return pa.schema(
        [
            pa.field(OWN.image_id, pa.string(), nullable=False, metadata=PRIMARY_KEY),
            image,
            pa.field(OWN.captions, pa.list_(pa.string())),
            pa.field("split", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
        ]
    )


def further_fields(rows: Sequence[DatasetRow], names: Sequence[str]) -> list[pa.Field]:
    """Fields for what these rows have besides `names`, each of the widest type that its values need."""
    found: dict[str, pa.DataType] = {}
    for row in rows:
        for name, value in row.extra.items():
            if value is not None and name != ORIENTATION:
                data_type = TYPES[type(value)]
                found[name] = _widest(found.get(name, data_type), data_type)
    if any(row.orientation != 1 for row in rows):
        found[ORIENTATION] = pa.int8()
    return [pa.field(name, data_type) for name, data_type in found.items() if name not in names]


def _widest(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if first == second:
        return first
    if {first, second} == {pa.int64(), pa.float64()}:
        return pa.float64()
    return pa.string()


def to_batch(rows: Sequence[DatasetRow], schema: pa.Schema) -> pa.RecordBatch:
    """The rows as a batch; a value that does not fit its column's type is null."""
    values: dict[str, list[Any]] = {
        OWN.image_id: [row.image_id for row in rows],
        OWN.captions: [row.captions for row in rows],
        "split": [row.split for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        ORIENTATION: [row.orientation for row in rows],
    }
    arrays = []
    for field_ in schema:
        if field_.name == OWN.image:
            arrays.append(_images([row.image for row in rows], field_))
        elif field_.name in values:
            arrays.append(pa.array(values[field_.name], field_.type))
        else:
            carried = [row.extra.get(field_.name) for row in rows]
            arrays.append(_fitting(field_.name, carried, field_.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _images(images: Sequence[Any], field_: pa.Field) -> pa.Array:
    if is_blob(field_):
        return lance.blob_array([bytes(image) for image in images])
    return pa.array(images, field_.type)


def _fitting(name: str, values: Sequence[Scalar], data_type: pa.DataType) -> pa.Array:
    """The values as the type that earlier rows settled; null where one does not fit."""
    if all(value is None for value in values):
        return pa.nulls(len(values), data_type)
    try:
        return pa.array(values).cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        fitted = [_cast(value, data_type) for value in values]
    lost = [value for value, kept in zip(values, fitted, strict=True) if kept is None and value is not None]
    if lost:
        log.warning(
            "the first rows made `%s` a column of %s: %d later values, such as `%s`, are stored as null",
            name,
            data_type,
            len(lost),
            lost[0],
        )
    return pa.array(fitted, data_type)


def _cast(value: Scalar, data_type: pa.DataType) -> Any:
    try:
        return pa.scalar(value).cast(data_type).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
