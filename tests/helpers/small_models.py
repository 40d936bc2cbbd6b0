"""Small dual encoders without a dataset, and an image encoder of a user's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import torch
from torch import nn

from clipkit.config import DataConfig, DualEncoderConfig, Section
from clipkit.data.inputs import Vectors
from clipkit.data.tokenizer import FastTokenizer, load_tokenizer, train_tokenizer
from clipkit.losses.base import Temperature
from clipkit.models import DualEncoder, Encoder, EncoderContext, build_dual_encoder, build_encoders

CAPTIONS = ["a red circle is left of a blue star", "two dogs run over the wet grass"]
SIZE_PX = 64
TIMM = {"kind": "timm", "name": "resnet10t"}


@cache
def tokenizer_dir() -> Path:
    folder = Path(mkdtemp(prefix="clipkit-tokenizer-"))
    train_tokenizer(CAPTIONS, vocab_size=200, lowercase=True, max_tokens=16, padding="longest").save(folder)
    return folder


def words() -> FastTokenizer:
    return load_tokenizer(tokenizer_dir(), max_tokens=16, padding="longest")


def scratch_text() -> dict[str, Any]:
    architecture = {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0}
    return {"kind": "transformers", "architecture": architecture, "tokenizer": str(tokenizer_dir())}


def data_config(**options: object) -> DataConfig:
    return DataConfig.model_validate({"dataset": "unused.lance", "image_size": SIZE_PX, "max_tokens": 16, **options})


def build(
    *, data: DataConfig | None = None, architecture: Any = None, temperature: Temperature | None = None, **model: Any
) -> tuple[DualEncoder, Encoder, Encoder]:
    """A model, and the encoders that it is made of."""
    config = DualEncoderConfig.model_validate({"image": TIMM, "text": scratch_text(), **model})
    image, text = build_encoders(config, EncoderContext(data or data_config()), architecture)
    return build_dual_encoder(config, image, text, temperature or Temperature()), image, text


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    """Pixels and tokens."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8, generator=generator)
    return {"pixels": pixels, **words()((CAPTIONS * count)[:count])}


class ColourSection(Section):
    kind: Literal["colours"] = "colours"
    """A linear layer on a column of colours."""
    column: str
    """The column."""
    dim: int = 5
    """Width of the features."""


def build_colours(section: ColourSection, context: EncoderContext) -> Encoder:
    colours = Vectors("colours", section.column, setting="model.image.column")
    return Encoder(nn.Linear(3, section.dim), section.dim, ("colours",), lambda seed: [colours])
