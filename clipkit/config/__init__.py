"""The sections of a training config: frozen pydantic models that reject unknown keys.

A component gets its own section (`build_optimizer(groups, config.optim)`), never the whole config. `config.file` reads
a config from YAML; `clipkit config` prints every key with its docstring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, create_model, model_validator

from clipkit.config.data import (
    Augment,
    BlockShuffle,
    DataConfig,
    Features,
    HardNegatives,
    NoAugment,
    RandomCrop,
    RandomResizedCrop,
    Shuffle,
    Source,
)
from clipkit.config.evaluate import EvaluatorSection, Retrieval
from clipkit.config.fields import PERCENT, PRETRAINED, Conflicts, CountOrZero, Name, Section, parse_duration
from clipkit.config.kinds import Choice, builder_of, find_kind, register
from clipkit.config.loss import Identity, InfoNCE, Ranking, Sigmoid, SoftTargets
from clipkit.config.model import (
    DualEncoderConfig,
    FeatureImage,
    FeatureText,
    LinearHead,
    LoraConfig,
    ModelSection,
    NoHead,
    ResidualHead,
    TextArchitecture,
    TimmImage,
    TransformersText,
)
from clipkit.config.optim import Freeze, Group, OptimConfig, Schedule
from clipkit.config.task import Contrastive, TaskSection
from clipkit.config.train import EarlyStopping, Ema, Guards, TrainConfig

__all__ = [
    "PERCENT",
    "PRETRAINED",
    "Augment",
    "BlockShuffle",
    "Choice",
    "Config",
    "Conflicts",
    "Contrastive",
    "DataConfig",
    "DualEncoderConfig",
    "EarlyStopping",
    "Ema",
    "EvaluatorSection",
    "FeatureImage",
    "FeatureText",
    "Features",
    "Freeze",
    "Group",
    "Guards",
    "HardNegatives",
    "Identity",
    "InfoNCE",
    "LinearHead",
    "LoraConfig",
    "ModelSection",
    "NoAugment",
    "NoHead",
    "OptimConfig",
    "RandomCrop",
    "RandomResizedCrop",
    "Ranking",
    "ResidualHead",
    "Retrieval",
    "RunConfig",
    "Schedule",
    "Section",
    "Shuffle",
    "Sigmoid",
    "SoftTargets",
    "Source",
    "TaskSection",
    "TextArchitecture",
    "TimmImage",
    "TrainConfig",
    "TransformersText",
    "builder_of",
    "config_of",
    "parse_duration",
    "parse_values",
    "register",
    "task_of",
]


class RunConfig(Section):
    name: Name = "run"
    """Name of the run: letters, digits, `_`, `-` and, except at the start, `.`."""
    dir: str | None = None
    """Run folder; default: `runs/NAME`."""
    seed: CountOrZero = 0
    """Determines everything random: initial weights, sample order, crops, captions, dropout."""

    @property
    def folder(self) -> Path:
        return Path(self.dir) if self.dir else Path("runs") / self.name


class Config(Section):
    """A whole training config; `parse_values` makes one with the `model` and `loss` of its task."""

    plugins: tuple[str, ...] = ()
    """Python modules that register kinds of your own: files next to the config, or installed modules."""
    run: RunConfig = RunConfig()
    """The run's name, folder and seed."""
    task: Annotated[TaskSection, Choice("task")] = Contrastive()
    """The kind of training."""
    data: DataConfig
    """The rows to train on, and how they become batches."""
    model: SerializeAsAny[ModelSection]
    """The model to train; for the contrastive task, its encoders and heads."""
    loss: SerializeAsAny[Section]
    """The function that training minimises."""
    optim: OptimConfig = OptimConfig()
    """The optimizer, its learning rates and their schedule."""
    train: TrainConfig = TrainConfig()
    """Duration, batch size, device, checkpoints and safeguards."""
    evaluate: dict[str, Annotated[EvaluatorSection, Choice("evaluator")]] = Field(default_factory=dict)
    """Evaluators to run during training and in `clipkit eval`, by names of your own. `data.validation` is short for one
    of the task's own kind."""

    @property
    def evaluators(self) -> dict[str, EvaluatorSection]:
        """The evaluators by name; the one of `data.validation` has the name ""."""
        sections = dict(self.evaluate)
        if self.data.validation is not None:
            sections[""] = self.task.evaluator(where=self.data.validation, every=self.train.validate_every)
        return sections

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        problems = [
            *self.task.conflicts(self),
            *_groups_are_known(self),
            *_batch_can_be_split(self.train),
            *_evaluators_can_run(self),
        ]
        if self.data.cache and self.data.cache < self.data.image_size:
            problems.append(("data.cache", f"must be at least `data.image_size`, {self.data.image_size}"))
        if problems:
            raise Conflicts(problems)
        return self


def _groups_are_known(config: Config) -> Iterator[tuple[str, str]]:
    known = config.task.groups
    for name, group in config.optim.groups.items():
        if name not in known and not group.params:
            listed = ", ".join(f"`{name}`" for name in known)
            yield f"optim.groups.{name}", f"a group of your own needs `params`; the groups of the task are {listed}"
    for name in config.optim.freeze:
        if name not in known and name not in config.optim.groups:
            yield "optim.freeze", f"there is no group `{name}`"


def _batch_can_be_split(train: TrainConfig) -> Iterator[tuple[str, str]]:
    if train.chunk_size and train.accumulate > 1:
        yield "train.chunk_size", "cannot be combined with `train.accumulate`; set one of them"
    if train.batch_size % train.accumulate:
        yield "train.accumulate", f"must divide `train.batch_size`, {train.batch_size}"


def _evaluators_can_run(config: Config) -> Iterator[tuple[str, str]]:
    for name in config.evaluate:
        if not name or "/" in name:
            yield f"evaluate.{name}", "a name may not be empty or contain `/`"
    if config.train.early_stopping and not any(section.every for section in config.evaluators.values()):
        yield "train.early_stopping", "needs `evaluate`, or `data.validation` and `train.validate_every`"


def config_of(task: str) -> type[Config]:
    """The config class of a task, with the keys of its `model` and `loss`."""
    kind = find_kind("task", task)
    return _config_of(kind.section if kind is not None else Contrastive)


@cache
def _config_of(section: type[Section]) -> type[Config]:
    assert issubclass(section, TaskSection)
    model, loss = (Config.model_fields[name].description for name in ("model", "loss"))
    slot = Choice(f"{section.model_fields['kind'].default}_loss")
    fields: dict[str, Any] = {
        "model": (section.model_section, Field(description=model)),
        "loss": (Annotated[Section, slot], Field(default=section.default_loss, description=loss)),
    }
    return create_model("Config", __base__=Config, __module__=section.__module__, **fields)


def parse_values(values: Any) -> Config:
    """Turn plain values, as YAML gives them, into the config of their task; raises pydantic's ValidationError."""
    config = config_of(task_of(values)).model_validate(values)
    if config.optim.groups:
        return config
    optim = config.optim.model_copy(update={"groups": dict(config.task.default_groups)})
    return config.model_copy(update={"optim": optim})


def task_of(values: Any) -> str:
    """The name of the task in plain values."""
    task = values.get("task") if isinstance(values, Mapping) else None
    return str(task.get("kind", "contrastive")) if isinstance(task, Mapping) else "contrastive"
