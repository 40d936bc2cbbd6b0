"""The contrastive task as the trainer uses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.config import parse_values
from clipkit.data.tokenizer import train_tokenizer
from clipkit.tasks import TaskContext, build_task
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.types import Batch

CAPTIONS = [f"a photo of thing {i} beside thing {i * i}" for i in range(8)]
LOSSES = ["infonce", "sigmoid", "soft_targets", "ranking", "identity"]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, vocab_size=100, lowercase=True, max_tokens=16, padding="max").save(folder)
    return folder


def make_task(tokenizer: Path, loss: str, **options: Any) -> tuple[ContrastiveTask, Batch]:
    torch.manual_seed(0)
    architecture = {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0}
    text = {"kind": "transformers", "architecture": architecture, "tokenizer": str(tokenizer)}
    config = parse_values(
        {
            "data": {"dataset": "unused.lance", "image_size": 32, "max_tokens": 16, "padding": "max"},
            "model": {"image": {"kind": "timm", "name": "test_vit"}, "text": text, "embedding_dim": 16},
            "loss": {"kind": loss, **options},
        }
    )
    task = build_task(TaskContext(config))
    assert isinstance(task, ContrastiveTask)
    assert task.text.tokenizer is not None
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    tensors = {"pixels": pixels, **task.text.tokenizer(CAPTIONS)}
    rows = np.arange(8)
    return task, Batch(0, 0, rows, [str(row) for row in rows], CAPTIONS, tensors)


@pytest.mark.parametrize("loss", LOSSES)
def test_features_can_be_detached_and_put_back(tokenizer_dir: Path, loss: str) -> None:
    """The gradient through features that were cut off is the gradient in one go, for every loss."""
    task, batch = make_task(tokenizer_dir, loss)
    task.loss(batch).loss.backward()
    expected = {name: p.grad for name, p in task.model.named_parameters()}
    assert all(gradient is not None for gradient in expected.values())

    task.model.zero_grad()
    features = task.encode(batch)
    cut = tuple(feature.detach().requires_grad_() for feature in features)
    task.loss_of(cut, batch).loss.backward()
    torch.autograd.backward(features, [feature.grad for feature in cut])
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_few_steps_lower_the_loss(tokenizer_dir: Path, loss: str) -> None:
    task, batch = make_task(tokenizer_dir, loss)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            output = task.loss(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        task.after_step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    assert output.weight == len(batch)
    assert all(not value.requires_grad for value in output.metrics.values())


def test_the_temperature_stays_in_its_bounds(tokenizer_dir: Path) -> None:
    task, _ = make_task(tokenizer_dir, "infonce", min_temperature=0.05)
    with torch.no_grad():
        task.model.temperature.log_scale.fill_(10.0)
    task.after_step()
    assert 1 / task.model.temperature.scale().item() == pytest.approx(0.05)
    assert "temperature" in task.alarms({"temperature": 0.05}, batch_size=8)
    assert task.alarms({"temperature": 0.06, "loss": 0.5, "image_cosine": 0.2}, batch_size=8) == {}


def test_alarms_name_a_cause(tokenizer_dir: Path) -> None:
    task, _ = make_task(tokenizer_dir, "soft_targets")
    collapsed = task.alarms({"image_cosine": 0.99, "text_cosine": 0.1}, batch_size=8)
    assert list(collapsed) == ["image_collapse"]
    assert "infonce" in collapsed["image_collapse"]
    assert "text_collapse" in task.alarms({"text_rank": 1.2}, batch_size=8)
    other, _ = make_task(tokenizer_dir, "infonce")
    assert "chance" in other.alarms({"loss": 2.08}, batch_size=8)
    assert "chance" not in other.alarms({"loss": 1.9}, batch_size=8)
