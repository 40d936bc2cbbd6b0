"""Times the steps of a run, and how much of each is spent waiting for a batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clipkit.train.plan import MEASURED_STEPS

SPEED_WINDOW = 20
WARM_STEPS = 5  # the first of the measured steps, which are slower


@dataclass(slots=True)
class Meter:
    """The time between steps, without that of evaluations and checkpoints."""

    last: float = field(default_factory=time.perf_counter)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    wait_s: float = 0.0
    wall_s: float = 0.0
    measured: list[float] = field(default_factory=list)  # the first steps, for runs in minutes

    def step(self, wait_s: float) -> float:
        now = time.perf_counter()
        wall_s, self.last = now - self.last, now
        self.recent.append((wait_s, wall_s))
        self.wait_s += wait_s
        self.wall_s += wall_s
        if len(self.measured) < MEASURED_STEPS:
            self.measured.append(wall_s)
        return wall_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.last += time.perf_counter() - before

    def seconds_per_step(self) -> float:
        """The mean over the measured steps, without the first few."""
        times = self.measured[WARM_STEPS:] or self.measured
        return sum(times) / max(1, len(times))


def wait_share(steps: Collection[tuple[float, float]]) -> float:
    """The share of some steps' time, (wait, wall) each, that was spent waiting for a batch."""
    wall_s = sum(wall for _, wall in steps)
    return sum(wait for wait, _ in steps) / wall_s if wall_s else 0.0
