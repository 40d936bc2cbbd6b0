"""The list of keys that `clipkit config` prints."""

from __future__ import annotations

from config_text import CONFIGS

from clipkit.config.file import load_config
from clipkit.config.reference import list_keys


def test_every_key_has_a_meaning() -> None:
    assert [key.path for key in list_keys() if not key.meaning] == []


def test_keys_are_those_that_a_config_has() -> None:
    def walk(values: object, path: str) -> set[str]:
        if not isinstance(values, dict) or path in ("optim.groups", "optim.freeze"):
            return {path}
        return {path, *(found for key, value in values.items() for found in walk(value, f"{path}.{key}".strip(".")))}

    known = {key.path for key in list_keys()}
    shared = tuple(f"{key.path}." for key in list_keys() if "Its keys are those of" in key.meaning)
    for path in CONFIGS:
        used = walk(load_config(path).model_dump(), "") - {""}
        assert {key for key in used if not key.startswith(shared)} <= known


def test_types_and_defaults() -> None:
    keys = {(key.path, key.kind): key for key in list_keys()}
    assert keys["data.image_size", None].type == "whole number >= 1"
    assert keys["data.image_size", None].default == "224"
    assert keys["data.dataset", None].type == "text | null"
    assert keys["data.augment.scale", "random_resized_crop"].default == "[0.6, 1.0]"
    assert keys["data.sources[].weight", None].default == "1.0"
    assert keys["model.image.name", "timm"].default is None
    assert keys["loss", None].default == "kind infonce"
    assert keys["loss.bias", "sigmoid"].type == "number"
    assert keys["optim.groups.NAME.lr", None].type == "number >= 0"
    assert keys["evaluate.NAME.every", "retrieval"].type == "duration | null"
