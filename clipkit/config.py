"""Every section of a training config: frozen pydantic models, unknown keys refused, unions told apart by `kind`.

A component gets its own section (`build_optimizer(model, config.optim)`), never the whole config.
`config_file.py` reads these from YAML; `clipkit config` prints them with their documentation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([kM]?)(st|ep|sa|min)$")
PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")
KNOWN_GROUPS = ("image_encoder", "text_encoder", "heads", "temperature")


def parse_duration(text: str) -> tuple[float, str]:
    """`10ep` to (10.0, "ep"); the unit is st (steps), ep (epochs), sa (samples) or min, with k or M before it."""
    match = DURATION.match(text.strip())
    if not match:
        raise ValueError(f"`{text}` is no duration; write 2000st, 10ep, 1Msa or 30min")
    value = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6}[match[2]]
    return value, match[3]


def _check_duration(value: str) -> str:
    if parse_duration(value)[0] <= 0:
        raise ValueError(f"`{value}` must be more than nothing")
    return value


def _check_warmup(value: str) -> str:
    if match := PERCENT.match(value.strip()):
        if float(match[1]) > 100:
            raise ValueError(f"`{value}` is more than 100 %")
        return value
    parse_duration(value)
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is meant here, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
Dropout = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# --- run -------------------------------------------------------------------------------------------------------


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    """The run's name: letters, digits, `.`, `_` and `-`."""
    dir: str | None = None
    """The run folder; `runs/NAME` when left out."""
    seed: CountOrZero = 0

    @property
    def folder(self) -> Path:
        return Path(self.dir) if self.dir else Path("runs") / self.name


# --- data ------------------------------------------------------------------------------------------------------


class NoAugment(Section):
    kind: Literal["none"] = "none"
    """The image resized to a square of `image_size`, in training as in validation."""


class RandomResizedCrop(Section):
    kind: Literal["random_resized_crop"] = "random_resized_crop"
    scale: tuple[Positive, Positive] = (0.6, 1.0)
    """The share of the image's area that a crop covers, from and to."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    flip: bool = False
    """Mirror half of the images. Leave it off where captions speak of left and right."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 is off."""
    random_erasing: Fraction = 0.0
    """The share of images that get a random rectangle blanked; 0 is off."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomResizedCrop:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("`scale` is [from, to] with 0 < from <= to <= 1")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError("`ratio` is [from, to] with from <= to")
        return self


class RandomCrop(Section):
    kind: Literal["random_crop"] = "random_crop"
    resize: Count
    """Short side in pixels that the image is resized to before a random square of `image_size` is cut out."""
    flip: bool = False
    color_jitter: Fraction = 0.0
    random_erasing: Fraction = 0.0


Augment = Annotated[NoAugment | RandomResizedCrop | RandomCrop, Field(discriminator="kind")]


class BlockShuffle(Section):
    block: Count
    """Rows a block: neighbours are read together and blocks are mixed (for object stores)."""


class Source(Section):
    dataset: str
    weight: Positive = 1.0
    """How often rows of this dataset are drawn, in proportion to the others' weights."""
    train: str | None = None
    """SQL over this dataset's columns; `data.train` when left out."""


class HardNegatives(Section):
    column: str
    """An embedding column; rows whose embeddings are near each other share a batch."""
    group_size: Count = 4


class Features(Section):
    """Stored encoder outputs that are trained on in place of images or captions."""

    image: str | None = None
    """A column of fixed-size vectors that stands for the image encoder's output."""
    text: str | None = None
    """A column of fixed-size vectors that stands for the text encoder's output."""


