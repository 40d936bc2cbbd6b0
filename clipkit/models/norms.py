"""BatchNorm's running statistics under activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_statistics_in_recompute(model: nn.Module) -> None:
    """Keep activation checkpointing from counting a batch twice: its second forward runs inside the backward pass."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(_stop_tracking_in_backward)
            # The second forward stops by an exception as soon as it has what it needs: hence `always_call`.
            module.register_forward_hook(_track_again, always_call=True)


def _stop_tracking_in_backward(norm: Any, inputs: Any) -> None:
    in_backward = torch._C._current_graph_task_id() != -1
    if in_backward and norm.training and norm.track_running_stats:
        norm.track_running_stats = False
        norm.stopped_in_backward = True


def _track_again(norm: Any, inputs: Any, output: Any) -> None:
    if norm.__dict__.pop("stopped_in_backward", False):
        norm.track_running_stats = True
