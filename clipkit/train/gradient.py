"""The gradient of one global batch: at once, in accumulated pieces, or by gradient caching.

A loss is a mean over a number of targets, its weight. Pieces and ranks count in proportion to their weights: the loss
of a piece is multiplied by its weight before its backward pass, and after the last piece the gradient is divided by
the sum of the weights of all pieces and ranks.

Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): encode the batch in chunks without keeping
activations, take the loss of all features and its gradient with respect to them, then encode each chunk again and
send its part of that gradient through. Dropout is the same both times, because its random numbers are a function of
the seed, the step and the chunk.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from clipkit.errors import ConfigError
from clipkit.train.parallel import Strategy
from clipkit.train.precision import Precision
from clipkit.types import Batch, Cacheable, Features, LossOutput, Task

SMALL = 1e-12  # in place of a weight of 0


@dataclass(frozen=True, slots=True)
class Gradient:
    """The loss and metrics of a batch. The gradients of the parameters still have to be multiplied by `factor`."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    factor: Tensor | float


class Piece(nn.Module):
    """A module whose forward pass takes a piece of a batch, because DDP and FSDP wrap modules."""

    def __init__(self, task: Task, precision: Precision) -> None:
        super().__init__()
        self.model = task.model
        self._task = task
        self._precision = precision

    def forward(self, batch: Batch, cached: CachedGradient | None = None, encode_only: bool = False) -> object:
        with self._precision.autocast():
            if cached is None and not encode_only:
                output = self._task.loss(batch)
                return output.loss, output.weight, output.metrics
            assert isinstance(self._task, Cacheable)
            features = self._task.encode(batch)
        return features if cached is None else cached.surrogate(features)


@dataclass(frozen=True, slots=True)
class CachedGradient:
    """The gradient of the loss for the features of a chunk and, with the last chunk, for the parameters of the loss."""

    features: Features
    params: tuple[tuple[nn.Parameter, Tensor], ...] = ()

    def surrogate(self, features: Features) -> Tensor:
        """A scalar whose gradient is the part of the batch's gradient that passes through this chunk."""
        parts = [(feature * gradient).sum() for feature, gradient in zip(features, self.features, strict=True)]
        parts += [(param * gradient).sum() for param, gradient in self.params]
        return torch.stack(parts).sum()


