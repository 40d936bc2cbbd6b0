"""From the config to the order of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from clipkit.config import BlockShuffle, DataConfig
from clipkit.data.corpus import Corpus
from clipkit.data.grouping import CaptionOrder, GroupedOrder, group_by_value
from clipkit.data.mixture import MixedOrder
from clipkit.data.neighbours import group_neighbours
from clipkit.data.order import BlockOrder, Order, ShuffledOrder, StoredOrder
from clipkit.errors import ConfigError, DataError

READ_ROWS = 65_536


def build_order(config: DataConfig, corpora: Sequence[Corpus], *, batch_size: int, seed: int) -> Order:
    """The order that `shuffle`, `sources`, `group_by`, `hard_negatives` and `caption: each` ask for."""
    _check_combination(config)
    num_samples = sum(map(len, corpora))
    shuffle = bool(config.shuffle)
    if config.sources:
        lengths, weights = tuple(map(len, corpora)), tuple(source.weight for source in config.sources)
        return MixedOrder(lengths, weights, batch_size, config.drop_last, seed)
    (corpus,) = corpora
    if config.group_by is not None:
        members, sizes = group_by_value(_labels(corpus, config.group_by))
        return GroupedOrder(members, sizes, batch_size, config.drop_last, seed, shuffle)
    if config.hard_negatives is not None:
        vectors = _vectors(corpus, config.hard_negatives.column)
        members, sizes = group_neighbours(vectors, group_size=config.hard_negatives.group_size, seed=seed)
        return GroupedOrder(members, sizes, batch_size, config.drop_last, seed, shuffle)
    if isinstance(config.shuffle, BlockShuffle):
        return BlockOrder(num_samples, batch_size, config.shuffle.block, config.drop_last, seed)
    if not shuffle:
        return StoredOrder(num_samples, batch_size, config.drop_last)
    if corpus.captions_per_row is not None:
        return CaptionOrder(corpus.captions_per_row, batch_size, config.drop_last, seed)
    return ShuffledOrder(num_samples, batch_size, config.drop_last, seed)


def _check_combination(config: DataConfig) -> None:
    """Some wishes cannot be met at once; say so instead of dropping one."""
    asked = {
        "data.sources": bool(config.sources),
        "data.group_by": config.group_by is not None,
        "data.hard_negatives": config.hard_negatives is not None,
        "data.shuffle: {block: …}": isinstance(config.shuffle, BlockShuffle),
        "data.caption: each": config.caption == "each",
    }
    together = [f"`{name}`" for name, is_asked in asked.items() if is_asked]
    if len(together) > 1:
        raise ConfigError(
            f"{' and '.join(together)} each decide which samples share a batch", "leave all but one of them out"
        )
    if config.sources and config.shuffle is False:
        raise ConfigError("`data.sources` are always shuffled", "leave `data.shuffle: false` out")


def _labels(corpus: Corpus, column: str) -> np.ndarray:
    """A number for each value of a column; -1 for null."""
    _require(corpus, column, "data.group_by")
    encoded = corpus.dataset.take(corpus.rows, [column]).column(0).combine_chunks().dictionary_encode()
    labels: np.ndarray = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return labels


def _vectors(corpus: Corpus, column: str) -> np.ndarray:
    _require(corpus, column, "data.hard_negatives.column")
    parts = [
        corpus.vectors(corpus.rows[start : start + READ_ROWS], column).astype(np.float16)
        for start in range(0, len(corpus.rows), READ_ROWS)
    ]
    return np.concatenate(parts)


def _require(corpus: Corpus, column: str, setting: str) -> None:
    names = corpus.dataset.schema.names
    if column not in names:
        listed = ", ".join(f"`{name}`" for name in names)
        raise DataError(f"`{corpus.dataset.uri}` has no column `{column}`", f"`{setting}` can be one of {listed}")
