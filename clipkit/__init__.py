"""Train and use image-text models on one Lance dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.opening import Model

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(source: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Model:
    """The model of a run (its `best` or `last` checkpoint, or that of a step) or of a checkpoint folder.

    Raises `clipkit.errors.ClipkitError` if it cannot be opened.
    """
    from clipkit.opening import open_model  # torch takes seconds to import

    return open_model(source, checkpoint=checkpoint, device=device)
