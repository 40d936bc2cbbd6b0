"""Every section of a training config: frozen pydantic models, unknown keys refused, unions told by `kind`.

A component gets its own section (`build_optimizer(model, config.optim)`), never the whole config.
`config_file.py` reads these from YAML; `clipkit config` prints them with their documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, model_validator

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
from clipkit.config.fields import PERCENT, PRETRAINED, Conflicts, CountOrZero, Section, parse_duration
from clipkit.config.loss import Identity, InfoNCE, Loss, Ranking, Sigmoid, SoftTargets
from clipkit.config.model import (
    FeatureImage,
    FeatureText,
    Head,
    LinearHead,
    LoraConfig,
    ModelConfig,
    NoHead,
    ResidualHead,
    TextArchitecture,
    TimmImage,
    TransformersText,
)
from clipkit.config.optim import KNOWN_GROUPS, Freeze, Group, OptimConfig, Schedule
from clipkit.config.train import EarlyStopping, Ema, Guards, TrainConfig

__all__ = [
    "KNOWN_GROUPS",
    "PERCENT",
    "PRETRAINED",
    "Augment",
    "BlockShuffle",
    "Config",
    "Conflicts",
    "DataConfig",
    "EarlyStopping",
    "Ema",
    "FeatureImage",
    "FeatureText",
    "Features",
    "Freeze",
    "Group",
    "Guards",
    "HardNegatives",
    "Head",
    "Identity",
    "InfoNCE",
    "LinearHead",
    "LoraConfig",
    "Loss",
    "ModelConfig",
    "NoAugment",
    "NoHead",
    "OptimConfig",
    "RandomCrop",
    "RandomResizedCrop",
    "Ranking",
    "ResidualHead",
    "RunConfig",
    "Schedule",
    "Section",
    "Shuffle",
    "Sigmoid",
    "SoftTargets",
    "Source",
    "TextArchitecture",
    "TimmImage",
    "TrainConfig",
    "TransformersText",
    "parse_duration",
]


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The run's name: letters, digits, `_`, `-` and, but for its beginning, `.`."""
    dir: str | None = None
    """The run folder; `runs/NAME` when left out."""
    seed: CountOrZero = 0
    """Everything random follows from it: initial weights, the order, crops, captions, dropout."""

    @property
    def folder(self) -> Path:
        return Path(self.dir) if self.dir else Path("runs") / self.name


class Config(Section):
    run: RunConfig = RunConfig()
    """The run's name, folder and seed."""
    data: DataConfig
    """Which rows are trained on, and how they become batches."""
    model: ModelConfig
    """The two encoders and how they meet."""
    loss: Loss = InfoNCE()
    """What training minimises."""
    optim: OptimConfig = OptimConfig()
    """The optimizer, its learning rates and their schedule."""
    train: TrainConfig = TrainConfig()
    """How long, on what and how safely."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        problems = [
            *_stored_features_are_named(self),
            *_batch_can_be_split(self.train),
            *_cache_suffices(self.data),
            *_remembered_is_frozen(self),
        ]
        if self.train.early_stopping and not (self.data.validation and self.train.validate_every):
            problems.append(("train.early_stopping", "needs `data.validation` and `train.validate_every`"))
        if problems:
            raise Conflicts(problems)
        return self


def _stored_features_are_named(config: Config) -> Iterator[tuple[str, str]]:
    for side, encoder, column in (
        ("image", config.model.image, config.data.features.image),
        ("text", config.model.text, config.data.features.text),
    ):
        if (encoder.kind == "features") != (column is not None):
            yield f"model.{side}", f"`kind: features` and `data.features.{side}` go together"


def _batch_can_be_split(train: TrainConfig) -> Iterator[tuple[str, str]]:
    if train.batch_size < 2:
        yield "train.batch_size", "must be at least 2: a contrastive loss needs a negative"
    if train.chunk_size and train.accumulate > 1:
        yield "train.chunk_size", "`train.accumulate` is another way of splitting a batch; give one"
    if train.batch_size % train.accumulate:
        yield "train.accumulate", f"`train.batch_size`, {train.batch_size}, is not a multiple of it"


def _cache_suffices(data: DataConfig) -> Iterator[tuple[str, str]]:
    if data.cache and data.cache < data.image_size:
        yield "data.cache", f"must be at least `data.image_size`, {data.image_size}"


def _remembered_is_frozen(config: Config) -> Iterator[tuple[str, str]]:
    text = config.model.text
    if text.kind == "transformers" and text.remember and not config.optim.freezes_for_good("text_encoder"):
        yield "model.text.remember", "needs an encoder that stays frozen: `optim.freeze: [text_encoder]`"
