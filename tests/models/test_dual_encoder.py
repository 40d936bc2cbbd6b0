"""The dual encoder put together."""

import json

import pytest
import torch
from small_models import batch, build, data_config
from torch.nn import functional as F


def test_a_checkpoint_keeps_the_normalisation_of_its_weights() -> None:
    """Of one architecture timm has weights that want other means: the name in a checkpoint does not tell them apart."""
    section = {"kind": "timm", "name": "vit_small_patch16_224.dino"}
    _, image, text = build(image=section)
    assert image.pixels is not None
    assert image.pixels.mean == (0.485, 0.456, 0.406)
    saved = json.loads(json.dumps({"image": image.architecture, "text": text.architecture}))
    _, image_again, text_again = build(image=section, architecture=saved)
    assert image_again.pixels == image.pixels
    assert (image_again.architecture, text_again.architecture) == (image.architecture, text.architecture)


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_have_length_1_only_where_asked(normalize: bool) -> None:
    model = build(normalize=normalize)[0].eval()
    for embedding in model(batch()):
        assert embedding.shape == (2, 256)
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-5) == normalize


def test_autocast_gives_float32_embeddings() -> None:
    model = build()[0].eval()
    plain = model(batch())
    with torch.autocast("cpu", torch.bfloat16):
        coarse = model(batch())
    for a, b in zip(plain, coarse, strict=True):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a, b).min() > 0.99


def test_stored_features_take_an_encoders_place() -> None:
    """A frozen text side of stored vectors, a linear layer on stored image features: nothing else is in the model."""
    model, image, text = build(
        data=data_config(features={"image": "a", "text": "b"}),
        image={"kind": "features", "dim": 20},
        text={"kind": "features", "dim": 6},
        text_head={"kind": "none"},
        embedding_dim=6,
    )
    embedded = model({"image_features": torch.randn(3, 20), "text_features": torch.randn(3, 6)})
    assert [embedding.shape for embedding in embedded] == [(3, 6), (3, 6)]
    assert [name for name, _ in model.named_parameters() if not name.startswith("temperature")] == ["image_head.weight"]
    assert (image.architecture, text.architecture) == (None, None)
