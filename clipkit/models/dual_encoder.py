"""The dual encoder: images and texts to embeddings in one space.

Shapes: B rows, H and W pixels, F an encoder's width, D the embedding's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import (
    DataConfig,
    FeatureImage,
    FeatureText,
    Loss,
    ModelConfig,
    TimmImage,
    TransformersText,
)
from clipkit.errors import ModelError
from clipkit.models import image_encoder as images
from clipkit.models import text_encoder as texts
from clipkit.models.heads import Temperature, build_head
from clipkit.models.lora import add_adapters
from clipkit.types import Batch, ImageSpec, Tokenizer, Tokens

Architecture = dict[str, Any]  # see `architecture`


class DualEncoder(nn.Module):
    """Two encoders, a head on each, and the loss's temperature.

    Images come as (B, H, W, 3) uint8 and are normalised here, on their device, into `channels_last` memory.
    """

    pixel_scale: torch.Tensor
    pixel_shift: torch.Tensor

    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        image_head: nn.Module,
        text_head: nn.Module,
        temperature: Temperature,
        image_spec: ImageSpec,
        embedding_dim: int,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_head = image_head
        self.text_head = text_head
        self.temperature = temperature
        self.image_spec = image_spec
        self.embedding_dim = embedding_dim
        self.normalize = normalize
        mean, std = torch.tensor(image_spec.mean), torch.tensor(image_spec.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_scale.device

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels (B, H, W, 3) uint8, or stored features (B, F), to embeddings (B, D)."""
        if images.ndim == 4:
            images = self._normalize_pixels(images)
        return self._embed(self.image_head, self.image_encoder(images).flatten(1))

    def encode_text(self, texts: Tokens | torch.Tensor) -> torch.Tensor:
        """Tokens, or what the encoder gave for them before (B, F), to embeddings (B, D)."""
        features_BF = self.text_encoder(texts) if isinstance(texts, Tokens) else texts
        return self._embed(self.text_head, features_BF)

    def forward(self, images: torch.Tensor, texts: Tokens | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode_image(images), self.encode_text(texts)

    def _normalize_pixels(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)  # a view, and the memory is `channels_last` as it stands
        dtype = self.pixel_scale.dtype
        return torch.addcmul(self.pixel_shift, images_BCHW.to(dtype), self.pixel_scale)

    def _embed(self, head: nn.Module, features_BF: torch.Tensor) -> torch.Tensor:
        """The head is small, and a bfloat16 embedding too coarse to tell near images apart: both are in float32."""
        features_BF = features_BF.to(torch.promote_types(features_BF.dtype, torch.float32))
        with torch.autocast(features_BF.device.type, enabled=False):
            embedding_BD = head(features_BF)
            return F.normalize(embedding_BD, dim=-1) if self.normalize else embedding_BD


def inputs(batch: Batch) -> tuple[torch.Tensor, Tokens | torch.Tensor]:
    """What `DualEncoder.forward` takes, of a batch."""
    image = batch.images if batch.images is not None else batch.image_features
    text = batch.tokens if batch.tokens is not None else batch.text_features
    if image is None or text is None:
        raise ModelError("a batch for a dual encoder needs an image side and a text side")
    return image, text


def build_model(
    config: ModelConfig,
    *,
    data: DataConfig,
    loss: Loss,
    tokenizer: Tokenizer | None,
    saved: Architecture | None = None,
) -> DualEncoder:
    """The model that a config describes, with the temperature that `loss` needs.

    With a checkpoint's `saved` architecture no folder and no hub are needed, and every weight is random, for the
    checkpoint's to be loaded into.
    """
    image_encoder, image_dim, spec = _image_side(config.image, data=data, saved=saved)
    text_encoder, text_dim = _text_side(config.text, tokenizer=tokenizer, saved=saved)
    dim = config.embedding_dim
    model = DualEncoder(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        image_head=build_head(config.image_head or config.head, in_dim=image_dim, out_dim=dim, side="image"),
        text_head=build_head(config.text_head or config.head, in_dim=text_dim, out_dim=dim, side="text"),
        temperature=Temperature(loss),
        image_spec=spec,
        embedding_dim=dim,
        normalize=config.normalize,
    )
    if config.lora is not None:
        add_adapters(model, config.lora)
    return model


def _image_side(
    config: TimmImage | FeatureImage, *, data: DataConfig, saved: Architecture | None
) -> tuple[nn.Module, int, ImageSpec]:
    if isinstance(config, FeatureImage):
        return nn.Identity(), config.dim, ImageSpec(data.image_size)
    encoder = images.build_image_encoder(config, image_size=data.image_size, saved=saved and saved["image"])
    own = images.describe(encoder)
    spec = ImageSpec(data.image_size, data.mean or tuple(own["mean"]), data.std or tuple(own["std"]))
    return encoder, images.feature_dim(encoder, image_size=data.image_size), spec


def _text_side(
    config: TransformersText | FeatureText, *, tokenizer: Tokenizer | None, saved: Architecture | None
) -> tuple[nn.Module, int]:
    if isinstance(config, FeatureText):
        return nn.Identity(), config.dim
    if tokenizer is None:
        raise ModelError("a text encoder needs its tokenizer")
    encoder = texts.build_text_encoder(config, tokenizer=tokenizer, saved=saved and saved["text"])
    return encoder, encoder.dim


def architecture(model: DualEncoder) -> Architecture:
    """JSON that, with the config, builds this model again without any download."""
    image, text = model.image_encoder, model.text_encoder
    return {
        "image": None if isinstance(image, nn.Identity) else images.describe(image),
        "text": texts.describe(text) if isinstance(text, texts.TextEncoder) else None,
    }
