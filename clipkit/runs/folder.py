"""The run folder: `config.yaml`, `run.json`, `metrics.jsonl`, `status.json` and `checkpoints/step-00001234/`.

`run.json` holds what was resolved once when the run began, so that a resume or a rerun finds the same: dataset
versions, number of steps, compute threads. `status.json` says how far the run is. `checkpoints/best.json` names the
best checkpoint. A checkpoint's `meta.json` lists its files with size and checksum: what does not match is damaged.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from uuid import uuid4

from clipkit.errors import CheckpointError
from clipkit.files import sync, write_whole

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
FACTS = "run.json"
META = "meta.json"
BEST = "best.json"
WEIGHTS = "model.safetensors"
BLOCK_BYTES = 1 << 16
STEP_FOLDER = re.compile(r"^step-(\d{8,})$")


class Run:
    """A run folder. Only one process at a time may hold it for training (`lock`)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock: TextIO | None = None

    @classmethod
    def create(cls, folder: str | Path, *, config: str, facts: Mapping[str, Any]) -> Run:
        """Make a new run folder; one that is already there is refused."""
        check_free(folder)
        run = cls(folder)
        # Made beside and renamed: whoever sees the folder can resume it, however early the run was killed.
        beside = run.folder.with_name(f".{run.folder.name}.{os.getpid()}")
        try:
            (beside / "checkpoints").mkdir(parents=True)
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
                "one that ended before its first step has left nothing: start it again; `clipkit train --config FILE "
                "--resume auto` goes on with a run or starts it",
            )
        if (run.folder / META).exists():
            raise CheckpointError(f"`{folder}` is a checkpoint", f"its run is `{run.folder.absolute().parents[1]}`")
        if not (run.folder / CONFIG).is_file():
            raise CheckpointError(
                f"`{folder}` is no run folder: it has no `{CONFIG}`", "a run folder is what `clipkit train` made"
            )
        return run

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"

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
        except OSError:  # a file system without locks: nothing to hold
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
        """What tells this run from others of its name."""
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
        """{"step", "metric", "value"} of the best checkpoint; empty where none is named."""
        return read_json(self.checkpoints_folder / BEST)

    def write_best(self, best: Mapping[str, Any]) -> None:
        write_whole(self.checkpoints_folder / BEST, json.dumps(best) + "\n")

    def newest_checkpoint(self, *, before: float = math.inf) -> Path | None:
        """The newest checkpoint (before a step) that is whole; those that are not are named in the log."""
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

    def cut_metrics(self, step: int) -> list[dict[str, Any]]:
        """Cut `metrics.jsonl` back to the lines up to `step` and give those cut off; a torn last line goes too.

        Read from its end: what lies before the step is not looked at, however much it is.
        """
        path = self.folder / METRICS
        if not path.exists():
            return []
        cut = []
        with path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            for start, raw in _lines_from_the_end(file):
                line = _parse_line(raw)
                if line is not None and 0 < line.get("step", 0) <= step:
                    break
                end = start
                if line is not None:
                    cut.append(line)
            file.truncate(end)
            os.fsync(file.fileno())
        return cut[::-1]


def check_free(folder: str | Path) -> None:
    """Refuse a folder that is there already, unless it is empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"the run folder `{folder}` already exists",
            f"go on with it by `clipkit train --resume {folder}`, or choose another with `--set run.name=…`",
        )


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, up to the first that is torn."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = []
    for raw in path.read_bytes().splitlines(keepends=True):
        line = _parse_line(raw)
        if line is None:
            break
        lines.append(line)
    return lines


def numbers_by_path(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A line's numbers, or a validation's, by the path that they are named by: `text_to_image/recall@1`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= numbers_by_path(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + name] = float(value)
    return numbers


def _as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    """A whole line's object; None for one that is torn."""
    try:
        value = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line of a file, the last first."""
    start, rest = file.seek(0, os.SEEK_END), b""
    while start:
        size = min(BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        lines = (file.read(size) + rest).splitlines(keepends=True)
        rest = lines.pop(0)  # it may have begun in the block before
        offset = start + len(rest) + sum(map(len, lines))
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
    if rest:
        yield 0, rest


def find_checkpoint(path: str | Path, which: str = "best") -> Path:
    """The folder of a run's checkpoint (`best`, `last` or a step), or of a checkpoint given itself.

    Where `best` or `last` is damaged the newest whole one stands in, and the log says so.
    """
    path = Path(path)
    if (path / META).exists() or STEP_FOLDER.match(path.name):
        if which != "best":
            raise CheckpointError(f"`{path}` is a checkpoint already", f"name its run to choose `{which}` of that")
        if damage := find_damage(path):
            raise CheckpointError(f"the checkpoint `{path}` is damaged: {damage}", "name another one of its run")
        return path
    if not path.is_dir():
        raise CheckpointError(f"there is no run or checkpoint at `{path}`", "a run folder is what `clipkit train` made")
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
            f"the run `{path}` has no checkpoint that can be used", f"train it on with `clipkit train --resume {path}`"
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


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None when all are as they were written."""
    files = read_json(checkpoint / META).get("files")
    if not isinstance(files, dict):
        return f"`{META}` is missing or torn"
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"`{name}` is missing"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"`{name}` has {size} of {expected['bytes']} bytes"
        if checksum(file) != expected["crc32"]:
            return f"`{name}` has changed since it was written"
    return None


def read_meta(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / META)


def list_files(folder: Path) -> dict[str, dict[str, int]]:
    """Size and checksum of every file under a folder, as `meta.json` keeps them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != META)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": checksum(path)} for path in files
    }


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file is missing or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
