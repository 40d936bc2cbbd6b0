"""The loader: this rank's share of each global batch, from any step on, prepared ahead."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from clipkit.config import DataConfig
from clipkit.data.batch_maker import BatchMaker
from clipkit.data.inputs import Input
from clipkit.data.order import base as order
from clipkit.data.order.base import WHOLE, Share, StoredOrder
from clipkit.data.order.build import build_order
from clipkit.data.samples import DatasetSamples, DrawnSamples, Samples, make_samples
from clipkit.data.threads import prepare_batches
from clipkit.data.training_rows import TrainingRows
from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.store import Dataset
from clipkit.types import Batch

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What the loader has done so far: seconds by stage, added up over threads."""

    stages_s: dict[str, float]
    num_batches: int
    num_replaced: int
    image_mb_per_epoch: float  # encoded images that each epoch reads again, because they are not kept in memory


class Loader:
    """Batches by step. `batch_size` is global; each rank gets its share of it."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._num_batches = 0
        self._num_replaced = 0

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return tuple(part.dataset for part in self._maker.samples.parts)

    @property
    def num_samples(self) -> int:
        return self._maker.order.num_samples

    @property
    def batch_size(self) -> int:
        return self._maker.order.batch_size

    @property
    def prefetch(self) -> int:
        """Batches that it prepares ahead."""
        return self._maker.config.prefetch

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(self._maker.order)

    def iterate(self, start_step: int = 0, stop_step: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the steps, over as many epochs as they span; closing the iterator ends its threads."""
        steps = itertools.count(start_step) if stop_step is None else range(start_step, stop_step)
        config, parts = self._maker.config, self._maker.samples.parts
        for part in parts:
            part.images.keep(limit_bytes=config.keep_images_mb * MEGABYTE // len(parts))
        cv2.setNumThreads(1)  # several images are decoded at a time, so more threads for each would only compete
        num_threads = usable_cores() if config.workers is None else max(1, config.workers)
        with closing(prepare_batches(self._maker, steps, num_threads=num_threads)) as batches:
            for batch in batches:
                self._num_batches += 1
                self._num_replaced += batch.num_replaced
                yield batch

    def drawn(self, step: int) -> DrawnSamples:
        """The samples of a step on all ranks."""
        return self._maker.drawn(step)

    def stats(self) -> LoaderStats:
        image_mb = sum(part.images.bytes_per_epoch for part in self._maker.samples.parts) / MEGABYTE
        return LoaderStats(dict(self._maker.clock.seconds), self._num_batches, self._num_replaced, image_mb)

    def close(self) -> None:
        self._maker.close()


def build_loader(
    config: DataConfig,
    inputs: Sequence[Input],
    *,
    batch_size: int,
    seed: int,
    share: Share = WHOLE,
    training: TrainingRows | None = None,
) -> Loader:
    """The training loader; `training` are the rows that the config selects, if they are selected already."""
    columns = [column for input_ in inputs for column in input_.columns]
    samples = make_samples(training or TrainingRows(config), config, seed=seed, columns=columns)
    training_order = build_order(config, samples.parts, batch_size=batch_size, seed=seed)
    if not order.steps_per_epoch(training_order):
        raise DataError(
            f"{training_order.num_samples:,} samples do not fill one batch of {batch_size:,}",
            "lower `train.batch_size` (`--batch-size` of `clipkit bench`), or keep the smaller last batch with "
            "`data.drop_last: false`",
        )
    return Loader(BatchMaker(samples, training_order, inputs, config, seed=seed, share=share))


def iterate_rows(
    dataset: Dataset, rows: np.ndarray, inputs: Sequence[Input], config: DataConfig, *, batch_size: int
) -> Generator[Batch, None, None]:
    """Batches of these rows, once and in order, without augmentation: for evaluation.

    A sample uses the first caption. An image that cannot be decoded is left black and counted as replaced.
    """
    if not len(rows):
        return
    config = config.model_copy(update={"caption": "first"})
    columns = [column for input_ in inputs for column in input_.columns]
    samples = Samples([DatasetSamples(dataset, rows, config, seed=0, columns=columns)])
    maker = BatchMaker(samples, StoredOrder(len(rows), batch_size, drop_last=False), inputs, config, seed=None)
    with closing(Loader(maker)) as loader, closing(loader.iterate(0, loader.steps_per_epoch)) as batches:
        yield from batches
