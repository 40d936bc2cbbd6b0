"""Weights of a checkpoint into a model that may differ from the one that wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from clipkit.errors import CheckpointError

OPTIONAL = ("num_batches_tracked",)  # counters that frozen norms do not keep


def load_matching(
    model: nn.Module, weights: Mapping[str, torch.Tensor], *, source: str, may_differ: Sequence[str] = ()
) -> None:
    """Start from these weights, also for images of another size.

    Adapters may be new, and so may tensors whose names contain one of `may_differ`; any other difference is an error.
    """
    own = model.state_dict()
    plain = {name.replace(".base_layer.", "."): name for name in own}  # adapters wrap the layers they go on
    given = {name if name in own else plain.get(name, name): tensor for name, tensor in weights.items()}
    given |= _resampled_positions(model, given)
    missing = [name for name in own if name not in given and ".lora_" not in name]
    odd = [
        name
        for name in [*missing, *(given.keys() - own.keys())]
        if not any(part in name for part in (*OPTIONAL, *may_differ))
    ]
    wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
    if wrong or odd:
        raise CheckpointError(
            f"`{source}` does not fit this model: {len(wrong)} tensors differ in shape and {len(odd)} in name, "
            f"such as `{min(wrong or odd)}`",
            "the `model` section must be that of the checkpoint's own `config.yaml`",
        )
    model.load_state_dict({name: tensor for name, tensor in given.items() if name in own}, strict=False)


def _resampled_positions(model: nn.Module, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Position embeddings of vision transformers for their own image size, as timm resamples published ones."""
    found = {}
    for path, module in model.named_modules():
        name = f"{path}.pos_embed" if path else "pos_embed"
        if isinstance(module, VisionTransformer) and module.pos_embed is not None and name in given:
            num_prefix = 0 if module.no_embed_class else module.num_prefix_tokens
            grid = list(module.patch_embed.grid_size)
            found[name] = resample_abs_pos_embed(given[name], grid, num_prefix_tokens=num_prefix)
    return found
