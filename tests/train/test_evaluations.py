"""Evaluations during a run choose its best checkpoint, and end it early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from clipkit.config import EarlyStopping
from clipkit.config.kinds import unregister
from clipkit.evaluators import BaseEvaluator
from clipkit.runs.folder import find_checkpoint
from clipkit.train.evaluations import Best, Evaluation, find_criterion
from clipkit.types import Progress, Ranks, no_progress

SCRIPTED = """
from typing import Literal

from clipkit.config import EvaluatorSection, register
from clipkit.config.kinds import unregister
from clipkit.evaluators import BaseEvaluator


class ScriptedSection(EvaluatorSection):
    kind: Literal["scripted"] = "scripted"
    errors: tuple[float, ...]


class Scripted(BaseEvaluator):
    main = "error"
    lower_is_better = frozenset({"error"})

    def __init__(self, errors):
        self._errors = iter(errors)

    def run(self, model, ranks, progress=None):
        return {"error": next(self._errors), "count": 1}


def build(section, context):
    return Scripted(section.errors)


register("evaluator", ScriptedSection, "scripted:build")
"""


class Fixed(BaseEvaluator):
    main = "text_to_image/mean_rank"
    lower_is_better = frozenset({"mean_rank"})

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        return {"text_to_image": {"mean_rank": 3.0, "recall@1": 0.5}}


def evaluation(name: str = "", *, every: int = 20) -> Evaluation:
    return Evaluation(name, Fixed(), every, name or "dev")


def test_an_evaluation_is_due_at_its_steps_and_at_the_last() -> None:
    assert [step for step in range(1, 51) if evaluation().is_due(step, last=step == 50)] == [20, 40, 50]


@pytest.mark.parametrize(
    ("best", "name", "value", "lower_is_better"),
    [
        (None, "text_to_image/mean_rank", 3.0, True),
        ("text_to_image/recall@1", "text_to_image/recall@1", 0.5, False),
        ("other/text_to_image/mean_rank", "other/text_to_image/mean_rank", 3.0, True),
    ],
)
def test_the_metric_that_decides(best: str | None, name: str, value: float, lower_is_better: bool) -> None:
    criterion = find_criterion([evaluation(), evaluation("other")], best)
    assert criterion is not None
    found = criterion.value(criterion.evaluation.evaluator.run(nn.Identity(), Ranks()))
    assert (criterion.name, found, criterion.lower_is_better) == (name, value, lower_is_better)


def test_improvements_smaller_than_min_delta_are_kept_but_count_against_patience() -> None:
    best = Best("recall", lower_is_better=False, stopping=EarlyStopping(patience=2, min_delta=0.1))
    assert [best.update(step, value) for step, value in enumerate([0.1, 0.3, 0.35, 0.2])] == [True, True, True, False]
    assert (best.step, best.value, best.exhausted) == (2, 0.35, True)


def test_the_best_is_restored_unless_the_metric_is_another() -> None:
    def best(metric: str) -> Best:
        return Best(metric, lower_is_better=False, stopping=None)

    first, second, other = best("a"), best("a"), best("b")
    first.update(3, 0.5)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    assert (second.step, second.value, other.step) == (3, 0.5, None)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "scripted.py").write_text(SCRIPTED)
    yield
    unregister("scripted")


@pytest.mark.usefixtures("scripted")
def test_a_metric_that_is_better_lower_chooses_the_lowest_and_stops_early(
    tmp_path: Path, config_file: Path, train: Callable[..., dict[str, Any]]
) -> None:
    errors = "evaluate={words: {kind: scripted, every: 1st, errors: [0.5, 0.3, 0.4, 0.6, 0.1]}}"
    summary = train(config_file, "plugins=[scripted]", errors, "train.early_stopping={patience: 2}")
    run = tmp_path / "run"
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert (best["metric"], best["step"], best["value"]) == ("words/error", 2, 0.3)
    assert find_checkpoint(run).name == "step-00000002"
    assert (summary["step"], summary["exit_code"]) == (4, 0)
    assert summary["reason"] == "stopped early: 2 evaluations without improvement"
