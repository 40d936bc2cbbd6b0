"""`clipkit train`: opens the data, builds the task, the loader, the engine and the evaluations, and trains."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from clipkit import __version__, distributed
from clipkit.config import Config, ModelSection
from clipkit.config.file import dump_config
from clipkit.config.plugins import loaded_plugins
from clipkit.data.device import to_device
from clipkit.data.loader import Loader, build_loader
from clipkit.data.order.base import Share
from clipkit.data.training_rows import TrainingRows, named_columns
from clipkit.errors import CheckpointError, ConfigError, DataError, TrainingError
from clipkit.evaluators import EvaluatorContext, build_evaluator
from clipkit.runs.checkpoint import read_meta, read_weights
from clipkit.runs.folder import CONFIG, Run, find_checkpoint
from clipkit.store import Dataset
from clipkit.tasks import TaskContext, build_task
from clipkit.train.checkpoint_writer import CheckpointWriter
from clipkit.train.datasets import open_datasets, with_pixel_caches
from clipkit.train.engine import Engine
from clipkit.train.evaluations import Evaluation, find_criterion
from clipkit.train.parallel import Replicas, Shards, Strategy
from clipkit.train.plan import TrainingPlan, make_plan, steps_of
from clipkit.train.process import check_last_batch, check_same_start, process_group, set_kernels, set_threads
from clipkit.train.run_log import RunLog
from clipkit.train.session import Session, begin
from clipkit.train.trackers import MetricsLog, check_trackers, open_trackers
from clipkit.train.trainer import Outcome, Trainer, TrainingProgress
from clipkit.types import Progress, Task, no_progress

log = logging.getLogger(__name__)
NAMED_SPLIT = re.compile(r"""^\s*split\s*=\s*['"]([^'"]+)['"]\s*$""")


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that a run consists of, before anything is written."""

    config: Config
    datasets: tuple[Dataset, ...]
    task: Task
    loader: Loader
    engine: Engine
    evaluations: tuple[Evaluation, ...]
    threads: int

    def describe(self) -> str:
        device, world = next(self.task.model.parameters()).device, self.engine.strategy.world
        evaluated = [f", `{evaluation.label}` every {evaluation.every:,} steps" for evaluation in self.evaluations]
        return (
            f"{self.loader.num_samples:,} samples, {self.engine.plan.describe()}{''.join(evaluated)}; on {device} in "
            f"{self.engine.precision.name} with {self.threads} threads" + (f", {world} processes" if world > 1 else "")
        )

    def group_sizes(self) -> dict[str, dict[str, int | float | bool]]:
        """The numbers of parameters, the peak rate and the weight decay of each group, as training starts."""
        frozen = self.engine.plan.frozen(0)
        return {
            group.name: {
                "params": group.num_params + group.num_fixed,
                "trained": 0 if group.name in frozen else group.num_params,
                "lr": group.config.lr,
                "weight_decay": group.config.weight_decay,
            }
            for group in self.engine.groups
        }


def train(session: Session, *, progress: TrainingProgress, preparing: Progress = no_progress) -> dict[str, Any]:
    """Train to the end of the plan, or until a signal; returns the summary.

    `preparing` shows what the task computes before the first step.
    """
    check_trackers(session.config.train.trackers)
    with process_group(session.config.train) as device:
        check_same_start(session.step)
        training = build_training(session, device, make_caches=True)
        log.info("%s", training.describe())
        if training.engine.plan.total_steps == session.step:
            log.info("`%s` has already been trained to its last step", session.folder)
        run_log = _open_log(session, training)
        try:
            if session.checkpoint is not None:
                training.engine.restore(session.checkpoint)
            training.engine.prepare(preparing)
            trainer = Trainer(
                training.engine,
                training.loader,
                config=session.config.train,
                run_log=run_log,
                progress=progress,
                evaluations=training.evaluations,
                start=session.start or None,
            )
            outcome = trainer.train()
            _check_saved(run_log, outcome)
        except BaseException as error:
            run_log.close("failed", message=str(error))
            raise
        finally:
            training.loader.close()
        run_log.close("stopped" if outcome.exit_code else "done", message=outcome.reason)
        return _summary(session, training, outcome)


def _check_saved(run_log: RunLog, outcome: Outcome) -> None:
    """Fail a run whose last weights are not on the disk."""
    if not distributed.is_main():
        return
    last = run_log.last_good()
    if last is None or int(read_meta(last)["step"]) < outcome.step:
        raise TrainingError(
            f"the run reached step {outcome.step}, but "
            + (f"its last checkpoint that could be written is `{last}`" if last else "no checkpoint could be written"),
            f"the warnings say why: make room if the disk is full, then `clipkit train --resume {run_log.run.folder}` "
            + ("continues from that checkpoint" if last else "starts it again"),
        )


