"""A run that is killed is resumed as if nothing had happened: the real command, compared bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipkit.errors import CheckpointError
from clipkit.runs.checkpoint import read_train_state
from clipkit.train.session import open_session

Train = Callable[..., dict[str, Any]]
Losses = Callable[[Path], list[tuple[int, float]]]
RunCli = Callable[..., subprocess.CompletedProcess[str]]
CHANGES = ("train.accumulate=2", "model.text.architecture.dropout=0.2", "data.workers=2")


def start(*args: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The real command, in a process that can be killed."""
    command = [sys.executable, "-m", "clipkit", "train", *map(str, args)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool], *, timeout_s: float = 200) -> bool:
    """Whether the condition came true while the process ran."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)
    return condition()


def num_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def assert_same_run(run: Path, expected: Path, losses: Losses) -> None:
    """The same losses, the same weights averaged and in training, the same optimizer state; to the last bit."""
    assert losses(run) == losses(expected)
    ours, theirs = last_checkpoint(run), last_checkpoint(expected)
    assert ours.name == theirs.name
    for one, other in (
        (load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")),
        (flat(read_train_state(ours)), flat(read_train_state(theirs))),
    ):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def flat(values: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if not isinstance(values, dict):
        return {prefix: torch.as_tensor(values)}
    return {name: tensor for key, value in values.items() for name, tensor in flat(value, f"{prefix}/{key}").items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, write_config: Callable[[Path], Path], train: Train) -> Path:
    """A run with everything random in it, from its start to its end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(write_config(folder), *CHANGES)
    return folder / "run"


def test_a_run_killed_at_random_is_resumed_bit_for_bit(
    tmp_path: Path, config_file: Path, uninterrupted: Path, losses: Losses
) -> None:
    run, sets = tmp_path / "run", [part for change in CHANGES for part in ("--set", change)]
    rng = random.Random()

    def at_step(step: int) -> Callable[[], bool]:
        return lambda: num_lines(run) >= step

    def in_checkpoint() -> bool:
        return any(run.glob("checkpoints/.step-*"))

    first = start("--config", config_file, *sets)
    assert wait_until(first, at_step(rng.randint(1, 3)))
    time.sleep(rng.random() * 0.2)
    first.kill()
    first.communicate()
    for condition in (in_checkpoint, at_step(rng.randint(5, 8)), in_checkpoint):
        process = start("--resume", run, "--set", f"data.workers={rng.randint(1, 3)}")
        if wait_until(process, condition):
            time.sleep(rng.random() * 0.02)
        process.kill()
        process.communicate()
    last = start("--resume", run)
    output, _ = last.communicate(timeout=200)
    assert last.returncode == 0, output
    assert_same_run(run, uninterrupted, losses)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    config_file: Path,
    uninterrupted: Path,
    train: Train,
    losses: Losses,
) -> None:
    run, sets = tmp_path / "run", [part for change in CHANGES for part in ("--set", change)]
    process = start("--config", config_file, *sets)
    assert wait_until(process, lambda: num_lines(run) >= 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    assert f"clipkit train --resume {run}" in output
    step = num_lines(run)
    assert last_checkpoint(run).name == f"step-{step:08d}"
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    train(None, resume=str(run))
    assert_same_run(run, uninterrupted, losses)


def test_a_run_that_is_being_trained_cannot_be_resumed(tmp_path: Path, config_file: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    sets = ("train.duration=100kst", "train.checkpoint_every=1st", "train.validate_every=null", "train.keep=1")
    process = start("--config", config_file, *(part for change in sets for part in ("--set", change)))
    assert wait_until(process, lambda: any(run.glob("checkpoints/step-*")))
    second = run_cli("train", "--resume", run)
    assert second.returncode == 1
    assert f"another process is training in `{run}`" in second.stderr
    process.kill()
    process.communicate()


def test_a_second_signal_stops_at_once(tmp_path: Path, config_file: Path) -> None:
    process = start("--config", config_file, "--set", "train.validate_every=1st", "--set", "train.duration=10kst")
    assert wait_until(process, lambda: num_lines(tmp_path / "run") >= 2)
    process.send_signal(signal.SIGSTOP)  # both are there before it can answer the first
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) in (130, 143)
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks there for the signals that are caught")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_while_it_starts_ends_it_at_once(
    number: signal.Signals, code: int, tmp_path: Path, config_file: Path
) -> None:
    process = start("--config", config_file)

    def catches_signals() -> bool:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)

    assert wait_until(process, catches_signals)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output.strip()) == (code, "interrupted")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, uninterrupted: Path, train: Train, losses: Losses
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    state = last_checkpoint(run) / "train_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    train(None, resume=str(run))
    assert_same_run(run, uninterrupted, losses)


