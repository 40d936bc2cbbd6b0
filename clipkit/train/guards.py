"""What a run watches itself for: numbers that are not finite, and signs that it does not learn."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import torch

from clipkit.config import EarlyStopping, Guards, TrainConfig
from clipkit.data.device import a_gpu_is_in_use
from clipkit.errors import TrainingError
from clipkit.runs.folder import numbers_by_path
from clipkit.train.meter import wait_share
from clipkit.train.step_values import Reading
from clipkit.types import Task

SHOWN_IDS = 5
JUMP_FACTOR = 10.0  # a gradient norm of so many medians is a jump
WAIT_SHARE = 0.2
WINDOW = 50  # steps that means and shares are taken over; before them a loss at chance level is no wonder
SCALE_HALVINGS = 20  # that a loss scale may need until nothing overflows
REMIND_STEPS = 500  # an alarm that goes on is given again after so many steps


@dataclass(slots=True)
class NonFinite:
    """Counts steps in a row whose loss or gradient was not finite.

    Under loss scaling a gradient that overflows while the loss is finite is how the scale finds its level, and no
    trouble until that has had time to fall.
    """

    config: Guards
    scaled: bool
    in_a_row: int = 0
    overflows: int = 0  # in a row, of a scaled loss
    skipped: int = 0
    rollbacks: int = 0
    rolled_back_at: int = 0  # the last step that had been queued by then: its numbers may come later
    unproved: float = math.inf  # the step of the checkpoint gone back to, until a step from there has been finite

    def look(self, reading: Reading) -> str | None:
        """What is wrong with a step, or None; counts it."""
        loss_is_finite = math.isfinite(reading.values["loss"])
        if loss_is_finite and reading.values["skipped"] == 0:
            self.in_a_row = self.overflows = 0
            if reading.facts.step > self.rolled_back_at:
                self.unproved = math.inf
            return None
        self.skipped += 1
        if reading.facts.step <= self.rolled_back_at:
            return None
        if self.scaled and loss_is_finite and self.overflows < SCALE_HALVINGS:
            self.overflows += 1
            return None
        self.in_a_row += 1
        return describe_nonfinite(reading)

    def rolled_back(self, step: int, *, to: int) -> None:
        """The weights are those of step `to` again; where they turn out to be no good, an earlier one's are due."""
        self.rollbacks += 1
        self.rolled_back_at = step
        self.unproved = to
        self.in_a_row = self.overflows = 0

    def verdict(self) -> str:
        """`go on`, `roll back` or `stop`, after a step that was not finite."""
        if self.config.on_nonfinite == "stop":
            return "stop"
        if self.in_a_row < self.config.max_skipped:
            return "go on"
        if self.config.on_nonfinite == "rollback" and self.rollbacks < self.config.max_rollbacks:
            return "roll back"
        return "stop"


def describe_nonfinite(reading: Reading) -> str:
    """The step, the numbers, the group with the largest gradient, and the batch's first row ids."""
    values = reading.values
    norms = {name.removeprefix("grad_norm/"): value for name, value in values.items() if name.startswith("grad_norm/")}
    largest = max(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf)
    ids = ", ".join(f"`{image_id}`" for image_id in reading.facts.image_ids[:SHOWN_IDS])
    more = len(reading.facts.image_ids) - SHOWN_IDS
    return (
        f"step {reading.facts.step} is not finite: loss {values['loss']:g}, the largest gradient is that of "
        f"`{largest}` ({norms[largest]:g}); its rows: {ids}"
        + (f" and {more} more (see `metrics.jsonl`)" if more > 0 else "")
    )


@dataclass(slots=True)
class Alarms:
    """Signs of trouble over the last steps; each is given once, and again only after a while."""

    last_given: dict[str, int] = field(default_factory=dict)
    recent: deque[Reading] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def look(self, reading: Reading, task: Task, *, batch_size: int) -> dict[str, str]:
        """The alarms to give at this step, by name, each with its likely cause."""
        before = list(self.recent)
        self.recent.append(reading)
        if len(before) < WINDOW:
            return {}
        means = {name: mean(step.values.get(name, value) for step in before) for name, value in reading.values.items()}
        found = dict(task.alarms(means, batch_size=batch_size))
        norm, usual = reading.values["grad_norm"], median(step.values["grad_norm"] for step in before)
        if norm > JUMP_FACTOR * usual:
            found["gradient_jump"] = (
                f"the gradient's norm, {norm:.3g}, is {norm / usual:.0f} times its median: a bad batch, or a learning "
                "rate that is too high"
            )
        share = wait_share([(step.facts.wait_s, step.facts.wall_s) for step in before])
        if share > WAIT_SHARE:
            found["data_wait"] = (
                f"{share:.0%} of the time goes into waiting for data: see `clipkit bench loader`, or cache pixels "
                "with `data.cache`"
            )
        return self.due(reading.facts.step, found)

    def due(self, step: int, found: Mapping[str, str]) -> dict[str, str]:
        due = {
            name: text
            for name, text in found.items()
            if name not in self.last_given or step - self.last_given[name] >= REMIND_STEPS
        }
        self.last_given.update(dict.fromkeys(due, step))
        return due


@dataclass(slots=True)
class Best:
    """The best validation so far by one metric, and how many have passed without improvement."""

    metric: str
    stopping: EarlyStopping | None
    step: int | None = None
    value: float | None = None
    without_improvement: int = 0

    def look(self, step: int, value: float) -> bool:
        """Whether this validation is the best so far (every improvement counts), and counts patience."""
        sign = -1 if self.metric.endswith("_rank") else 1
        gain = math.inf if self.value is None else sign * (value - self.value)
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
        """Take up where it was; another metric than before starts anew."""
        if state.get("metric") == self.metric:
            step, value = state["step"], state["value"]
            self.step = None if step is None else int(step)
            self.value = None if value is None else float(value)
            self.without_improvement = int(state["without_improvement"] or 0)


def find_metric(metrics: Mapping[str, Any], path: str) -> float:
    """A validation's number by its path: `text_to_image/recall@10`."""
    value: Any = metrics
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float):
        names = ", ".join(f"`{name}`" for name in numbers_by_path(metrics))
        raise TrainingError(f"`train.best: {path}` is no number of a validation", f"there are {names}")
    return float(value)


@contextmanager
def out_of_memory_explained(config: TrainConfig, step: int, *, world: int = 1) -> Iterator[None]:
    """An error that says which numbers to change when a device runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = config.encoded_at_once(world)
        precision = "`train.precision: bf16`, " if config.precision == "fp32" else ""
        raise TrainingError(
            f"the device ran out of memory at step {step}, encoding {size} samples at a time{_memory_used()}",
            f"set `train.chunk_size: {max(1, size // 2)}` (the same gradient in less memory), {precision}"
            "`model.image.checkpointing: true` and `model.text.checkpointing: true`, or lower `train.batch_size` "
            f"from {config.batch_size}",
        ) from error


def _memory_used() -> str:
    if not a_gpu_is_in_use():
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f" (at most {torch.cuda.max_memory_allocated() / 1e9:.1f} of its {total / 1e9:.1f} GB)"
