"""Parameters find their group, or it is an error; rates and decay go where they belong."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from clipkit.config import Group, OptimConfig
from clipkit.errors import ConfigError
from clipkit.train.optimizer import (
    NamedGroup,
    assign_groups,
    build_optimizer,
    freeze_groups,
    group_norms,
    layer_scales,
    set_rates,
    set_train_mode,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.text_encoder = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))
        self.image_head = nn.Linear(4, 2)
        self.text_head = nn.Linear(4, 2)
        self.temperature = nn.Module()
        self.temperature.log = nn.Parameter(torch.zeros(()))


PATTERNS = {
    "image_encoder": ("image_encoder.*",),
    "text_encoder": ("text_encoder.*",),
    "heads": ("image_head.*", "text_head.*"),
    "temperature": ("temperature.*",),
}
KNOWN = {
    "image_encoder": Group(lr=0.1, weight_decay=0.5),
    "text_encoder": Group(lr=0.2),
    "heads": Group(lr=0.3, weight_decay=0.5),
    "temperature": Group(lr=0.3),
}
OPTIM = OptimConfig(groups=KNOWN)


def groups_of(model: nn.Module, optim: OptimConfig = OPTIM) -> list[NamedGroup]:
    return assign_groups(model.named_parameters(), optim, patterns=PATTERNS)


def test_every_parameter_is_in_the_group_of_its_name() -> None:
    groups = groups_of(Model())
    assert {group.name: sorted(name for name, _ in group.params) for group in groups} == {
        "image_encoder": [
            "image_encoder.0.bias",
            "image_encoder.0.weight",
            "image_encoder.1.bias",
            "image_encoder.1.weight",
        ],
        "text_encoder": ["text_encoder.0.weight", "text_encoder.1.bias", "text_encoder.1.weight"],
        "heads": ["image_head.bias", "image_head.weight", "text_head.bias", "text_head.weight"],
        "temperature": ["temperature.log"],
    }


def test_a_parameter_left_out_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"4 parameters are in no group.*`image_head\.weight`"):
        groups_of(Model(), OptimConfig(groups={name: group for name, group in KNOWN.items() if name != "heads"}))


def test_a_frozen_group_without_parameters_is_an_error() -> None:
    model = Model()
    del model.temperature
    with pytest.raises(ConfigError, match=r"`optim\.freeze` names `temperature`, and no parameter is in that group"):
        groups_of(model, OptimConfig(groups=KNOWN, freeze=("temperature",)))


def test_groups_with_patterns_of_their_own_come_first() -> None:
    norms = Group(lr=1, params=("*_encoder.1.*",))
    groups = groups_of(Model(), OptimConfig(groups={**KNOWN, "norms": norms}))
    assert [name for group in groups if group.name == "norms" for name, _ in group.params] == [
        "image_encoder.1.weight",
        "image_encoder.1.bias",
        "text_encoder.1.weight",
        "text_encoder.1.bias",
    ]


def test_weight_decay_spares_norms_biases_and_the_temperature() -> None:
    model = Model()
    optimizer = build_optimizer(groups_of(model), OPTIM)
    decays = {param: group["weight_decay"] for group in optimizer.param_groups for param in group["params"]}
    assert decays[model.image_encoder[0].weight] == 0.5
    assert decays[model.image_encoder[0].bias] == decays[model.image_encoder[1].weight] == 0
    assert decays[model.temperature.log] == 0


def test_rates_are_peaks_times_the_factor() -> None:
    optimizer = build_optimizer(groups_of(Model()), OPTIM)
    set_rates(optimizer, 0.5)
    assert {group["group"]: group["lr"] for group in optimizer.param_groups} == {
        "image_encoder": 0.05,
        "text_encoder": 0.1,
        "heads": 0.15,
        "temperature": 0.15,
    }


def test_freezing_turns_off_gradients_dropout_and_batch_statistics() -> None:
    model = Model()
    groups = groups_of(model)
    assert freeze_groups(groups, frozenset({"image_encoder"}))
    set_train_mode(model)
    assert not model.image_encoder[0].weight.requires_grad
    assert not model.image_encoder[1].training
    assert not model.image_encoder[2].training
    assert model.text_encoder.training
    assert freeze_groups(groups, frozenset())
    assert model.image_encoder[0].weight.requires_grad
    assert not freeze_groups(groups, frozenset())


def test_what_the_model_itself_freezes_stays_frozen() -> None:
    model = Model()
    model.text_encoder[0].weight.requires_grad_(False)
    groups = groups_of(model)
    freeze_groups(groups, frozenset())
    assert not model.text_encoder[0].weight.requires_grad
    assert next(group.num_fixed for group in groups if group.name == "text_encoder") == 20


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("vit_tiny_patch16_224", "patch_embed.proj.weight", "norm.weight"),
        ("resnet18", "conv1.weight", "layer4.1.conv2.weight"),
        ("convnext_atto", "stem.0.weight", "stages.3.blocks.1.mlp.fc2.weight"),
    ],
)
def test_layer_decay_falls_from_the_last_layer_to_the_first(name: str, lowest: str, highest: str) -> None:
    names = [f"image_encoder.{n}" for n, _ in timm.create_model(name, num_classes=0).named_parameters()]
    scales = layer_scales(names, 0.5)
    assert scales[f"image_encoder.{highest}"] == 1.0
    assert scales[f"image_encoder.{lowest}"] == min(scales.values())
    assert len(set(scales.values())) > 4


def test_a_layer_that_a_known_encoder_numbers_has_its_own_scale() -> None:
    names = ["embeddings.word.weight", "encoder.layer.0.q.weight", "encoder.layer.1.q.weight", "pooler.weight"]
    assert layer_scales(names, 0.1) == pytest.approx(dict(zip(names, [0.01, 0.1, 1.0, 1.0], strict=True)))


def test_norms_are_those_of_all_gradients_of_a_group() -> None:
    model = Model()
    groups = groups_of(model)
    for _, param in groups[0].params:
        param.grad = torch.full_like(param, 2.0)
    norms = group_norms(groups, gradients=True)
    expected = torch.cat([param.grad.flatten() for _, param in groups[0].params]).norm()
    assert norms.tolist() == pytest.approx([expected.item(), 0, 0, 0])
