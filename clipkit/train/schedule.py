"""The learning rate as a pure function of the step: there is nothing to save."""

from __future__ import annotations

import math

from clipkit.config import Schedule
from clipkit.train.plan import MEASURED_STEPS, TrainingPlan


def rate_factor(step: int, *, schedule: Schedule, plan: TrainingPlan) -> float:
    """What each group's peak rate is multiplied by in the step after `step` steps.

    Linear warm-up from 1/warmup to 1, then cosine, linear or constant to `final`. A run in minutes does not know its
    length in its first steps, and has the same rates when it is repeated: these steps are its warm-up, where that is
    a share of the run, and the decay starts after them.
    """
    warmup = plan.warmup_steps
    if plan.measured and plan.warmup_share:
        warmup = MEASURED_STEPS
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup, MEASURED_STEPS) if plan.measured else warmup
    if schedule.kind == "constant" or step < start or plan.total_steps is None:
        return 1.0
    progress = min(1.0, (step - start) / max(1, plan.total_steps - start))
    shape = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * shape
