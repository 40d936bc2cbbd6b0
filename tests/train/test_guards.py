"""What a run checks its own numbers for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.config import Guards, InfoNCE, TrainConfig
from clipkit.errors import TrainingError
from clipkit.losses.infonce import InfoNCELoss
from clipkit.models import Encoder
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.train.guards import WINDOW, Alarms, NonFinite, out_of_memory_explained
from clipkit.train.step_values import StepFacts, StepValues

NOTHING = Encoder(module=torch.nn.Identity(), dim=1, reads=(), inputs=lambda seed: [])
TASK = ContrastiveTask(torch.nn.Identity(), InfoNCELoss(InfoNCE()), image=NOTHING, text=NOTHING)  # type: ignore[arg-type]
GOOD = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0, "temperature": 0.07, "image_cosine": 0.1, "text_cosine": 0.1}


def reading(step: int = 1, *, wait_s: float = 0.0, **values: float) -> StepValues:
    facts = StepFacts(
        step=step,
        num_samples=32,
        rates={},
        image_ids=[f"id{n}" for n in range(8)],
        num_replaced=0,
        wait_s=wait_s,
        wall_s=1.0,
    )
    return StepValues(facts, {**GOOD, "grad_norm/heads": 1.0, "grad_norm/text_encoder": 2.0, **values})


def bad(**values: float) -> StepValues:
    return reading(7, **{"loss": math.nan, "skipped": 1.0, "grad_norm/text_encoder": math.nan, **values})


def test_the_message_names_step_group_and_rows() -> None:
    text = NonFinite(Guards(), scaled=False).look(bad())
    assert text is not None
    assert "step 7" in text
    assert "`text_encoder`" in text
    assert "`id0`, `id1`, `id2`, `id3`, `id4` and 3 more" in text


@pytest.mark.parametrize(
    ("config", "verdicts"),
    [
        ({"on_nonfinite": "stop"}, ["stop"]),
        ({"on_nonfinite": "skip", "max_skipped": 3}, ["continue", "continue", "stop"]),
        ({"on_nonfinite": "rollback", "max_skipped": 2}, ["continue", "roll back"]),
        ({"on_nonfinite": "rollback", "max_skipped": 1, "max_rollbacks": 1}, ["roll back"]),
    ],
)
def test_skip_stop_or_roll_back(config: Mapping[str, Any], verdicts: list[str]) -> None:
    nonfinite = NonFinite(Guards.model_validate(config), scaled=False)
    found = []
    for _ in verdicts:
        nonfinite.look(bad())
        found.append(nonfinite.verdict())
    assert found == verdicts


def test_a_finite_step_ends_the_row() -> None:
    nonfinite = NonFinite(Guards(), scaled=False)
    for step in (bad(), bad(), reading(), bad()):
        nonfinite.look(step)
    assert (nonfinite.in_a_row, nonfinite.skipped) == (1, 3)


def test_steps_queued_before_a_rollback_do_not_count() -> None:
    nonfinite = NonFinite(Guards(on_nonfinite="rollback", max_skipped=1), scaled=False)
    assert nonfinite.look(bad()) is not None
    nonfinite.rolled_back(step=7, to=4)
    assert nonfinite.look(bad()) is None
    assert (nonfinite.in_a_row, nonfinite.skipped) == (0, 2)


def test_overflows_of_a_scaled_loss_are_normal_at_first() -> None:
    nonfinite = NonFinite(Guards(), scaled=True)
    overflow = bad(loss=1.0)
    assert [nonfinite.look(overflow) for _ in range(16)] == [None] * 16
    assert nonfinite.look(bad()) is not None


def alarms_of(*last: StepValues) -> dict[str, str]:
    alarms, found = Alarms(), {}
    for step in [*(reading(step) for step in range(WINDOW)), *last]:
        found |= alarms.look(step, TASK, batch_size=32)
    return found


def test_a_run_that_goes_well_gives_no_alarm() -> None:
    assert alarms_of(reading(WINDOW)) == {}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("image_collapse", {"image_cosine": 0.99}),
        ("temperature", {"temperature": 0.01}),
        ("chance", {"loss": math.log(32)}),
        ("data_wait", {"wait_s": 0.5}),
    ],
)
def test_an_alarm_names_a_cause(name: str, values: dict[str, float]) -> None:
    found = alarms_of(*(reading(WINDOW + step, **values) for step in range(WINDOW + 1)))
    assert list(found) == [name]
    assert ":" in found[name]


def test_the_chance_level_is_that_of_a_piece_of_the_batch(
    config_file: Path, train: Callable[..., dict[str, Any]]
) -> None:
    still = [f"optim.groups.{group}.lr=0" for group in ("image_encoder", "text_encoder", "heads")]
    sizes = ["train.batch_size=16", "train.accumulate=4", f"train.duration={2 * WINDOW + 1}st"]
    train(config_file, *still, *sizes, "train.validate_every=null", "train.checkpoint_every=null")
    lines = [json.loads(line) for line in (config_file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "chance" in {line.get("alarm") for line in lines}


def test_a_jump_of_the_gradient() -> None:
    assert list(alarms_of(reading(WINDOW, grad_norm=20.0))) == ["gradient_jump"]


def test_an_alarm_is_given_once_and_again_after_a_while() -> None:
    alarms = Alarms()
    given = [step for step in range(1, 1200) if alarms.due(step, {"chance": "text"})]
    assert given == [1, 501, 1001]


def test_out_of_memory_says_what_to_change() -> None:
    config = TrainConfig(batch_size=128, accumulate=2, precision="fp32")
    with pytest.raises(TrainingError, match="32 samples") as caught, out_of_memory_explained(config, 5, world=2):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "`train.chunk_size: 16`" in caught.value.hint
    assert "bf16" in caught.value.hint
