"""Batches made ahead in worker processes, each making whole batches: for work that threads cannot share.

Pixels come back in memory that the parent owns and maps before it starts a worker, the rest in the worker's pipe. What
torch does with tensors that are sent (a file descriptor is fetched from a thread of the sender) needs a sender that
answers: a worker that stops between the two hangs whoever receives.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import queue
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext

import cv2
import numpy as np
import torch

from clipkit.data.batch_maker import BatchMaker
from clipkit.data.device import a_gpu_is_in_use
from clipkit.errors import ClipkitError, DataError
from clipkit.types import Batch, Tokens

log = logging.getLogger(__name__)

STAGES = ("starting", "idle", "reading", "decoding", "finishing")
STARTING, IDLE, READING, DECODING, FINISHING = range(len(STAGES))
SIGNALS = {number.value: number.name for number in signal.Signals}
HINTS: dict[int, str] = {
    signal.SIGKILL: "if memory ran out: lower `data.workers` or `data.prefetch`, or use `data.worker_kind: threads`",
    signal.SIGBUS: "if /dev/shm is full: enlarge it (docker: `--shm-size`), or use `data.worker_kind: threads`",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch on its way: the pixels lie in a slot, and the other tensors are arrays, which a pipe copies."""

    batch: Batch
    pixels_shape: tuple[int, ...] | None
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back for a step."""

    result: Parts | ClipkitError | str  # what went wrong elsewhere than in clipkit comes as its traceback
    stages_s: dict[str, float]
    records: list[logging.LogRecord]


class Slots:
    """Shared memory for the pixels of several batches. Pickles on the way to a new process, and only then."""

    def __init__(self, context: ForkServerContext, count: int, slot_bytes: int) -> None:
        self._memory: ctypes.Array[ctypes.c_uint8] = context.RawArray(ctypes.c_uint8, max(1, count * slot_bytes))
        self._slot_bytes = slot_bytes

    def write(self, index: int, images: torch.Tensor) -> None:
        self._slot(index, images.numel())[:] = images.numpy().reshape(-1)

    def read(self, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """A copy, so that the slot is free again; in pinned memory where a GPU is in use."""
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=a_gpu_is_in_use())
        images.numpy().reshape(-1)[:] = self._slot(index, images.numel())
        return images

    def _slot(self, index: int, num_bytes: int) -> np.ndarray:
        return np.frombuffer(memoryview(self._memory), np.uint8, num_bytes, index * self._slot_bytes)


class Worker:
    """A process, and what is known of it here."""

    def __init__(self, maker: BatchMaker, context: ForkServerContext, index: int, *, num_slots: int) -> None:
        self.connection, theirs = context.Pipe()
        self.stage: ctypes.c_int = context.RawValue(ctypes.c_int, STARTING)
        self.slots = Slots(context, num_slots, maker.max_pixel_bytes)
        self._next_slots = itertools.cycle(range(num_slots))
        self.process = context.Process(
            target=_work, args=(maker, theirs, self.stage, self.slots), name=f"clipkit-worker-{index}", daemon=True
        )
        self.process.start()
        theirs.close()

    def ask(self, step: int) -> int:
        """The slot that the batch's pixels will be in: no more steps are to be on their way than there are slots."""
        slot = next(self._next_slots)
        with contextlib.suppress(OSError):  # a worker that has ended is told of when its answer is due
            self.connection.send((step, slot))
        return slot

    def receive(self, timeout_s: float) -> Answer | None:
        """The next answer; None if there is none in time. Raises where the process has ended."""
        if not wait([self.connection, self.process.sentinel], timeout_s):
            return None
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise self._ended() from error
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.kill()  # nothing less ends a process that is stopped
        self.process.join()

    def _ended(self) -> DataError:
        code = self.process.exitcode or 0
        how = f"was killed by {SIGNALS.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        return DataError(
            f"a process that makes batches (pid {self.process.pid}) {how} while {STAGES[self.stage.value]}",
            HINTS.get(-code, ""),
        )


