"""`clipkit train`: from a config, or a run to go on with, to a trained run folder."""

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
from clipkit.config import Config, OptimConfig, TransformersText
from clipkit.config.file import dump_config
from clipkit.data.device import to_device
from clipkit.data.loader import Loader, build_loader
from clipkit.data.order.base import Share
from clipkit.errors import CheckpointError, DataError, TrainingError
from clipkit.evaluators.gallery import Gallery
from clipkit.models import load_matching, mask_always, write_out_attention
from clipkit.runs.checkpoint import CheckpointWriter, read_weights
from clipkit.runs.folder import CONFIG, Run, find_checkpoint, read_meta
from clipkit.store import Dataset
from clipkit.tasks import ContrastiveTask, build_task
from clipkit.train.data import make_tokenizer, open_datasets, with_caches
from clipkit.train.engine import Engine
from clipkit.train.parallel import Replicas, Shards, Strategy
from clipkit.train.plan import make_plan
from clipkit.train.process import check_last_batch, check_same_start, process_group, set_kernels, set_threads
from clipkit.train.run_log import Record, RunRecord
from clipkit.train.session import Session, begin
from clipkit.train.trackers import MetricsLog, open_trackers
from clipkit.train.trainer import Outcome, Progress, Trainer, Validation
from clipkit.types import ImageSpec, Task, Tokenizer

log = logging.getLogger(__name__)
SHORT_TEXT = 128  # tokens; attention written out takes memory by their square
NAMED_SPLIT = re.compile(r"""^\s*split\s*=\s*['"]([^'"]+)['"]\s*$""")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a run is made of, before anything of it is written."""

    config: Config
    tokenizer: Tokenizer | None
    task: Task
    loader: Loader
    engine: Engine
    validation: Validation | None
    datasets: tuple[Dataset, ...]
    threads: int

    def describe(self) -> str:
        device = next(self.task.model.parameters()).device
        return (
            f"{self.loader.num_samples:,} samples, {self.engine.plan.describe()}; on {device} in "
            f"{self.engine.precision.name} with {self.threads} threads"
            + (f", {self.engine.strategy.world} processes" if self.engine.strategy.world > 1 else "")
        )

    def group_sizes(self) -> dict[str, dict[str, int | float | bool]]:
        """Parameters, peak rate and whether it is trained at the start, of each group."""
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


def train(session: Session, *, progress: Progress) -> dict[str, Any]:
    """Train to the end of the plan, or to a signal; gives the summary."""
    config = session.config
    with process_group(config.train) as device:
        check_same_start(session.step)
        parts = build_parts(session, device, make_caches=True)
        log.info("%s", parts.describe())
        if parts.engine.plan.total_steps == session.step:
            log.info("`%s` has already been trained to its last step", session.folder)
        record = _open_record(session, parts)
        if session.checkpoint is not None:
            parts.engine.restore(session.checkpoint)
        trainer = Trainer(
            parts.engine,
            parts.loader,
            config=config.train,
            record=record,
            progress=progress,
            validation=parts.validation,
            start=session.start or None,
        )
        try:
            outcome = trainer.train()
        except BaseException as error:
            record.close("failed", message=str(error))
            raise
        finally:
            parts.loader.close()
        record.close("stopped" if outcome.exit_code else "done", message=outcome.reason)
        if distributed.is_main():
            _check_saved(record, outcome)
        return _summary(session, parts, outcome)


def _check_saved(record: Record, outcome: Outcome) -> None:
    """A run whose last weights are on no disk has not been done."""
    last = record.last_good()
    if last is None or int(read_meta(last)["step"]) < outcome.step:
        raise TrainingError(
            f"the run reached step {outcome.step}, but "
            + (f"its last checkpoint that could be written is `{last}`" if last else "no checkpoint could be written"),
            "the warnings say why: make room on the disk where it is full; `--resume` goes on from there",
        )


def dry_run(session: Session) -> dict[str, Any]:
    """Build everything and run one batch, without a trace on the disk."""
    with process_group(session.config.train) as device:
        parts = build_parts(session, device)
        log.info("%s", parts.describe())
        if session.checkpoint is not None:
            parts.engine.restore(session.checkpoint)
        batches = parts.loader.iterate(session.step, session.step + 1)
        values = parts.engine.train_step(to_device(next(batches), device), step=session.step)
        parts.loader.close()
        return {
            "groups": parts.group_sizes(),
            "steps": parts.engine.plan.total_steps,
            "steps_per_epoch": parts.engine.plan.steps_per_epoch,
            "samples": parts.loader.num_samples,
            "loss": values["loss"].item(),
        }


def build_parts(session: Session, device: torch.device, *, make_caches: bool = False) -> Parts:
    """Open the data, build the model, and put together what trains it; the data's caches are made where asked."""
    config = session.config
    threads = set_threads(config.train)
    _compare_threads(session, threads)
    set_kernels(deterministic=config.train.deterministic)
    datasets = open_datasets(config, session.facts)
    tokenizer = make_tokenizer(session, datasets)
    if make_caches and (config.data.cache or config.data.token_cache):
        datasets = with_caches(config, datasets, tokenizer)
    torch.manual_seed(config.run.seed)
    task = _make_task(session, tokenizer)
    spec = task.model.image_spec
    loader = build_loader(
        config.data,
        spec=spec,
        tokenizer=tokenizer,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        share=Share(distributed.rank(), distributed.world(), pieces=config.train.accumulate),
        datasets=datasets,
    )
    _compare_samples(session, loader)
    if not config.data.drop_last:
        check_last_batch(config.train, loader.num_samples % loader.batch_size)
    optim = config.optim.settled(config.model.from_scratch)
    if _remembers_texts(config, optim) and tokenizer is not None:
        task.remember_texts(tokenizer, loader.captions)
    plan = make_plan(config.train, optim, steps_per_epoch=loader.steps_per_epoch)
    if plan.measured and plan.minutes == session.facts.get("minutes") and session.facts.get("total_steps"):
        plan = plan.with_total(int(session.facts["total_steps"]))
    if config.train.chunk_size and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.model.modules()):
        log.info(
            "BatchNorm sees chunks of %d samples and not the batch; `model.image.norm: frozen` keeps its statistics",
            config.train.chunk_size,
        )
    if config.train.compile:
        log.info("compiling the model: the first steps take some minutes")
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
    _suit_attention(task.model.text_encoder, engine, max_tokens=config.data.max_tokens)
    validation = _make_validation(config, datasets[0], tokenizer, spec)
    return Parts(config, tokenizer, task, loader, engine, validation, datasets, threads)


