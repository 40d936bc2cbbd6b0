"""Run folders: created completely or not at all, and found again in spite of damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipkit.errors import CheckpointError
from clipkit.runs.checkpoint import META, list_files
from clipkit.runs.folder import Run, find_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", config="run: {}\n", facts={"threads": 2})
    for step in (4, 8, 12):
        write_checkpoint(run, step)
    return run


def write_checkpoint(run: Run, step: int) -> Path:
    folder = run.checkpoint_path(step)
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / META).write_text(json.dumps({"step": step, "files": list_files(folder)}))
    return folder


def test_an_existing_run_is_refused_with_how_to_resume_it(run: Run) -> None:
    with pytest.raises(CheckpointError, match="already exists") as caught:
        Run.create(run.folder, config="", facts={})
    assert f"clipkit train --resume {run.folder}" in caught.value.hint


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", config="a: 1\n", facts={}).config_text == "a: 1\n"


def test_only_one_process_trains_in_a_folder(run: Run) -> None:
    other = Run.open(run.folder)
    with pytest.raises(CheckpointError, match="another process"):
        other.lock()
    run.unlock()
    other.lock()


def test_last_best_and_a_step_are_found(run: Run) -> None:
    run.write_best({"step": 8, "metric": "text_to_image/recall@10", "value": 0.5})
    assert find_checkpoint(run.folder).name == "step-00000008"
    assert find_checkpoint(run.folder, "last").name == "step-00000012"
    assert find_checkpoint(run.folder, "4").name == "step-00000004"
    assert find_checkpoint(run.checkpoint_path(4)).name == "step-00000004"


def test_without_a_best_the_last_is_taken(run: Run) -> None:
    assert find_checkpoint(run.folder).name == "step-00000012"


def test_a_step_that_is_not_there_names_those_that_are(run: Run) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint `5`") as caught:
        find_checkpoint(run.folder, "5")
    assert "4, 8, 12" in caught.value.hint


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "torn meta"])
def test_a_damaged_checkpoint_falls_back_and_says_so(run: Run, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    last = run.checkpoint_path(12)
    weights = last / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "changed":
        weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    elif damage == "missing":
        (last / "tokenizer" / "tokenizer.json").unlink()
    else:
        (last / META).write_text('{"step": 1')
    run.write_best({"step": 12})
    with caplog.at_level("WARNING", logger="clipkit"):
        assert find_checkpoint(run.folder, "last").name == "step-00000008"
        assert find_checkpoint(run.folder, "best").name == "step-00000008"
    assert "step-00000012` is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="is damaged"):
        find_checkpoint(run.folder, "12")


def test_with_every_checkpoint_damaged_there_is_none(run: Run) -> None:
    for _, path in run.checkpoints():
        (path / META).unlink()
    assert run.newest_checkpoint() is None
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        find_checkpoint(run.folder)


def test_leftovers_of_a_kill_are_removed(run: Run) -> None:
    (run.checkpoints_folder / ".step-00000016.123").mkdir()
    run.remove_leftovers(after_step=8)
    assert [step for step, _ in run.checkpoints()] == [4, 8]
    assert not list(run.checkpoints_folder.glob(".step-*"))


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run or checkpoint"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"it has no `config\.yaml`"):
        find_checkpoint(tmp_path)
