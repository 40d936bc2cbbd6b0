"""A checkpoint's weights in a model that may differ from the one that wrote them."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import SIZE_PX, build, data_config

from clipkit.errors import CheckpointError
from clipkit.losses.base import Temperature
from clipkit.models import load_matching


def test_a_warm_start_takes_another_loss_but_no_other_model() -> None:
    source = build(temperature=Temperature(0.1, learn=True, learn_bias=True))[0]
    target = build(temperature=Temperature(0.07, learn=True))[0]
    load_matching(target, source.state_dict(), source="runs/a", may_differ=["temperature."])
    assert target.temperature.log_scale.item() == source.temperature.log_scale.item()
    torch.testing.assert_close(target.image_head.state_dict(), source.image_head.state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit .* 0 tensors differ in shape and 1 in name"):
        load_matching(target, source.state_dict(), source="runs/a")


def test_a_warm_start_takes_other_norms() -> None:
    source = build()[0]
    load_matching(
        build(image={"kind": "timm", "name": "resnet10t", "norm": "frozen"})[0], source.state_dict(), source="a"
    )


@pytest.mark.parametrize("other", [{"embedding_dim": 8}, {"head": {"kind": "residual"}}], ids=str)
def test_weights_of_another_model_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="`runs/a` does not fit this model"):
        load_matching(build(**other)[0], build()[0].state_dict(), source="runs/a")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256"])
def test_a_warm_start_takes_images_of_another_size(name: str, tmp_path: Path) -> None:
    image, larger = {"kind": "timm", "name": name}, data_config(image_size=96)
    source = build(image=image)[0]
    target = build(image=image, data=larger)[0]
    load_matching(target, source.state_dict(), source="runs/a")
    path = tmp_path / "weights.safetensors"
    encoder = timm.create_model(name, img_size=SIZE_PX, num_classes=0)
    encoder.load_state_dict(source.image_encoder.state_dict())
    save_file(encoder.state_dict(), path)
    published = build(image={**image, "weights": str(path)}, data=larger)[0]
    torch.testing.assert_close(target.image_encoder.state_dict(), published.image_encoder.state_dict())
    assert target.image_encoder.pos_embed.shape != source.image_encoder.pos_embed.shape
