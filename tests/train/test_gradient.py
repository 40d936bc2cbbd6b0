"""The gradient of a batch is the same in one go and by gradient caching, for every loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipkit.config import TrainConfig, parse_values
from clipkit.data.tokenizer import train_tokenizer
from clipkit.tasks import TaskContext, build_task
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.train.gradient import GradientMaker, seed_of, split_batch
from clipkit.train.parallel import Strategy
from clipkit.train.precision import choose_precision
from clipkit.types import Batch

LOSSES: list[dict[str, Any]] = [
    {"kind": "infonce"},
    {"kind": "infonce", "learn_temperature": False, "label_smoothing": 0.1},
    {"kind": "sigmoid"},
    {"kind": "soft_targets"},
    {"kind": "ranking"},
    {"kind": "identity"},
]
CAPTIONS = [
    f"a {color} {shape} {place} a box"
    for color in ("red", "blue")
    for shape in ("disc", "cone")
    for place in ("on", "by", "in")
]
PRECISION = choose_precision(TrainConfig(precision="fp32"), torch.device("cpu"))


TOKENIZER = train_tokenizer(CAPTIONS, vocab_size=60, lowercase=True, max_tokens=12, padding="longest")
MakeTask = Callable[..., ContrastiveTask]


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    TOKENIZER.save(tmp_path)

    def make(loss: dict[str, Any], *, image: str = "test_vit", dropout: float = 0.3) -> ContrastiveTask:
        architecture = {"hidden_size": 16, "layers": 1, "heads": 2, "dropout": dropout}
        config = parse_values(
            {
                "data": {"dataset": "unused.lance", "image_size": 32},
                "model": {
                    "image": {"kind": "timm", "name": image, "drop_rate": dropout},
                    "text": {"kind": "transformers", "tokenizer": str(tmp_path), "architecture": architecture},
                    "head": {"kind": "residual", "dropout": dropout},
                    "embedding_dim": 8,
                },
                "loss": loss,
            }
        )
        torch.manual_seed(0)
        task = build_task(TaskContext(config))
        assert isinstance(task, ContrastiveTask)
        return task

    return make


def make_batch(size: int = 12, *, step: int = 3) -> Batch:
    captions = CAPTIONS[:size]
    pixels = np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    return Batch(
        step=step,
        epoch=0,
        rows=np.arange(size),
        image_ids=[str(row) for row in range(size)],
        captions=captions,
        tensors={"pixels": torch.from_numpy(pixels), **TOKENIZER(captions)},
    )


def gradients_of(
    task: ContrastiveTask, *, chunk_size: int | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    maker = GradientMaker(
        task,
        precision=PRECISION,
        strategy=Strategy(),
        batch_size=12,
        seed=0,
        chunk_size=chunk_size,
        accumulate=1,
    )
    task.model.train()
    task.model.zero_grad()
    gradient = maker(make_batch())
    grads = {name: p.grad * gradient.factor for name, p in task.model.named_parameters() if p.grad is not None}
    return gradient.loss, grads


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
@pytest.mark.parametrize("chunk_size", [4, 5])
def test_cached_gradients_are_those_of_the_batch(make_task: MakeTask, loss: dict[str, Any], chunk_size: int) -> None:
    task = make_task(loss, dropout=0.0)
    plain_loss, plain = gradients_of(task)
    cached_loss, cached = gradients_of(task, chunk_size=chunk_size)
    torch.testing.assert_close(cached_loss, plain_loss)
    assert cached.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            cached[name], gradient, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-4, atol=1e-6
        )


def test_dropout_is_replayed(make_task: MakeTask) -> None:
    """With dropout, a chunk has the same features in the second pass as in the first."""
    task = make_task({"kind": "infonce"})
    _, cached = gradients_of(task, chunk_size=4)
    task.model.zero_grad()
    encoded = []
    for index, chunk in enumerate(split_batch(make_batch(), 4)):
        torch.manual_seed(seed_of(0, 3, 0, index))
        encoded.append(task.encode(chunk))
    features = tuple(torch.cat(parts) for parts in zip(*encoded, strict=True))
    task.loss_of(features, make_batch()).loss.backward()
    for name, param in task.model.named_parameters():
        torch.testing.assert_close(cached[name], param.grad, rtol=1e-4, atol=1e-6)


def test_dropout_differs_between_chunks_steps_and_ranks() -> None:
    assert len({seed_of(0, step, rank, piece) for step in range(20) for rank in range(4) for piece in range(8)}) == 640


def test_batch_norm_statistics_are_updated_once_a_chunk(make_task: MakeTask) -> None:
    task = make_task({"kind": "infonce"}, image="test_resnet", dropout=0.0)
    gradients_of(task, chunk_size=4)
    norms = [module for module in task.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == 3 for norm in norms)
    assert all(norm.track_running_stats for norm in norms)
