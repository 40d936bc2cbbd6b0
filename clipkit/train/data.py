"""What a run reads: its datasets at their versions, and the tokenizer of their captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import distributed as dist

from clipkit import distributed
from clipkit.config import Config, FeatureText
from clipkit.data import pixel_cache as caches
from clipkit.data.samples import named_columns, training_sources
from clipkit.data.tokenizer import load_tokenizer, train_tokenizer
from clipkit.errors import DataError
from clipkit.runs.folder import find_checkpoint
from clipkit.store import Columns, Dataset
from clipkit.train.session import Session
from clipkit.types import Tokenizer

log = logging.getLogger(__name__)
TOKENIZER_CAPTIONS_ROWS = 200_000  # of a larger corpus, so many rows spread over it train the vocabulary
MEASURED_ROWS = 20_000  # whose captions say which share is cut


def open_datasets(config: Config, facts: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """The datasets at the versions that the run began with, or as they are now (and then on every rank alike)."""
    columns = named_columns(config.data)
    uris = [uri for uri, _ in training_sources(config.data)]
    pinned = [entry["version"] for entry in facts.get("datasets", ())] or [None] * len(uris)
    opened = [_open(uri, version=v, columns=columns) for uri, v in zip(uris, pinned, strict=True)]
    if distributed.world() > 1:
        versions = [[dataset.version for dataset in opened]]
        dist.broadcast_object_list(versions)
        opened = [Dataset(uri, version=v, columns=columns) for uri, v in zip(uris, versions[0], strict=True)]
    return tuple(opened)


def _open(uri: str, *, version: int | None, columns: Columns) -> Dataset:
    try:
        return Dataset(uri, version=version, columns=columns)
    except DataError as error:
        if version is None:
            raise
        raise DataError(
            error.message,
            f"the run began with version {version} of it: `--set data.dataset=PATH` says where that is now; if it is "
            "no more, begin a new run with this one's weights, `model.init`",
        ) from error


def with_caches(config: Config, datasets: tuple[Dataset, ...], tokenizer: Tokenizer | None) -> tuple[Dataset, ...]:
    """The datasets with the columns that `data.cache` and `data.token_cache` name: rank 0 makes what is missing."""
    filled = caches.fill_missing(datasets, config.data, tokenizer) if distributed.is_main() else datasets
    if distributed.world() == 1:
        return filled
    versions = [[dataset.version for dataset in filled]]
    dist.broadcast_object_list(versions)
    return tuple(Dataset(d.uri, version=v, columns=d.columns) for d, v in zip(filled, versions[0], strict=True))


def make_tokenizer(session: Session, datasets: tuple[Dataset, ...]) -> Tokenizer | None:
    """The checkpoint's tokenizer, the text model's, or one trained on the captions."""
    data, text = session.config.data, session.config.model.text
    if isinstance(text, FeatureText):
        return None
    origin = session.checkpoint
    if origin is None and session.config.model.init:
        origin = find_checkpoint(session.config.model.init)
    source = origin / "tokenizer" if origin is not None else text.tokenizer or text.name
    filters = [where for _, where in training_sources(data)]
    if source is not None:
        tokenizer = load_tokenizer(source, max_tokens=data.max_tokens, padding=data.padding)
    else:
        assert text.architecture is not None
        tokenizer = train_tokenizer(
            [
                caption
                for dataset, where in zip(datasets, filters, strict=True)
                for caption in _captions(dataset, where, data.limit, num_rows=TOKENIZER_CAPTIONS_ROWS)
            ],
            vocab_size=text.architecture.vocab_size,
            lowercase=text.architecture.lowercase,
            max_tokens=data.max_tokens,
            padding=data.padding,
        )
    share = tokenizer.truncated_share(_captions(datasets[0], filters[0], data.limit, num_rows=MEASURED_ROWS))
    log.info("%.1f %% of the captions are cut at `data.max_tokens: %d`", 100 * share, data.max_tokens)
    return tokenizer


def _captions(dataset: Dataset, where: str | None, limit: int | None, *, num_rows: int) -> list[str]:
    """The captions of the training rows, or of so many spread over them."""
    rows = dataset.select(where, limit=limit)
    if not len(rows):
        raise DataError(
            f"the training filter `{where}` chooses no row of `{dataset.uri}`", "`clipkit info` tells its splits"
        )
    step = -(-len(rows) // num_rows)
    return [caption for captions in dataset.take_captions(rows[::step]) for caption in captions]