class DataConfig(Section):
    dataset: str | None = None
    """Path or URI of the Lance dataset."""
    sources: tuple[Source, ...] = ()
    """Several datasets, mixed by weight, in place of `dataset`."""
    train: str | None = None
    """SQL over the columns that chooses the training rows; every row when left out."""
    validation: str | None = None
    """SQL that chooses the validation rows; no validation when left out."""
    limit: Count | None = None
    """Use only the first so many rows that the training filter chose."""
    image_id_column: str = "image_id"
    image_column: str = "image"
    captions_column: str = "captions"
    image_size: Count = 224
    mean: tuple[Number, Number, Number] | None = None
    """Mean of the pixel values (0..1) to normalise with; the image encoder's own when left out."""
    std: tuple[Positive, Positive, Positive] | None = None
    caption: Literal["random", "longest", "first", "each"] = "random"
    """Which caption of an image a sample takes; `each` makes a sample of every caption."""
    augment: Augment = NoAugment()
    max_tokens: Count = 32
    padding: Literal["longest", "max"] = "longest"
    """Pad captions to the longest of the batch (rounded up to 8), or to `max_tokens`."""
    shuffle: bool | BlockShuffle = True
    group_by: str | None = None
    """A column: rows that share a value there are kept in one batch."""
    hard_negatives: HardNegatives | None = None
    drop_last: bool = True
    """Leave out an epoch's last batch where it is smaller than the others."""
    features: Features = Features()
    cache: Count | None = None
    """Train from decoded pixels, cached in the dataset at this size; made when missing (`clipkit cache`)."""
    token_cache: bool = False
    """Keep the captions' tokens in the dataset, in a column keyed by the tokenizer's fingerprint."""
    decode: Literal["scaled", "full"] = "scaled"
    """Decode a JPEG at a half, quarter or eighth where that is still as large as what is needed."""
    workers: CountOrZero | None = None
    """Decoding threads; one for each usable core when left out."""
    worker_kind: Literal["threads", "processes"] = "threads"
    prefetch: Count = 4
    """Batches that are made ready ahead of the step."""
    bad_rows: Literal["replace", "stop"] = "replace"
    """A row that cannot be decoded: another takes its place and it is counted, or the run stops."""
    stall_timeout_s: Positive = 120.0
    """Seconds without a batch after which the log says which stage has not moved."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if bool(self.dataset) == bool(self.sources):
            raise ValueError("give either `dataset` or `sources`")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together")
        if self.group_by and self.hard_negatives:
            raise ValueError("`group_by` and `hard_negatives` both say which rows share a batch; give one")
        return self


# --- model -----------------------------------------------------------------------------------------------------


class TimmImage(Section):
    kind: Literal["timm"] = "timm"
    name: str
    """A timm model, such as `resnet50` or `vit_small_patch16_224`."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded once)."""
    weights: str | None = None
    """A local file of weights for this model (`.safetensors`, or a `.pth` of plain tensors)."""
    global_pool: str | None = None
    """timm's pooling: avg, max, token, map …; the model's own when left out."""
    num_classes: CountOrZero = 0
    """Keep timm's classifier with so many outputs as the feature; 0 takes the pooled feature."""
    drop_rate: Dropout = 0.0
    drop_path_rate: Dropout = 0.0
    norm: Literal["batch", "frozen", "sync"] = "batch"
    """BatchNorm as it is, with its statistics frozen, or synchronised over GPUs."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""


class FeatureImage(Section):
    kind: Literal["features"] = "features"
    """The encoder's output is stored: see `data.features.image`."""
    dim: Count


class TextArchitecture(Section):
    """A BERT-type encoder from scratch, with a WordPiece vocabulary trained on the training captions."""

    vocab_size: Count = 4000
    """At most so many word pieces; the captions may have fewer."""
    hidden_size: Count = 256
    layers: Count = 4
    heads: Count = 4
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; four times `hidden_size` when left out."""
    dropout: Dropout = 0.1
    initializer_range: Positive = 0.02
    lowercase: bool = True
    """Lower-case captions. Accents are always kept."""

    @model_validator(mode="after")
    def _divisible(self) -> TextArchitecture:
        if self.hidden_size % self.heads:
            raise ValueError(f"`hidden_size` {self.hidden_size} must be divisible by `heads` {self.heads}")
        return self


class TransformersText(Section):
    kind: Literal["transformers"] = "transformers"
    name: str | None = None
    """A model of the Hugging Face hub, or a local folder; it goes before `architecture`."""
    pretrained: bool = True
    """With `name`: load the weights; false takes the architecture alone, and the tokenizer."""
    architecture: TextArchitecture | None = None
    """An encoder from scratch, for when there is no `name`."""
    pooling: Literal["cls", "mean"] = "mean"
    tokenizer: str | None = None
    """Another model's or folder's tokenizer than `name`'s."""
    checkpointing: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> TransformersText:
        if not self.name and not self.architecture:
            raise ValueError("give either `name` (a model or a folder) or `architecture` (one from scratch)")
        return self


