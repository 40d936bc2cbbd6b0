"""Batches made ahead by threads: one reads, several decode, and the batches come out in order."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from clipkit.data.batch_maker import BatchMaker, UnfinishedBatch
from clipkit.types import Batch

log = logging.getLogger(__name__)

CHUNK = 16  # images that a decoding thread takes at a time
POLL_S = 0.1


class PendingBatch:
    """A batch on its way through the threads."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.done = threading.Event()
        self.batch: Batch | None = None
        self.error: BaseException | None = None
        self._open_chunks = 0
        self._lock = threading.Lock()

    def open(self, num_chunks: int) -> None:
        self._open_chunks = num_chunks

    def close_chunk(self) -> bool:
        """Whether that was the last one."""
        with self._lock:
            self._open_chunks -= 1
            return self._open_chunks == 0

    def finish(self, batch: Batch) -> None:
        self.batch = batch
        self.done.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.done.set()


class ThreadPipeline:
    """Iterates batches; closing it ends its threads."""

    def __init__(self, maker: BatchMaker, steps: Iterable[int], *, num_threads: int) -> None:
        self._maker = maker
        self._steps = iter(steps)
        self._stopping = threading.Event()
        self._ready: queue.Queue[PendingBatch | None] = queue.Queue(maxsize=maker.config.prefetch)
        self._tasks: queue.SimpleQueue[tuple[PendingBatch, UnfinishedBatch, int, int] | None] = queue.SimpleQueue()
        self._doing = {"reader": "starting"}
        self._threads = [threading.Thread(target=self._read, name="clipkit-reader", daemon=True)]
        self._threads += [
            threading.Thread(target=self._decode, name=f"clipkit-decoder-{i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            pending = self._wait_for_next(started)
            if pending is None:
                return
            while not pending.done.wait(self._maker.config.stall_timeout_s):
                self._report_stall(started)
            if pending.error is not None:
                raise pending.error
            assert pending.batch is not None
            wait_s = time.perf_counter() - started
            self._maker.clock.add("wait", wait_s)
            yield replace(pending.batch, wait_s=wait_s)

    def close(self) -> None:
        self._stopping.set()
        for _ in self._threads[1:]:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _wait_for_next(self, started: float) -> PendingBatch | None:
        while True:
            try:
                return self._ready.get(timeout=self._maker.config.stall_timeout_s)
            except queue.Empty:
                self._report_stall(started)

    def _report_stall(self, started: float) -> None:
        doing = "; ".join(f"{name}: {what}" for name, what in self._doing.items())
        log.warning("no batch for %.0f s. %s", time.perf_counter() - started, doing)

    def _read(self) -> None:
        for step in self._steps:
            pending = PendingBatch(step)
            try:
                self._doing["reader"] = f"reading step {step}"
                batch = self._maker.read(step)
            except BaseException as error:
                pending.fail(error)
                self._hand_over(pending)
                return
            starts = range(0, len(batch), CHUNK)
            pending.open(len(starts))
            if not starts:  # a rank's share may be empty
                pending.finish(self._maker.finish(batch))
            self._doing["reader"] = f"step {step} is read; waiting until it can be handed over"
            if not self._hand_over(pending):
                return
            for start in starts:
                self._tasks.put((pending, batch, start, min(start + CHUNK, len(batch))))
        self._doing["reader"] = "done"
        self._hand_over(None)

    def _hand_over(self, pending: PendingBatch | None) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(pending, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def _decode(self) -> None:
        name = threading.current_thread().name
        while (task := self._tasks.get()) is not None and not self._stopping.is_set():
            pending, batch, start, stop = task
            self._doing[name] = (
                f"decoding step {pending.step}, `{batch.samples.image_ids[start]}` and {stop - start - 1} more"
            )
            try:
                self._maker.decode(batch, start, stop)
                if pending.close_chunk():
                    pending.finish(self._maker.finish(batch))
            except BaseException as error:
                pending.fail(error)
            self._doing[name] = "idle"
