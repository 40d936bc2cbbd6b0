"""Several processes train as one does: gloo on this machine, through torchrun as users start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.runs import read_metrics

Losses = Callable[[Path], list[tuple[int, float]]]
# Without dropout and BatchNorm, whose results depend on how a batch is shared.
SETS = (
    "model.image={kind: timm, name: test_vit}",
    "model.text.architecture.dropout=0",
    "model.head={kind: linear}",
    "train.precision=fp32",
    "train.duration=8st",
    "train.validate_every=4st",
    "train.checkpoint_every=2st",
)


def torchrun(num_processes: int, *args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += ["-m", "clipkit", "train", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def flags(*sets: str) -> list[str]:
    return [part for change in sets for part in ("--set", change)]


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of torchrun's children, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return ranks


def recalls(run: Path) -> list[Any]:
    """Recall@10 both ways of each validation."""
    return [
        [line[direction]["recall@10"] for direction in ("text_to_image", "image_to_text")]
        for line in read_metrics(run)
        if "split" in line
    ]


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path], train: Callable[..., Any]
) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(write_config(folder), *SETS)
    return folder / "run"


def assert_alike(run: Path, one_process: Path, losses: Losses) -> None:
    ours, theirs = losses(run), losses(one_process)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)
    for ours_at, theirs_at in zip(recalls(run), recalls(one_process), strict=True):
        assert ours_at == pytest.approx(theirs_at, abs=0.03)  # weights that differ by rounding turn near ties


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on_with_another_number(
    tmp_path: Path, config_file: Path, one_process: Path, losses: Losses
) -> None:
    run = tmp_path / "run"
    two = torchrun(2, "--config", config_file, *flags(*SETS, "train.chunk_size=8", "train.timeout_s=60"))
    while two.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.005)
    os.kill(ranks_of(two)[1], signal.SIGKILL)
    output, _ = two.communicate(timeout=120)
    assert two.returncode != 0
    assert "another rank died or stopped answering at step" in output
    four = torchrun(4, "--resume", run, "--set", "train.chunk_size=null")
    output, _ = four.communicate(timeout=300)
    assert four.returncode == 0, output
    assert_alike(run, one_process, losses)


def test_sharded_parameters_train_alike(tmp_path: Path, config_file: Path, one_process: Path, losses: Losses) -> None:
    process = torchrun(2, "--config", config_file, *flags(*SETS, "train.strategy=fsdp", "train.chunk_size=8"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_alike(tmp_path / "run", one_process, losses)


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path: Path, config_file: Path) -> None:
    process = torchrun(2, "--config", config_file, *flags(*SETS, "train.batch_size=33"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "cannot be shared by 2 processes" in output
    assert not (tmp_path / "run").exists()
