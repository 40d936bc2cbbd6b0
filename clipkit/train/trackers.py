"""Where a run's numbers go: `metrics.jsonl`, always and first, and the trackers that are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

from clipkit.errors import MissingExtra
from clipkit.runs import METRICS, Run

log = logging.getLogger("clipkit.train")


class Tracker(Protocol):
    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Appends lines to `metrics.jsonl` and hands their numbers to the trackers.

    A disk that is full costs lines, with one warning, and not the run.
    """

    def __init__(self, run: Run, trackers: Sequence[Tracker]) -> None:
        self._path = run.folder / METRICS
        self._file: TextIO = self._path.open("a", encoding="utf-8", buffering=1)
        self._trackers = trackers
        self._failed = False

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("`%s` cannot be written (%s); the run goes on without it", self._path, error)
            self._failed = True
            self._reopen()
        scalars = dict(_scalars(line))
        for tracker in self._trackers:
            tracker.log(int(line["step"]), scalars)

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _reopen(self) -> None:
        """Drop what could not be written, so that a later line does not begin in the middle of it."""
        with suppress(OSError):
            self._file.close()
        self._file = self._path.open("a", encoding="utf-8", buffering=1)


def open_trackers(names: Sequence[str] | None, run: Run, *, name: str, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers asked for; TensorBoard where it is installed, when none are named."""
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    makers: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": MlFlow,
    }
    return [makers[tracker](run.folder, name, config) for tracker in names]


class TensorBoard:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        _load("tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard")
        self._writer = writer.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Offline where `WANDB_MODE=offline` says so; a resumed run goes on under its own id."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        wandb = _load("wandb")
        self._run = wandb.init(
            project="clipkit", name=name, id=name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class MlFlow:
    """Into `mlflow.db` of the run folder, unless `MLFLOW_TRACKING_URI` names a server."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow = _load("mlflow")
        if not self._mlflow.is_tracking_uri_set():
            self._mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        self._mlflow.set_experiment("clipkit")
        found = self._mlflow.search_runs(filter_string=f"tags.mlflow.runName = '{name}'", output_format="list")
        self._mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=None if found else name)
        if not found:
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


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line with their path as name: `text_to_image/recall@1`."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, float(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return value
