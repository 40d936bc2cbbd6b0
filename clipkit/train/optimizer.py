"""The optimizer: every parameter is in a named group with its own learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from clipkit.config import Group, OptimConfig
from clipkit.distributed import full
from clipkit.errors import ConfigError

# The numbered layers of timm's and transformers' encoders: `blocks.3`, `layer2.0`, `stages.1.blocks.4`, `layer.11`.
NUMBERED_LAYER = re.compile(r"(?:^|\.)(?:blocks?|layers?|stages|h)\.?(\d+)(?:\.(?:blocks?\.)?(\d+))?\.")


@dataclass(frozen=True, slots=True)
class NamedGroup:
    """A group of the config with the parameters that its patterns match, in the order of the model."""

    name: str
    config: Group
    params: tuple[tuple[str, nn.Parameter], ...]
    num_fixed: int  # elements that the model itself freezes, such as the weights under LoRA

    @property
    def num_params(self) -> int:
        return sum(param.numel() for _, param in self.params)


def assign_groups(
    named_params: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, *, patterns: Mapping[str, Sequence[str]]
) -> list[NamedGroup]:
    """Put every parameter into the first group that matches it; groups with their own `params` come first.

    `patterns` are those of the task's groups. Raises ConfigError for a parameter in no group, and for a group of
    `optim.freeze` without parameters.
    """
    groups = dict(optim.groups) | {name: Group(lr=0.0) for name in optim.freeze if name not in optim.groups}
    ordered = sorted(groups, key=lambda name: not groups[name].params)
    members: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in groups}
    left_out = []
    for name, param in named_params:
        for group in ordered:
            if any(fnmatchcase(name, pattern) for pattern in groups[group].params or patterns[group]):
                members[group].append((name, param))
                break
        else:
            left_out.append(name)
    _check(members, left_out, optim)
    return [
        NamedGroup(
            name,
            groups[name],
            tuple((n, param) for n, param in params if param.requires_grad),
            sum(param.numel() for _, param in params if not param.requires_grad),
        )
        for name, params in members.items()
        if params
    ]


def _check(members: Mapping[str, Sequence[object]], left_out: Sequence[str], optim: OptimConfig) -> None:
    known = ", ".join(f"`{name}`" for name in members)
    if left_out:
        shown = ", ".join(f"`{name}`" for name in left_out[:3]) + (", …" if len(left_out) > 3 else "")
        raise ConfigError(
            f"{len(left_out)} parameters are in no group of `optim.groups`: {shown}",
            f"add a group whose `params` match them; the groups are {known}",
        )
    for name in optim.freeze:
        if not members.get(name):
            raise ConfigError(
                f"`optim.freeze` names `{name}`, and no parameter is in that group", f"the groups are {known}"
            )


def build_optimizer(groups: Sequence[NamedGroup], optim: OptimConfig, *, fused: bool = True) -> Optimizer:
    """AdamW or Adam with a rate per group and layer, and no weight decay on norms, biases and scalars.

    Each of the optimizer's own groups has its `group` name and `peak_lr`; `set_rates` sets its `lr`. A fused optimizer
    skips a step, on the device, if its `found_inf` is set.
    """
    param_groups = []
    for group in groups:
        scales = layer_scales([name for name, _ in group.params], group.config.layer_decay)
        buckets: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, param in group.params:
            decays = param.ndim > 1
            buckets.setdefault((decays, scales[name]), []).append(param)
        for (decays, scale), params in buckets.items():
            param_groups.append(
                {
                    "params": params,
                    "group": group.name,
                    "peak_lr": group.config.lr * scale,
                    "lr": group.config.lr * scale,
                    "weight_decay": group.config.weight_decay if decays else 0.0,
                }
            )
    kind = AdamW if optim.kind == "adamw" else Adam
    return kind(param_groups, betas=optim.betas, eps=optim.eps, fused=fused)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def read_rates(optimizer: Optimizer) -> dict[str, float]:
    """The highest rate of each named group."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rates[group["group"]] = max(rates.get(group["group"], 0.0), float(group["lr"]))
    return rates


def layer_scales(names: Sequence[str], decay: float | None) -> dict[str, float]:
    """The factor of each parameter's rate: `decay` to the power of the number of layers above its own.

    Parameters before the first numbered layer (patch and token embeddings, the stem of a ResNet) form the lowest layer;
    those after the last one (a final norm) belong to the highest.
    """
    if decay is None:
        return dict.fromkeys(names, 1.0)
    keys = {name: _layer_key(name) for name in names}
    order = sorted({key for key in keys.values() if key is not None})
    depths = {key: depth for depth, key in enumerate(order, start=1)}
    scales, seen = {}, False
    for name in names:
        key = keys[name]
        seen = seen or key is not None
        depth = depths[key] if key is not None else (len(order) if seen else 0)
        scales[name] = decay ** (len(order) - depth)
    return scales


def _layer_key(name: str) -> tuple[int, int] | None:
    match = NUMBERED_LAYER.search(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def freeze_groups(groups: Iterable[NamedGroup], frozen: frozenset[str]) -> bool:
    """Freeze these groups and unfreeze all others; whether that changed anything."""
    changed = False
    for group in groups:
        wanted = group.name not in frozen
        for _, param in group.params:
            changed |= param.requires_grad != wanted
            param.requires_grad_(wanted)
    return changed


def set_train_mode(model: nn.Module) -> None:
    """Training mode, except for frozen modules: no dropout there, and BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        params = list(module.parameters())
        if params and not any(param.requires_grad for param in params):
            module.eval()


def group_norms(groups: Sequence[NamedGroup], *, gradients: bool) -> torch.Tensor:
    """L2 norm of the gradients (or weights) of each group: (num_groups,) float32, on the device, without a sync."""
    norms = []
    for group in groups:
        params = [param for _, param in group.params]
        tensors = [param.grad for param in params if param.grad is not None] if gradients else params
        norm = torch.nn.utils.get_total_norm(tensors) if tensors else torch.zeros((), device=params[0].device)
        norms.append(full(norm).float())
    return torch.stack(norms)
