"""Kinds of encoders as their builders give them: what each reads of a row, and how wide its output is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import small_models
import torch
from small_models import ColourSection, data_config

from clipkit.config import FeatureText, TimmImage, TransformersText, builder_of, register
from clipkit.config.kinds import unregister
from clipkit.data.inputs import Pixels, Tokens, Vectors
from clipkit.models import Encoder, EncoderContext
from clipkit.models.encoder import NormalizePixels, encode
from clipkit.types import ImageSpec


def built(section: TimmImage | TransformersText | FeatureText | ColourSection, **data: object) -> Encoder:
    encoder: Encoder = builder_of(section)(section, EncoderContext(data_config(**data)))
    return encoder


def test_pixels_are_normalised() -> None:
    spec = ImageSpec(8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    found = NormalizePixels(spec)(pixels)
    torch.testing.assert_close(found, (pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_timm_reads_pixels_as_the_config_or_the_model_wants_them() -> None:
    encoder = built(TimmImage(name="resnet10t"))
    assert (encoder.reads, encoder.dim, encoder.tokenizer) == (("pixels",), 512, None)
    (pixels,) = encoder.inputs(0)
    assert isinstance(pixels, Pixels)
    assert pixels.spec == encoder.pixels == ImageSpec(64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert built(TimmImage(name="vit_tiny_patch16_224")).pixels == ImageSpec(64, mean=(0.5,) * 3, std=(0.5,) * 3)
    own = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize": "pad", "interpolation": "bicubic"}
    assert built(TimmImage(name="resnet10t"), **own).pixels == ImageSpec(64, **own)  # type: ignore[arg-type]


def test_transformers_read_tokens_of_their_tokenizer() -> None:
    encoder = built(TransformersText.model_validate(small_models.scratch_text()))
    (tokens,) = encoder.inputs(None)
    assert isinstance(tokens, Tokens)
    assert tuple(encoder.tokenizer(["a dog"])) == encoder.reads if encoder.tokenizer is not None else False
    assert encoder.dim == 32
    assert encode(encoder.module, encoder.reads, small_models.batch()).shape == (2, 32)


def test_stored_features_are_read_as_vectors() -> None:
    encoder = built(FeatureText(dim=6), features={"text": "stored"})
    (vectors,) = encoder.inputs(0)
    assert isinstance(vectors, Vectors)
    assert (encoder.reads, encoder.dim, list(encoder.module.parameters())) == (("text_features",), 6, [])


@pytest.fixture
def colours() -> Iterator[None]:
    register("image_encoder", ColourSection, "small_models:build_colours")
    yield
    unregister("small_models")


@pytest.mark.usefixtures("colours")
def test_a_kind_of_a_users_own_is_an_encoder_like_any_other() -> None:
    model, image, _ = small_models.build(image={"kind": "colours", "column": "rgb", "dim": 7}, embedding_dim=16)
    assert [type(input_) for input_ in image.inputs(0)] == [Vectors]
    assert model.image_head.weight.shape == (16, 7)
    assert model.encode_image({"colours": torch.rand(4, 3)}).shape == (4, 16)
    assert model.normalize_pixels is None
