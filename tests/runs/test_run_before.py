"""A run of an earlier version of clipkit is still evaluated and resumed, with equal results.

Its config has keys that no longer exist, and so do its checkpoints; `tests/fixtures/run_before` also has the numbers
that the earlier version gave.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.workflows.evaluate import evaluate

BEFORE = Path(__file__).parent.parent / "fixtures" / "run_before"
REMOVED_KEY = "data.worker_kind"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run and its dataset, which it names by a relative path."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def test_it_is_evaluated_with_equal_numbers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    report, _ = evaluate("run", "dataset", checkpoint="4")
    assert report == json.loads((folder / "eval.json").read_text())
    assert REMOVED_KEY in caplog.text


def test_it_is_resumed_with_equal_losses(
    folder: Path,
    train: Callable[..., dict[str, Any]],
    losses: Callable[[Path], list[tuple[int, float]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = map(json.loads, (folder / "metrics_of_all_steps.jsonl").read_text().splitlines())
    train(None, resume="run")
    found = losses(folder / "run")
    assert [step for step, _ in found] == list(range(1, 9))
    assert [loss for _, loss in found] == pytest.approx([line["loss"] for line in expected if "loss" in line], rel=1e-5)
    assert caplog.text.count(REMOVED_KEY) == 1
