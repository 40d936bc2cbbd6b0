"""The order of training that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.config import DataConfig
from clipkit.data.column_cache import check_column, check_vectors
from clipkit.data.order.base import Order, plain_order
from clipkit.data.order.captions import CaptionOrder
from clipkit.data.order.groups import GroupedOrder, group_by_value
from clipkit.data.order.mixture import MixedOrder, Turns
from clipkit.data.order.neighbours import group_neighbours
from clipkit.data.random import key
from clipkit.data.samples import DatasetSamples
from clipkit.errors import ConfigError, DataError
from clipkit.store.schema import is_blob

READ_ROWS = 65_536


def build_order(config: DataConfig, parts: Sequence[DatasetSamples], *, batch_size: int, seed: int) -> Order:
    """The order by `shuffle`, `group_by`, `hard_negatives` and `caption: each`, for one or several sources."""
    if not config.sources:
        (samples,) = parts
        return _order_of(config, samples, batch_size=batch_size, seed=seed)
    turns = Turns([source.weight for source in config.sources], batch_size)
    if _groups(config) and not (turns.are_whole and config.drop_last):
        raise ConfigError(
            f"`{_groups(config)}` with `data.sources` needs weights that give each source a whole number of a batch's "
            f"{batch_size:,} samples, and full batches only",
            "change the weights or `train.batch_size`, and remove `data.drop_last: false`",
        )
    orders = [
        _order_of(config, samples, batch_size=share, seed=int(key(seed, number)))
        for number, (samples, share) in enumerate(zip(parts, turns.largest, strict=True))
    ]
    return MixedOrder(tuple(orders), turns, batch_size, config.drop_last)


def _order_of(config: DataConfig, samples: DatasetSamples, *, batch_size: int, seed: int) -> Order:
    """The order of one dataset's samples, of which a batch has `batch_size`."""
    if config.group_by is not None:
        groups = group_by_value(_labels(samples, config.group_by))
    elif config.hard_negatives is not None:
        vectors = _vectors(samples, config.hard_negatives.column)
        groups = group_neighbours(vectors, group_size=config.hard_negatives.group_size, seed=seed)
    elif samples.captions_per_row is not None:
        return CaptionOrder(samples.captions_per_row, batch_size, config.drop_last, seed, config.shuffle)
    else:
        return plain_order(len(samples), batch_size, shuffle=config.shuffle, drop_last=config.drop_last, seed=seed)
    is_source = bool(config.sources)
    return GroupedOrder(*groups, batch_size, config.drop_last, seed, bool(config.shuffle), is_source)


def _groups(config: DataConfig) -> str | None:
    """The setting that decides which samples share a batch."""
    if config.group_by is not None:
        return "data.group_by"
    return "data.hard_negatives" if config.hard_negatives is not None else None


def _labels(samples: DatasetSamples, column: str) -> np.ndarray:
    """A number for each value of a column; -1 for null."""
    check_column(samples.dataset, column, "data.group_by")
    found = samples.dataset.schema.field(column).type
    if pa.types.is_nested(found) or is_blob(samples.dataset.schema.field(column)):
        raise DataError(
            f"the column `{column}` of `{samples.dataset.uri}` is {found}, and rows cannot be grouped by that",
            "`data.group_by` needs a column of single values, such as strings or integers",
        )
    encoded = samples.dataset.read([column]).column(0).combine_chunks().dictionary_encode()
    labels: np.ndarray = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)[samples.rows]
    return labels


def _vectors(samples: DatasetSamples, column: str) -> np.ndarray:
    check_vectors(samples.dataset, column, "data.hard_negatives.column")
    parts = [
        samples.take_vectors(samples.rows[start : start + READ_ROWS], column).astype(np.float16)
        for start in range(0, len(samples.rows), READ_ROWS)
    ]
    return np.concatenate(parts)
