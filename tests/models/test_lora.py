"""Low-rank adapters."""

import json

import pytest
import torch
from small_models import batch, build

from clipkit.errors import ModelError
from clipkit.models import load_matching

VIT = {"kind": "timm", "name": "vit_tiny_patch16_224"}


def test_adapters_alone_are_trained() -> None:
    adapted = {"image": VIT, "lora": {"rank": 2, "encoders": ["image_encoder"]}}
    plain = build(image=VIT)[0].eval()
    model, image, text = build(**adapted)
    load_matching(model.eval(), plain.state_dict(), source="plain")
    torch.testing.assert_close(model(batch()), plain(batch()))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in trained if name.startswith("image_encoder."))
    assert any(name.startswith("image_encoder.") for name in trained)
    assert any(name.startswith("text_encoder.") for name in trained)
    saved = json.loads(json.dumps({"image": image.architecture, "text": text.architecture}))
    build(**adapted, architecture=saved)[0].load_state_dict(model.state_dict())


def test_adapters_need_a_linear_layer() -> None:
    with pytest.raises(ModelError, match="image_encoder has no linear layer"):
        build(lora={"encoders": ["image_encoder"]})
