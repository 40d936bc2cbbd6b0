"""Image encoders: what the config asks of timm, and what the errors say when it cannot be built."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from clipkit.config import TimmImage
from clipkit.errors import ModelError
from clipkit.models.image_encoder import build_image_encoder, describe, feature_dim

NAME = "resnet10t"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "dim"),
    [
        (NAME, {}, 512),
        (NAME, {"num_classes": 1000}, 1000),
        (NAME, {"global_pool": "max"}, 512),
        (NAME, {"global_pool": "none"}, 512 * 2 * 2),
        ("convnext_atto", {"drop_path_rate": 0.1}, 320),
        ("mobilenetv3_small_050", {}, 1024),
        ("vit_tiny_patch16_224", {"drop_rate": 0.1}, 192),
    ],
)
def test_features_are_as_wide_as_said(name: str, options: dict[str, object], dim: int) -> None:
    config = TimmImage.model_validate({"name": name, **options})
    encoder = build_image_encoder(config, image_size=64)
    assert feature_dim(encoder, image_size=64) == dim
    assert encoder(torch.rand(2, 3, 64, 64)).flatten(1).shape == (2, dim)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("num_classes", [0, 1000])
def test_local_weights_are_loaded_whole(tmp_path: Path, suffix: str, num_classes: int) -> None:
    source = timm.create_model(NAME)
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    encoder = build_image_encoder(TimmImage(name=NAME, weights=str(path), num_classes=num_classes), image_size=64)
    loaded = encoder.state_dict()
    assert len(loaded) == len(source.state_dict()) - (0 if num_classes else 2)
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, source.state_dict()[name], msg=name)
    assert not any(isinstance(value, dict) and "conv1.weight" in value for value in encoder.pretrained_cfg.values())


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    encoder = build_image_encoder(TimmImage(name=name, weights=str(path)), image_size=64)
    assert encoder.pos_embed.shape[1] == (64 // 16) ** 2 + 1


def test_a_local_folder_is_a_name(tmp_path: Path) -> None:
    source = timm.create_model(NAME, num_classes=0)
    timm.models.save_for_hf(source, str(tmp_path), safe_serialization=True)
    encoder = build_image_encoder(TimmImage(name=str(tmp_path), pretrained=True), image_size=64)
    torch.testing.assert_close(encoder.state_dict(), source.state_dict())
    again = build_image_encoder(TimmImage(name="/gone", pretrained=True), image_size=64, saved=describe(encoder))
    assert again.state_dict().keys() == source.state_dict().keys()


def test_a_local_folder_keeps_its_arguments_and_takes_any_size(tmp_path: Path) -> None:
    """What the folder's config adds is kept in a checkpoint; position embeddings are resampled here too."""
    name, args = "vit_tiny_patch16_224", {"img_size": 96, "global_pool": "avg"}
    source = timm.create_model(name, num_classes=0, **args)
    timm.models.save_for_hf(source, str(tmp_path), model_args=args, safe_serialization=True)
    config = TimmImage(name=str(tmp_path), pretrained=True)
    encoder = build_image_encoder(config, image_size=64)
    assert feature_dim(encoder, image_size=64) == 192
    torch.testing.assert_close(encoder.blocks.state_dict(), source.blocks.state_dict())
    saved = json.loads(json.dumps(describe(encoder)))
    again = build_image_encoder(config, image_size=64, saved=saved)
    again.load_state_dict(encoder.state_dict())
    assert again.global_pool == "avg"
    assert describe(again) == saved


def test_a_name_of_nothing_says_what_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder `timm/resnet18`") as caught:
        build_image_encoder(TimmImage(name="timm/resnet18"), image_size=64)
    assert "hf-hub:timm/resnet18" in caught.value.hint
    with pytest.raises(ModelError, match="is not a timm model"):
        build_image_encoder(TimmImage(name=str(tmp_path)), image_size=64)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "convnext_atto_in1k.safetensors"
    save_file(timm.create_model("convnext_atto").state_dict(), path)
    with pytest.raises(ModelError, match=rf"does not hold the weights of `{NAME}`: of its \d+ tensors") as caught:
        build_image_encoder(TimmImage(name=NAME, weights=str(path)), image_size=64)
    assert "`" in caught.value.hint
    build_image_encoder(
        TimmImage(name=re.findall(r"name: (\w+)", caught.value.hint)[0], weights=str(path)), image_size=64
    )


def test_a_pickle_with_code_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        build_image_encoder(TimmImage(name=NAME, weights=str(path)), image_size=64)


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_torn_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"torn\.safetensors"):
        build_image_encoder(TimmImage(name=NAME, weights=str(path)), image_size=64)
    with pytest.raises(ModelError, match="no file"):
        build_image_encoder(TimmImage(name=NAME, weights=str(tmp_path / "none")), image_size=64)


@pytest.mark.usefixtures("no_network")
def test_no_network_is_said_at_once() -> None:
    with pytest.raises(ModelError, match="resnet18") as caught:
        build_image_encoder(TimmImage(name="resnet18", pretrained=True), image_size=64)
    assert "pretrained: false" in caught.value.hint
    assert "model.image.weights" in caught.value.hint


def test_a_misspelt_name_gets_suggestions() -> None:
    with pytest.raises(ModelError, match="resnet5O") as caught:
        build_image_encoder(TimmImage(name="resnet5O"), image_size=64)
    assert "`resnet50`" in caught.value.hint


def test_options_and_sizes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ModelError, match="drop_path_rate"):
        build_image_encoder(TimmImage(name="vgg11", drop_path_rate=0.1), image_size=64)
    encoder = build_image_encoder(TimmImage(name="vgg11", num_classes=10), image_size=16)
    with pytest.raises(ModelError, match="16 px"):
        feature_dim(encoder, image_size=16)


def test_frozen_norms_keep_statistics_and_have_no_parameters() -> None:
    encoder = build_image_encoder(TimmImage(name=NAME, norm="frozen"), image_size=64).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(torch.rand(4, 3, 64, 64)).sum().backward()
    torch.testing.assert_close(encoder.state_dict(), before)
    assert not any("bn" in name for name, _ in encoder.named_parameters())


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    """The second forward of activation checkpointing must not count the batch in BatchNorm a second time."""
    torch.manual_seed(0)
    plain = build_image_encoder(TimmImage(name=NAME), image_size=64).train()
    saving = build_image_encoder(TimmImage(name=NAME, checkpointing=True), image_size=64).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.rand(4, 3, 64, 64)
    for _ in range(2):
        for encoder in (plain, saving):
            encoder(images).square().sum().backward()
    torch.testing.assert_close(saving.state_dict(), plain.state_dict())
    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-3, msg=name)
