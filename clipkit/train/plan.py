"""Durations converted once to steps: how long a run is, and when it saves and unfreezes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipkit.config import PERCENT, PRETRAINED, OptimConfig, TrainConfig, parse_duration
from clipkit.errors import ConfigError

MEASURED_STEPS = 50  # that a run in minutes times to set its number of steps


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a run counts in steps. A run in `minutes` has no `total_steps` until it has measured its first steps."""

    steps_per_epoch: int
    batch_size: int
    total_steps: int | None
    minutes: float | None
    warmup_steps: int
    checkpoint_every: int | None
    frozen_until: Mapping[str, int | None]  # group to step; None: the group is never trained

    def with_total(self, total_steps: int) -> TrainingPlan:
        return replace(self, total_steps=total_steps)

    def epoch(self, step: int) -> float:
        """How many epochs `step` steps are."""
        return round(step / self.steps_per_epoch, 4)

    def frozen(self, step: int) -> frozenset[str]:
        """The groups that are not trained in the step after `step` steps."""
        return frozenset(group for group, until in self.frozen_until.items() if until is None or step < until)

    def saves(self, step: int) -> bool:
        due = self.checkpoint_every is not None and step % self.checkpoint_every == 0
        return due or step == self.total_steps

    def describe(self) -> str:
        total = f"{self.total_steps:,} steps" if self.total_steps else f"{self.minutes:g} minutes"
        epochs = f" ({self.epoch(self.total_steps):g} epochs)" if self.total_steps else ""
        parts = [f"{total}{epochs} of {self.batch_size} samples", f"{self.steps_per_epoch:,} steps an epoch"]
        if self.warmup_steps:
            parts.append(f"warm-up {self.warmup_steps:,} steps")
        if self.checkpoint_every:
            parts.append(f"checkpoint every {self.checkpoint_every:,} steps")
        for group, until in self.frozen_until.items():
            parts.append(f"`{group}` frozen" + (f" until step {until:,}" if until else ""))
        return ", ".join(parts)


def make_plan(train: TrainConfig, optim: OptimConfig, *, steps_per_epoch: int) -> TrainingPlan:
    """Convert every duration of the config.

    A run in minutes does not know its length in its first `MEASURED_STEPS` steps: a warm-up that is a share of the run
    takes these steps.
    """

    def steps(duration: str, key: str) -> int:
        return steps_of(duration, key, steps_per_epoch=steps_per_epoch, batch_size=train.batch_size)

    length, unit = parse_duration(train.duration)
    minutes = length if unit == "min" else None
    total = None if minutes else steps(train.duration, "train.duration")
    if percent := PERCENT.match(optim.schedule.warmup.strip()):
        share = float(percent[1])
        warmup = math.ceil(total * share / 100) if total else MEASURED_STEPS if share else 0
    else:
        warmup = steps(optim.schedule.warmup, "optim.schedule.warmup")
    freeze = optim.freeze if isinstance(optim.freeze, dict) else dict.fromkeys(optim.freeze)
    return TrainingPlan(
        steps_per_epoch=steps_per_epoch,
        batch_size=train.batch_size,
        total_steps=total,
        minutes=minutes,
        warmup_steps=warmup,
        checkpoint_every=steps(train.checkpoint_every, "train.checkpoint_every") if train.checkpoint_every else None,
        frozen_until={
            group: None if until in (None, PRETRAINED) else steps(until, f"optim.freeze.{group}")
            for group, until in freeze.items()
        },
    )


def steps_of(duration: str, key: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """A duration in steps, at least one; errors name its `key` in the config."""
    value, unit = parse_duration(duration)
    if unit == "min":
        raise ConfigError(f"`{key}` cannot be in minutes", "write steps (500st), epochs (1ep) or samples (1Msa)")
    factor = {"st": 1.0, "ep": float(steps_per_epoch), "sa": 1 / batch_size}[unit]
    return max(1, round(value * factor))


def steps_in_minutes(minutes: float, *, step_s: float, steps_done: int) -> int:
    """The number of steps of a run of so many minutes, at `step_s` seconds a step."""
    return max(steps_done, round(minutes * 60 / step_s))
