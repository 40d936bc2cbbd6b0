"""The training loop: steps, evaluations, checkpoints, and an end from which the run can be resumed.

It knows only the Task and Evaluator protocols, and nothing about the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from clipkit.config import TrainConfig
from clipkit.data.device import prefetch_to_device
from clipkit.errors import TrainingError
from clipkit.runs.checkpoint import read_meta
from clipkit.runs.metrics import numbers_by_path
from clipkit.signals import StopSignals
from clipkit.train.checkpoint_writer import Snapshot
from clipkit.train.engine import Engine
from clipkit.train.evaluations import Best, Evaluation, find_criterion
from clipkit.train.guards import WINDOW, Alarms, NonFinite, out_of_memory_explained
from clipkit.train.meter import Meter, wait_share
from clipkit.train.parallel import lost_ranks_named
from clipkit.train.plan import MEASURED_STEPS, steps_in_minutes
from clipkit.train.run_log import RunLog
from clipkit.train.step_values import StepFacts, StepQueue, StepValues, queued_so_far
from clipkit.types import Batch, Ranks

log = logging.getLogger(__name__)


class Loader(Protocol):
    """What the trainer needs of a loader: this rank's share of each global batch, from any step on."""

    def iterate(self, start_step: int = 0, stop_step: int | None = None) -> Generator[Batch, None, None]: ...


