"""Encoders whose output is stored in a column of vectors."""

from __future__ import annotations

from torch import nn

from clipkit.config import FeatureImage, FeatureText
from clipkit.data.inputs import Vectors
from clipkit.models.encoder import Encoder, EncoderContext


def build_image_features(section: FeatureImage, context: EncoderContext) -> Encoder:
    return _stored("image", section.dim, context.data.features.image)


def build_text_features(section: FeatureText, context: EncoderContext) -> Encoder:
    return _stored("text", section.dim, context.data.features.text)


def _stored(side: str, dim: int, column: str | None) -> Encoder:
    assert column is not None, "the config has checked it"
    name = f"{side}_features"
    vectors = Vectors(name, column, setting=f"data.features.{side}")
    return Encoder(nn.Identity(), dim, (name,), lambda seed: [vectors])
