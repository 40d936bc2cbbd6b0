"""Checkpoints during training: copied between two steps, then written by a thread while training continues."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from clipkit.distributed import full
from clipkit.files import sync
from clipkit.runs.checkpoint import write_checkpoint
from clipkit.runs.folder import Run

log = logging.getLogger(__name__)
SPARE_BYTES = 2 << 20  # left free for what else the run writes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of everything that a checkpoint holds, on the CPU; `ready` waits for copies from a device."""

    step: int
    weights: Mapping[str, torch.Tensor]
    train_state: Mapping[str, Any]
    meta: Mapping[str, Any]
    best: Mapping[str, Any] | None  # for `best.json`, once this checkpoint is written
    ready: torch.cuda.Event | None


class CheckpointWriter:
    """Writes snapshots on a thread of its own, one at a time.

    If one cannot be written (a full disk) the run continues with a warning, and the last good checkpoint stays.
    """

    def __init__(self, run: Run, *, keep: int, facts: Mapping[str, Any], save_extras: Callable[[Path], None]) -> None:
        """`facts` are added to the `meta.json` of every checkpoint."""
        self._run = run
        self._keep = keep
        self._facts = facts
        self._save_extras = save_extras
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self._last_good: Path | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Start writing; waits until the previous one is written."""
        self.wait()
        self._in_flight = self._pool.submit(self._try_to_write, snapshot)

    def wait(self) -> None:
        if self._in_flight is not None:
            self._in_flight.result()
            self._in_flight = None

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _try_to_write(self, snapshot: Snapshot) -> None:
        if snapshot.ready is not None:
            snapshot.ready.synchronize()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in snapshot.weights.values()):
            log.warning("the weights of step %d are not all finite: no checkpoint is written", snapshot.step)
            return
        try:
            self._last_good = self._write(snapshot)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own
            kept = f"`{self._last_good}` stays the newest" if self._last_good else "there is no earlier one"
            log.warning("the checkpoint of step %d could not be written (%s); %s", snapshot.step, error, kept)

    def _write(self, snapshot: Snapshot) -> Path:
        folder = self._run.checkpoint_path(snapshot.step)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        _check_space(folder.parent, sum(t.nbytes for t in _tensors([snapshot.weights, snapshot.train_state])))
        try:
            write_checkpoint(
                partial,
                weights=snapshot.weights,
                train_state=snapshot.train_state,
                meta={**snapshot.meta, **self._facts},
                save_extras=self._save_extras,
            )
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(folder.parent)
        if snapshot.best is not None:
            self._run.write_best(snapshot.best)
        best = self._run.best().get("step")
        for step, path in self._run.checkpoints()[: -self._keep]:
            if step != best:
                shutil.rmtree(path, ignore_errors=True)
        return folder


def copy_to_cpu(values: Any) -> Any:
    """Copy nested dicts and lists, with their tensors on the CPU, without waiting for a device."""
    if isinstance(values, torch.Tensor):
        source = full(values.detach())
        pinned = source.device.type == "cuda"
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=pinned)
        return target.copy_(source, non_blocking=pinned)
    if isinstance(values, Mapping):
        return {name: copy_to_cpu(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [copy_to_cpu(value) for value in values]
    return values


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping | list):
        for child in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(child)


def _check_space(folder: Path, num_bytes: int) -> None:
    free, needed = shutil.disk_usage(folder).free, num_bytes + SPARE_BYTES
    if free < needed:
        raise OSError(f"{needed / 1e6:.0f} MB are needed and the disk has {free / 1e6:.0f} MB left")
