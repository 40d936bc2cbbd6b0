"""A small dataset of shapes, and configs that train on it in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipkit.runs.checkpoint import read_train_state
from clipkit.runs.folder import find_checkpoint
from clipkit.runs.metrics import read_metrics
from clipkit.train.session import open_session
from clipkit.workflows import train as training

CONFIG = """
run: {{name: tiny, dir: {folder}, seed: 0}}
data:
  dataset: {dataset}
  train: "split = 'train'"
  validation: "split = 'test'"
  image_size: 32
  max_tokens: 24
  augment: {{kind: random_resized_crop, scale: [0.6, 1.0], flip: true}}
model:
  image: {{kind: timm, name: test_resnet, drop_rate: 0.1}}
  text: {{kind: transformers, architecture: {{vocab_size: 200, hidden_size: 16, layers: 1, heads: 2}}}}
  head: {{kind: residual, dropout: 0.3}}
  embedding_dim: 16
optim:
  groups:
    image_encoder: {{lr: 1e-3, weight_decay: 0.05}}
    text_encoder: {{lr: 1e-3, weight_decay: 0.05}}
    heads: {{lr: 1e-3, weight_decay: 0.05}}
  schedule: {{kind: cosine, warmup: 3%}}
train:
  duration: 12st
  batch_size: 32
  checkpoint_every: 4st
  validate_every: 6st
  threads: 1
  ema: {{decay: 0.9}}
"""


@pytest.fixture(scope="session")
def shapes_dataset(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    """240 images, 200 of them for training; not to be written to."""
    path = tmp_path_factory.mktemp("dataset") / "shapes.lance"
    result = run_cli("ingest", shapes_dir, path)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def write_config(shapes_dataset: Path) -> Callable[[Path], Path]:
    """Write a config into a folder; its run folder is `run` beside it."""

    def write(folder: Path) -> Path:
        path = folder / "tiny.yaml"
        path.write_text(CONFIG.format(folder=folder / "run", dataset=shapes_dataset))
        return path

    return write


@pytest.fixture
def config_file(tmp_path: Path, write_config: Callable[[Path], Path]) -> Path:
    return write_config(tmp_path)


class Quiet:
    """Shows nothing."""

    def update(self, step: int, total: int | None, fields: object) -> None: ...
    def evaluated(self, step: int, label: str, shown: object) -> None: ...


@pytest.fixture(scope="session")
def train() -> Callable[..., dict[str, Any]]:
    """Train in this process: `train(config_file, "train.duration=2st", resume=…)` gives the summary."""

    def run(config: Path | None, *sets: str, resume: str | None = None, rerun: str | None = None) -> dict[str, Any]:
        threads = torch.get_num_threads()
        try:
            return training.train(open_session(config, sets, resume=resume, rerun=rerun), progress=Quiet())
        finally:
            torch.set_num_threads(threads)

    return run


def read_losses(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], list[tuple[int, float]]]:
    """(step, loss) of every step that a run has written down."""
    return read_losses


@pytest.fixture(scope="session")
def assert_alike() -> Callable[[Path, Path], None]:
    """Two runs have the same losses, validations, last weights and gradients, to rounding."""

    def check(run: Path, expected: Path) -> None:
        ours, theirs = read_losses(run), read_losses(expected)
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)
        assert read_cosines(run) == pytest.approx(read_cosines(expected), rel=1e-4)
        one, other = find_checkpoint(run, "last"), find_checkpoint(expected, "last")
        assert_close(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
        assert_close(read_gradients(one), read_gradients(other))

    return check


def read_cosines(run: Path) -> list[float]:
    """A number of each validation that depends on every weight, and does not jump."""
    return [line["embeddings"]["image_cosine"] for line in read_metrics(run) if "split" in line]


def read_gradients(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The optimizer's moving average of them."""
    return {name: state["exp_avg"] for name, state in read_train_state(checkpoint)["optimizer"].items()}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Against the largest number of each tensor."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        tolerance = 1e-4 * expected.abs().max().item() + 1e-7
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