def dry_run(session: Session) -> dict[str, Any]:
    """Build everything and train one step, without writing anything, and without `Task.prepare`."""
    check_trackers(session.config.train.trackers)
    with process_group(session.config.train) as device:
        training = build_training(session, device)
        log.info("%s", training.describe())
        if session.checkpoint is not None:
            training.engine.restore(session.checkpoint)
        batches = training.loader.iterate(session.step, session.step + 1)
        values = training.engine.train_step(to_device(next(batches), device), step=session.step)
        training.loader.close()
        return {
            "groups": training.group_sizes(),
            "steps": training.engine.plan.total_steps,
            "steps_per_epoch": training.engine.plan.steps_per_epoch,
            "samples": training.loader.num_samples,
            "loss": values["loss"].item(),
        }


def build_training(session: Session, device: torch.device, *, make_caches: bool = False) -> Training:
    """Open the data and build everything that trains on it; `make_caches` adds the pixel caches that are missing."""
    config = session.config
    threads = set_threads(config.train)
    _compare_threads(session, threads)
    set_kernels(deterministic=config.train.deterministic)
    datasets = open_datasets(config.data, session.facts)
    if make_caches and config.data.cache:
        datasets = with_pixel_caches(config.data, datasets)
    rows = TrainingRows(config.data, datasets)
    task = _make_task(session, rows)
    loader = _make_loader(session, task, rows)
    engine = _make_engine(session, task, loader, device)
    evaluations = _make_evaluations(config, task, datasets[0], engine.plan)
    find_criterion(evaluations, config.train.best)  # raises where it names no metric
    return Training(config, datasets, task, loader, engine, evaluations, threads)


def _make_task(session: Session, rows: TrainingRows) -> Task:
    config = session.config
    torch.manual_seed(config.run.seed)
    if session.checkpoint is not None:  # its weights are loaded later, with the state of the optimizer
        return build_task(TaskContext(config, rows, session.checkpoint))
    assert isinstance(config.model, ModelSection)
    if config.model.init is None:
        return build_task(TaskContext(config, rows))
    origin = find_checkpoint(config.model.init)
    task = build_task(TaskContext(config, rows, origin))
    task.start_from(read_weights(origin), source=str(origin))
    log.info("starting from the weights of `%s`", origin)
    return task


def _make_loader(session: Session, task: Task, rows: TrainingRows) -> Loader:
    config = session.config
    loader = build_loader(
        config.data,
        task.inputs(),
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        share=Share(distributed.rank(), distributed.world(), pieces=config.train.accumulate),
        training=rows,
    )
    before = session.facts.get("num_samples")
    if before is not None and before != loader.num_samples:
        raise CheckpointError(
            f"`{config.data.dataset}` has {loader.num_samples:,} samples to train on, the run began with {before:,}",
            "resume it with the dataset that it began with; a moved one is given with `--set data.dataset=PATH`",
        )
    if not config.data.drop_last:
        check_last_batch(config.train, loader.num_samples % loader.batch_size)
    return loader


def _make_engine(session: Session, task: Task, loader: Loader, device: torch.device) -> Engine:
    config = session.config
    optim = config.optim.settled(task.from_scratch, like=config.task.groups)
    plan = make_plan(config.train, optim, steps_per_epoch=loader.steps_per_epoch)
    known = session.facts.get("total_steps")
    if plan.minutes and plan.minutes == session.facts.get("minutes") and known:
        plan = plan.with_total(int(known))
    if config.train.chunk_size and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.model.modules()):
        log.info(
            "BatchNorm sees chunks of %d samples, not the whole batch; frozen norms keep their statistics",
            config.train.chunk_size,
        )
    if config.train.compile:
        log.info("compiling the model: the first steps take minutes")
        task.model.compile()
    engine = Engine(
        task,
        train=config.train,
        optim=optim,
        plan=plan,
        strategy=_make_strategy(config),
        device=device,
        seed=config.run.seed,
    )
    _check_groups(config, engine)
    return engine


def _check_groups(config: Config, engine: Engine) -> None:
    """Refuse a group of the config without parameters."""
    if config.optim.groups == dict(config.task.default_groups):
        return
    filled = {group.name for group in engine.groups}
    for name in config.optim.groups:
        if name not in filled:
            raise ConfigError(
                f"the group `optim.groups.{name}` matches no parameter of the model", "remove it, or correct `params`"
            )


def _make_strategy(config: Config) -> Strategy:
    rank, world = distributed.rank(), distributed.world()
    if world == 1:
        return Strategy()
    return Shards(rank=rank, world=world) if config.train.strategy == "fsdp" else Replicas(rank=rank, world=world)