def _suit_attention(encoder: nn.Module, engine: Engine, *, max_tokens: int) -> None:
    device_type, precision = engine.precision.device_type, engine.precision.name
    if device_type == "cuda":
        mask_always(encoder)
    elif device_type == "cpu" and precision == "bf16" and max_tokens <= SHORT_TEXT:
        # torch's fused kernel takes 4 to 8 times as long in a backward pass of bfloat16 there.
        write_out_attention(encoder)


def _remembers_texts(config: Config, optim: OptimConfig) -> bool:
    text = config.model.text
    return isinstance(text, TransformersText) and text.remember and optim.freezes_for_good("text_encoder")


def _make_task(session: Session, tokenizer: Tokenizer | None) -> ContrastiveTask:
    config = session.config
    if session.checkpoint is not None:  # its weights are loaded later, with the optimizer's state
        return build_task(config, tokenizer, saved=session.start["architecture"])
    if config.model.init is None:
        return build_task(config, tokenizer)
    origin = find_checkpoint(config.model.init)
    task = build_task(config, tokenizer, saved=read_meta(origin)["architecture"])
    load_matching(task.model, read_weights(origin), source=str(origin))
    log.info("starting from the weights of `%s`", origin)
    return task


def _make_strategy(config: Config) -> Strategy:
    rank, world = distributed.rank(), distributed.world()
    if world == 1:
        return Strategy()
    return Shards(rank=rank, world=world) if config.train.strategy == "fsdp" else Replicas(rank=rank, world=world)


