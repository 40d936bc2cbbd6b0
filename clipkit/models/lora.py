"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through `peft`, injected in place."""

from __future__ import annotations

from torch import nn

from clipkit.config import LoraConfig
from clipkit.errors import MissingExtra, ModelError


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Add adapters to the linear layers of the configured encoders, and freeze the rest of these encoders."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtra("peft", "lora", "`model.lora`") from error

    for name in config.encoders:
        encoder = model.get_submodule(name)
        linear = [path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ModelError(
                f"`model.lora`: the {name} has no linear layer to adapt",
                "list only the other encoder in `model.lora.encoders`",
            )
        adapters = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=linear
        )
        peft.inject_adapter_in_model(adapters, encoder)
        for path, parameter in encoder.named_parameters():
            parameter.requires_grad_("lora_" in path)
