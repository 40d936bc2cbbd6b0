"""Weights of a checkpoint into a model that may differ from the one that wrote it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from clipkit.errors import CheckpointError

# What the two may differ in: another loss's temperature, counters that frozen norms do not keep.
OPTIONAL = ("temperature.", "num_batches_tracked")


def load_matching(model: nn.Module, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Start from these weights, also for images of another size.

    Fresh adapters and a temperature may be new; any other difference is an error.
    """
    own = model.state_dict()
    plain = {name.replace(".base_layer.", "."): name for name in own}  # adapters wrap the layers they go on
    given = {name if name in own else plain.get(name, name): tensor for name, tensor in weights.items()}
    given |= _resampled_positions(model.get_submodule("image_encoder"), given)
    missing = [name for name in own if name not in given and ".lora_" not in name]
    odd = [name for name in [*missing, *(given.keys() - own.keys())] if not any(part in name for part in OPTIONAL)]
    wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
    if wrong or odd:
        raise CheckpointError(
            f"`{source}` holds another model: {len(wrong)} tensors differ in shape and {len(odd)} in name, "
            f"such as `{min(wrong or odd)}`",
            "it fits the same encoders, heads and `embedding_dim` alone",
        )
    model.load_state_dict({name: tensor for name, tensor in given.items() if name in own}, strict=False)


def _resampled_positions(encoder: nn.Module, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A vision transformer's position embeddings for its own image size, as timm resamples published ones."""
    name = "image_encoder.pos_embed"
    if not isinstance(encoder, VisionTransformer) or encoder.pos_embed is None or name not in given:
        return {}
    num_prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    grid = list(encoder.patch_embed.grid_size)
    return {name: resample_abs_pos_embed(given[name], grid, num_prefix_tokens=num_prefix)}
