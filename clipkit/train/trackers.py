"""Where a run's numbers go: `metrics.jsonl`, always and first, and the trackers that are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from clipkit.errors import MissingExtra
from clipkit.runs.folder import Run
from clipkit.runs.metrics import METRICS, numbers_by_path

log = logging.getLogger(__name__)


class Tracker(Protocol):
    rewinds: bool
    """Whether a resume removes what was logged of later steps; otherwise no number may be logged twice."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Appends lines to `metrics.jsonl` and hands their numbers to the trackers.

    A full disk costs lines, and a failing tracker its curves, with a warning: the run continues.
    """

    def __init__(self, run: Run, trackers: Sequence[Tracker], *, cut: Iterable[Mapping[str, Any]] = ()) -> None:
        """`cut` are the lines of steps that will be repeated, which trackers have seen before."""
        self._path = run.folder / METRICS
        self._file = self._path.open("ab")
        self._trackers = list(trackers)
        self._logged = {name: int(line["step"]) for line in cut for name in _scalars(line)}
        self._failed = False

    def write(self, line: Mapping[str, Any]) -> None:
        self._append(json.dumps(_finite(line), ensure_ascii=False).encode() + b"\n")
        step, scalars = int(line["step"]), _scalars(line)
        new = {name: value for name, value in scalars.items() if step > self._logged.get(name, 0)}
        for tracker in tuple(self._trackers):
            if logged := scalars if tracker.rewinds else new:
                self._guarded(tracker, partial(tracker.log, step, logged))

    def close(self) -> None:
        self._file.close()
        for tracker in tuple(self._trackers):
            self._guarded(tracker, tracker.close)

    def _append(self, line: bytes) -> None:
        size = self._file.tell()
        try:
            self._file.write(line)
            self._file.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("`%s` cannot be written (%s); the run continues without it", self._path, error)
            self._failed = True
            with suppress(OSError):
                self._file.close()
            os.truncate(self._path, size)  # no part of a line may stay in front of the next
            self._file = self._path.open("ab")

    def _guarded(self, tracker: Tracker, call: Callable[[], None]) -> None:
        """Drop a tracker that fails, whatever its library raises."""
        try:
            call()
        except Exception as error:
            log.warning("%s fails (%s); the run continues without it", type(tracker).__name__, error)
            self._trackers.remove(tracker)


def open_trackers(
    names: Sequence[str] | None, run: Run, *, name: str, config: Mapping[str, Any], step: int = 0
) -> list[Tracker]:
    """The trackers to use, for a run at this step: TensorBoard, if it is installed, when none are named.

    They identify the run by its id: a run repeated under the same name is another one.
    """
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run.folder, step),
        "wandb": lambda: WeightsAndBiases(run.folder, run.id, name, config),
        "mlflow": lambda: MlFlow(run.folder, run.id, name, config),
    }
    return [makers[tracker]() for tracker in names]


class TensorBoard:
    rewinds = True

    def __init__(self, folder: Path, step: int) -> None:
        _load("tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard")
        self._writer = writer.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Offline with `WANDB_MODE=offline`; a resumed run keeps its id."""

    rewinds = False

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        wandb = _load("wandb")
        self._run = wandb.init(
            project="clipkit", name=name, id=run_id, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class MlFlow:
    """Into `mlflow.db` of the run folder, unless `MLFLOW_TRACKING_URI` names a server."""

    rewinds = False

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow = _load("mlflow")
        if not self._mlflow.is_tracking_uri_set():
            self._mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        self._mlflow.set_experiment("clipkit")
        found = self._mlflow.search_runs(filter_string=f"tags.clipkit = '{run_id}'", output_format="list")
        if found:
            self._mlflow.start_run(run_id=found[0].info.run_id)
        else:
            self._mlflow.start_run(run_name=name, tags={"clipkit": run_id})
            self._mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({key.replace("@", "_at_"): value for key, value in scalars.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _load(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtra(package, package, f"the tracker `{package}`") from None


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in numbers_by_path(line).items() if name != "step"}


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
