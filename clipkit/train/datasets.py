"""The datasets that a run trains on, each at a fixed version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import distributed as dist

from clipkit import distributed
from clipkit.config import DataConfig
from clipkit.data.pixel_cache import fill_missing
from clipkit.data.training_rows import named_columns, training_sources
from clipkit.errors import DataError
from clipkit.store import Columns, Dataset


def open_datasets(config: DataConfig, facts: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """The datasets at the versions that the run began with, or for a new run at the newest that rank 0 sees."""
    columns = named_columns(config)
    uris = [uri for uri, _ in training_sources(config)]
    pinned = [entry["version"] for entry in facts.get("datasets", ())] or [None] * len(uris)
    return _same_on_every_rank([_open(uri, version=v, columns=columns) for uri, v in zip(uris, pinned, strict=True)])


def with_pixel_caches(config: DataConfig, datasets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """The datasets with the pixel cache of `data.cache`: rank 0 adds what is missing."""
    return _same_on_every_rank(fill_missing(datasets, config) if distributed.is_main() else datasets)


def _same_on_every_rank(datasets: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """The datasets at the versions that rank 0 sees."""
    if distributed.world() == 1:
        return tuple(datasets)
    versions = [[dataset.version for dataset in datasets]]
    dist.broadcast_object_list(versions)
    return tuple(Dataset(d.uri, version=v, columns=d.columns) for d, v in zip(datasets, versions[0], strict=True))


def _open(uri: str, *, version: int | None, columns: Columns) -> Dataset:
    try:
        return Dataset(uri, version=version, columns=columns)
    except DataError as error:
        if version is None:
            raise
        raise DataError(
            error.message,
            f"the run began with version {version} of it. If it was moved, add `--set data.dataset=PATH`; if "
            "that version no longer exists, start a new run from the weights of this one with `--set model.init=RUN`",
        ) from error
