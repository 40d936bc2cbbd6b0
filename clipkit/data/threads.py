"""Batches prepared ahead by threads: one reads, several decode, and the batches come out in order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from typing import Any

from clipkit.data.batch_maker import BatchMaker, UnfinishedBatch
from clipkit.types import Batch

log = logging.getLogger(__name__)

CHUNK = 16  # images that a decoding thread takes at a time


def prepare_batches(maker: BatchMaker, steps: Iterable[int], *, num_threads: int) -> Generator[Batch, None, None]:
    """The batches of the steps, `data.prefetch` of them ahead; closing the generator ends its threads."""
    doing: dict[str, str] = {}  # what each thread is doing
    reader = ThreadPoolExecutor(1, "clipkit-reader")
    decoders = ThreadPoolExecutor(num_threads, "clipkit-decoder")

    def read(step: int) -> tuple[UnfinishedBatch, list[Future[None]]]:
        doing["reader"] = f"reading step {step}"
        batch = maker.read(step)
        doing["reader"] = "idle"
        return batch, [decoders.submit(decode, batch, start) for start in range(0, len(batch), CHUNK)]

    def decode(batch: UnfinishedBatch, start: int) -> None:
        name, stop = threading.current_thread().name, min(start + CHUNK, len(batch))
        doing[name] = f"decoding step {batch.step}, `{batch.samples.image_ids[start]}` and {stop - start - 1} more"
        maker.decode(batch, start, stop)
        doing[name] = "idle"

    def wait_for(futures: list[Future[Any]], started: float) -> None:
        while wait(futures, maker.config.stall_timeout_s).not_done:
            threads = "; ".join(f"{name}: {what}" for name, what in doing.copy().items())
            log.warning("no batch for %.0f s. %s", time.perf_counter() - started, threads)

    steps = iter(steps)
    pending: deque[Future[tuple[UnfinishedBatch, list[Future[None]]]]] = deque()
    try:
        while True:
            started = time.perf_counter()
            missing = maker.config.prefetch + 1 - len(pending)
            pending.extend(reader.submit(read, step) for step in islice(steps, missing))
            if not pending:
                return
            reading = pending.popleft()
            wait_for([reading], started)
            unfinished, chunks = reading.result()
            wait_for(chunks, started)
            for chunk in chunks:
                chunk.result()  # raises what the thread raised
            batch = maker.finish(unfinished)
            wait_s = time.perf_counter() - started
            maker.clock.add("wait", wait_s)
            yield replace(batch, wait_s=wait_s)
    finally:
        reader.shutdown(cancel_futures=True)
        decoders.shutdown(cancel_futures=True)
