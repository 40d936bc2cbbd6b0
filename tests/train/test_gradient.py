"""The gradient of a batch is the same in one go and by gradient caching, for every loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipkit.config import Config, TrainConfig
from clipkit.data.random import mix
from clipkit.data.tokenizer import train_tokenizer
from clipkit.tasks import build_task
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.train.gradient import GradientMaker, split_batch
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


def make_task(loss: dict[str, Any], *, image: str = "test_vit", dropout: float = 0.3) -> ContrastiveTask:
    config = Config.model_validate(
        {
            "data": {"dataset": "unused.lance", "image_size": 32},
            "model": {
                "image": {"kind": "timm", "name": image, "drop_rate": dropout},
                "text": {
                    "kind": "transformers",
                    "architecture": {"hidden_size": 16, "layers": 1, "heads": 2, "dropout": dropout},
                },
                "head": {"kind": "residual", "dropout": dropout},
                "embedding_dim": 8,
            },
            "loss": loss,
        }
    )
    torch.manual_seed(0)
    return build_task(config, _tokenizer())


def _tokenizer() -> Any:
    return train_tokenizer(CAPTIONS, vocab_size=60, lowercase=True, max_tokens=12, padding="longest")


def make_batch(size: int = 12, *, step: int = 3) -> Batch:
    captions = CAPTIONS[:size]
    return Batch(
        step=step,
        epoch=0,
        rows=np.arange(size),
        image_ids=[str(row) for row in range(size)],
        captions=captions,
        images=torch.from_numpy(np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)),
        tokens=_tokenizer()(captions),
    )


def gradients_of(task: ContrastiveTask, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    maker = GradientMaker(
        task,
        precision=PRECISION,
        strategy=Strategy(),
        seed=0,
        chunk_size=options.get("chunk_size"),
        accumulate=options.get("accumulate", 1),
    )
    task.model.train()
    task.model.zero_grad()
    loss, _ = maker(make_batch())
    return loss, {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
@pytest.mark.parametrize("chunk_size", [4, 5])
def test_cached_gradients_are_those_of_the_batch(loss: dict[str, Any], chunk_size: int) -> None:
    task = make_task(loss, dropout=0.0)
    plain_loss, plain = gradients_of(task)
    cached_loss, cached = gradients_of(task, chunk_size=chunk_size)
    torch.testing.assert_close(cached_loss, plain_loss)
    assert cached.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            cached[name], gradient, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-4, atol=1e-6
        )


def test_dropout_is_replayed() -> None:
    """With dropout the cached gradient is that of the loss of the features that were encoded first."""
    task = make_task({"kind": "infonce"})
    _, cached = gradients_of(task, chunk_size=4)
    task.model.zero_grad()
    encoded = []
    for index, chunk in enumerate(split_batch(make_batch(), 4)):
        torch.manual_seed(mix(0, 3, 0, index))
        encoded.append(task.encode(chunk))
    task.loss(tuple(torch.cat(parts) for parts in zip(*encoded, strict=True))).loss.backward()
    for name, param in task.model.named_parameters():
        torch.testing.assert_close(cached[name], param.grad, rtol=1e-4, atol=1e-6)


def test_dropout_differs_between_chunks_steps_and_ranks() -> None:
    assert len({mix(0, step, rank, piece) for step in range(20) for rank in range(4) for piece in range(8)}) == 640


def test_batch_norm_statistics_are_updated_once_a_chunk() -> None:
    task = make_task({"kind": "infonce"}, image="test_resnet", dropout=0.0)
    gradients_of(task, chunk_size=4)
    norms = [module for module in task.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == 3 for norm in norms)
    assert all(norm.track_running_stats for norm in norms)


def test_accumulated_gradients_are_the_mean_of_the_pieces() -> None:
    task = make_task({"kind": "infonce"}, dropout=0.0)
    loss, accumulated = gradients_of(task, accumulate=3)
    parts = []
    task.model.zero_grad()
    for piece in split_batch(make_batch(), 4):
        output = task.loss(task.encode(piece))
        (output.loss / 3).backward()
        parts.append(output.loss.detach())
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    for name, param in task.model.named_parameters():
        torch.testing.assert_close(accumulated[name], param.grad, rtol=1e-4, atol=1e-6)
