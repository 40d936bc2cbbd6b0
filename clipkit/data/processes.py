"""Batches made ahead in worker processes, each making whole batches: for work that threads cannot share."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clipkit.data.batches import BatchMaker
from clipkit.types import Batch


class Steps(Sampler[int]):
    def __init__(self, steps: Iterable[int]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)


class BatchesByStep(Dataset[Batch]):
    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker

    def __getitem__(self, step: int) -> Batch:
        return self._maker.make(step)


class ProcessPipeline:
    """Iterates batches; closing it ends its processes."""

    def __init__(self, maker: BatchMaker, steps: Iterable[int], *, num_processes: int) -> None:
        self._maker = maker
        context = multiprocessing.get_context("forkserver")  # Lance does not survive a fork
        context.set_forkserver_preload(["torch", "lance"])
        self._loader: Any = DataLoader(
            BatchesByStep(maker),
            batch_size=None,
            sampler=Steps(steps),
            num_workers=num_processes,
            prefetch_factor=max(1, -(-maker.config.prefetch // num_processes)),
            multiprocessing_context=context,
            worker_init_fn=_start_worker,
            collate_fn=_as_it_is,
        )

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            wait_s = time.perf_counter() - started
            self._maker.clock.add("wait", wait_s)
            yield replace(batch, wait_s=wait_s)

    def close(self) -> None:
        self._loader = None


def _start_worker(index: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _as_it_is(batch: Any) -> Any:
    return batch
