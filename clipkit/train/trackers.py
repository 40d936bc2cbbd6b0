"""`metrics.jsonl`, which every run writes, and the trackers that get the same numbers."""

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
from typing import Any, Protocol

from clipkit.errors import MissingExtra
from clipkit.runs.folder import Run
from clipkit.runs.metrics import METRICS, numbers_by_path

log = logging.getLogger(__name__)


class Tracker(Protocol):
    rewinds: bool
    """Whether a resume removes what was logged of later steps. If not, no number may be logged twice."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Appends lines to `metrics.jsonl` and passes their numbers to the trackers.

    With a full disk or a failing tracker the run continues without them, with a warning.
    """

    def __init__(self, run: Run, trackers: Sequence[Tracker], *, cut: Iterable[Mapping[str, Any]] = ()) -> None:
        """`cut` are the lines of steps that will be repeated, whose numbers the trackers already have."""
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
            os.truncate(self._path, size)  # removes the part of the line that was written
            self._file = self._path.open("ab")

    def _guarded(self, tracker: Tracker, call: Callable[[], None]) -> None:
        """Drop a tracker that fails, whatever its library raises."""
        try:
            call()
        except Exception as error:
            log.warning("%s fails (%s); the run continues without it", type(tracker).__name__, error)
            self._trackers.remove(tracker)


def check_trackers(names: Sequence[str] | None) -> None:
    """Raise MissingExtra for a tracker that is not installed."""
    for name in names or ():
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, name, f"the tracker `{name}`")


def open_trackers(
    names: Sequence[str] | None, run: Run, *, name: str, config: Mapping[str, Any], step: int = 0
) -> list[Tracker]:
    """The named trackers, for a run at this step; without names TensorBoard, if it is installed.

    A tracker knows a run by its id, so a rerun under the same name is another run.
    """
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    check_trackers(names)
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run.folder, step),
        "wandb": lambda: WeightsAndBiases(run.folder, run.id, name, config),
        "mlflow": lambda: MlFlow(run.folder, run.id, name, config),
    }
    return [openers[tracker]() for tracker in names]


class TensorBoard:
    rewinds = True

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Offline with `WANDB_MODE=offline`; a resumed run keeps its id."""

    rewinds = False

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

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
        import mlflow

        self._mlflow = mlflow
        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        mlflow.set_experiment("clipkit")
        found = mlflow.search_runs(filter_string=f"tags.clipkit = '{run_id}'", output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=name, tags={"clipkit": run_id})
            mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({key.replace("@", "_at_"): value for key, value in scalars.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in numbers_by_path(line).items() if name != "step"}


def _finite(value: Any) -> Any:
    """The value with null for every NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
