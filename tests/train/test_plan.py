"""Durations become steps, once; the learning rate follows from the step alone."""

from __future__ import annotations

import itertools

import pytest

from clipkit.config import OptimConfig, Schedule, TrainConfig
from clipkit.errors import ConfigError
from clipkit.train.plan import MEASURED_STEPS, TrainingPlan, make_plan, steps_in_minutes
from clipkit.train.schedule import rate_factor


def plan_of(duration: str = "100st", *, optim: OptimConfig | None = None, **train: object) -> TrainingPlan:
    config = TrainConfig.model_validate({"duration": duration, "batch_size": 50, **train})
    return make_plan(config, optim or OptimConfig(), steps_per_epoch=20)


@pytest.mark.parametrize(("duration", "steps"), [("7st", 7), ("3ep", 60), ("0.5ep", 10), ("1ksa", 20), ("2kst", 2000)])
def test_a_duration_in_steps(duration: str, steps: int) -> None:
    assert plan_of(duration).total_steps == steps


def test_checkpoints_fall_on_their_steps_and_the_last() -> None:
    plan = plan_of("50st", checkpoint_every="16st")
    assert [step for step in range(1, 51) if plan.saves(step)] == [16, 32, 48, 50]


def test_only_a_run_may_be_in_minutes() -> None:
    with pytest.raises(ConfigError, match=r"train\.checkpoint_every"):
        plan_of(checkpoint_every="1min")


def test_groups_are_frozen_until_their_step_or_for_good() -> None:
    timed = plan_of(optim=OptimConfig(freeze={"image_encoder": "1ep"}))
    assert [timed.frozen(step) for step in (0, 19, 20)] == [{"image_encoder"}, {"image_encoder"}, set()]
    assert plan_of(optim=OptimConfig(freeze=("text_encoder",))).frozen(10**9) == {"text_encoder"}


def test_pretrained_freezes_an_encoder_that_starts_from_weights() -> None:
    optim = OptimConfig(freeze={"text_encoder": "pretrained", "image_encoder": "1ep"})
    assert plan_of(optim=optim.settled((), like={})).frozen(10**9) == {"text_encoder"}
    assert plan_of(optim=optim.settled({"text_encoder"}, like={})).frozen(0) == {"image_encoder"}


def factors(schedule: Schedule, plan: TrainingPlan, steps: range) -> list[float]:
    return [rate_factor(step, schedule=schedule, plan=plan) for step in steps]


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    schedule = Schedule(warmup="10%", final=0.1)
    plan = plan_of(optim=OptimConfig(schedule=schedule))
    rates = factors(schedule, plan, range(101))
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_linear_and_constant_rates() -> None:
    plan = plan_of()
    assert factors(Schedule(kind="linear"), plan, range(0, 101, 25)) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert factors(Schedule(kind="constant"), plan, range(0, 101, 50)) == [1, 1, 1]


@pytest.mark.parametrize("warmup", ["0%", "3%", "20st", "80st"])
def test_a_run_in_minutes_has_the_same_first_rates_before_and_after_it_knows_its_length(warmup: str) -> None:
    schedule = Schedule(warmup=warmup)
    plan = plan_of("5min", optim=OptimConfig(schedule=schedule))
    assert plan.total_steps is None
    known = plan.with_total(1000)
    first = range(MEASURED_STEPS)
    assert factors(schedule, plan, first) == factors(schedule, known, first)
    rates = factors(schedule, known, range(1001))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.06  # no jump where they meet
    assert rates[1000] == pytest.approx(0)


def test_minutes_to_steps() -> None:
    assert steps_in_minutes(2, step_s=0.5, steps_done=50) == 240
    assert steps_in_minutes(0.1, step_s=0.5, steps_done=50) == 50
