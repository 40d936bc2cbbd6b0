"""The images and captions of some rows, each embedded once, with the work shared among ranks.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from clipkit.distributed import gather_arrays
from clipkit.errors import ModelError
from clipkit.evaluators.base import EvaluatorContext
from clipkit.models import DualEncoder
from clipkit.models.modes import evaluating
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.types import Progress, Ranks, no_progress

log = logging.getLogger(__name__)


class Gallery:
    """Rows to retrieve from: each image once, with all of its captions."""

    def __init__(self, context: EvaluatorContext) -> None:
        assert isinstance(context.task, ContrastiveTask), "the evaluator checks it"
        self._context = context
        self._image_inputs = context.task.image.inputs(None)
        self._tokenizer = context.task.text.tokenizer
        rows = context.rows
        if context.data.features.text is not None:  # each row has one stored vector instead of captions
            self._captions: list[str] = []
            per_image = np.ones(len(rows), dtype=np.int64)
        else:
            captions = context.dataset.take_captions(rows)
            self._captions = [caption for of_image in captions for caption in of_image]
            per_image = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
        self.caption_to_image = np.repeat(np.arange(len(rows), dtype=np.int64), per_image)

    @property
    def num_images(self) -> int:
        return len(self._context.rows)

    @property
    def num_captions(self) -> int:
        return len(self.caption_to_image)

    def embed(self, model: DualEncoder, ranks: Ranks, progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
        """Images (N, D) and captions (M, D) in float32 on the model's device, all of them on every rank."""
        images, texts = _Rows(), _Rows()
        total, num_undecodable = self.num_images + self.num_captions, 0
        with evaluating(model):
            for batch in self._context.batches(self._image_inputs, ranks, device=model.device):
                images.add(np.searchsorted(self._context.rows, batch.rows), model.encode_image(batch.tensors))
                num_undecodable += batch.num_replaced
                progress(images.num_rows, total)
            for places, tensors in self._texts(ranks):
                on_device = {name: tensor.to(model.device) for name, tensor in tensors.items()}
                texts.add(places, model.encode_text(on_device))
                progress(images.num_rows + texts.num_rows, total)
            if num_undecodable:
                log.warning("%d images cannot be decoded; black images are measured instead", num_undecodable)
            dim = model.embedding_dim
            return (
                images.whole(self.num_images, dim=dim, device=model.device),
                texts.whole(self.num_captions, dim=dim, device=model.device),
            )

    def _texts(self, ranks: Ranks) -> Iterator[tuple[np.ndarray, Mapping[str, Tensor]]]:
        """Positions of a rank's captions, with their tokens or stored features."""
        start, end = (self.num_captions * part // ranks.world for part in (ranks.rank, ranks.rank + 1))
        size = self._context.batch_size
        for first in range(start, end, size):
            places = np.arange(first, min(first + size, end), dtype=np.int64)
            yield places, self._read(places)

    def _read(self, places: np.ndarray) -> Mapping[str, Tensor]:
        column = self._context.data.features.text
        if column is not None:
            vectors = self._context.dataset.take_vectors(self._context.rows[places], column)
            return {"text_features": torch.from_numpy(vectors.copy())}
        if self._tokenizer is None:
            raise ModelError("captions cannot be evaluated without a tokenizer")
        return self._tokenizer([self._captions[place] for place in places.tolist()])


class _Rows:
    """Embeddings with their positions, collected on this rank and then gathered from all ranks."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._places: list[Tensor] = []
        self._embeddings: list[Tensor] = []

    def add(self, places: np.ndarray, embedding_BD: Tensor) -> None:
        self.num_rows += len(places)
        self._places.append(torch.from_numpy(places.astype(np.int64)))
        self._embeddings.append(embedding_BD.float())

    def whole(self, count: int, *, dim: int, device: torch.device) -> Tensor:
        own = torch.cat([torch.empty(0, dtype=torch.int64), *self._places]).to(device)
        places = torch.cat(gather_arrays(own))
        embeddings = torch.cat(gather_arrays(torch.cat([torch.empty(0, dim, device=device), *self._embeddings])))
        result = torch.full((count, dim), torch.nan, device=device)  # a row that no rank embedded counts as wrong
        result[places] = embeddings
        return result
