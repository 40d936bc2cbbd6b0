"""Checkpoints: copied on the training thread, written beside it on another, synced, renamed.

`model.safetensors` holds the weights that one evaluates (averaged ones, with EMA), `train_state.pt` what only a
resume needs: optimizer, loss scaler, the weights in training where they differ. It loads with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from clipkit.errors import CheckpointError
from clipkit.files import sync, write_whole
from clipkit.runs.folder import META, WEIGHTS, Run, list_files, read_meta
from clipkit.distributed import full

log = logging.getLogger(__name__)
TRAIN_STATE = "train_state.pt"
SPARE_BYTES = 2 << 20  # that a checkpoint leaves free, for what else the run writes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of everything that a checkpoint holds, on the CPU; `ready` waits for copies from a device."""

    step: int
    weights: Mapping[str, torch.Tensor]
    train_state: Mapping[str, Any]
    meta: Mapping[str, Any]
    best: Mapping[str, Any] | None  # as `best.json` has it once this checkpoint is there
    ready: torch.cuda.Event | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in _tensors([self.weights, self.train_state]))


class CheckpointWriter:
    """Writes snapshots on a thread of its own, one at a time.

    One that cannot be written (a full disk) is given up with a warning: the run goes on, and the last good one stays.
    """

    def __init__(self, run: Run, *, keep: int, save_extras: Callable[[Path], None]) -> None:
        self._run = run
        self._keep = keep
        self._save_extras = save_extras
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self.last_good: Path | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Start writing; waits for the one before where that is still being written."""
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
            log.warning("the weights of step %d are not all finite: no checkpoint is written of them", snapshot.step)
            return
        try:
            self.last_good = self._write(snapshot)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own
            kept = f"`{self.last_good}` stays the last" if self.last_good else "there is none before it"
            log.warning("the checkpoint of step %d could not be written (%s); %s", snapshot.step, error, kept)

    def _write(self, snapshot: Snapshot) -> Path:
        folder = self._run.checkpoint_path(snapshot.step)
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        _check_space(folder.parent, snapshot.num_bytes)
        try:
            write_checkpoint(beside, snapshot, save_extras=self._save_extras)
            if folder.exists():
                shutil.rmtree(folder)
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(folder.parent)
        if snapshot.best is not None:
            self._run.write_best(snapshot.best)
        self._remove_old()
        return folder

    def _remove_old(self) -> None:
        best = self._run.best().get("step")
        for step, path in self._run.checkpoints()[: -self._keep]:
            if step != best:
                shutil.rmtree(path, ignore_errors=True)


def write_checkpoint(folder: Path, snapshot: Snapshot, *, save_extras: Callable[[Path], None]) -> None:
    """Write and sync a checkpoint's files; `meta.json`, which vouches for the others, comes last."""
    folder.mkdir(parents=True)
    save_file(dict(snapshot.weights), folder / WEIGHTS)
    torch.save(snapshot.train_state, folder / TRAIN_STATE)
    save_extras(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    meta = {**snapshot.meta, "files": list_files(folder)}
    write_whole(folder / META, json.dumps(meta, indent=2, ensure_ascii=False))


def copy_to_cpu(values: Any) -> Any:
    """The same nesting of dicts and lists with its tensors copied to the CPU, without waiting for a device."""
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


def read_train_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own advice, to load it all the same, is left out
        raise CheckpointError(
            f"`{checkpoint / TRAIN_STATE}` holds more than tensors and numbers, and is not loaded",
            "clipkit has not written it: do not trust where it comes from",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"`{checkpoint / TRAIN_STATE}` cannot be read: {error}", "resume from an earlier checkpoint"
        ) from error
    return state


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{checkpoint / WEIGHTS}` cannot be read: {error}", "take another checkpoint") from error


def check_fits(weights: Mapping[str, torch.Tensor], model: nn.Module, *, checkpoint: Path) -> None:
    """Refuse the weights of another model, and name what differs."""
    own = model.state_dict()
    differences = [f"`{name}` is missing" for name in own if name not in weights]
    differences += [f"`{name}` is unknown" for name in weights if name not in own]
    differences += [
        f"`{name}` is {list(weights[name].shape)} and not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if differences:
        model_text = read_meta(checkpoint).get("model", "another model")
        shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise CheckpointError(
            f"the checkpoint `{checkpoint}` is of another model ({model_text}): {shown}",
            "use the `model` section of the checkpoint's own `config.yaml`",
        )


def _tensors(values: Any) -> Sequence[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    children = values.values() if isinstance(values, Mapping) else values if isinstance(values, list) else ()
    return [tensor for child in children for tensor in _tensors(child)]


def _check_space(folder: Path, num_bytes: int) -> None:
    free, needed = shutil.disk_usage(folder).free, num_bytes + SPARE_BYTES
    if free < needed:
        raise OSError(f"{needed / 1e6:.0f} MB are needed and the disk has {free / 1e6:.0f} MB left")
