"""Embedding a gallery: every image and every caption once, shared out among ranks.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from clipkit.data.device import prefetch_to_device
from clipkit.distributed import gather_arrays
from clipkit.models import DualEncoder
from clipkit.types import Gallery

log = logging.getLogger(__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; each module's own mode comes back (a frozen encoder stays as it was)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def embed_gallery(
    model: DualEncoder,
    gallery: Gallery,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """Images (N, D) and captions (M, D) in float32 on the model's device, whole on every rank.

    `progress` is told how many images or captions each batch had.
    """
    images, texts = _Rows(), _Rows()
    num_undecodable = 0
    with evaluating(model):
        for batch in prefetch_to_device(gallery.image_batches(batch_size, rank, world), model.device):
            pixels = batch.images if batch.images is not None else batch.image_features
            assert pixels is not None
            images.add(np.searchsorted(gallery.rows, batch.rows), model.encode_image(pixels))
            num_undecodable += batch.num_replaced
            progress(len(batch))
        for positions, captions in gallery.text_batches(batch_size, rank, world):
            texts.add(positions, model.encode_text(captions.to(model.device)))
            progress(len(positions))
        if num_undecodable:
            log.warning("%d images cannot be decoded: they are measured as if they were black", num_undecodable)
        dim = model.embedding_dim
        return (
            images.whole(gallery.num_images, dim=dim, device=model.device),
            texts.whole(gallery.num_captions, dim=dim, device=model.device),
        )


class _Rows:
    """Embeddings with their positions, collected on this rank and put together from all."""

    def __init__(self) -> None:
        self.positions: list[Tensor] = []
        self.embeddings: list[Tensor] = []

    def add(self, positions: np.ndarray, embedding_BD: Tensor) -> None:
        self.positions.append(torch.from_numpy(positions.astype(np.int64)))
        self.embeddings.append(embedding_BD.float())

    def whole(self, count: int, *, dim: int, device: torch.device) -> Tensor:
        own = torch.cat([torch.empty(0, dtype=torch.int64), *self.positions]).to(device)
        positions = torch.cat(gather_arrays(own))
        embeddings = torch.cat(gather_arrays(torch.cat([torch.empty(0, dim, device=device), *self.embeddings])))
        result = torch.full((count, dim), torch.nan, device=device)  # a row that no rank had counts as wrong
        result[positions] = embeddings
        return result
