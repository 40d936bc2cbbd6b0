"""Load a checkpoint's weights into a model that may differ from the one that wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from clipkit.errors import CheckpointError

OPTIONAL = "num_batches_tracked"  # frozen norms do not have this counter


def load_matching(
    model: nn.Module, weights: Mapping[str, torch.Tensor], *, source: str, may_differ: Sequence[str] = ()
) -> None:
    """Load these weights; position embeddings are resampled for another image size.

    Adapters may be missing, and tensors whose names contain one of `may_differ` may be missing or extra. Any other
    difference raises CheckpointError.
    """
    own = model.state_dict()
    plain = {name.replace(".base_layer.", "."): name for name in own}  # adapters wrap their layers
    given = {name if name in own else plain.get(name, name): tensor for name, tensor in weights.items()}
    given |= _resampled_positions(model, given)
    missing = [name for name in own if name not in given and ".lora_" not in name]
    unmatched = [
        name
        for name in [*missing, *(given.keys() - own.keys())]
        if not any(part in name for part in (OPTIONAL, *may_differ))
    ]
    wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
    if wrong or unmatched:
        raise CheckpointError(
            f"`{source}` does not fit this model: {len(wrong)} tensors differ in shape and {len(unmatched)} in name, "
            f"such as `{min(wrong or unmatched)}`",
            "use the `model` section of the checkpoint's own `config.yaml`",
        )
    model.load_state_dict({name: tensor for name, tensor in given.items() if name in own}, strict=False)


def _resampled_positions(model: nn.Module, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Position embeddings of vision transformers, resampled by timm to the model's image size."""
    found = {}
    for path, module in model.named_modules():
        name = f"{path}.pos_embed" if path else "pos_embed"
        if isinstance(module, VisionTransformer) and module.pos_embed is not None and name in given:
            num_prefix = 0 if module.no_embed_class else module.num_prefix_tokens
            grid = list(module.patch_embed.grid_size)
            found[name] = resample_abs_pos_embed(given[name], grid, num_prefix_tokens=num_prefix)
    return found
