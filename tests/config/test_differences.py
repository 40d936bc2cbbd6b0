"""Which differences between two configs a resume can live with."""

from __future__ import annotations

import pytest
from config_text import SMALL, parse

from clipkit.config.differences import Difference, find_differences


def difference(change: str) -> Difference:
    before, after = parse(SMALL), parse(SMALL, change)
    (found,) = find_differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
    return found


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("data.keep_images_mb=0", "data.keep_images_mb: 225 -> 0"),
        ("data.workers=1", "data.workers: null -> 1"),
        ("train.ema={decay: 0.9}", "train.ema: null -> {decay: 0.9, warmup: true}"),
        ("optim.freeze=[image_encoder]", "optim.freeze: [] -> [image_encoder]"),
        ("model.text.checkpointing=true", "model.text.checkpointing: false -> true"),
        (
            "evaluate.dev={kind: retrieval}",
            "evaluate.dev: null -> {dataset: null, where: null, every: 1ep, kind: retrieval}",
        ),
    ],
)
def test_what_changes_neither_the_model_nor_the_order_is_allowed(change: str, shown: str) -> None:
    found = difference(change)
    assert (str(found), found.allowed) == (shown, True)


@pytest.mark.parametrize(
    "change",
    ["data.caption=first", "data.limit=100", "data.shuffle=false", "data.resize=pad", "optim.kind=adam"],
)
def test_another_order_or_model_is_not(change: str) -> None:
    assert not difference(change).allowed


def test_plugins_may_differ_and_the_task_may_not() -> None:
    before = {"plugins": ["a"], "task": {"kind": "contrastive"}}
    after = {"plugins": ["b"], "task": {"kind": "tags"}}
    assert [found.allowed for found in find_differences(before, after)] == [True, False]