class TrainingProgress(Protocol):
    """Shows the run to the user."""

    def update(self, step: int, total: int | None, fields: Mapping[str, Any]) -> None: ...
    def evaluated(self, step: int, label: str, shown: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `reason` is `done`, `stopped early: …`, or `stopped` by a signal, which gives the exit code."""

    reason: str
    step: int
    exit_code: int
    loss: float | None
    best: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    shown: Mapping[str, float]
    wall_s: float
    samples_per_s: float
    wait_share: float
    skipped: int


class Trainer:
    def __init__(
        self,
        engine: Engine,
        loader: Loader,
        *,
        config: TrainConfig,
        run_log: RunLog,
        progress: TrainingProgress,
        evaluations: Sequence[Evaluation] = (),
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """`start` is the `meta.json` of the checkpoint that the engine was restored from."""
        self.engine = engine
        self.loader = loader
        self.config = config
        self.run_log = run_log
        self.progress = progress
        self.evaluations = evaluations
        self.plan = engine.plan
        self.strategy = engine.strategy
        self.step = 0
        self.criterion = find_criterion(evaluations, config.best)
        self.best = Best(
            self.criterion.name if self.criterion else config.best,
            self.criterion is not None and self.criterion.lower_is_better,
            config.early_stopping,
        )
        self.nonfinite = NonFinite(config.guards, scaled=engine.precision.scaler is not None)
        self.alarms = Alarms()
        self.meter = Meter()
        self.metrics: dict[str, Any] = {}  # of the last evaluations
        self.shown: dict[str, float] = {}  # those of them to print
        self.device = next(engine.model.parameters()).device
        self.queue = StepQueue(self.device, self.strategy)
        self.signals = StopSignals()
        self.stopping = False
        self.reason = ""
        self._num_steps = 0  # of this process
        self._last_loss: float | None = None
        if start:
            self.step = int(start["step"])
            self.metrics = dict(start["metrics"])
            self.meter.measured = list(start.get("measured", ()))
            self.best.load_state_dict(start["progress"])
            self._stop_if_exhausted()

    def train(self) -> Outcome:
        """Train until the end of the plan, a signal, or early stopping; saves before it returns."""
        began = time.perf_counter()
        stop = self.step if self._finished() else self.plan.total_steps
        with self.signals:
            with closing(self.loader.iterate(self.step, stop)) as batches:
                self.meter.last = time.perf_counter()
                for batch in prefetch_to_device(batches, self.device):
                    self.train_step(batch)
                    self._between_steps()
                    if self._finished():
                        break
            self.run_log.finish()
        stopped = self.stopping and not self._complete()
        return Outcome(
            reason=self.reason or ("stopped" if stopped else "done"),
            step=self.step,
            exit_code=(self.signals.exit_code or 143) if stopped else 0,
            loss=self._last_loss,
            best=self.best.state_dict(),
            validation=self.metrics or None,
            shown=self.shown,
            wall_s=time.perf_counter() - began,
            samples_per_s=self._num_steps * self.plan.batch_size / max(self.meter.wall_s, 1e-9),
            wait_share=self.meter.wait_s / max(self.meter.wall_s, 1e-9),
            skipped=self.nonfinite.skipped,
        )

    def train_step(self, batch: Batch) -> None:
        """Queue one step, and handle the numbers of those that can be read by now."""
        with lost_ranks_named(self.strategy, self.step + 1):
            values = self.engine.train_step(batch, step=self.step)
            stop = torch.full((), float(self.signals.exit_code > 0), device=self.device)  # does not wait
            self.step += 1
            self._num_steps += 1
            facts = StepFacts(
                step=self.step,
                num_samples=self.plan.batch_size,
                rates=self.engine.rates(),
                image_ids=batch.image_ids,
                num_replaced=batch.num_replaced,
                wait_s=batch.wait_s,
                wall_s=self.meter.step(batch.wait_s),
            )
            self.queue.push(facts, {**values, "stop": stop})
        # All ranks read equally late, and so stop after the same step; a single one stops after this step.
        self._read(all_of_them=self.signals.exit_code > 0 and self.strategy.world == 1)

    def evaluate(self, evaluation: Evaluation) -> None:
        """Run an evaluator, log its numbers, and keep track of the best."""
        explained = out_of_memory_explained(self.config, self.step, world=self.strategy.world)
        ranks = Ranks(self.strategy.rank, self.strategy.world)
        with self.meter.paused(), lost_ranks_named(self.strategy, self.step), explained, self.engine.evaluating():
            result = evaluation.evaluator.run(self.engine.model, ranks)
        named = evaluation.named(result)
        self.metrics = {**self.metrics, **named}
        numbers = numbers_by_path(result)
        shown = {path: numbers[path] for path in evaluation.evaluator.shown if path in numbers}
        self.shown |= {evaluation.prefix + path: value for path, value in shown.items()}
        self.run_log.write({"step": self.step, "epoch": self.plan.epoch(self.step), **named})
        self.progress.evaluated(self.step, evaluation.label, shown)
        if self.criterion is not None and self.criterion.evaluation is evaluation:
            self.best.update(self.step, self.criterion.value(result))
        if self.config.guards.alarms and self.step >= WINDOW:
            by_name = {path.rpartition("/")[2]: value for path, value in numbers.items()}
            found = self.engine.task.alarms(by_name, batch_size=self.plan.batch_size)
            self._log_alarms(self.step, self.alarms.due(self.step, found))

    def save(self) -> None:
        """Copy the state, and write it in the background."""
        with self.meter.paused():
            weights, train_state = self.engine.snapshot()
            ready = queued_so_far(self.device)
            best = self.best.state_dict()
            meta = {
                "step": self.step,
                "epoch": self.plan.epoch(self.step),
                "metrics": self.metrics,
                "progress": best,
                "measured": list(self.meter.measured),
                "threads": torch.get_num_threads(),
                "world": self.strategy.world,
                "precision": self.engine.precision.name,
                "architecture": self.engine.task.architecture(),
            }
            self.run_log.save(
                Snapshot(self.step, weights, train_state, meta, best if best["step"] is not None else None, ready)
            )

    def _between_steps(self) -> None:
        if self.plan.minutes and self.plan.total_steps is None:
            self._set_total(self.plan.minutes)
        last = self.step == self.plan.total_steps
        due = [evaluation for evaluation in self.evaluations if evaluation.is_due(self.step, last=last)]
        if not due and not self.plan.saves(self.step) and not self.stopping:
            return
        self._read(all_of_them=True)
        improved = False
        for evaluation in due:
            self.evaluate(evaluation)
            improved = self.best.step == self.step
            self._stop_if_exhausted()
        # After steps that are not finite the last good checkpoint stays the newest; the last step is always saved.
        good = self.nonfinite.in_a_row == 0 or self._finished()
        if good and (self.plan.saves(self.step) or improved or self.stopping or self.reason):
            self.save()

    def _stop_if_exhausted(self) -> None:
        if self.best.exhausted:
            self.reason = f"stopped early: {self.best.without_improvement} evaluations without improvement"

    def _finished(self) -> bool:
        return self._complete() or self.stopping

    def _complete(self) -> bool:
        return self.step == self.plan.total_steps or bool(self.reason)

    def _read(self, *, all_of_them: bool = False) -> None:
        for step in self.queue.pop(all_of_them=all_of_them):
            self._handle(step)

    def _handle(self, step: StepValues) -> None:
        """Pass one step's numbers to the log, the guards and the progress bar."""
        if step.values["skipped"]:  # the same on every rank
            image_ids = self.strategy.gathered(step.facts.image_ids)
            step = replace(step, facts=replace(step.facts, image_ids=image_ids))
        values, number = step.values, step.facts.step
        self._last_loss = values["loss"] if math.isfinite(values["loss"]) else None
        self.stopping = self.stopping or values["stop"] > 0
        line = self._line(step)
        self.run_log.write(line)
        self.progress.update(number, self.plan.total_steps, line)
        trouble = self.nonfinite.look(step)
        if trouble is not None:
            self._on_nonfinite(number, trouble)
        elif self.config.guards.alarms:
            batch_size = self.plan.batch_size // self.config.accumulate  # the negatives of a pair are in its own piece
            self._log_alarms(number, self.alarms.look(step, self.engine.task, batch_size=batch_size))

    def _line(self, step: StepValues) -> dict[str, Any]:
        """The line of `metrics.jsonl`."""
        facts = step.facts
        wall_s = sum(wall for _, wall in self.meter.recent)
        line: dict[str, Any] = {
            "step": facts.step,
            "epoch": self.plan.epoch(facts.step),
            "loss": step.values["loss"],
            "lr": facts.rates,
            "samples_per_s": round(len(self.meter.recent) * facts.num_samples / max(wall_s, 1e-9), 2),
            "wait_share": round(wait_share(self.meter.recent), 4),
            "step_s": round(facts.wall_s, 5),
        }
        grouped: dict[str, dict[str, float]] = {}
        for name, value in step.values.items():
            kind, _, group = name.partition("/")
            if group:
                grouped.setdefault(kind, {})[group] = value
            elif name not in ("loss", "stop", "skipped"):
                line[name] = value
        if "weight_norm" in grouped:
            line["norms"] = {"gradient": grouped["grad_norm"], "weight": grouped["weight_norm"]}
        if facts.num_replaced:
            line["num_replaced"] = facts.num_replaced
        if step.values["skipped"]:
            line |= {"skipped": True, "image_ids": list(facts.image_ids)}
        return line

    def _on_nonfinite(self, step: int, trouble: str) -> None:
        verdict = self.nonfinite.verdict()
        if verdict == "continue":
            log.warning("%s; the step is skipped (%d in a row)", trouble, self.nonfinite.in_a_row)
            self.engine.mend_statistics()
            return
        self.run_log.finish()
        self.strategy.mean(torch.zeros(1, device=self.device)).item()  # no rank looks before rank 0 has written
        checkpoint = self.run_log.last_good(before=self.nonfinite.unproved)
        if verdict == "roll back" and checkpoint is not None:
            lr_factor = self.engine.lr_factor * self.config.guards.rollback_lr_factor
            self.engine.restore(checkpoint)
            self.engine.lr_factor = lr_factor
            self.nonfinite.rolled_back(self.step, to=int(read_meta(checkpoint)["step"]))
            log.warning("%s; continuing from the weights of `%s`", trouble, checkpoint)
            self.run_log.write({"step": step, "event": "rollback", "checkpoint": checkpoint.name})
        else:
            raise TrainingError(
                trouble,
                (f"the last good checkpoint is `{checkpoint}`; " if checkpoint else "")
                + "lower the learning rates of `optim.groups`, lengthen `optim.schedule.warmup`, or look at those rows",
            )

    def _log_alarms(self, step: int, alarms: Mapping[str, str]) -> None:
        for name, text in alarms.items():
            log.warning("step %d: %s", step, text)
            self.run_log.write({"step": step, "alarm": name, "message": text})

    def _set_total(self, minutes: float) -> None:
        """Set the number of steps of a run in minutes, once its first ones have been timed."""
        over = self.meter.wall_s >= minutes * 60
        mine = torch.tensor([self.meter.seconds_per_step(), float(over)], device=self.device)
        step_s, any_over = self.strategy.mean(mine).tolist()
        if self.step < MEASURED_STEPS and not any_over:
            return
        total = steps_in_minutes(minutes, step_s=step_s, steps_done=self.step)
        self.plan = self.engine.plan = self.plan.with_total(total)
        self.run_log.set_total(total)
        log.info("%g minutes are %d steps at %.3f s each", minutes, total, step_s)
