"""Which layer of its encoder a parameter belongs to, for layer-wise learning rates."""

from __future__ import annotations

import re
from typing import Any

from timm.models import group_parameters

from clipkit.errors import ModelError
from clipkit.models.texts import TextEncoder

BLOCK = re.compile(r"\.(?:layer|layers|h|block|blocks)\.(\d+)\.")
EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b")


def layer_ids(encoder: Any) -> dict[str, int]:
    """Each parameter's layer, from 0 (next to the input) upwards; the highest is next to the head."""
    if isinstance(encoder, TextEncoder):
        return _text_layers(encoder)
    if not hasattr(encoder, "group_matcher"):
        raise ModelError(
            "this encoder does not say which layers its parameters are in",
            "leave `layer_decay` out of its group",
        )
    ids = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)
    return {name: int(layer) for name, layer in ids.items()}


def _text_layers(encoder: TextEncoder) -> dict[str, int]:
    """Embeddings are layer 0, the N blocks 1 to N, and what comes after them N + 1."""
    names = [name for name, _ in encoder.named_parameters()]
    blocks = {name: int(match[1]) + 1 for name in names if (match := BLOCK.search(f".{name}"))}
    last = max(blocks.values(), default=0) + 1
    return {name: blocks.get(name, 0 if EMBEDDING.search(name) else last) for name in names}