class FeatureText(Section):
    kind: Literal["features"] = "features"
    """The encoder's output is stored: see `data.features.text`."""
    dim: Count


class ResidualHead(Section):
    kind: Literal["residual"] = "residual"
    """p = linear(x); LayerNorm(dropout(linear(GELU(p))) + p)."""
    dropout: Dropout = 0.1


class LinearHead(Section):
    kind: Literal["linear"] = "linear"
    bias: bool = False


class NoHead(Section):
    kind: Literal["none"] = "none"
    """The encoder's output as it is; its width must be `embedding_dim`."""


Head = Annotated[ResidualHead | LinearHead | NoHead, Field(discriminator="kind")]


class LoraConfig(Section):
    """Low-rank adapters through `peft` in place of full fine-tuning of the encoders."""

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Dropout = 0.0
    encoders: tuple[Literal["image_encoder", "text_encoder"], ...] = ("image_encoder", "text_encoder")


class ModelConfig(Section):
    image: Annotated[TimmImage | FeatureImage, Field(discriminator="kind")]
    text: Annotated[TransformersText | FeatureText, Field(discriminator="kind")]
    head: Head = LinearHead()
    image_head: Head | None = None
    """The image side's head where it differs from `head`."""
    text_head: Head | None = None
    embedding_dim: Count = 256
    normalize: bool = True
    """Scale embeddings to length 1."""
    init: str | None = None
    """Start from the weights of this run or checkpoint."""
    lora: LoraConfig | None = None


# --- loss ------------------------------------------------------------------------------------------------------


class InfoNCE(Section):
    kind: Literal["infonce"] = "infonce"
    temperature: Positive = 0.07
    learn_temperature: bool = True
    min_temperature: Positive = 0.01
    label_smoothing: Dropout = 0.0


class Sigmoid(Section):
    kind: Literal["sigmoid"] = "sigmoid"
    temperature: Positive = 0.1
    bias: Number = -10.0
    learn_temperature: bool = True
    min_temperature: Positive = 0.005


class SoftTargets(Section):
    kind: Literal["soft_targets"] = "soft_targets"
    """The Lance tutorial's loss: a baseline that can collapse, above all without normalisation."""
    temperature: Positive = 1.0


class Ranking(Section):
    kind: Literal["ranking"] = "ranking"
    """-mean of the diagonal of log-softmax of the cosine matrix, one way."""
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text"
    temperature: Positive = 1.0


class Identity(Section):
    kind: Literal["identity"] = "identity"
    """Frobenius distance of the cosine matrix from the identity."""


Loss = Annotated[InfoNCE | Sigmoid | SoftTargets | Ranking | Identity, Field(discriminator="kind")]


# --- optim -----------------------------------------------------------------------------------------------------


class Group(Section):
    lr: NonNegative
    weight_decay: NonNegative = 0.0
    """Never applied to norms, biases and the temperature."""
    params: tuple[str, ...] = ()
    """Patterns (`fnmatch`) of parameter names; known groups have theirs."""
    layer_decay: Fraction | None = None
    """Each layer's rate is the next one's times this (of an encoder's group)."""


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: str = "0%"
    """A share of the run (`3%`) or a duration (`500st`)."""
    final: Fraction = 0.0
    """Where the rate ends, as a share of its peak."""

    _warmup = field_validator("warmup")(_check_warmup)