def test_without_a_checkpoint_a_resume_starts_at_step_0(
    tmp_path: Path, uninterrupted: Path, train: Train, losses: Losses
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "checkpoints")
    train(None, resume=str(run))
    assert_same_run(run, uninterrupted, losses)


def test_a_finished_run_has_nothing_left_to_do(uninterrupted: Path, train: Train, losses: Losses) -> None:
    before = losses(uninterrupted)
    summary = train(None, resume=str(uninterrupted))
    assert (summary["step"], summary["exit_code"]) == (12, 0)
    assert losses(uninterrupted) == before


def test_a_rerun_gets_the_same_numbers(tmp_path: Path, uninterrupted: Path, train: Train, losses: Losses) -> None:
    summary = train(None, "train.validate_every=null", rerun=str(uninterrupted))
    assert summary["run"] == f"{uninterrupted}-rerun"
    assert losses(Path(summary["run"])) == losses(uninterrupted)


def test_a_rerun_with_other_threads_says_so(
    tmp_path: Path, uninterrupted: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    sets = ("train.threads=2", "train.duration=1st", "train.validate_every=null", f"run.dir={tmp_path / 'again'}")
    train(None, *sets, rerun=str(uninterrupted))
    assert "has 2 compute threads and had 1 before" in caplog.text
    assert json.loads((tmp_path / "again" / "run.json").read_text())["threads"] == 2


def test_differences_are_logged_and_harmless_ones_accepted(
    tmp_path: Path, uninterrupted: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    with caplog.at_level("INFO", logger="clipkit"):
        summary = train(None, "optim.groups.heads.lr=0.0005", "train.duration=14st", resume=str(run))
    assert "optim.groups.heads.lr: 0.001 -> 0.0005" in caplog.text
    assert "train.duration: 12st -> 14st" in caplog.text
    assert summary["step"] == 14
    assert "lr: 0.0005" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    "change",
    [
        "model.embedding_dim=8",
        "run.seed=1",
        "train.batch_size=16",
        "data.train=split = 'test'",
        "loss.learn_temperature=false",
    ],
)
def test_another_model_or_order_is_refused(change: str, uninterrupted: Path, train: Train) -> None:
    with pytest.raises(CheckpointError, match="differs") as caught:
        train(None, change, resume=str(uninterrupted))
    assert f"{change.partition('=')[0]}: " in caught.value.message


def test_what_cannot_be_resumed_says_what_can(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run at") as caught:
        open_session(None, resume=str(tmp_path / "nothing"))
    assert "--resume auto" in caught.value.hint
    with pytest.raises(CheckpointError, match="is a checkpoint") as caught:
        open_session(None, resume=str(last_checkpoint(uninterrupted)))
    assert str(uninterrupted) in caught.value.hint


def test_auto_starts_and_then_resumes(tmp_path: Path, config_file: Path, train: Train, losses: Losses) -> None:
    assert train(config_file, "train.duration=4st", resume="auto")["step"] == 4
    assert train(config_file, "train.duration=6st", resume="auto")["step"] == 6
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_costs_checkpoints_but_not_the_run(tmp_path: Path, config_file: Path, losses: Losses) -> None:
    import resource

    run = tmp_path / "run"
    process = start("--config", config_file, "--set", "train.duration=16st", "--set", "train.validate_every=null")
    assert wait_until(process, lambda: any(run.glob("checkpoints/step-*")))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4_000, 4_000))  # writes beyond fail, as on a full disk
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    for text in ("could not be written", "metrics.jsonl` cannot be written", "TensorBoard fails"):
        assert output.count(text) >= 1
    assert "the run reached step 16" in output
    assert "make room if the disk is full" in output
    assert not list(run.glob("checkpoints/.step-*"))
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    again = start("--resume", run)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert last_checkpoint(run).name == "step-00000016"
    assert [step for step, _ in losses(run)] == list(range(1, 17))