class GradientMaker:
    """Computes the gradients of the parameters for a batch, up to a factor, and its loss and metrics."""

    def __init__(
        self,
        task: Task,
        *,
        precision: Precision,
        strategy: Strategy,
        batch_size: int,
        seed: int,
        chunk_size: int | None,
        accumulate: int,
    ) -> None:
        """`batch_size` is that of the global batch."""
        if chunk_size is not None and not isinstance(task, Cacheable):
            raise ConfigError(
                "`train.chunk_size` needs a task whose loss compares all samples of a batch, and this one does not",
                "split the batch with `train.accumulate`",
            )
        self._task = task
        self._precision = precision
        self._strategy = strategy
        self._seed = seed
        self._chunk_size = chunk_size
        self._accumulate = accumulate
        # Weights are divided by it, on all ranks alike, so that weighted losses are about as large as the losses.
        self._usual_weight = max(1, batch_size // strategy.world)
        self._piece = Piece(task, precision)
        self._module: nn.Module = strategy.wrap(self._piece)

    def rewrap(self) -> None:
        """Wrap the model again after parameters were frozen or unfrozen."""
        self._module = self._piece  # frees the old wrapper first
        self._module = self._strategy.wrap(self._piece)

    def __call__(self, batch: Batch) -> Gradient:
        if self._chunk_size is not None and self._chunk_size < len(batch):
            outputs = [self._cached(batch, self._chunk_size)]
        else:
            outputs = self._accumulated(batch)
        self._strategy.finish_gradients()
        return self._averaged(outputs)

    def _accumulated(self, batch: Batch) -> list[LossOutput]:
        pieces = divide_batch(batch, self._accumulate)
        outputs = []
        for index, piece in enumerate(pieces):
            self._seed_dropout(batch.step, index)
            with self._strategy.synced(self._module, index == len(pieces) - 1):
                loss, weight, metrics = self._module(piece)
                torch.autograd.backward(self._precision.scale(loss * (weight / self._usual_weight)))
            outputs.append(LossOutput(loss.detach(), weight, metrics))
        return outputs

    def _cached(self, batch: Batch, chunk_size: int) -> LossOutput:
        assert isinstance(self._task, Cacheable)
        chunks = split_batch(batch, chunk_size)
        encoded = []
        with torch.no_grad(), _statistics_kept(self._task.model):
            for index, chunk in enumerate(chunks):
                self._seed_dropout(batch.step, index)
                encoded.append(self._module(chunk, encode_only=True))
        features = tuple(torch.cat(parts).requires_grad_() for parts in zip(*encoded, strict=True))
        with self._precision.autocast():
            output = self._task.loss_of(features, batch)
        params = [param for param in self._task.model.parameters() if param.requires_grad]
        scaled = self._precision.scale(output.loss * (output.weight / self._usual_weight))
        gradients = torch.autograd.grad(scaled, (*features, *params), allow_unused=True)
        of_features, of_params = gradients[: len(features)], gradients[len(features) :]
        direct = tuple((p, g) for p, g in zip(params, of_params, strict=True) if g is not None)
        start = 0
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            part = tuple(gradient[start : start + len(chunk)] for gradient in of_features)
            start += len(chunk)
            self._seed_dropout(batch.step, index)
            with self._strategy.synced(self._module, last):
                torch.autograd.backward(self._module(chunk, CachedGradient(part, direct if last else ())))
        return LossOutput(output.loss.detach(), output.weight, output.metrics)

    def _averaged(self, outputs: Sequence[LossOutput]) -> Gradient:
        """The mean over the targets of all pieces and ranks.

        The loss and metrics of each rank are scaled so that their mean over the ranks is that mean.
        """
        weights = [output.weight for output in outputs]
        total: Tensor | float = sum(weights)
        if isinstance(total, Tensor) or self._strategy.world > 1:
            total = torch.as_tensor(total, dtype=torch.float32, device=outputs[0].loss.device)
            total = self._strategy.mean(total).clamp(min=SMALL)
        else:
            total = max(total, SMALL)

        def mean(values: Sequence[Tensor]) -> Tensor:
            summed = [value.detach().float() * weight for value, weight in zip(values, weights, strict=True)]
            return torch.stack(summed).sum() / total

        names = outputs[0].metrics
        metrics = {name: mean([output.metrics[name] for output in outputs]) for name in names}
        return Gradient(mean([output.loss for output in outputs]), metrics, self._usual_weight / total)

    def _seed_dropout(self, step: int, piece: int) -> None:
        torch.manual_seed(seed_of(self._seed, step, self._strategy.rank, piece))


def seed_of(*numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """A batch in pieces of `size` rows; the last may be smaller."""
    if size >= len(batch):
        return [batch]
    return [_slice(batch, slice(start, start + size)) for start in range(0, len(batch), size)]


def divide_batch(batch: Batch, num_pieces: int) -> list[Batch]:
    """A batch in `num_pieces` pieces of nearly equal size, on every rank the same number whatever its share."""
    if num_pieces == 1:
        return [batch]
    bounds = [len(batch) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [_slice(batch, slice(*pair)) for pair in pairwise(bounds)]


def _slice(batch: Batch, part: slice) -> Batch:
    tensors = batch.map(lambda tensor: tensor[part])
    return replace(tensors, rows=batch.rows[part], image_ids=batch.image_ids[part], captions=batch.captions[part])


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of each BatchNorm in the first pass, so that only the second one updates them."""
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
