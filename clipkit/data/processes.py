"""Batches made ahead in worker processes, each making whole batches: for work that threads cannot share."""

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
import torch
import torch.multiprocessing  # lets a connection hand over tensors in shared memory

from clipkit.data.batches import BatchMaker
from clipkit.errors import ClipkitError, DataError
from clipkit.types import Batch

log = logging.getLogger(__name__)

STAGES = ("idle", "reading", "decoding", "finishing")
IDLE, READING, DECODING, FINISHING = range(len(STAGES))
HINTS = {
    signal.SIGKILL: "if memory ran out: lower `data.workers` or `data.prefetch`, or use `data.worker_kind: threads`",
    signal.SIGBUS: "if /dev/shm is full: enlarge it (docker: `--shm-size`), or use `data.worker_kind: threads`",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back for a step."""

    result: Batch | ClipkitError | str  # what went wrong elsewhere than in clipkit comes as its traceback
    stages_s: dict[str, float]
    records: list[logging.LogRecord]


class Worker:
    """A process, and what is known of it here."""

    def __init__(self, maker: BatchMaker, context: ForkServerContext, index: int) -> None:
        self.connection, theirs = context.Pipe()
        self.stage: ctypes.c_int = context.RawValue(ctypes.c_int, IDLE)
        self.process = context.Process(
            target=_work, args=(maker, theirs, self.stage), name=f"clipkit-worker-{index}", daemon=True
        )
        self.process.start()
        theirs.close()

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
        self.process.terminate()
        self.process.join()

    def _ended(self) -> DataError:
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return DataError(
            f"a process that makes batches (pid {self.process.pid}) was {how} while {STAGES[self.stage.value]}",
            HINTS.get(signal.Signals(-code), "") if code < 0 else "",
        )


class ProcessPipeline:
    """Iterates batches, which the workers make in turn; closing it ends its processes."""

    def __init__(self, maker: BatchMaker, steps: Iterable[int], *, num_processes: int) -> None:
        self._maker = maker
        context = multiprocessing.get_context("forkserver")  # Lance does not survive a fork
        context.set_forkserver_preload(["torch"])
        self._workers = [Worker(maker, context, index) for index in range(num_processes)]
        self._turns = itertools.cycle(self._workers)
        self._steps = iter(steps)
        self._asked: deque[tuple[int, Worker]] = deque()
        for _ in range(max(maker.config.prefetch, num_processes)):
            self._ask()

    def __iter__(self) -> Iterator[Batch]:
        while self._asked:
            started = time.perf_counter()
            step, worker = self._asked.popleft()
            while (answer := worker.receive(self._maker.config.stall_timeout_s)) is None:
                self._report_stall(step, started)
            self._ask()
            wait_s = time.perf_counter() - started
            self._maker.clock.add("wait", wait_s)
            yield replace(self._open(answer), wait_s=wait_s)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _ask(self) -> None:
        step = next(self._steps, None)
        if step is None:
            return
        worker = next(self._turns)
        self._asked.append((step, worker))
        with contextlib.suppress(OSError):  # a worker that has ended is told of when its answer is due
            worker.connection.send(step)

    def _open(self, answer: Answer) -> Batch:
        for stage, seconds in answer.stages_s.items():
            self._maker.clock.add(stage, seconds)
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        if isinstance(answer.result, Batch):
            return answer.result
        if isinstance(answer.result, str):
            raise RuntimeError(f"in a process that makes batches:\n{answer.result}")
        raise answer.result

    def _report_stall(self, step: int, started: float) -> None:
        doing = "; ".join(f"pid {worker.process.pid}: {STAGES[worker.stage.value]}" for worker in self._workers)
        log.warning("no batch for %.0f s, waiting for step %d. %s", time.perf_counter() - started, step, doing)


def _work(maker: BatchMaker, connection: Connection[Answer, int], stage: ctypes.c_int) -> None:
    """Answer steps until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    maker.pins_memory = False  # that would take a CUDA context in every worker
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.getLogger("clipkit")
    logger.addHandler(QueueHandler(records))
    logger.propagate = False
    while True:
        try:
            step = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        result = _make(maker, step, stage)
        told = [records.get() for _ in range(records.qsize())]
        try:
            connection.send(Answer(result, maker.clock.take(), told))
        except (BrokenPipeError, ConnectionResetError):
            return
        stage.value = IDLE


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
