"""The gradient of one global batch: in one go, in accumulated pieces, or by gradient caching.

Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): encode the batch in chunks without keeping
activations, take the loss of all features and its gradient with respect to them, then encode each chunk again and
send its part of that gradient through. Dropout is the same both times, for its random numbers are a function of the
seed, the step and the chunk; nothing of it need be saved.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from clipkit.train.parallel import Strategy
from clipkit.train.precision import Precision
from clipkit.types import Batch, Task

Features = tuple[torch.Tensor, ...]
Metrics = Mapping[str, torch.Tensor]


class Piece(nn.Module):
    """A piece of a batch as the forward of a module, which is what DDP and FSDP hook into."""

    def __init__(self, task: Task, precision: Precision) -> None:
        super().__init__()
        self.model = task.model
        self._task = task
        self._precision = precision

    def forward(self, batch: Batch, cached: Cached | None = None, encode_only: bool = False) -> object:
        with self._precision.autocast():
            features = self._task.encode(batch)
        features = tuple(feature.float() for feature in features)
        if encode_only:
            return features
        if cached is None:
            output = self._task.loss(features)
            return output.loss, output.metrics
        return cached.surrogate(features), {}


@dataclass(frozen=True, slots=True)
class Cached:
    """The gradient of the loss by a chunk's features and, with the last chunk, by the parameters it uses itself."""

    features: Features
    params: tuple[tuple[nn.Parameter, torch.Tensor], ...] = ()

    def surrogate(self, features: Features) -> torch.Tensor:
        """A scalar whose gradient is the batch's gradient through this chunk."""
        parts = [(feature * gradient).sum() for feature, gradient in zip(features, self.features, strict=True)]
        parts += [(param * gradient).sum() for param, gradient in self.params]
        return torch.stack(parts).sum()


class GradientMaker:
    """Fills the parameters' gradients with those of a batch, and says its loss and metrics."""

    def __init__(
        self,
        task: Task,
        *,
        precision: Precision,
        strategy: Strategy,
        seed: int,
        chunk_size: int | None,
        accumulate: int,
    ) -> None:
        self._task = task
        self._precision = precision
        self._strategy = strategy
        self._seed = seed
        self._chunk_size = chunk_size
        self._accumulate = accumulate
        self._piece = Piece(task, precision)
        self._module: nn.Module = strategy.wrap(self._piece)

    def rewrap(self) -> None:
        """After parameters were frozen or unfrozen."""
        self._module = self._piece  # lets go of the old wrapper first
        self._module = self._strategy.wrap(self._piece)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        if self._chunk_size is not None and self._chunk_size < len(batch):
            result = self._cached(batch, self._chunk_size)
        else:
            result = self._accumulated(batch)
        self._strategy.finish_gradients()
        return result

    def _accumulated(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        pieces = divide_batch(batch, self._accumulate)
        losses, metrics = [], []
        for index, piece in enumerate(pieces):
            self._seed_dropout(batch.step, index)
            with self._strategy.synced(self._module, index == len(pieces) - 1):
                loss, values = self._module(piece)
                torch.autograd.backward(self._precision.scale(loss / len(pieces)))
            losses.append(loss.detach())
            metrics.append(values)
        mean = {name: torch.stack([values[name].float() for values in metrics]).mean() for name in metrics[0]}
        return torch.stack(losses).mean(), mean

    def _cached(self, batch: Batch, chunk_size: int) -> tuple[torch.Tensor, Metrics]:
        chunks = split_batch(batch, chunk_size)
        encoded = []
        with torch.no_grad(), _statistics_kept(self._task.model):
            for index, chunk in enumerate(chunks):
                self._seed_dropout(batch.step, index)
                encoded.append(self._module(chunk, encode_only=True))
        features = tuple(torch.cat(parts).requires_grad_() for parts in zip(*encoded, strict=True))
        output = self._task.loss(features)
        params = [param for param in self._task.model.parameters() if param.requires_grad]
        gradients = torch.autograd.grad(self._precision.scale(output.loss), (*features, *params), allow_unused=True)
        of_features, of_params = gradients[: len(features)], gradients[len(features) :]
        direct = tuple((p, g) for p, g in zip(params, of_params, strict=True) if g is not None)
        start = 0
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            part = tuple(gradient[start : start + len(chunk)] for gradient in of_features)
            start += len(chunk)
            self._seed_dropout(batch.step, index)
            with self._strategy.synced(self._module, last):
                surrogate, _ = self._module(chunk, Cached(part, direct if last else ()))
                torch.autograd.backward(surrogate)
        return output.loss.detach(), output.metrics

    def _seed_dropout(self, step: int, piece: int) -> None:
        torch.manual_seed(mix(self._seed, step, self._strategy.rank, piece))


def mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """A batch in pieces of `size` rows, the last with what is left."""
    if size >= len(batch):
        return [batch]
    return [_slice(batch, slice(start, start + size)) for start in range(0, len(batch), size)]


def divide_batch(batch: Batch, num_pieces: int) -> list[Batch]:
    """A batch in so many pieces, as equal as can be: every rank has as many, whatever its share of a last batch."""
    bounds = [len(batch) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [_slice(batch, slice(*pair)) for pair in pairwise(bounds)]


def _slice(batch: Batch, part: slice) -> Batch:
    tensors = batch.map(lambda tensor: tensor[part])
    return replace(tensors, rows=batch.rows[part], image_ids=batch.image_ids[part], captions=batch.captions[part])


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the chunk but leaves its running statistics: the second pass updates them, once."""
    norms: Sequence[nn.modules.batchnorm._BatchNorm] = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.training
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
