"""Building an evaluator from its section, and a base class with defaults."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipkit.config import DataConfig, EvaluatorSection, builder_of
from clipkit.data.device import prefetch_to_device
from clipkit.data.inputs import Input
from clipkit.data.loader import iterate_rows
from clipkit.errors import ConfigError
from clipkit.runs.metrics import numbers_by_path
from clipkit.store import Dataset
from clipkit.types import Batch, Evaluator, Progress, Ranks, Table, Task, no_progress


@dataclass(frozen=True, slots=True)
class EvaluatorContext:
    """What the builder of an evaluator gets besides its section: the rows, and the task whose model is measured."""

    task: Task
    dataset: Dataset
    rows: np.ndarray  # ascending offsets into the dataset
    data: DataConfig
    batch_size: int

    def batches(self, inputs: Sequence[Input], ranks: Ranks, *, device: torch.device) -> Generator[Batch, None, None]:
        """Batches of a rank's share of the rows, in order, on the device, without augmentation."""
        share = self.rows[len(self.rows) * ranks.rank // ranks.world : len(self.rows) * (ranks.rank + 1) // ranks.world]
        with closing(iterate_rows(self.dataset, share, inputs, self.data, batch_size=self.batch_size)) as batches:
            yield from prefetch_to_device(batches, device)


def build_evaluator(section: EvaluatorSection, context: EvaluatorContext) -> Evaluator:
    """The evaluator that a section describes."""
    evaluator: Evaluator = builder_of(section)(section, context)
    return evaluator


class BaseEvaluator:
    """Defaults for a `types.Evaluator`; a subclass adds `main`, `lower_is_better` and `run`."""

    main: str
    metrics: Sequence[str] = ()
    lower_is_better: frozenset[str] = frozenset()

    @property
    def shown(self) -> Sequence[str]:
        return (self.main,)

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        raise NotImplementedError

    def report(self, model: nn.Module, *, picture: Path | None, progress: Progress = no_progress) -> dict[str, Any]:
        if picture is not None:
            raise ConfigError("this kind of evaluator cannot draw a picture", "remove `--picture`")
        return self.run(model, Ranks(), progress)

    def describe(self, report: Mapping[str, Any]) -> Sequence[str | Table]:
        rows = [(path, f"{value:.4f}") for path, value in numbers_by_path(report).items()]
        return [Table(("metric", "value"), rows)]
