"""The learning rate as a pure function of the step, so there is no state to save."""

from __future__ import annotations

import math

from clipkit.config import Schedule
from clipkit.train.plan import MEASURED_STEPS, TrainingPlan


def rate_factor(step: int, *, schedule: Schedule, plan: TrainingPlan) -> float:
    """The factor of each group's peak rate in the step after `step` steps.

    Linear warm-up from 1/warmup to 1, then cosine, linear or constant to `final`. In a run in minutes the decay starts
    after the measured steps, so that their rates do not depend on the length of the run.
    """
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    start = max(plan.warmup_steps, MEASURED_STEPS) if plan.minutes else plan.warmup_steps
    if schedule.kind == "constant" or step < start or plan.total_steps is None:
        return 1.0
    progress = min(1.0, (step - start) / max(1, plan.total_steps - start))
    shape = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * shape
