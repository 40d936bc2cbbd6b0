"""One device or many: a replica on each (DDP) or parameters and optimizer in shards (FSDP2)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from clipkit.errors import TrainingError


class Strategy:
    """A single device. The others differ in how the gradients of the ranks come together."""

    def __init__(self, *, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world

    def prepare(self, model: nn.Module, device: torch.device, *, shards: Sequence[str]) -> None:
        """Lay the parameters out as they will be trained, before the optimizer sees them."""
        model.to(device)
        if device.type != "mps":
            model.to(memory_format=torch.channels_last)

    def wrap(self, piece: nn.Module) -> nn.Module:
        """The module whose forward and backward keep the ranks together."""
        return piece

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around a backward pass: gradients of the ranks are put together in a step's `last` one."""
        return nullcontext()

    def finish_gradients(self) -> None:
        """After a step's last backward pass."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks."""
        return values

    def gathered(self, items: Sequence[str]) -> Sequence[str]:
        """Every rank's items, in the order of ranks."""
        return items

    def whole(self, model: nn.Module) -> AbstractContextManager[object]:
        """Around a validation: the model computes with its weights as they are now, and without the other ranks."""
        return nullcontext()


class Replicas(Strategy):
    """DDP."""

    def wrap(self, piece: nn.Module) -> nn.Module:
        gc.collect()  # an earlier wrapper's hooks go with it
        return DistributedDataParallel(piece, gradient_as_bucket_view=True)

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        assert isinstance(module, DistributedDataParallel)
        return nullcontext() if last else module.no_sync()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        values = values / self.world
        dist.all_reduce(values)
        return values

    def gathered(self, items: Sequence[str]) -> Sequence[str]:
        parts: list[Sequence[str]] = [()] * self.world
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]


class Shards(Replicas):
    """FSDP2: each of the task's shards is gathered when it is used; parameters outside of them are replicated."""

    def __init__(self, *, rank: int, world: int) -> None:
        super().__init__(rank=rank, world=world)
        self._replicated: list[nn.Parameter] = []

    def prepare(self, model: nn.Module, device: torch.device, *, shards: Sequence[str]) -> None:
        model.to(device)
        for param in model.parameters():
            param.data = param.data.contiguous()  # no other layout can be sharded
        mesh = init_device_mesh(device.type, (self.world,))  # by itself FSDP takes a GPU where there is one
        for name in shards:
            module = model.get_submodule(name)
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)
        self._replicated = [param for param in model.parameters() if not isinstance(param, DTensor)]

    def wrap(self, piece: nn.Module) -> nn.Module:
        for module in piece.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a frozen one stays gathered, and would not notice that it is unfrozen
        return piece

    def synced(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        for child in module.modules():
            if isinstance(child, FSDPModule):
                child.set_requires_gradient_sync(last)
        return nullcontext()

    def finish_gradients(self) -> None:
        for param in self._replicated:
            if param.grad is not None:
                param.grad = self.mean(param.grad)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Gathered once, because ranks may have different numbers of batches, and released before a weight changes."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.unshard()
        try:
            yield
        finally:
            for module in shards:
                module.reshard()


@torch.no_grad()
def fill(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole value into a tensor, or this rank's shard of it."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def fill_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a whole state dict, whose names and shapes are known to fit, into a model that may be sharded."""
    for name, target in model.state_dict().items():
        fill(target, state[name])


@contextmanager
def lost_ranks_named(strategy: Strategy, step: int) -> Iterator[None]:
    """Turn the errors of a collective whose other side has gone into one that says so."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if strategy.world == 1 or not _is_about_a_rank(error, text):
            raise
        reason = text.splitlines()[0][:200]
        raise TrainingError(
            f"rank {strategy.rank}: another rank died or stopped answering at step {step} ({reason})",
            "look at what the other ranks logged; then resume with `--resume`, with as many ranks as there are",
        ) from error


def _is_about_a_rank(error: Any, text: str) -> bool:
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
    return isinstance(error, dist.DistError) or any(word in text.lower() for word in words)
