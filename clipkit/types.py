"""The contracts: dataclasses and protocols that several packages share.

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
Progress = Callable[[int, int], object]  # called with the number of items done, and of all items
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class Url:
    """An image that has yet to be fetched (`file:`, `http:` or `https:`)."""

    address: str


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a corpus with all its captions, as a reader found it."""

    image_id: str
    image: Path | bytes | Url
    captions: tuple[str, ...]
    source: str  # its place in the corpus: `captions.txt:17`, `shard-0003.tar/000017.jpg`
    split: str | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The pixels that an image encoder expects: their size, and the mean and standard deviation (of 0..1).

    `squash` ignores the aspect ratio, `crop` scales the shortest side and crops the centre, `pad` scales the longest
    side and pads with the mean colour. `fast` is OpenCV's interpolation; the others give Pillow's pixels.
    """

    size_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["fast", "bilinear", "bicubic"] = "fast"
    shortest_px: int | None = None  # for `crop`, if the shortest side is scaled to more than the square

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

    `tensors` has what the task's inputs read, each (B, …): `pixels` (B, H, W, 3) uint8 RGB, `input_ids` and
    `attention_mask` (B, T) int64, `image_features` and `text_features` (B, F) float, and tensors of plugins.
    """

    step: int
    epoch: int
    rows: np.ndarray  # (B,) int64: offsets into the dataset version that the run trains on
    image_ids: Sequence[str]
    captions: Sequence[str]  # the caption of each sample; empty if no input reads captions
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    num_replaced: int = 0  # rows that cannot be used and were replaced
    wait_s: float = 0.0  # how long the consumer waited for this batch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with `change` applied to each of its tensors."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss with its graph, and detached scalars on its device, which are read only when needed.

    `weight` is the number of targets that the loss averages: pairs, tokens or rows. Pieces of a batch and ranks count
    in proportion to it. Without targets the loss and the weight are 0.
    """

    loss: torch.Tensor
    weight: torch.Tensor | float
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


Features = tuple["torch.Tensor", ...]  # each (B, …), with one row per sample


class Task(Protocol):
    """A kind of training: everything that the trainer knows about it."""

    @property
    def model(self) -> nn.Module:
        """The model without wrappers; its parameters are optimized, and its state is saved."""

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        """Parameter groups of the optimizer: `fnmatch` patterns of names, which together cover the model."""

    @property
    def shards(self) -> Sequence[str]:
        """Submodules that FSDP wraps."""

    @property
    def from_scratch(self) -> Collection[str]:
        """Groups that start with random weights: `optim.freeze: {…: pretrained}` does not freeze them."""

    def inputs(self) -> Sequence[Input]:
        """What the task reads of each row."""

    def start_from(self, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
        """Start from a checkpoint's weights; raises CheckpointError if they do not fit."""

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of this rank's share or a piece of it, under autocast."""

    def after_step(self) -> None:
        """Clamp parameters to their bounds after the optimizer's step."""

    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        """Problems by name, with their likely cause, from the metrics of a step (with `loss`) or of an evaluation."""

    def prepare(self, progress: Progress = no_progress) -> None:
        """Compute what all batches need, once the weights are loaded and before the first step."""

    def tune(self, *, device_type: str, precision: str) -> None:
        """Choose the fastest kernels for the device."""

    def architecture(self) -> dict[str, Any]:
        """JSON that a checkpoint needs to rebuild the model without a download."""

    def save(self, folder: Path) -> None:
        """Write what a checkpoint needs besides the weights, such as a tokenizer."""


@runtime_checkable
class Cacheable(Protocol):
    """A task whose loss needs all features of a batch at once, and which can be trained with gradient caching."""

    def encode(self, batch: Batch) -> Features: ...
    def loss_of(self, features: Features, batch: Batch) -> LossOutput:
        """The loss of features from `encode`, which may be detached and concatenated from chunks."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of this process, and the number of processes."""

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
        """The default metric for the best checkpoint (`train.best`), by path: `text_to_image/recall@10`."""

    @property
    def shown(self) -> Sequence[str]:
        """The most important metrics, by path."""

    @property
    def metrics(self) -> Sequence[str]:
        """The paths of all its numbers, so that a wrong `train.best` is found at the start; empty if unknown."""

    @property
    def lower_is_better(self) -> frozenset[str]:
        """Names (the last parts of paths) of metrics for which lower is better."""

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        """Numbers by name, in any nesting; the same on every rank."""

    def report(self, model: nn.Module, *, picture: Path | None, progress: Progress = no_progress) -> dict[str, Any]:
        """The report of `clipkit eval`: the numbers, and how they were measured."""

    def describe(self, report: Mapping[str, Any]) -> Sequence[str | Table]:
        """A report as text and tables."""
