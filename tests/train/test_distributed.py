"""Several processes train as one does: gloo on this machine, through torchrun as users start it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from clipkit.runs.folder import find_checkpoint
from clipkit.runs.metrics import read_metrics

Alike = Callable[[Path, Path], None]
# Without dropout and BatchNorm, whose results depend on how a batch is shared. A larger `eps` keeps Adam from making
# a whole step of a gradient that is nothing but rounding.
SETS = (
    "model.image={kind: timm, name: test_vit}",
    "model.text.architecture.dropout=0",
    "model.head={kind: linear}",
    "optim.eps=1e-3",
    "train.precision=fp32",
    "train.duration=8st",
    "train.validate_every=1st",  # also between checkpoints
    "train.checkpoint_every=2st",
)


def torchrun(num_processes: int, *args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_processes}", "-m", "clipkit", "train", *map(str, args)]
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


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path], train: Callable[..., Any]
) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(write_config(folder), *SETS)
    return folder / "run"


def test_ranks_that_see_different_checkpoints_are_refused(tmp_path: Path, one_process: Path) -> None:
    with socket.create_server(("localhost", 0)) as free:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = []
    for rank in range(2):
        run = tmp_path / f"node-{rank}"
        shutil.copytree(one_process, run)
        if rank:
            shutil.rmtree(find_checkpoint(run, "last"))
        environment = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "clipkit", "train", "--resume", run, "--set", "train.duration=10st"]
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1], errors
    assert "rank 0 at 8, rank 1 at 6" in errors[0]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_a_rank_that_dies_ends_the_others_and_another_number_of_ranks_resumes(
    tmp_path: Path, config_file: Path, one_process: Path, assert_alike: Alike
) -> None:
    run = tmp_path / "run"
    two = torchrun(2, "--config", config_file, *flags(*SETS, "train.chunk_size=8"))
    while two.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.005)
    os.kill(ranks_of(two)[1], signal.SIGKILL)
    output, _ = two.communicate(timeout=120)
    assert two.returncode != 0
    assert "another rank died or stopped answering at step" in output
    four = torchrun(4, "--resume", run, "--set", "train.chunk_size=null")
    output, _ = four.communicate(timeout=300)
    assert four.returncode == 0, output
    assert_alike(run, one_process)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path]) -> Path:
    """A run with parameters, optimizer and averaged weights in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    sets = (*SETS, "train.strategy=fsdp", "train.chunk_size=5", "train.keep=4")
    process = torchrun(2, "--config", write_config(folder), *flags(*sets))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return folder / "run"


def test_a_sharded_group_is_unfrozen_at_its_step(
    tmp_path: Path, config_file: Path, train: Callable[..., Any], assert_alike: Alike
) -> None:
    sets = (*SETS, "train.duration=4st", "train.validate_every=null", "train.checkpoint_every=null")
    sets += ("optim.freeze={image_encoder: 2st}",)
    train(config_file, *sets, f"run.dir={tmp_path / 'one'}")
    process = torchrun(2, "--config", config_file, *flags(*sets, "train.strategy=fsdp"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_alike(tmp_path / "run", tmp_path / "one")


@pytest.mark.parametrize(("num_processes", "strategy"), [(2, "fsdp"), (2, "ddp"), (1, "ddp")])
def test_a_sharded_checkpoint_is_resumed(
    num_processes: int, strategy: str, tmp_path: Path, sharded: Path, one_process: Path, assert_alike: Alike
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    process = torchrun(num_processes, "--resume", run, "--set", f"train.strategy={strategy}")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_alike(run, one_process)
    if strategy == "fsdp":
        ours, theirs = (load_file(find_checkpoint(of, "last") / "model.safetensors") for of in (run, sharded))
        assert [name for name in theirs if not ours[name].equal(theirs[name])] == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_rank_that_hangs_and_the_first_one_end_the_others_too(
    number: signal.Signals, rank: int, tmp_path: Path, config_file: Path
) -> None:
    run = tmp_path / "run"
    sets = (*SETS, "train.timeout_s=4", "train.duration=100kst", "train.checkpoint_every=2st")
    two = torchrun(2, "--config", config_file, *flags(*sets))
    while two.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.005)
    ranks = ranks_of(two)
    os.kill(ranks[rank], number)
    while Path(f"/proc/{ranks[1 - rank]}").exists():
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.kill(ranks[rank], signal.SIGKILL)  # torchrun would wait half a minute for one that hangs
    output, _ = two.communicate(timeout=120)
    assert two.returncode != 0
    assert f"rank {1 - rank}: another rank died or stopped answering at step" in output


def test_ranks_roll_back_together(tmp_path: Path, config_file: Path) -> None:
    sets = ("optim.freeze={heads: 2st}", "optim.groups.heads.lr=1e25", "train.guards.on_nonfinite=rollback")
    sets += ("train.guards.max_skipped=1", "train.guards.rollback_lr_factor=1e-28", "train.checkpoint_every=2st")
    process = torchrun(2, "--config", config_file, *flags(*sets, "train.duration=6st", "train.validate_every=null"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = read_metrics(tmp_path / "run")
    assert [line["checkpoint"] for line in lines if "event" in line] == ["step-00000002"]
    assert {len(line["image_ids"]) for line in lines if line.get("skipped")} == {32}  # of all ranks


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path: Path, config_file: Path) -> None:
    process = torchrun(2, "--config", config_file, *flags(*SETS, "train.batch_size=33"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "cannot be shared by 2 processes" in output
    assert not (tmp_path / "run").exists()