class OptimConfig(Section):
    kind: Literal["adamw", "adam"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Positive = 1e-6
    groups: dict[str, Group] = {
        "image_encoder": Group(lr=1e-3, weight_decay=0.05),
        "text_encoder": Group(lr=1e-4, weight_decay=0.05),
        "heads": Group(lr=1e-3, weight_decay=0.05),
    }
    """Rates a group of parameters: image_encoder, text_encoder, heads, temperature (the heads' rate when left
    out), or names of your own with `params`. Every parameter must be in one."""
    schedule: Schedule = Schedule()
    clip_grad_norm: Positive | None = 1.0
    freeze: tuple[str, ...] | dict[str, str] = ()
    """Groups that are not trained: a list, or each with the duration it stays frozen (`{image_encoder: 500st}`)."""

    @field_validator("freeze")
    @classmethod
    def _durations(cls, value: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        if isinstance(value, dict):
            for duration in value.values():
                _check_duration(duration)
        return value

    @model_validator(mode="after")
    def _groups_have_params(self) -> OptimConfig:
        for name, group in self.groups.items():
            if name not in KNOWN_GROUPS and not group.params:
                raise ValueError(
                    f"the group `{name}` needs `params`; the known groups are {', '.join(KNOWN_GROUPS)}"
                )
        return self


# --- train -----------------------------------------------------------------------------------------------------


class Ema(Section):
    decay: Fraction = 0.999
    warmup: bool = True
    """Let the decay grow with the steps, min(decay, (1 + step) / (10 + step))."""


class EarlyStopping(Section):
    patience: Count = 5
    """Validations without improvement of `train.best` after which the run ends."""
    min_delta: NonNegative = 0.0


class Guards(Section):
    on_nonfinite: Literal["stop", "skip", "rollback"] = "skip"
    """A loss or gradient that is not finite: stop, or skip the step; after `max_skipped` in a row `skip` stops and
    `rollback` goes back to the last good checkpoint."""
    max_skipped: Count = 5
    rollback_lr_factor: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)] = 1.0
    """Learning rates are multiplied by this after a rollback."""
    max_rollbacks: Count = 3
    alarms: bool = True
    """Warn of collapse, clamped temperature, loss at chance, jumps of the gradient and waiting for data."""


class TrainConfig(Section):
    duration: str = "10ep"
    """How long: 2000st (steps), 10ep (epochs), 1Msa (samples) or 30min."""
    batch_size: Count = 128
    """Global: across devices and accumulation."""
    chunk_size: Count | None = None
    """Gradient caching: encode so many samples a device at a time, with the gradient of the whole batch."""
    accumulate: Count = 1
    """Pieces that a batch is worked off in, each with its own negatives; `chunk_size` keeps them all."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    grad_scaler: bool = True
    """Scale the loss under fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: Count | None = None
    """Compute threads; every usable core when left out."""
    checkpoint_every: str | None = "1ep"
    validate_every: str | None = "1ep"
    keep: Count = 3
    """Checkpoints that are kept beside the best one."""
    best: str = "text_to_image/recall@10"
    """The validation metric that the best checkpoint and early stopping go by; higher is better, but for ranks."""
    early_stopping: EarlyStopping | None = None
    guards: Guards = Guards()
    ema: Ema | None = None
    compile: bool = False
    deterministic: bool = True
    """Deterministic kernels where they exist."""
    log_norms_every: Count | None = None
    """Log gradient and weight norms a group every so many steps."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """On several devices: a replica on each, or parameters and optimizer sharded (FSDP2)."""
    timeout_s: Positive = 600.0
    """Seconds after which a rank that does not answer ends the run."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = None
    """TensorBoard when installed, when left out."""

    @field_validator("duration", "checkpoint_every", "validate_every")
    @classmethod
    def _durations(cls, value: str | None) -> str | None:
        return value if value is None else _check_duration(value)


class Config(Section):
    run: RunConfig = RunConfig()
    data: DataConfig
    model: ModelConfig
    loss: Loss = InfoNCE()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        problems = []
        if (self.model.image.kind == "features") != (self.data.features.image is not None):
            problems.append("`model.image.kind: features` and `data.features.image` go together")
        if (self.model.text.kind == "features") != (self.data.features.text is not None):
            problems.append("`model.text.kind: features` and `data.features.text` go together")
        if self.train.chunk_size and self.train.accumulate > 1:
            problems.append("`train.chunk_size` and `train.accumulate` are two ways of splitting a batch; give one")
        if self.train.batch_size % self.train.accumulate:
            problems.append("`train.batch_size` must be divisible by `train.accumulate`")
        if self.train.batch_size < 2:
            problems.append("`train.batch_size` must be at least 2: a contrastive loss needs a negative")
        if self.train.early_stopping and not (self.data.validation and self.train.validate_every):
            problems.append("`train.early_stopping` needs `data.validation` and `train.validate_every`")
        augment = self.data.augment
        if isinstance(augment, RandomCrop) and augment.resize < self.data.image_size:
            problems.append("`data.augment.resize` must be at least `data.image_size`")
        if self.data.cache and self.data.cache < self.data.image_size:
            problems.append("`data.cache` must be at least `data.image_size`")
        if problems:
            raise ValueError("; ".join(problems))
        return self
