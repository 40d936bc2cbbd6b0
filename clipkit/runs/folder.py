"""The run folder: `config.yaml`, `run.json`, `metrics.jsonl`, `status.json` and `checkpoints/step-00001234/`.

`run.json` holds what was resolved once when the run began, so that a resume or a rerun finds the same: dataset
versions, number of steps, compute threads, plugins. `status.json` says how far the run is. `checkpoints/best.json`
names the best checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from clipkit.errors import CheckpointError
from clipkit.files import read_json, sync, write_whole
from clipkit.runs.checkpoint import META, find_damage

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
STATUS = "status.json"
FACTS = "run.json"
BEST = "best.json"
STEP_FOLDER = re.compile(r"^step-(\d{8,})$")


class Run:
    """A run folder. Only one process at a time may hold it for training (`lock`)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock: TextIO | None = None

    @classmethod
    def create(cls, folder: str | Path, *, config: str, facts: Mapping[str, Any]) -> Run:
        """Make a new run folder; an existing one is refused."""
        check_free(folder)
        run = cls(folder)
        # Made beside and renamed: once the folder is there, the run can be resumed, however early it was killed.
        beside = run.folder.with_name(f".{run.folder.name}.{os.getpid()}")
        try:
            (beside / CHECKPOINTS).mkdir(parents=True)
            write_whole(beside / FACTS, _as_json({"id": uuid4().hex[:8], **facts}))
            write_whole(beside / CONFIG, config)
            beside.rename(run.folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(run.folder.parent)
        run.lock()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        run = cls(folder)
        if not run.folder.exists():
            raise CheckpointError(
                f"there is no run at `{folder}`",
                "a run that ended before its first step leaves nothing: start it again; `clipkit train --config FILE "
                "--resume auto` resumes a run or starts it",
            )
        if (run.folder / META).exists():
            raise CheckpointError(f"`{folder}` is a checkpoint", f"its run is `{run.folder.absolute().parents[1]}`")
        if not (run.folder / CONFIG).is_file():
            raise CheckpointError(
                f"`{folder}` is not a run folder: it has no `{CONFIG}`",
                "`clipkit train` makes run folders, under `runs/`",
            )
        return run

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def config_text(self) -> str:
        return (self.folder / CONFIG).read_text(encoding="utf-8")

    def write_config(self, text: str) -> None:
        write_whole(self.folder / CONFIG, text)

    def lock(self) -> None:
        """Hold the folder for training until this process ends, or `unlock`."""
        if self._lock is not None:
            return
        handle = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise CheckpointError(
                f"another process is training in `{self.folder}`", "wait for it, or stop it first"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def facts(self) -> dict[str, Any]:
        return read_json(self.folder / FACTS)

    @property
    def id(self) -> str:
        """Distinguishes this run from others of its name."""
        return str(self.facts().get("id", self.folder.name))

    def update_facts(self, changes: Mapping[str, Any]) -> None:
        write_whole(self.folder / FACTS, _as_json({**self.facts(), **changes}))

    def write_status(self, status: Mapping[str, Any]) -> None:
        write_whole(self.folder / STATUS, json.dumps(status, ensure_ascii=False) + "\n", durable=False)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every checkpoint, damaged ones too, oldest first."""
        if not self.checkpoints_folder.is_dir():
            return []
        found = ((STEP_FOLDER.match(path.name), path) for path in self.checkpoints_folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints_folder / f"step-{step:08d}"

    def best(self) -> dict[str, Any]:
        """{"step", "metric", "value"} of the best checkpoint; empty if there is none yet."""
        return read_json(self.checkpoints_folder / BEST)

    def write_best(self, best: Mapping[str, Any]) -> None:
        write_whole(self.checkpoints_folder / BEST, json.dumps(best) + "\n")

    def newest_checkpoint(self, *, before: float = math.inf) -> Path | None:
        """The newest checkpoint (before a step) that is whole; damaged ones are named in the log."""
        for path in reversed([path for step, path in self.checkpoints() if step < before]):
            damage = find_damage(path)
            if damage is None:
                return path
            log.warning("the checkpoint `%s` is damaged (%s); falling back to the one before", path, damage)
        return None

    def remove_leftovers(self, *, after_step: int) -> None:
        """Remove checkpoints that a kill left half-written, and damaged ones later than the step resumed at."""
        self.checkpoints_folder.mkdir(exist_ok=True)
        later = [path for step, path in self.checkpoints() if step > after_step]
        for path in [*self.checkpoints_folder.glob(".step-*"), *later]:
            shutil.rmtree(path, ignore_errors=True)


def check_free(folder: str | Path) -> None:
    """Refuse an existing folder, unless it is empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"the run folder `{folder}` already exists",
            f"resume it with `clipkit train --resume {folder}`, or choose another with `--set run.name=…`",
        )


def _as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def find_checkpoint(path: str | Path, which: str = "best") -> Path:
    """The folder of a run's checkpoint (`best`, `last` or a step), or a checkpoint folder itself.

    If `best` or `last` is damaged the newest whole one is taken, and the log says so.
    """
    path = Path(path)
    if (path / META).exists() or STEP_FOLDER.match(path.name):
        if which != "best":
            raise CheckpointError(f"`{path}` is a checkpoint already", f"name its run to choose `{which}`")
        if damage := find_damage(path):
            raise CheckpointError(f"the checkpoint `{path}` is damaged: {damage}", "name another one of its run")
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"there is no run or checkpoint at `{path}`", "`clipkit train` makes run folders, under `runs/`"
        )
    run = Run.open(path)
    if which not in ("best", "last"):
        return _find_step(run, which)
    if which == "best" and (best := run.best()):
        chosen = run.checkpoint_path(int(best["step"]))
        damage = find_damage(chosen)
        if damage is None:
            return chosen
        log.warning("the best checkpoint `%s` is damaged (%s); taking the newest whole one", chosen, damage)
    newest = run.newest_checkpoint()
    if newest is None:
        raise CheckpointError(
            f"the run `{path}` has no usable checkpoint", f"`clipkit train --resume {path}` makes one"
        )
    return newest


def _find_step(run: Run, which: str) -> Path:
    steps = [step for step, _ in run.checkpoints()]
    if not which.isdigit() or int(which) not in steps:
        known = ", ".join(str(step) for step in steps) or "none"
        raise CheckpointError(
            f"the run `{run.folder}` has no checkpoint `{which}`", f"write `best`, `last` or one of the steps: {known}"
        )
    chosen = run.checkpoint_path(int(which))
    if damage := find_damage(chosen):
        raise CheckpointError(f"the checkpoint `{chosen}` is damaged: {damage}", "take `last` or `best`")
    return chosen
