"""A step reads nothing from its device: on a GPU each number that the host waits for delays the steps behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipkit.config import Group, TrainConfig
from clipkit.data.device import prefetch_to_device
from clipkit.models.text_encoder import always_mask
from clipkit.runs.metrics import read_metrics
from clipkit.train.optimizer import NamedGroup, group_norms
from clipkit.train.session import open_session
from clipkit.types import Ranks
from clipkit.workflows import train as training

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that the tests may see")
MODES = {
    "whole": [],
    "cached": ["train.chunk_size=5"],
    "accumulated": ["train.accumulate=4", "optim.freeze=[text_encoder]"],
    "watched": ["train.log_norms_every=1", "loss={kind: sigmoid}"],
}


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read from it, and plain copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found.append("a number is read")
        if func is torch.ops.aten._to_copy.default and result.device != args[0].device:
            self.found.append(f"a copy to {result.device}")
        return result


@pytest.mark.parametrize("mode", MODES)
def test_a_step_reads_nothing_from_its_device(mode: str, config_file: Path) -> None:
    sets = ["train.precision=fp32", *MODES[mode]]
    built = training.build_training(open_session(config_file, sets), torch.device("cpu"))
    always_mask(built.task.model.text_encoder)
    with closing(built.loader), closing(built.loader.iterate(0, 1)) as batches, Waits() as waits:
        built.engine.train_step(next(batches), step=0)
    assert waits.found == []


def test_norms_of_frozen_groups_are_made_where_the_parameters_are() -> None:
    param = nn.Parameter(torch.empty(3, device="meta"))
    with Waits() as waits:
        norms = group_norms([NamedGroup("heads", Group(lr=1e-3), (("weight", param),), 0)], gradients=True)
    assert norms.device.type == "meta"
    assert waits.found == []


@pytest.mark.parametrize(
    ("settings", "world", "expected"),
    [
        ({"batch_size": 1024}, 8, 128),
        ({"batch_size": 1024, "accumulate": 4}, 8, 32),
        ({"batch_size": 1024, "chunk_size": 64}, 8, 64),
        ({"batch_size": 64, "chunk_size": 512}, 1, 64),
    ],
)
def test_how_many_samples_a_device_encodes_at_once(settings: dict[str, int], world: int, expected: int) -> None:
    assert TrainConfig.model_validate(settings).encoded_at_once(world) == expected


def test_an_evaluation_encodes_as_many_samples_at_once_as_training(config_file: Path) -> None:
    built = training.build_training(open_session(config_file, ["train.chunk_size=8"]), torch.device("cpu"))
    built.loader.close()
    sizes: list[int] = []
    built.task.model.image_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with built.engine.evaluating():
        built.evaluations[0].evaluator.run(built.task.model, Ranks())
    assert sizes == [8] * 5


@on_a_gpu
def test_a_step_does_not_wait_for_a_gpu(config_file: Path) -> None:
    device = torch.device("cuda")
    built = training.build_training(open_session(config_file), device)
    with closing(built.loader), closing(built.loader.iterate(0, 4)) as on_host:
        batches = prefetch_to_device(on_host, device)
        for step in range(2):  # the first ones choose kernels
            built.engine.train_step(next(batches), step=step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            built.engine.train_step(next(batches), step=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_trains_as_the_cpu_does(mode: str, tmp_path: Path, config_file: Path, train: Callable[..., Any]) -> None:
    sets = ["model.image={kind: timm, name: test_vit}", "model.head={kind: linear}", "train.precision=fp32"]
    sets += ["model.text.architecture.dropout=0", "optim.eps=1e-3", *MODES[mode]]
    for device in ("cpu", "cuda"):
        train(config_file, *sets, f"train.device={device}", f"run.dir={tmp_path / device}")
    ours, theirs = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("cuda", "cpu")
    )
    assert ours == pytest.approx(theirs, rel=2e-2)


@on_a_gpu
def test_a_dry_run_on_a_gpu(config_file: Path) -> None:
    assert training.dry_run(open_session(config_file))["loss"] > 0
