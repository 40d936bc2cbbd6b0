"""A trained model to encode with: the one way in which inference opens a run or a checkpoint.

Shapes: n inputs, D the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipkit.config import Config, FeatureText
from clipkit.config.file import load_config
from clipkit.data.inputs.pixels import EncodedImages
from clipkit.data.tokenizer import load_tokenizer
from clipkit.errors import CheckpointError, DataError, ModelError, first_line
from clipkit.hardware import choose_device
from clipkit.images.decode import fastest_decoder
from clipkit.images.header import BadImage
from clipkit.models import DualEncoder, build_model
from clipkit.runs.folder import CONFIG, WEIGHTS, find_checkpoint, read_meta
from clipkit.types import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode on its device, with its tokenizer, its config and what its checkpoint says of it."""

    model: DualEncoder
    tokenizer: Tokenizer | None
    config: Config
    meta: dict[str, Any]
    checkpoint: Path

    @property
    def step(self) -> int:
        return int(self.meta.get("step", 0))

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """(n, D) float32."""
        if self.tokenizer is None:
            raise ModelError(
                "this model was trained on stored text features: it cannot read texts",
                "compute the features with the encoder that made the stored ones",
            )
        tokenizer = self.tokenizer

        def encode(part: Sequence[str]) -> Tensor:
            return self.model.encode_text(tokenizer(part).to(self.model.device))

        return self._encode(encode, texts, batch_size=batch_size)

    def encode_images(self, images: Sequence[bytes | Path], *, batch_size: int = 64) -> np.ndarray:
        """(n, D) float32, of encoded images or files of them. Raises DataError for one that is no image."""
        pixels = EncodedImages(self.config.data, fastest_decoder())
        size_px = self.model.image_spec.size_px

        def encode(part: Sequence[bytes | Path]) -> Tensor:
            out_BHWC = np.empty((len(part), size_px, size_px, 3), dtype=np.uint8)
            for image, out in zip(part, out_BHWC, strict=True):
                _render(pixels, image, out)
            return self.model.encode_image(torch.from_numpy(out_BHWC).to(self.model.device))

        return self._encode(encode, images, batch_size=batch_size)

    def _encode(self, encode: Callable[[Sequence[T]], Tensor], inputs: Sequence[T], *, batch_size: int) -> np.ndarray:
        with torch.inference_mode():
            parts = [encode(part).float().cpu().numpy() for part in _batches(inputs, batch_size)]
        return np.concatenate([np.empty((0, self.model.embedding_dim), dtype=np.float32), *parts])


def _render(pixels: EncodedImages, image: bytes | Path, out: np.ndarray) -> None:
    name = f"`{image}`" if isinstance(image, Path) else "an image"
    try:
        data = image.read_bytes() if isinstance(image, Path) else image
        pixels.render(memoryview(data), None, None, out)
    except (OSError, BadImage) as error:
        raise DataError(f"{name} cannot be read as an image: {first_line(error)}", "is the file whole?") from error


def _batches(inputs: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def load(path: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Encoder:
    """The model of a run (its `best` or `last` checkpoint, or that of a step) or of a checkpoint folder."""
    folder = find_checkpoint(path, checkpoint)
    config = load_config(folder / CONFIG)
    meta = read_meta(folder)
    tokenizer = None
    if not isinstance(config.model.text, FeatureText):
        tokenizer = load_tokenizer(folder / "tokenizer", max_tokens=config.data.max_tokens, padding=config.data.padding)
    model = build_model(
        config.model, data=config.data, loss=config.loss, tokenizer=tokenizer, saved=meta["architecture"]
    )
    _load_weights(model, folder)
    return Encoder(model.to(choose_device(device)).eval(), tokenizer, config, meta, folder)


def _load_weights(model: DualEncoder, folder: Path) -> None:
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights of `{folder}` cannot be read: {first_line(error)}", "take another checkpoint of its run"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"the weights of `{folder}` are of another model than its config says: {detail[:300]}",
            f"`{folder / 'config.yaml'}` should be as training wrote it",
        ) from error
