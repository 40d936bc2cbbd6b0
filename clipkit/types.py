"""The contracts: dataclasses and protocols that cross module borders.

Shapes: B rows of a batch, H and W pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from clipkit.data.inputs import Input

Scalar = str | int | float | bool | None
Progress = Callable[[int, int], object]  # is told how many of all items are done
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def no_progress(done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True, slots=True)
class Url:
    """An image that is still to be fetched (`file:`, `http:` or `https:`)."""

    address: str


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a corpus with all its captions, as a reader found it."""

    image_id: str
    image: Path | bytes | Url
    captions: tuple[str, ...]
    source: str  # where a person finds it: `captions.txt:17`, `shard-0003.tar/000017.jpg`
    split: str | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What pixels an image encoder takes: their size, and the mean and deviation (of 0..1) to normalise with.

    `resize` squashes the image into the square, or scales its shortest side and cuts out the centre, or scales its
    longest side and pads it with the mean colour. `fast` is OpenCV's interpolation, the others are Pillow's.
    """

    size_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["fast", "bilinear", "bicubic"] = "fast"
    shortest_px: int | None = None  # for `crop`, where the shortest side becomes larger than the square

    def __post_init__(self) -> None:
        if self.shortest_px is not None and self.shortest_px < self.size_px:
            raise ValueError(f"shortest_px is {self.shortest_px}, less than size_px, {self.size_px}")


class Tokenizer(Protocol):
    """Texts to padded token ids: `input_ids` and `attention_mask`, both (B, T) int64."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def num_remembered(self) -> int: ...  # texts whose ids it keeps in memory
    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]: ...
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...  # (T,) int32 each, not padded
    def pad(self, ids: Sequence[np.ndarray]) -> dict[str, torch.Tensor]: ...
    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch, on the CPU (pinned) or on a device.

    `tensors` are what the task's inputs read, each (B, …): `pixels` (B, H, W, 3) uint8 RGB, `input_ids` and
    `attention_mask` (B, T) int64, `image_features` and `text_features` (B, F) float, and those of plugins.
    """

    step: int
    epoch: int
    rows: np.ndarray  # (B,) int64: offsets into the dataset version that the run trains on
    image_ids: Sequence[str]
    captions: Sequence[str]  # the caption that each sample takes; empty texts where no input reads captions
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    num_replaced: int = 0  # rows that cannot be used and that another row stands in for
    wait_s: float = 0.0  # how long the consumer waited for this batch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss with its graph, and detached scalars on its device, to be read when somebody looks at them.

    `weight` is how many targets the loss is a mean over: pairs, tokens, rows. Pieces of a batch, and ranks, count in
    proportion to it. A loss of no targets is 0 with the weight 0.
    """

    loss: torch.Tensor
    weight: torch.Tensor | float
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


Features = tuple["torch.Tensor", ...]  # each (B, …), a row a sample


class Task(Protocol):
    """A kind of training: all that the trainer knows of what it trains."""

    @property
    def model(self) -> nn.Module:
        """The bare model: its parameters and its state are what is optimized and saved."""

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        """Groups of the optimizer: patterns (`fnmatch`) of parameter names, which together cover the model."""

    @property
    def shards(self) -> Sequence[str]:
        """Submodules that FSDP wraps."""

    @property
    def from_scratch(self) -> Collection[str]:
        """Groups that start from no weights: `optim.freeze: {…: pretrained}` does not freeze these."""

    def inputs(self) -> Sequence[Input]:
        """What it reads of each row."""

    def start_from(self, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
        """Start from a checkpoint's weights; raises CheckpointError where they do not fit."""

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of (a piece of) this rank's share, under the precision's autocast."""

    def after_step(self) -> None:
        """Put parameters back into their bounds after the optimizer has moved them."""

    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        """What is going wrong, by name, with its likely cause: from a step's metrics and `loss`, or an evaluation's."""

    def prepare(self, progress: Progress = no_progress) -> None:
        """Compute what all batches need, once the weights are loaded and before the first step."""

    def tune(self, *, device_type: str, precision: str) -> None:
        """Choose the fastest kernels for the model where it will run."""

    def architecture(self) -> dict[str, Any]:
        """JSON that a checkpoint must hold to build the model again without any download."""

    def save(self, folder: Path) -> None:
        """Write what a checkpoint needs beside the weights, such as a tokenizer."""


@runtime_checkable
class Cacheable(Protocol):
    """A task whose loss needs all features of a batch at once, and can be trained with gradient caching."""

    def encode(self, batch: Batch) -> Features: ...
    def loss_of(self, features: Features, batch: Batch) -> LossOutput:
        """The loss of features that `encode` gave, also where they were detached and put together from chunks."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """Cells to print: the first column is text, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Evaluator(Protocol):
    """A kind of measurement of a model on fixed rows."""

    @property
    def main(self) -> str:
        """The metric that chooses the best checkpoint unless `train.best` does, by path: `text_to_image/recall@10`."""

    @property
    def shown(self) -> Sequence[str]:
        """The metrics to look at first, by path."""

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The names (the last parts of paths) of metrics that are better lower."""

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        """Numbers by name, nested as the evaluator likes; the same on every rank."""

    def report(self, model: nn.Module, *, picture: Path | None, progress: Progress = no_progress) -> dict[str, Any]:
        """What `clipkit eval` reports: the numbers, and how they were measured."""

    def describe(self, report: Mapping[str, Any]) -> Sequence[str | Table]:
        """A report in words and tables."""
