"""BatchNorm's running statistics under activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_statistics_in_recompute(model: nn.Module) -> None:
    """Count a batch once under activation checkpointing, whose second forward runs inside the backward pass."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(_freeze_in_backward)
            # The second forward ends with an exception when it has what it needs: hence `always_call`.
            module.register_forward_hook(_unfreeze, always_call=True)


def _freeze_in_backward(norm: Any, inputs: Any) -> None:
    if norm.training and torch._C._current_graph_task_id() != -1:
        norm.saved_momentum, norm.momentum = norm.momentum, 0.0
        norm.num_batches_tracked.sub_(1)


def _unfreeze(norm: Any, inputs: Any, output: Any) -> None:
    if "saved_momentum" in norm.__dict__:
        norm.momentum = norm.__dict__.pop("saved_momentum")
