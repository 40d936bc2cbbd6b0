"""A task whose loss is a mean over tokens, and a batch whose rows have different numbers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import TrainConfig
from clipkit.data.inputs import Input
from clipkit.distributed import full
from clipkit.tasks import BaseTask
from clipkit.train.gradient import GradientMaker
from clipkit.train.parallel import Strategy
from clipkit.train.precision import choose_precision
from clipkit.types import Batch, Features, LossOutput

VOCAB, WIDTH = 11, 6
LENGTHS = (2, 9, 1, 1, 5, 3, 7, 1)  # a row of n tokens has n - 1 targets: those of one token have none
NO_TARGET = -100


class NextToken(BaseTask):
    """Each token predicts the next one, from itself alone."""

    shards = ("embedding",)

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = {"embedding": nn.Embedding(VOCAB, WIDTH), "output": nn.Linear(WIDTH, VOCAB)}
        super().__init__(nn.ModuleDict(layers), {"all": ("*",)})

    def inputs(self) -> Sequence[Input]:
        return []

    def architecture(self) -> dict[str, Any]:
        return {}

    def encode(self, batch: Batch) -> Features:
        return (self.model.get_submodule("embedding")(batch["ids"][:, :-1]),)

    def loss_of(self, features: Features, batch: Batch) -> LossOutput:
        logits_BTV, targets_BT = self.model.get_submodule("output")(features[0]), batch["targets"]
        weight = (targets_BT != NO_TARGET).sum()
        summed = F.cross_entropy(logits_BTV.mT, targets_BT, ignore_index=NO_TARGET, reduction="sum")
        hits = (logits_BTV.argmax(-1) == targets_BT).sum()
        return LossOutput(summed / weight.clamp(min=1), weight, {"accuracy": hits / weight.clamp(min=1)})

    def loss(self, batch: Batch) -> LossOutput:
        return self.loss_of(self.encode(batch), batch)


def make_batch(lengths: Sequence[int], *, rank: int = 0, world: int = 1) -> Batch:
    """A rank's share of the rows of these lengths."""
    ids = torch.randint(VOCAB, (len(lengths), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    is_target = torch.arange(1, max(LENGTHS)) < torch.tensor(lengths)[:, None]
    rows = np.arange(len(lengths))[len(lengths) * rank // world : len(lengths) * (rank + 1) // world]
    tensors = {"ids": ids[rows], "targets": ids[:, 1:].masked_fill(~is_target, NO_TARGET)[rows]}
    names = [str(row) for row in rows]
    return Batch(step=0, epoch=0, rows=rows, image_ids=names, captions=names, tensors=tensors)


def gradient_of(
    lengths: Sequence[int], *, strategy: Strategy, accumulate: int = 1, chunk_size: int | None = None
) -> dict[str, torch.Tensor]:
    """The loss, the accuracy and the gradient of each parameter, as a training step has them."""
    task, device = NextToken(), torch.device("cpu")
    strategy.prepare(task.model, device, shards=task.shards)
    maker = GradientMaker(
        task,
        precision=choose_precision(TrainConfig(precision="fp32"), device),
        strategy=strategy,
        batch_size=len(lengths),
        seed=0,
        chunk_size=chunk_size,
        accumulate=accumulate,
    )
    gradient = maker(make_batch(lengths, rank=strategy.rank, world=strategy.world))
    found = {"loss": strategy.mean(gradient.loss), "accuracy": strategy.mean(gradient.metrics["accuracy"])}
    for name, param in task.model.named_parameters():
        assert param.grad is not None
        found[name] = full(param.grad) * gradient.factor
    return found
