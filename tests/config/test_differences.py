"""Which differences between two configs a resume can live with, and how they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.config.differences import Difference, find_differences
from clipkit.config.file import load_config


@pytest.fixture
def difference(tmp_path: Path, write_config: Callable[[Path], Path]) -> Callable[[str], Difference]:
    """What one change of the config comes to."""
    file = write_config(tmp_path)

    def find(change: str) -> Difference:
        before, after = load_config(file), load_config(file, [change])
        (found,) = find_differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
        return found

    return find


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.keep_images_mb=0", "data.keep_images_mb: 225 -> 0"),
        ("data.workers=1", "data.workers: null -> 1"),
        ("train.ema=null", "train.ema: {decay: 0.9, warmup: true} -> null"),
        ("optim.freeze=[image_encoder]", "optim.freeze: [] -> [image_encoder]"),
        ("model.text.checkpointing=true", "model.text.checkpointing: false -> true"),
    ],
)
def test_what_changes_neither_the_model_nor_the_order_is_allowed(
    change: str, told: str, difference: Callable[[str], Difference]
) -> None:
    found = difference(change)
    assert (str(found), found.allowed) == (told, True)


@pytest.mark.parametrize(
    "change",
    ["data.caption=first", "data.limit=100", "data.shuffle=false", "data.image_size=40", "optim.kind=adam"],
)
def test_another_order_or_model_is_not(change: str, difference: Callable[[str], Difference]) -> None:
    assert not difference(change).allowed