class ProcessPipeline:
    """Iterates batches, which the workers make in turn; closing it ends its processes."""

    def __init__(self, maker: BatchMaker, steps: Iterable[int], *, num_processes: int) -> None:
        self._maker = maker
        context = multiprocessing.get_context("forkserver")  # Lance does not survive a fork
        context.set_forkserver_preload(["torch"])
        ahead = max(maker.config.prefetch, num_processes)
        num_slots = -(-ahead // num_processes)
        self._workers = [Worker(maker, context, index, num_slots=num_slots) for index in range(num_processes)]
        self._turns = itertools.cycle(self._workers)
        self._steps = iter(steps)
        self._asked: deque[tuple[int, Worker, int]] = deque()
        for _ in range(ahead):
            self._ask()

    def __iter__(self) -> Iterator[Batch]:
        while self._asked:
            started = time.perf_counter()
            step, worker, slot = self._asked.popleft()
            while (answer := worker.receive(self._maker.config.stall_timeout_s)) is None:
                self._report_stall(step, started)
            batch = self._open(answer, worker.slots, slot)
            self._ask()
            wait_s = time.perf_counter() - started
            self._maker.clock.add("wait", wait_s)
            yield replace(batch, wait_s=wait_s)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _ask(self) -> None:
        step = next(self._steps, None)
        if step is None:
            return
        worker = next(self._turns)
        self._asked.append((step, worker, worker.ask(step)))

    def _open(self, answer: Answer, slots: Slots, slot: int) -> Batch:
        for stage, seconds in answer.stages_s.items():
            self._maker.clock.add(stage, seconds)
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        if isinstance(answer.result, Parts):
            return _put_together(answer.result, slots, slot)
        if isinstance(answer.result, str):
            raise RuntimeError(f"in a process that makes batches:\n{answer.result}")
        raise answer.result

    def _report_stall(self, step: int, started: float) -> None:
        doing = "; ".join(f"pid {worker.process.pid}: {STAGES[worker.stage.value]}" for worker in self._workers)
        log.warning("no batch for %.0f s, waiting for step %d. %s", time.perf_counter() - started, step, doing)


def _work(
    maker: BatchMaker, connection: Connection[Answer, tuple[int, int]], stage: ctypes.c_int, slots: Slots
) -> None:
    """Answer steps until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.getLogger("clipkit")
    logger.addHandler(QueueHandler(records))
    logger.propagate = False
    while True:
        stage.value = IDLE
        try:
            step, slot = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        made = _make(maker, step, stage)
        result = _take_apart(made, slots, slot) if isinstance(made, Batch) else made
        told = [records.get() for _ in range(records.qsize())]
        try:
            connection.send(Answer(result, maker.clock.take(), told))
        except (BrokenPipeError, ConnectionResetError):
            return


def _make(maker: BatchMaker, step: int, stage: ctypes.c_int) -> Batch | ClipkitError | str:
    try:
        stage.value = READING
        work = maker.read(step)
        stage.value = DECODING
        maker.decode(work, 0, len(work))
        stage.value = FINISHING
        return maker.finish(work)
    except ClipkitError as error:
        return error
    except BaseException:  # Lance's panics are no Exceptions
        return traceback.format_exc()


def _take_apart(batch: Batch, slots: Slots, slot: int) -> Parts:
    images, tokens = batch.images, batch.tokens
    if images is not None:
        slots.write(slot, images)
    tensors = {
        "input_ids": None if tokens is None else tokens.input_ids,
        "attention_mask": None if tokens is None else tokens.attention_mask,
        "image_features": batch.image_features,
        "text_features": batch.text_features,
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    rest = replace(batch, images=None, tokens=None, image_features=None, text_features=None)
    return Parts(rest, None if images is None else tuple(images.shape), arrays)


def _put_together(parts: Parts, slots: Slots, slot: int) -> Batch:
    tensors = {name: torch.from_numpy(array) for name, array in parts.arrays.items()}
    shape = parts.pixels_shape
    return replace(
        parts.batch,
        images=None if shape is None else slots.read(slot, shape),
        tokens=Tokens(tensors["input_ids"], tensors["attention_mask"]) if "input_ids" in tensors else None,
        image_features=tensors.get("image_features"),
        text_features=tensors.get("text_features"),
    )
