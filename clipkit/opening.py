"""Opening the trained model of a run or a checkpoint.

Shapes: n inputs, D the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from clipkit.config import Config, DataConfig
from clipkit.config.file import load_run_config
from clipkit.data.inputs import Pixels
from clipkit.errors import DataError, ModelError, first_line
from clipkit.hardware import choose_device
from clipkit.images.header import BadImage
from clipkit.models import DualEncoder
from clipkit.runs.checkpoint import check_fits, read_meta, read_weights
from clipkit.runs.folder import CHECKPOINTS, CONFIG, find_checkpoint
from clipkit.tasks import TaskContext, build_task
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.types import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A trained model in evaluation mode on its device, with its config and its checkpoint's metadata."""

    task: Task
    config: Config
    task_data: DataConfig  # as the task was built: the run's, without the pixel cache
    meta: Mapping[str, Any]
    checkpoint: Path

    @property
    def module(self) -> nn.Module:
        return self.task.model

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def step(self) -> int:
        return int(self.meta.get("step", 0))

    def encode_texts(self, texts: str | Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """(n, D) float32; one text is a batch of one."""
        texts = [texts] if isinstance(texts, str) else texts
        task = self._dual_encoder()
        tokenizer = task.text.tokenizer
        if tokenizer is None:
            raise ModelError(
                "this model was trained on stored text features, so it cannot encode texts",
                "compute features with the encoder that made the stored ones",
            )
        return self._encode(tokenizer, task.model.encode_text, texts, batch_size=batch_size)

    def encode_images(self, images: Sequence[bytes | str | Path], *, batch_size: int = 64) -> np.ndarray:
        """(n, D) float32, of encoded images or paths of files. Raises DataError for an image that cannot be read."""
        task = self._dual_encoder()
        pixels = [input_ for input_ in task.image.inputs(None) if isinstance(input_, Pixels)]
        if not pixels:
            raise ModelError(
                "this model was trained on stored image features, so it cannot encode images",
                "compute features with the encoder that made the stored ones",
            )

        def read(part: Sequence[bytes | str | Path]) -> dict[str, Tensor]:
            size_px = pixels[0].spec.size_px
            out_BHWC = np.empty((len(part), size_px, size_px, 3), dtype=np.uint8)
            for image, out in zip(part, out_BHWC, strict=True):
                _render(pixels[0], image, out)
            return {"pixels": torch.from_numpy(out_BHWC)}

        return self._encode(read, task.model.encode_image, images, batch_size=batch_size)

    def _dual_encoder(self) -> ContrastiveTask:
        if not isinstance(self.task, ContrastiveTask):
            raise ModelError(f"the model `{self.checkpoint}` does not embed images and texts")
        return self.task

    def _encode(
        self,
        read: Callable[[Sequence[T]], Mapping[str, Tensor]],
        encode: Callable[[Mapping[str, Tensor]], Tensor],
        inputs: Sequence[T],
        *,
        batch_size: int,
    ) -> np.ndarray:
        model = self.module
        assert isinstance(model, DualEncoder)
        parts = [np.empty((0, model.embedding_dim), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(inputs), batch_size):
                part = inputs[start : start + batch_size]
                tensors = {name: tensor.to(self.device) for name, tensor in read(part).items()}
                parts.append(encode(tensors).float().cpu().numpy())
        return np.concatenate(parts)


def _render(pixels: Pixels, image: bytes | str | Path, out: np.ndarray) -> None:
    name = "an image" if isinstance(image, bytes) else f"`{image}`"
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        pixels.render(memoryview(data), None, None, out)
    except (OSError, BadImage) as error:
        raise DataError(f"{name} cannot be read as an image: {first_line(error)}", "is the file complete?") from error


def open_model(source: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Model:
    """The model of a run (its `best` or `last` checkpoint, or that of a step) or of a checkpoint folder."""
    folder = find_checkpoint(source, checkpoint)
    meta = read_meta(folder)
    run_folder = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    config = load_run_config(folder / CONFIG, recorded=meta.get("plugins", ()), run_folder=run_folder)
    # Other datasets may have no pixel cache.
    data = config.data.model_copy(update={"cache": None})
    task = build_task(TaskContext(config.model_copy(update={"data": data}), checkpoint=folder))
    weights = read_weights(folder)
    check_fits(weights, task.model, checkpoint=folder)
    task.model.load_state_dict(weights)
    task.model.to(choose_device(device)).eval()
    return Model(task, config, data, meta, folder)
