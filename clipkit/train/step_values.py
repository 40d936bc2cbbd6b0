"""The numbers of a step, read from the device a few steps later, so that no step waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from clipkit.train.parallel import Strategy

LAG_STEPS = 4  # on an accelerator; on the CPU the numbers are available at once


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What is known about a step when it is queued."""

    step: int  # steps done, this one included
    num_samples: int  # of the global batch
    rates: Mapping[str, float]
    image_ids: Sequence[str]
    num_replaced: int
    wait_s: float
    wall_s: float  # since the step before


@dataclass(frozen=True, slots=True)
class StepValues:
    facts: StepFacts
    values: Mapping[str, float]


def queued_so_far(device: torch.device) -> torch.cuda.Event | None:
    """An event after everything that a GPU has queued by now; None on other devices."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without using a core
    event.record(torch.cuda.current_stream(device))  # not always that of the current device
    return event


class StepQueue:
    """Steps whose numbers are still on the device; they are read in order, always equally late."""

    def __init__(self, device: torch.device, strategy: Strategy) -> None:
        self._lag = 0 if device.type == "cpu" else LAG_STEPS
        self._strategy = strategy
        self._queue: deque[tuple[StepFacts, tuple[str, ...], torch.Tensor, torch.cuda.Event | None]] = deque()

    def push(self, facts: StepFacts, values: Mapping[str, torch.Tensor]) -> None:
        """Queue the scalars of a step, averaged over the ranks."""
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        stacked = self._strategy.mean(stacked)
        device = stacked.device
        if device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=torch.float32, pin_memory=True)
            stacked = host.copy_(stacked, non_blocking=True)
        self._queue.append((facts, tuple(values), stacked, queued_so_far(device)))

    def pop(self, *, all_of_them: bool = False) -> Iterator[StepValues]:
        """The steps that are old enough to be read without waiting, or all of them."""
        while len(self._queue) > (0 if all_of_them else self._lag):
            facts, names, values, event = self._queue.popleft()
            if event is not None:
                event.synchronize()
            yield StepValues(facts, dict(zip(names, values.tolist(), strict=True)))
