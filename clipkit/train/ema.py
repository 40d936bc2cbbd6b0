"""An exponential moving average of the weights. It is what is evaluated, and saved as the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from clipkit.config import Ema
from clipkit.train.parallel import fill


class WeightAverage:
    def __init__(self, model: nn.Module, config: Ema) -> None:
        self.config = config
        self._params = dict(model.named_parameters())
        self._average = {name: param.detach().clone() for name, param in self._params.items()}

    def decay(self, step: int) -> float:
        if not self.config.warmup:
            return self.config.decay
        return min(self.config.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after `step` steps."""
        weight = 1 - self.decay(step)
        torch._foreach_lerp_(list(self._average.values()), list(self._params.values()), weight)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Use the averaged weights inside the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """In place, because FSDP refers to the memory of a sharded parameter."""
        for name, param in self._params.items():
            held = param.detach().clone()
            param.copy_(self._average[name])
            self._average[name].copy_(held)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in self._average.items():
            fill(value, state[name])
