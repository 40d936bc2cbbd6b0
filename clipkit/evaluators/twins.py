"""Retrieval among images and their twins, whose captions have the same words in another arrangement.

Shapes: N images, M captions, D the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.metrics.retrieval import pair_accuracy, retrieval
from clipkit.store import Dataset, Rows

TWIN_OF, TWIN_KIND, NO_KIND = "twin_of", "twin_kind", "any"


def measure_twins(
    dataset: Dataset, rows: Rows, *, image_ND: Tensor, text_MD: Tensor, owner_M: Tensor
) -> dict[str, Any]:
    """If images have twins: retrieval among the originals, and how often a caption picks its image of the two."""
    names = set(dataset.schema.names)
    if TWIN_OF not in names:
        return {}
    ids, originals = (column.to_pylist() for column in dataset.take(rows, [dataset.columns.image_id, TWIN_OF]).columns)
    kinds = dataset.take(rows, [TWIN_KIND]).column(0).to_pylist() if TWIN_KIND in names else [None] * len(rows)
    positions = {image_id: position for position, image_id in enumerate(ids)}
    pairs: dict[str, list[tuple[int, int]]] = {}
    for twin, (original, kind) in enumerate(zip(originals, kinds, strict=True)):
        if original in positions:
            pairs.setdefault(kind or NO_KIND, []).append((positions[original], twin))
    is_original_N = torch.tensor([original is None for original in originals], device=owner_M.device)
    found: dict[str, Any] = {
        "twins": {
            kind: {
                "num_pairs": len(of_kind),
                "accuracy": pair_accuracy(image_ND, text_MD, owner_M, torch.tensor(of_kind)),
            }
            for kind, of_kind in sorted(pairs.items())
        }
    }
    captioned_M = is_original_N[owner_M]
    if captioned_M.any():
        new_position_N = is_original_N.cumsum(0) - 1
        found["without_twins"] = {
            "num_images": int(is_original_N.sum()),
            **retrieval(image_ND[is_original_N], text_MD[captioned_M], new_position_N[owner_M[captioned_M]]),
        }
    return found
