"""A checkpoint is read without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.errors import CheckpointError
from clipkit.runs.checkpoint import TRAIN_STATE, read_train_state


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_train_state_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"optimizer": Trap(tmp_path / "sprung")}, tmp_path / TRAIN_STATE)
    with pytest.raises(CheckpointError, match="is not loaded") as caught:
        read_train_state(tmp_path)
    assert "weights_only" not in caught.value.message
    assert not (tmp_path / "sprung").exists()
