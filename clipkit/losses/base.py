"""The contract of losses of pairs: a loss has a temperature, a chance level and alarms.

Shapes: B this rank's pairs, D the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clipkit.distributed import Shares


class Temperature(nn.Module):
    """The scale of the logits, 1 / temperature, and SigLIP's bias; they are parameters if they are learned.

    The logarithm of the scale is learned, so that a step changes the scale in proportion to its value.
    """

    log_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        learn: bool = False,
        minimum: float = 0.0,
        bias: float = 0.0,
        learn_bias: bool = False,
    ) -> None:
        super().__init__()
        self.is_learned = learn
        self.minimum = minimum
        self._add("log_scale", math.log(1 / temperature), learn=learn)
        self._add("bias", bias, learn=learn_bias)

    def _add(self, name: str, value: float, *, learn: bool) -> None:
        tensor = torch.tensor(value)
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor, persistent=False)

    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep a learned temperature at or above its minimum."""
        if self.is_learned and self.minimum:
            self.log_scale.clamp_(max=math.log(1 / self.minimum))


class PairLoss:
    """A loss of paired embeddings; its `temperature` becomes part of the model. Subclass it and write `__call__`."""

    collapse_cause = "the learning rate may be too high, or the batches too small"
    """Why embeddings may collapse with this loss, for the alarm."""

    def __init__(self, temperature: Temperature | None = None) -> None:
        self.temperature = temperature or Temperature()

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        """The mean over this rank's pairs, with the negatives of all ranks."""
        raise NotImplementedError

    def chance(self, batch_size: int) -> float | None:
        """The loss of embeddings that distinguish nothing; None if the loss has no such level."""
        return None

    def alarms(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Problems with the temperature by name, from a step's metrics."""
        temperature = metrics.get("temperature")
        if temperature is None or not self.temperature.is_learned or temperature > self.temperature.minimum * 1.001:
            return {}
        return {
            "temperature": "the temperature is at its minimum: the model is overconfident; a lower learning rate, more "
            "data or augmentation, or a higher `loss.min_temperature` helps"
        }