def _make_evaluations(config: Config, task: Task, dataset: Dataset, plan: TrainingPlan) -> tuple[Evaluation, ...]:
    evaluations = []
    for name, section in config.evaluators.items():
        if section.every is None:
            continue
        key = f"evaluate.{name}" if name else "data"
        source = Dataset(section.dataset, columns=named_columns(config.data)) if section.dataset else dataset
        rows = source.select(section.where)
        if not len(rows):
            filtered = f"{key}.{'where' if name else 'validation'}: {section.where}"
            raise DataError(
                f"`{filtered}` matches no row of `{source.uri}`" if section.where else f"`{source.uri}` has no rows",
                f"`clipkit info {source.uri}` lists its splits; remove the key to train without this evaluation",
            )
        at_once = config.train.encoded_at_once(distributed.world())  # as in training, so that it fits into memory
        evaluator = build_evaluator(section, EvaluatorContext(task, source, rows, config.data, at_once))
        every = steps_of(
            section.every,
            f"{key}.every" if name else "train.validate_every",
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=plan.batch_size,
        )
        named = NAMED_SPLIT.match(section.where or "")
        label = name or (named[1] if named else "validation")
        evaluations.append(Evaluation(name, evaluator, every, label))
    return tuple(evaluations)


def _open_log(session: Session, training: Training) -> RunLog:
    """Make or reopen the run folder, and tag the dataset versions that it trains on; rank 0 does it."""
    if not distributed.is_main():
        dist.barrier()
        return RunLog(Run(session.folder))
    config, plan = session.config, training.engine.plan
    datasets = [{"uri": dataset.uri, "version": dataset.version} for dataset in training.datasets]
    plugins = [asdict(plugin) for plugin in loaded_plugins(config.plugins)]
    facts = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clipkit": __version__,
        "torch": torch.__version__,
        "datasets": datasets,
        "plugins": plugins,
        "num_samples": training.loader.num_samples,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "minutes": plan.minutes,
        "threads": training.threads,
        "world": distributed.world(),
    }
    run, cut = begin(session, facts)
    if session.run is None or datasets != session.facts.get("datasets"):
        for dataset in training.datasets:
            _tag(dataset, config.run.name)
    run.update_facts(
        {"datasets": datasets, "plugins": plugins, "total_steps": plan.total_steps, "minutes": plan.minutes}
    )
    if distributed.world() > 1:
        dist.barrier()
    config_text = dump_config(config)

    def save_extras(folder: Path) -> None:
        (folder / CONFIG).write_text(config_text, encoding="utf-8")
        training.task.save(folder)

    trackers = open_trackers(
        config.train.trackers, run, name=config.run.name, config=config.model_dump(mode="json"), step=session.step
    )
    checkpoint_facts = {
        "dataset": datasets[0],
        "datasets": datasets,
        "plugins": plugins,
        "model": _describe_model(config.model.model_dump(mode="json")),
        "clipkit": __version__,
    }
    writer = CheckpointWriter(run, keep=config.train.keep, facts=checkpoint_facts, save_extras=save_extras)
    return RunLog(run, MetricsLog(run, trackers, cut=cut), writer, plan.total_steps)


def _describe_model(model: Mapping[str, Any]) -> str:
    """The names or kinds of its parts: `resnet10t, transformers, linear`."""
    parts = [part for part in model.values() if isinstance(part, Mapping) and "kind" in part]
    return ", ".join(str(part.get("name") or part["kind"]) for part in parts)


def _tag(dataset: Dataset, name: str) -> None:
    """Protect the version from clean-up; without write access there is only a warning."""
    try:
        dataset.tag(f"clipkit-{name}-v{dataset.version}")
    except DataError as error:
        log.warning("%s; the run trains on version %d without a tag", error.message, dataset.version)


def _compare_threads(session: Session, threads: int) -> None:
    before = session.start.get("threads", session.facts.get("threads"))
    if before is not None and before != threads:
        log.warning(
            "this run has %d compute threads and had %d before: its numbers agree up to rounding, not bit for bit; "
            "`--set train.threads=%d` restores the earlier number",
            threads,
            before,
            before,
        )


def _summary(session: Session, training: Training, outcome: Outcome) -> dict[str, Any]:
    plan = training.engine.plan
    return {
        "run": str(session.folder),
        "name": session.config.run.name,
        "epochs": plan.epoch(outcome.step),
        "total_steps": plan.total_steps,
        "dataset": training.datasets[0].uri,
        "dataset_version": training.datasets[0].version,
        "precision": training.engine.precision.name,
        "threads": training.threads,
        **asdict(outcome),
    }
