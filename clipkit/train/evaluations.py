"""Evaluations during a run: when they are due, which checkpoint is the best, and when to stop early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipkit.config import EarlyStopping
from clipkit.errors import ConfigError, TrainingError
from clipkit.runs.metrics import numbers_by_path
from clipkit.types import Evaluator


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluator in a run: its name (empty for `data.validation`), and how many steps apart it runs."""

    name: str
    evaluator: Evaluator
    every: int
    label: str  # for messages: the split, or the name

    @property
    def prefix(self) -> str:
        return f"{self.name}/" if self.name else ""

    def named(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result in the form of `metrics.jsonl` and `meta.json`."""
        return {self.name: dict(result)} if self.name else {"split": self.label, **result}

    def is_due(self, step: int, *, last: bool) -> bool:
        return last or step % self.every == 0


@dataclass(frozen=True, slots=True)
class Criterion:
    """The metric that chooses the best checkpoint."""

    evaluation: Evaluation
    path: str  # within the evaluator's result

    @property
    def name(self) -> str:
        return self.evaluation.prefix + self.path

    @property
    def lower_is_better(self) -> bool:
        return self.path.rpartition("/")[2] in self.evaluation.evaluator.lower_is_better

    def value(self, result: Mapping[str, Any]) -> float:
        numbers = numbers_by_path(result)
        if self.path not in numbers:
            names = ", ".join(f"`{self.evaluation.prefix}{name}`" for name in numbers)
            raise TrainingError(f"`train.best: {self.name}` is not a metric of the evaluation", f"it has {names}")
        return numbers[self.path]


def find_criterion(evaluations: Sequence[Evaluation], best: str | None) -> Criterion | None:
    """The metric that `train.best` names, as `NAME/METRIC` or as a metric of the first evaluation."""
    if not evaluations:
        return None
    if best is None:
        return Criterion(evaluations[0], evaluations[0].evaluator.main)
    named = [each for each in evaluations if each.name and best.startswith(each.prefix)]
    criterion = Criterion(named[0], best.removeprefix(named[0].prefix)) if named else Criterion(evaluations[0], best)
    known = criterion.evaluation.evaluator.metrics
    if known and criterion.path not in known:
        listed = ", ".join(f"`{criterion.evaluation.prefix}{name}`" for name in known)
        raise ConfigError(f"`train.best: {best}` is not a metric of the evaluation", f"its metrics are {listed}")
    return criterion


@dataclass(slots=True)
class Best:
    """The best evaluation so far by one metric, and how many have followed without improvement."""

    metric: str | None
    lower_is_better: bool
    stopping: EarlyStopping | None
    step: int | None = None
    value: float | None = None
    without_improvement: int = 0

    def update(self, step: int, value: float) -> bool:
        """Add an evaluation; whether it is the best so far. NaN never is.

        An improvement of at most `min_delta` is the best too, but counts against the patience.
        """
        sign = -1 if self.lower_is_better else 1
        gain = sign * (value - self.value) if self.value is not None else math.nan if math.isnan(value) else math.inf
        if gain > (self.stopping.min_delta if self.stopping else 0.0):
            self.without_improvement = 0
        else:
            self.without_improvement += 1
        if gain > 0:
            self.step, self.value = step, value
        return gain > 0

    @property
    def exhausted(self) -> bool:
        return self.stopping is not None and self.without_improvement >= self.stopping.patience

    def state_dict(self) -> dict[str, float | int | str | None]:
        return {
            "metric": self.metric,
            "step": self.step,
            "value": self.value,
            "without_improvement": self.without_improvement,
        }

    def load_state_dict(self, state: Mapping[str, float | int | str | None]) -> None:
        """Restore what was saved, unless it was for another metric."""
        if state.get("metric") == self.metric:
            step, value = state["step"], state["value"]
            self.step = None if step is None else int(step)
            self.value = None if value is None else float(value)
            self.without_improvement = int(state["without_improvement"] or 0)
