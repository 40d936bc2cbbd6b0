"""The dual encoder: images and texts to embeddings in one space.

Shapes: B rows, F an encoder's width, D the embedding's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import DualEncoderConfig, builder_of
from clipkit.models.encoder import Encoder, EncoderContext, NormalizePixels, encode
from clipkit.models.heads import build_head
from clipkit.models.lora import add_adapters

IMAGE_FEATURES, TEXT_FEATURES = "image_features", "text_features"  # stored outputs of the encoders, in a batch


class DualEncoder(nn.Module):
    """Two encoders with a head each, and the temperature of the loss."""

    def __init__(
        self,
        *,
        image: Encoder,
        text: Encoder,
        image_head: nn.Module,
        text_head: nn.Module,
        temperature: nn.Module,
        embedding_dim: int,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.image_encoder = image.module
        self.text_encoder = text.module
        self.image_head = image_head
        self.text_head = text_head
        self.temperature = temperature
        self.normalize_pixels = NormalizePixels(image.pixels) if image.pixels is not None else None
        self.embedding_dim = embedding_dim
        self.normalize = normalize
        self._image_reads, self._text_reads = image.reads, text.reads

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode_image(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The image encoder's inputs, or its stored output (`image_features`), to embeddings (B, D)."""
        features_BF = tensors.get(IMAGE_FEATURES)
        if features_BF is None:
            normalize = self.normalize_pixels
            features_BF = encode(self.image_encoder, self._image_reads, tensors, normalize_pixels=normalize)
        return self._embed(self.image_head, features_BF)

    def encode_text(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The text encoder's inputs, or its stored output (`text_features`), to embeddings (B, D)."""
        features_BF = tensors.get(TEXT_FEATURES)
        if features_BF is None:
            features_BF = encode(self.text_encoder, self._text_reads, tensors)
        return self._embed(self.text_head, features_BF)

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode_image(tensors), self.encode_text(tensors)

    def _embed(self, head: nn.Module, features_BF: torch.Tensor) -> torch.Tensor:
        """Head and normalisation in float32: the head is small, and bfloat16 is too coarse for similar images."""
        features_BF = features_BF.to(torch.promote_types(features_BF.dtype, torch.float32))
        with torch.autocast(features_BF.device.type, enabled=False):
            embedding_BD = head(features_BF)
            return F.normalize(embedding_BD, dim=-1) if self.normalize else embedding_BD


def build_encoders(
    config: DualEncoderConfig, context: EncoderContext, architecture: Mapping[str, Any] | None
) -> tuple[Encoder, Encoder]:
    """The image and the text encoder. With a checkpoint's `architecture`, nothing is downloaded."""
    sides = []
    for side, section in (("image", config.image), ("text", config.text)):
        saved = architecture[side] if architecture is not None else None
        own = EncoderContext(context.data, context.training, context.checkpoint, saved)
        sides.append(builder_of(section)(section, own))
    return sides[0], sides[1]


def build_dual_encoder(config: DualEncoderConfig, image: Encoder, text: Encoder, temperature: nn.Module) -> DualEncoder:
    """The model of two encoders, with projection heads and, if configured, adapters."""
    dim = config.embedding_dim
    model = DualEncoder(
        image=image,
        text=text,
        image_head=build_head(config.image_head or config.head, in_dim=image.dim, out_dim=dim, side="image"),
        text_head=build_head(config.text_head or config.head, in_dim=text.dim, out_dim=dim, side="text"),
        temperature=temperature,
        embedding_dim=dim,
        normalize=config.normalize,
    )
    if config.lora is not None:
        add_adapters(model, config.lora)
    return model
