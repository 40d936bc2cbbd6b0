"""Building a task from a config, and a base class with defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.config import Config, builder_of
from clipkit.data.training_rows import TrainingRows
from clipkit.models import load_matching
from clipkit.runs.checkpoint import read_meta
from clipkit.types import Progress, Task, no_progress


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What the builder of a task gets."""

    config: Config
    training: TrainingRows | None = None  # None when a trained model is opened
    checkpoint: Path | None = None  # its model is built without a download; its weights are loaded later

    @property
    def architecture(self) -> Any:
        """What `Task.architecture` returned when the checkpoint was written; None without a checkpoint."""
        return read_meta(self.checkpoint)["architecture"] if self.checkpoint is not None else None


def build_task(context: TaskContext) -> Task:
    """The task that a config describes."""
    task: Task = builder_of(context.config.task)(context)
    return task


class BaseTask:
    """Defaults for a `types.Task`; a subclass adds `inputs`, `loss` and `architecture`."""

    shards: Sequence[str] = ()

    def __init__(self, model: nn.Module, groups: Mapping[str, Sequence[str]]) -> None:
        self.model = model
        self.groups = groups

    @property
    def from_scratch(self) -> Collection[str]:
        return frozenset(self.groups)

    def start_from(self, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
        load_matching(self.model, weights, source=source)

    def after_step(self) -> None: ...

    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        return {}

    def prepare(self, progress: Progress = no_progress) -> None: ...

    def tune(self, *, device_type: str, precision: str) -> None: ...

    def save(self, folder: Path) -> None: ...
