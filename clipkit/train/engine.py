"""One training step, and the state that it changes: weights, optimizer, loss scaler, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.config import OptimConfig, TrainConfig
from clipkit.errors import ConfigError
from clipkit.runs.checkpoint import check_fits, read_train_state, read_weights
from clipkit.train.checkpoint_writer import copy_to_cpu
from clipkit.train.ema import WeightAverage
from clipkit.train.gradient import GradientMaker
from clipkit.train.guards import out_of_memory_explained
from clipkit.train.optimizer import (
    assign_groups,
    build_optimizer,
    freeze_groups,
    group_norms,
    read_rates,
    set_rates,
    set_train_mode,
)
from clipkit.train.parallel import Strategy, fill, fill_state
from clipkit.train.plan import TrainingPlan
from clipkit.train.precision import choose_precision
from clipkit.train.schedule import rate_factor
from clipkit.types import Batch, Progress, Task, no_progress


class Engine:
    """Trains the model on one batch at a time. Everything stays on the device; nothing here waits for it."""

    def __init__(
        self,
        task: Task,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        plan: TrainingPlan,
        strategy: Strategy,
        device: torch.device,
        seed: int,
    ) -> None:
        self.task = task
        self.plan = plan
        self.strategy = strategy
        self.precision = choose_precision(train, device)
        self.lr_factor = 1.0  # rollbacks lower it
        self._train = train
        self._optim = optim
        strategy.prepare(self.model, device, shards=task.shards)
        self.groups = assign_groups(self.model.named_parameters(), optim, patterns=task.groups)
        task.tune(device_type=self.precision.device_type, precision=self.precision.name)
        self.optimizer = build_optimizer(self.groups, optim)
        freeze_groups(self.groups, plan.frozen(0))
        if not any(param.requires_grad for param in self.model.parameters()):
            raise ConfigError("`optim.freeze` leaves nothing to train", "remove a group from it")
        self.average = WeightAverage(self.model, train.ema) if train.ema else None
        self._gradient = GradientMaker(
            task,
            precision=self.precision,
            strategy=strategy,
            batch_size=plan.batch_size,
            seed=seed,
            chunk_size=train.chunk_size,
            accumulate=train.accumulate,
        )
        self._names: dict[torch.Tensor, str] = {param: name for name, param in self.model.named_parameters()}
        self._train_mode_set = False

    @property
    def model(self) -> nn.Module:
        return self.task.model

    def prepare(self, progress: Progress = no_progress) -> None:
        """Let the task compute what all batches need; call it once the weights are loaded."""
        with self.precision.autocast():
            self.task.prepare(progress)

    def train_step(self, batch: Batch, *, step: int) -> dict[str, torch.Tensor]:
        """Train the step after `step` steps; returns its scalars, still on the device.

        A step whose gradient is not finite changes nothing: the fused optimizer skips it on the device.
        """
        with out_of_memory_explained(self._train, step + 1, world=self.strategy.world):
            return self._train_step(batch, step)

    def _train_step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        self._prepare(step)
        self.optimizer.zero_grad(set_to_none=True)
        gradient = self._gradient(batch)
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(self.optimizer)
        norms = group_norms(self.groups, gradients=True) * gradient.factor
        total = torch.linalg.vector_norm(norms)
        skipped = (~torch.isfinite(total)).float()
        factor = gradient.factor
        if self._optim.clip_grad_norm is not None:
            factor = (self._optim.clip_grad_norm / (total + 1e-6)).clamp(max=1.0) * factor
        if not isinstance(factor, float) or factor != 1.0:
            self._scale_gradients(factor)
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.precision.scaler is not None:
            self.precision.scaler.update()
        self.task.after_step()
        if self.average is not None:
            self.average.update(step)
        values = {"loss": gradient.loss, "grad_norm": total, "skipped": skipped, **gradient.metrics}
        values |= {f"grad_norm/{group.name}": norm for group, norm in zip(self.groups, norms, strict=True)}
        every = self._train.log_norms_every
        if every and (step + 1) % every == 0:
            weights = group_norms(self.groups, gradients=False)
            values |= {f"weight_norm/{group.name}": norm for group, norm in zip(self.groups, weights, strict=True)}
        return values

    def mend_statistics(self) -> None:
        """Reset the running statistics of each BatchNorm where they are no longer finite."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                if not (module.running_mean + module.running_var).isfinite().all():
                    module.reset_running_stats()

    def rates(self) -> dict[str, float]:
        """The learning rates of the last step, for the groups that are trained."""
        frozen = {group.name for group in self.groups if not any(p.requires_grad for _, p in group.params)}
        return {name: rate for name, rate in read_rates(self.optimizer).items() if name not in frozen}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode, with averaged weights if there are any."""
        self.model.eval()
        self._train_mode_set = False
        averaged = self.average.applied() if self.average is not None else nullcontext()
        with torch.no_grad(), self.precision.autocast(), averaged, self.strategy.whole(self.model):
            yield

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Copies of the weights to evaluate, and of what else a resume needs (call it on every rank)."""
        state = self.model.state_dict()
        train_state: dict[str, Any] = {
            "lr_factor": self.lr_factor,
            "optimizer": {self._names[param]: values for param, values in self.optimizer.state.items()},
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler is not None else {},
        }
        if self.average is not None:
            averaged = self.average.state_dict()
            train_state["weights"] = {name: state[name] for name in averaged}
            state = {**state, **averaged}
        return copy_to_cpu(state), copy_to_cpu(train_state)

    def restore(self, checkpoint: Path) -> None:
        """Restore the state of a checkpoint; the learning rates come from the config and the schedule."""
        weights = read_weights(checkpoint)
        check_fits(weights, self.model, checkpoint=checkpoint)
        state = read_train_state(checkpoint)
        if self.average is not None:
            self.average.load_state_dict(weights)
        fill_state(self.model, {**weights, **state.get("weights", {})})
        self.lr_factor = state["lr_factor"]
        self._restore_optimizer(state["optimizer"])
        if self.precision.scaler is not None and state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])

    def _restore_optimizer(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.optimizer.state.clear()
        for param, name in self._names.items():
            if name not in state:
                continue
            own = {}
            for key, value in state[name].items():
                if value.shape == param.shape and value.ndim:
                    own[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    fill(own[key], value)
                else:  # a step count
                    own[key] = value.to(param.device)
            self.optimizer.state[param] = own

    def _prepare(self, step: int) -> None:
        if freeze_groups(self.groups, self.plan.frozen(step)):
            self._gradient.rewrap()
            self._train_mode_set = False
        if not self._train_mode_set:
            set_train_mode(self.model)
            self._train_mode_set = True
        set_rates(self.optimizer, self.lr_factor * rate_factor(step, schedule=self._optim.schedule, plan=self.plan))

    def _scale_gradients(self, factor: torch.Tensor | float) -> None:
        gradients = [p.grad for group in self.groups for _, p in group.params if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
