"""What stops or warns a run: losses and gradients that are not finite, and signs that it does not learn."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean, median

import torch

from clipkit.config import Guards, TrainConfig
from clipkit.data.device import cuda_is_initialized
from clipkit.errors import TrainingError
from clipkit.train.meter import wait_share
from clipkit.train.step_values import StepValues
from clipkit.types import Task

SHOWN_IDS = 5
JUMP_FACTOR = 10.0  # from the median of the gradient norm
WAIT_SHARE = 0.2
WINDOW = 50  # steps that alarms look back over; in the first ones a loss at chance level is normal
SCALE_HALVINGS = 20  # after which a loss scale no longer overflows
REMIND_STEPS = 500  # until an alarm that persists is logged again


@dataclass(slots=True)
class NonFinite:
    """Counts steps in a row whose loss or gradient is not finite.

    With loss scaling a gradient may overflow while the loss is finite: the scale is then halved, and the step counts
    only after `SCALE_HALVINGS` overflows in a row.
    """

    config: Guards
    scaled: bool
    in_a_row: int = 0
    overflows: int = 0  # in a row, of a scaled loss
    skipped: int = 0
    rollbacks: int = 0
    rolled_back_at: int = 0  # the last step that was queued before the rollback: its numbers may arrive later
    unproved: float = math.inf  # the step of the restored checkpoint, until a step from there is finite

    def look(self, step: StepValues) -> str | None:
        """Count a step; describes it if it is not finite."""
        loss_is_finite = math.isfinite(step.values["loss"])
        if loss_is_finite and step.values["skipped"] == 0:
            self.in_a_row = self.overflows = 0
            if step.facts.step > self.rolled_back_at:
                self.unproved = math.inf
            return None
        self.skipped += 1
        if step.facts.step <= self.rolled_back_at:
            return None
        if self.scaled and loss_is_finite and self.overflows < SCALE_HALVINGS:
            self.overflows += 1
            return None
        self.in_a_row += 1
        return _describe(step)

    def rolled_back(self, step: int, *, to: int) -> None:
        """Note that the weights are those of step `to` again; if they are bad too, an earlier checkpoint is next."""
        self.rollbacks += 1
        self.rolled_back_at = step
        self.unproved = to
        self.in_a_row = self.overflows = 0

    def verdict(self) -> str:
        """`continue`, `roll back` or `stop`, after a step that was not finite."""
        if self.config.on_nonfinite == "stop":
            return "stop"
        if self.in_a_row < self.config.max_skipped:
            return "continue"
        if self.config.on_nonfinite == "rollback" and self.rollbacks < self.config.max_rollbacks:
            return "roll back"
        return "stop"


def _describe(step: StepValues) -> str:
    """The step, its loss, the group with the largest gradient, and the batch's first image ids."""
    values = step.values
    norms = {name.removeprefix("grad_norm/"): value for name, value in values.items() if name.startswith("grad_norm/")}
    largest = max(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf)
    ids = ", ".join(f"`{image_id}`" for image_id in step.facts.image_ids[:SHOWN_IDS])
    more = len(step.facts.image_ids) - SHOWN_IDS
    return (
        f"step {step.facts.step} is not finite: loss {values['loss']:g}, the largest gradient is that of `{largest}` "
        f"({norms[largest]:g}); its rows: {ids}" + (f" and {more} more (see `metrics.jsonl`)" if more > 0 else "")
    )


@dataclass(slots=True)
class Alarms:
    """Signs of trouble in the last steps; each is logged once, and again after `REMIND_STEPS` if it persists."""

    last_given: dict[str, int] = field(default_factory=dict)
    recent: deque[StepValues] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def look(self, step: StepValues, task: Task, *, batch_size: int) -> dict[str, str]:
        """The alarms to log at this step, by name, each with its likely cause."""
        before = list(self.recent)
        self.recent.append(step)
        if len(before) < WINDOW:
            return {}
        means = {name: mean(old.values.get(name, value) for old in before) for name, value in step.values.items()}
        found = dict(task.alarms(means, batch_size=batch_size))
        norm, usual = step.values["grad_norm"], median(old.values["grad_norm"] for old in before)
        if norm > JUMP_FACTOR * usual:
            found["gradient_jump"] = (
                f"the gradient norm, {norm:.3g}, is {norm / usual:.0f} times its median: a bad batch, or a learning "
                "rate that is too high"
            )
        share = wait_share([(old.facts.wait_s, old.facts.wall_s) for old in before])
        if share > WAIT_SHARE:
            found["data_wait"] = (
                f"{share:.0%} of the time is spent waiting for data: see `clipkit bench loader`, or cache pixels "
                "with `data.cache`"
            )
        return self.due(step.facts.step, found)

    def due(self, step: int, found: Mapping[str, str]) -> dict[str, str]:
        due = {
            name: text
            for name, text in found.items()
            if name not in self.last_given or step - self.last_given[name] >= REMIND_STEPS
        }
        self.last_given.update(dict.fromkeys(due, step))
        return due


@contextmanager
def out_of_memory_explained(config: TrainConfig, step: int, *, world: int = 1) -> Iterator[None]:
    """When a device runs out of memory, raise an error that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = config.encoded_at_once(world)
        precision = "`train.precision: bf16`, " if config.precision == "fp32" else ""
        used = ""
        if cuda_is_initialized():
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            used = f" (at most {torch.cuda.max_memory_allocated() / 1e9:.1f} of its {total / 1e9:.1f} GB)"
        raise TrainingError(
            f"the device ran out of memory at step {step}, encoding {size} samples at a time{used}",
            f"set `train.chunk_size: {max(1, size // 2)}` (the same gradient in less memory), {precision}"
            f"`checkpointing: true` in the `model` section, or lower `train.batch_size` from {config.batch_size}",
        ) from error
