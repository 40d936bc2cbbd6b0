"""The dual encoder put together: pixels, heads, recipes, temperature, adapters, warm starts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from clipkit.config import (
    DataConfig,
    InfoNCE,
    LinearHead,
    LoraConfig,
    Loss,
    ModelConfig,
    NoHead,
    Ranking,
    ResidualHead,
    Sigmoid,
    SoftTargets,
)
from clipkit.data.tokenizer import FastTokenizer, train_tokenizer
from clipkit.errors import CheckpointError, ModelError
from clipkit.losses.base import Temperature
from clipkit.models import DualEncoder, build_model, load_matching
from clipkit.models.dual_encoder import architecture
from clipkit.models.heads import build_head

CAPTIONS = ["a red circle is left of a blue star", "two dogs run over the wet grass"]
SIZE = 64


@pytest.fixture(scope="module")
def words() -> FastTokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=200, lowercase=True, max_tokens=16, padding="longest")


def model_config(**options: object) -> ModelConfig:
    text = {"kind": "transformers", "architecture": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0}}
    return ModelConfig.model_validate({"image": {"kind": "timm", "name": "resnet10t"}, "text": text, **options})


def images(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def build(
    words: FastTokenizer | None,
    config: ModelConfig | None = None,
    *,
    loss: Loss = InfoNCE(),
    saved: dict[str, Any] | None = None,
    **data: object,
) -> DualEncoder:
    options = DataConfig.model_validate({"dataset": "unused.lance", "image_size": SIZE, **data})
    return build_model(config or model_config(), data=options, loss=loss, tokenizer=words, saved=saved)


def test_pixels_are_normalised_as_usual(words: FastTokenizer) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    model = build(words, mean=mean, std=std)
    expected = (images().permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    actual = model._normalize_pixels(images())
    torch.testing.assert_close(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert (model.image_spec.size_px, model.image_spec.mean, model.image_spec.std) == (SIZE, mean, std)


def test_mean_and_deviation_are_the_encoders_own_where_not_given(words: FastTokenizer) -> None:
    vit = model_config(image={"kind": "timm", "name": "vit_tiny_patch16_224"})
    assert build(words, vit).image_spec.mean == (0.5, 0.5, 0.5)
    assert build(words).image_spec.mean == (0.485, 0.456, 0.406)


def test_a_checkpoint_keeps_the_normalisation_of_its_weights(words: FastTokenizer) -> None:
    """Of one architecture timm has weights that want other means: the name in a checkpoint does not tell them apart."""
    config = model_config(image={"kind": "timm", "name": "vit_small_patch16_224.dino"})
    model = build(words, config)
    assert model.image_spec.mean == (0.485, 0.456, 0.406)
    again = build(words, config, saved=json.loads(json.dumps(architecture(model))))
    assert again.image_spec == model.image_spec
    assert architecture(again) == architecture(model)


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_have_length_1_only_where_asked(words: FastTokenizer, normalize: bool) -> None:
    model = build(words, model_config(normalize=normalize)).eval()
    for embedding in model(images(), words(CAPTIONS)):
        assert embedding.shape == (2, 256)
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-5) == normalize


def test_autocast_gives_float32_embeddings(words: FastTokenizer) -> None:
    model = build(words).eval()
    plain = model(images(), words(CAPTIONS))
    with torch.autocast("cpu", torch.bfloat16):
        coarse = model(images(), words(CAPTIONS))
    for a, b in zip(plain, coarse, strict=True):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a, b).min() > 0.99


def test_stored_features_take_an_encoders_place() -> None:
    """A frozen text side of stored vectors, a linear layer on stored image features: nothing else is in the model."""
    config = model_config(
        image={"kind": "features", "dim": 20},
        text={"kind": "features", "dim": 6},
        text_head={"kind": "none"},
        embedding_dim=6,
    )
    model = build(None, config, loss=Ranking())
    image, text = model(torch.randn(3, 20), torch.randn(3, 6))
    assert image.shape == text.shape == (3, 6)
    assert [name for name, _ in model.named_parameters()] == ["image_head.weight"]
    assert architecture(model) == {"image": None, "text": None}


def test_residual_head_is_the_tutorials() -> None:
    head = build_head(ResidualHead(dropout=0.3), in_dim=20, out_dim=6, side="image").eval()
    projection, linear, norm = (part for part in head.children() if not isinstance(part, nn.Dropout))
    x = torch.randn(4, 20)
    p = projection(x)
    expected = F.layer_norm(linear(F.gelu(p)) + p, (6,), norm.weight, norm.bias)
    torch.testing.assert_close(head(x), expected)
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.3]


def test_heads_by_kind() -> None:
    assert isinstance(build_head(NoHead(), in_dim=6, out_dim=6, side="text"), nn.Identity)
    assert build_head(LinearHead(bias=True), in_dim=5, out_dim=6, side="text").bias.shape == (6,)
    with pytest.raises(ModelError, match="text encoder gives 5 values") as caught:
        build_head(NoHead(), in_dim=5, out_dim=6, side="text")
    assert "embedding_dim: 5" in caught.value.hint


def test_temperature_is_learned_where_the_loss_says_so() -> None:
    names = {
        "infonce": [name for name, _ in Temperature(InfoNCE()).named_parameters()],
        "fixed": [name for name, _ in Temperature(InfoNCE(learn_temperature=False)).named_parameters()],
        "sigmoid": [name for name, _ in Temperature(Sigmoid()).named_parameters()],
        "soft": [name for name, _ in Temperature(SoftTargets(temperature=2.0)).named_parameters()],
    }
    assert names == {"infonce": ["log_scale"], "fixed": [], "sigmoid": ["log_scale", "bias"], "soft": []}
    assert Temperature(SoftTargets(temperature=2.0)).scale().item() == pytest.approx(0.5)
    temperature = Temperature(InfoNCE(min_temperature=0.02))
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    temperature.clamp()
    assert temperature.log_scale.item() == pytest.approx(math.log(50))


def test_adapters_alone_are_trained(words: FastTokenizer) -> None:
    config = model_config(
        image={"kind": "timm", "name": "vit_tiny_patch16_224"}, lora={"rank": 2, "encoders": ["image_encoder"]}
    )
    torch.manual_seed(0)
    plain = build(words, config.model_copy(update={"lora": None})).eval()
    model = build(words, config).eval()
    load_matching(model, plain.state_dict(), source="plain")
    torch.testing.assert_close(model(images(), words(CAPTIONS)), plain(images(), words(CAPTIONS)))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in trained if name.startswith("image_encoder."))
    assert any(name.startswith("image_encoder.") for name in trained)
    assert any(name.startswith("text_encoder.") for name in trained)
    rebuilt = build(words, config, saved=architecture(model))
    rebuilt.load_state_dict(model.state_dict())


def test_adapters_need_a_linear_layer(words: FastTokenizer) -> None:
    with pytest.raises(ModelError, match="image_encoder has no linear layer"):
        build(words, model_config(lora=LoraConfig(encoders=("image_encoder",)).model_dump()))


def test_a_warm_start_takes_another_loss_but_no_other_model(words: FastTokenizer) -> None:
    source = build(words, loss=Sigmoid())
    target = build(words, loss=InfoNCE())
    load_matching(target, source.state_dict(), source="runs/a")
    assert target.temperature.log_scale.item() == source.temperature.log_scale.item()
    torch.testing.assert_close(target.image_head.state_dict(), source.image_head.state_dict())
    frozen = build(words, model_config(image={"kind": "timm", "name": "resnet10t", "norm": "frozen"}))
    load_matching(frozen, source.state_dict(), source="runs/a")
    with pytest.raises(CheckpointError, match="another model"):
        load_matching(build(words, model_config(embedding_dim=8)), source.state_dict(), source="runs/a")
    with pytest.raises(CheckpointError, match="`runs/a` holds another model"):
        load_matching(build(words, model_config(head={"kind": "residual"})), source.state_dict(), source="runs/a")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256"])
def test_a_warm_start_takes_images_of_another_size(words: FastTokenizer, name: str, tmp_path: Path) -> None:
    config = model_config(image={"kind": "timm", "name": name})
    source = build(words, config)
    target = build(words, config, image_size=96)
    load_matching(target, source.state_dict(), source="runs/a")
    path = tmp_path / "weights.safetensors"
    encoder = timm.create_model(name, img_size=SIZE, num_classes=0)
    encoder.load_state_dict(source.image_encoder.state_dict())
    save_file(encoder.state_dict(), path)
    published = build(words, model_config(image={"kind": "timm", "name": name, "weights": str(path)}), image_size=96)
    torch.testing.assert_close(target.image_encoder.state_dict(), published.image_encoder.state_dict())
    assert target.image_encoder.pos_embed.shape != source.image_encoder.pos_embed.shape
