"""A frozen text encoder that runs once a caption: the same training, and resumed to the bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipkit.config import TransformersText
from clipkit.data.tokenizer import train_tokenizer
from clipkit.errors import ConfigError
from clipkit.models.text_encoder import build_text_encoder
from clipkit.runs.folder import find_checkpoint
from clipkit.store import Dataset
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.train.session import open_session
from clipkit.workflows.train import build_training

Train = Callable[..., dict[str, Any]]
Losses = Callable[[Path], list[tuple[int, float]]]
REMEMBER = "model.text.remember=true"


@pytest.fixture(scope="module")
def frozen(shapes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for a text encoder that has weights of its own, and keeps them."""
    folder = tmp_path_factory.mktemp("text")
    dataset = Dataset(shapes_dataset)
    captions = [caption for of_row in dataset.take_captions(dataset.select()) for caption in of_row]
    tokenizer = train_tokenizer(captions, vocab_size=200, lowercase=True, max_tokens=24, padding="longest")
    config = TransformersText.model_validate({"architecture": {"hidden_size": 16, "layers": 1, "heads": 2}})
    torch.manual_seed(0)
    build_text_encoder(config, tokenizer=tokenizer).model.save_pretrained(folder)
    tokenizer.save(folder)
    return [f"model.text.name={folder}", "optim.freeze={text_encoder: pretrained}"]


def test_the_encoder_runs_no_more_and_gives_the_same(config_file: Path, frozen: list[str]) -> None:
    training = build_training(open_session(config_file, [*frozen, REMEMBER]), torch.device("cpu"))
    with closing(training.loader), closing(training.loader.iterate(0, 2)) as batches:
        first, second = batches
    task = training.task
    assert isinstance(task, ContrastiveTask)
    task.prepare()
    task.model.eval()
    with torch.no_grad():
        expected = [task.model.encode_text(batch.tensors) for batch in (first, second)]
        actual = [task.encode(first)[1]]
        for parameter in task.model.text_encoder.parameters():
            parameter.fill_(torch.nan)
        actual.append(task.encode(second)[1])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_to_the_bit(
    tmp_path: Path, config_file: Path, frozen: list[str], train: Train, losses: Losses
) -> None:
    train(config_file, *frozen, REMEMBER, "train.chunk_size=16")
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    last = find_checkpoint(whole, "last")
    shutil.rmtree(resumed / "checkpoints" / last.name)
    train(None, resume=str(resumed))
    assert losses(resumed) == losses(whole)
    ours, theirs = (load_file(find_checkpoint(run, "last") / "model.safetensors") for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_two_ranks_remember_as_one(
    tmp_path: Path,
    write_config: Callable[[Path], Path],
    frozen: list[str],
    train: Train,
    assert_alike: Callable[[Path, Path], None],
) -> None:
    # Without dropout and BatchNorm, which see how a batch is shared.
    sets = [
        *frozen, REMEMBER, "model.image={kind: timm, name: test_vit}", "model.head={kind: linear}", "optim.eps=1e-3",
        "train.precision=fp32", "train.duration=6st", "train.validate_every=3st",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    train(write_config(one), *sets)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "clipkit"]
    command += ["train", "--config", str(write_config(two)), *(part for change in sets for part in ("--set", change))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert_alike(two / "run", one / "run")


def test_an_encoder_from_scratch_is_trained_and_runs_as_ever(config_file: Path) -> None:
    sets = [REMEMBER, "optim.freeze={text_encoder: pretrained}"]
    training = build_training(open_session(config_file, sets), torch.device("cpu"))
    with closing(training.loader), closing(training.loader.iterate(0, 1)) as batches:
        (batch,) = batches
    training.engine.train_step(batch, step=0)
    assert all(parameter.grad is not None for parameter in training.task.model.text_encoder.parameters())


@pytest.mark.parametrize("freeze", ["[]", "{text_encoder: 2st}"])
def test_what_is_remembered_must_stay_frozen(config_file: Path, freeze: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.text\.remember.*needs a frozen encoder"):
        open_session(config_file, [REMEMBER, f"optim.freeze={freeze}"])
