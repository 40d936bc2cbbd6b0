"""The loader that training uses: this rank's share of each global batch, from any step on, made ahead."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2

from clipkit.config import DataConfig
from clipkit.data.batch_maker import BatchMaker
from clipkit.data.inputs.pixels import Source
from clipkit.data.order import base as order
from clipkit.data.order.base import WHOLE, Share
from clipkit.data.order.build import build_order
from clipkit.data.processes import ProcessPipeline
from clipkit.data.samples import open_corpora
from clipkit.data.threads import ThreadPipeline
from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.store import Dataset
from clipkit.types import Batch, ImageSpec, Tokenizer

ROWS_AT_ONCE = 65_536
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What the loader has done so far: seconds a stage, added up over threads."""

    stages_s: dict[str, float]
    num_batches: int
    num_replaced: int
    image_mb_an_epoch: float  # of encoded images, read again each epoch: what is kept in memory does not count


class Loader:
    """Batches by step. `batch_size` is global; each rank gets its share of it."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._num_batches = 0
        self._num_replaced = 0

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return tuple(corpus.dataset for corpus in self._maker.corpora)

    @property
    def num_samples(self) -> int:
        return self._maker.order.num_samples

    @property
    def batch_size(self) -> int:
        return self._maker.order.batch_size

    @property
    def prefetch(self) -> int:
        """Batches that it makes ready ahead."""
        return self._maker.config.prefetch

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(self._maker.order)

    def captions(self) -> Iterator[str]:
        """Every caption that a batch can have."""
        for corpus in self._maker.corpora:
            for start in range(0, len(corpus.rows), ROWS_AT_ONCE):
                for captions in corpus.dataset.take_captions(corpus.rows[start : start + ROWS_AT_ONCE]):
                    yield from captions or [""]

    def iterate(self, start_step: int = 0, stop_step: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the steps, over as many epochs as it takes; closing the iterator ends its threads."""
        steps = itertools.count(start_step) if stop_step is None else range(start_step, stop_step)
        pipeline = self._start(steps)
        try:
            for batch in pipeline:
                self._num_batches += 1
                self._num_replaced += batch.num_replaced
                yield batch
        finally:
            pipeline.close()

    def sources(self, step: int) -> Sequence[Source]:
        """What the step's images are made from: encoded images, or cached pixels."""
        return self._maker.sources(step)

    def stats(self) -> LoaderStats:
        image_bytes = sum(corpus.image_bytes_an_epoch for corpus in self._maker.corpora)
        return LoaderStats(
            dict(self._maker.clock.seconds), self._num_batches, self._num_replaced, image_bytes / MEGABYTE
        )

    def close(self) -> None:
        self._maker.close()

    def _start(self, steps: Iterable[int]) -> ThreadPipeline | ProcessPipeline:
        config = self._maker.config
        num_workers = usable_cores() if config.workers is None else config.workers
        if config.worker_kind == "processes" and num_workers:
            return ProcessPipeline(self._maker, steps, num_processes=num_workers)
        self._keep_images()
        cv2.setNumThreads(1)  # images are decoded side by side, and OpenCV's own threads would only get in the way
        return ThreadPipeline(self._maker, steps, num_threads=max(1, num_workers))

    def _keep_images(self) -> None:
        """Only for threads: every process would keep its own."""
        corpora = self._maker.corpora
        for corpus in corpora:
            corpus.keep_images(limit_bytes=self._maker.config.keep_images_mb * MEGABYTE // len(corpora))


def build_loader(
    config: DataConfig,
    *,
    spec: ImageSpec,
    tokenizer: Tokenizer | None,
    batch_size: int,
    seed: int,
    share: Share = WHOLE,
    datasets: Sequence[Dataset] | None = None,
) -> Loader:
    """The training loader; `datasets` are `data.dataset` or `data.sources` where they are open already."""
    corpora = open_corpora(config, seed=seed, tokenizer=tokenizer, datasets=datasets)
    training_order = build_order(config, corpora, batch_size=batch_size, seed=seed)
    if not order.steps_per_epoch(training_order):
        raise DataError(
            f"{training_order.num_samples:,} samples do not fill one batch of {batch_size:,}",
            "lower `train.batch_size` (`--batch-size` of `clipkit bench`), or keep the smaller last batch with "
            "`data.drop_last: false`",
        )
    maker = BatchMaker(
        corpora,
        training_order,
        config,
        size_px=spec.size_px,
        tokenizer=tokenizer,
        seed=seed,
        share=share,
    )
    return Loader(maker)