def _make_validation(
    config: Config, dataset: Dataset, tokenizer: Tokenizer | None, spec: ImageSpec
) -> Validation | None:
    where = config.data.validation
    if where is None or config.train.validate_every is None:
        return None
    rows = dataset.select(where)
    if not len(rows):
        raise DataError(
            f"`data.validation: {where}` chooses no row of `{dataset.uri}`",
            "`clipkit info` tells its splits; leave `data.validation` out to train without",
        )
    gallery = Gallery(dataset, rows, spec=spec, tokenizer=tokenizer, config=config.data)
    named = NAMED_SPLIT.match(where)
    at_once = config.train.encoded_at_once(distributed.world())  # what fits the memory in training fits here
    return Validation(gallery, named[1] if named else "validation", at_once)


def _open_record(session: Session, parts: Parts) -> Record:
    """Make or take up the run folder on rank 0, and tag the dataset versions that it trains on."""
    if not distributed.is_main():
        dist.barrier()
        return Record(Run(session.folder))
    config, plan = session.config, parts.engine.plan
    datasets = [{"uri": dataset.uri, "version": dataset.version} for dataset in parts.datasets]
    facts = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clipkit": __version__,
        "torch": torch.__version__,
        "datasets": datasets,
        "num_samples": parts.loader.num_samples,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "minutes": plan.minutes,
        "threads": parts.threads,
        "world": distributed.world(),
    }
    run, cut = begin(session, facts)
    if session.run is None or datasets != session.facts.get("datasets"):
        for dataset in parts.datasets:
            _tag(dataset, config.run.name)
    run.update_facts({"datasets": datasets, "total_steps": plan.total_steps, "minutes": plan.minutes})
    if distributed.world() > 1:
        dist.barrier()
    config_text = dump_config(config)

    def save_extras(folder: Path) -> None:
        (folder / CONFIG).write_text(config_text, encoding="utf-8")
        if parts.tokenizer is not None:
            parts.tokenizer.save(folder / "tokenizer")

    model = config.model.model_dump(mode="json")
    trackers = open_trackers(
        config.train.trackers, run, name=config.run.name, config=config.model_dump(mode="json"), step=session.step
    )
    return RunRecord(
        run,
        metrics=MetricsLog(run, trackers, cut=cut),
        writer=CheckpointWriter(run, keep=config.train.keep, save_extras=save_extras),
        facts={
            "dataset": datasets[0],
            "datasets": datasets,
            "fingerprint": parts.tokenizer.fingerprint if parts.tokenizer is not None else None,
            "model": f"{_name(model['image'])} and {_name(model['text'])}, {config.model.embedding_dim} dimensions",
            "clipkit": __version__,
        },
        total_steps=plan.total_steps,
    )


def _name(encoder: Mapping[str, Any]) -> str:
    return str(encoder.get("name") or encoder["kind"])


def _tag(dataset: Dataset, name: str) -> None:
    """Keep the version from being cleaned up; without the right to write it is only warned of."""
    try:
        dataset.tag(f"clipkit-{name}-v{dataset.version}")
    except DataError as error:
        log.warning("%s; the run trains on version %d without a tag", error.message, dataset.version)


def _compare_samples(session: Session, loader: Loader) -> None:
    before = session.facts.get("num_samples")
    if before is not None and before != loader.num_samples:
        raise CheckpointError(
            f"`{session.config.data.dataset}` has {loader.num_samples:,} samples to train on and had {before:,}",
            "a run goes on with the dataset that it began with, which may have been moved or copied",
        )


def _compare_threads(session: Session, threads: int) -> None:
    before = session.start.get("threads", session.facts.get("threads"))
    if before is not None and before != threads:
        log.warning(
            "this run has %d compute threads and had %d before: sums are rounded otherwise, and its numbers agree to "
            "rounding, not bit for bit; `--set train.threads=%d` keeps to them",
            threads,
            before,
            before,
        )


def _summary(session: Session, parts: Parts, outcome: Outcome) -> dict[str, Any]:
    plan = parts.engine.plan
    return {
        "run": str(session.folder),
        "name": session.config.run.name,
        "epochs": plan.epoch(outcome.step),
        "total_steps": plan.total_steps,
        "dataset": parts.datasets[0].uri,
        "dataset_version": parts.datasets[0].version,
        "precision": parts.engine.precision.name,
        "threads": parts.threads,
        **asdict(outcome),
    }
