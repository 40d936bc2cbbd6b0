"""The dual encoder: images and texts to embeddings in one space.

Shapes: B rows, H and W pixels, F an encoder's width, D the embedding's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import FeatureImage, FeatureText, Identity, Loss, ModelConfig
from clipkit.errors import ModelError
from clipkit.models import images, texts
from clipkit.models.heads import Temperature, build_head
from clipkit.models.lora import add_adapters
from clipkit.types import Batch, ImageSpec, Tokenizer, Tokens

RGB = tuple[float, float, float]


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
        """Tokens, or stored features (B, F), to embeddings (B, D)."""
        return self._embed(self.text_head, self.text_encoder(texts))

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
    tokenizer: Tokenizer | None,
    image_size: int,
    mean: RGB | None = None,
    std: RGB | None = None,
    loss: Loss | None = None,
    pretrained: bool = True,
    architecture: dict[str, Any] | None = None,
) -> DualEncoder:
    """The model that a config describes.

    With `pretrained=False` every weight is random, for a checkpoint's to be loaded into; with a checkpoint's
    `architecture` nothing but the config is needed, no folder and no hub. The temperature is what `loss` needs.
    """
    saved = architecture or {}
    image_encoder, image_dim, spec = _image_side(
        config, image_size=image_size, mean=mean, std=std, pretrained=pretrained, saved=saved.get("image")
    )
    text_encoder, text_dim = _text_side(config, tokenizer=tokenizer, pretrained=pretrained, saved=saved.get("text"))
    dim = config.embedding_dim
    model = DualEncoder(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        image_head=build_head(config.image_head or config.head, in_dim=image_dim, out_dim=dim, side="image"),
        text_head=build_head(config.text_head or config.head, in_dim=text_dim, out_dim=dim, side="text"),
        temperature=Temperature(loss or Identity()),
        image_spec=spec,
        embedding_dim=dim,
        normalize=config.normalize,
    )
    if config.lora is not None:
        add_adapters(model, config.lora)
    return model


def _image_side(
    config: ModelConfig,
    *,
    image_size: int,
    mean: RGB | None,
    std: RGB | None,
    pretrained: bool,
    saved: dict[str, Any] | None,
) -> tuple[nn.Module, int, ImageSpec]:
    if isinstance(config.image, FeatureImage):
        return nn.Identity(), config.image.dim, ImageSpec(image_size)
    encoder = images.build_image_encoder(config.image, image_size=image_size, pretrained=pretrained, architecture=saved)
    own = images.describe(encoder)
    spec = ImageSpec(image_size, mean or tuple(own["mean"]), std or tuple(own["std"]))
    return encoder, images.feature_dim(encoder, image_size=image_size), spec


def _text_side(
    config: ModelConfig, *, tokenizer: Tokenizer | None, pretrained: bool, saved: dict[str, Any] | None
) -> tuple[nn.Module, int]:
    if isinstance(config.text, FeatureText):
        return nn.Identity(), config.text.dim
    if tokenizer is None:
        raise ModelError("a text encoder needs its tokenizer")
    encoder = texts.build_text_encoder(config.text, tokenizer=tokenizer, pretrained=pretrained, architecture=saved)
    return encoder, encoder.dim


def architecture(model: DualEncoder, config: ModelConfig) -> dict[str, Any]:
    """JSON that, with the config, builds this model again without any download."""
    saved: dict[str, Any] = {}
    if not isinstance(config.image, FeatureImage):
        saved["image"] = images.describe(model.image_encoder)
    if isinstance(model.text_encoder, texts.TextEncoder):
        saved["text"] = texts.describe(model.text_encoder)
    return saved
