"""The dataclasses that cross module borders.

Shapes: B rows of a batch, H and W pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

Scalar = str | int | float | bool | None
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


@dataclass(frozen=True, slots=True)
class Tokens:
    """Padded token ids and their mask, both (B, T) int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
        return Tokens(change(self.input_ids), change(self.attention_mask))

    def to(self, device: torch.device) -> Tokens:
        return self.map(lambda tensor: tensor.to(device))


class Tokenizer(Protocol):
    """Texts to `Tokens`; built in `data`, used by `data` and `encoder`, known to `models` by its sizes alone."""

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
    def __call__(self, texts: Sequence[str]) -> Tokens: ...
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...  # (T,) int32 each, not padded
    def pad(self, ids: Sequence[np.ndarray]) -> Tokens: ...
    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch, on the CPU (pinned) or on a device.

    `images` is (B, H, W, 3) uint8, RGB; the model normalises it. `image_features` and `text_features` are (B, F)
    float, for encoders whose output is stored in the dataset.
    """

    step: int
    epoch: int
    rows: np.ndarray  # (B,) int64: offsets into the dataset version that the run trains on
    image_ids: Sequence[str]
    captions: Sequence[str]
    images: torch.Tensor | None = None
    tokens: Tokens | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    num_replaced: int = 0  # rows that could not be decoded and that another row stands in for
    wait_s: float = 0.0  # how long the consumer waited for this batch

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with each of its tensors changed."""

        def changed(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else change(tensor)

        return replace(
            self,
            images=changed(self.images),
            tokens=None if self.tokens is None else self.tokens.map(change),
            image_features=changed(self.image_features),
            text_features=changed(self.text_features),
        )


class Gallery(Protocol):
    """Rows to evaluate on: every image once and every one of its captions, without augmentation."""

    @property
    def rows(self) -> np.ndarray: ...  # (num_images,) int64, ascending: offsets into the dataset version
    @property
    def num_images(self) -> int: ...
    @property
    def num_captions(self) -> int: ...
    @property
    def caption_to_image(self) -> np.ndarray: ...  # (num_captions,) int64: a position among `rows`
    def image_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]: ...
    def text_batches(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[np.ndarray, Tokens | torch.Tensor]]:
        """Positions of captions, with their tokens or stored features."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss with its graph, and detached scalars on its device that are read when somebody looks at them."""

    loss: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Task(Protocol):
    """A kind of training, as the trainer knows it.

    `loss(encode(batch))` is one forward pass. Gradient caching cuts between the two: `loss` works as well on
    features that were detached and put together from chunks. On several ranks the mean of the ranks' losses is
    the loss of the global batch, so averaged gradients (as DDP makes them) are its gradient.
    """

    @property
    def model(self) -> nn.Module:
        """The bare model: its parameters and its state are what is optimized and saved."""

    def encode(self, batch: Batch) -> tuple[torch.Tensor, ...]: ...  # each (B, D)
    def loss(self, features: tuple[torch.Tensor, ...]) -> LossOutput: ...
    def after_step(self) -> None:
        """Put parameters back into their bounds after the optimizer has moved them."""

    def evaluate(self, gallery: Gallery, *, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Any]: ...
    def alarms(self, metrics: Mapping[str, float], *, batch_size: int) -> Mapping[str, str]:
        """What is going wrong, by name, with its likely cause: from a step's metrics and `loss`, or a validation's."""

    def architecture(self) -> dict[str, Any]:
        """JSON that a checkpoint must hold to build the model again without any download."""
